"""A pruned model from outside: one line in params.yaml, checked, and in place of pruning."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from paser.artifacts import read_json, write_table
from paser.errors import PaserError
from paser.stages.run import run_stage
from tests import tiny

LIST = """
sources:
  - {name: big, uri: "file:big", role: original}
  - {name: mini, uri: "file:mini", role: encoder}
  - {name: rows, uri: "file:rows.jsonl", role: pool, license: MIT}
  - {name: few, uri: "file:rows.jsonl", role: calibration, license: MIT}
"""


@pytest.fixture
def project(llama: Path, sparse_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PASER_CACHE_DIR", raising=False)
    raw = tmp_path / "data/raw"
    shutil.copytree(llama, raw / "big")
    shutil.copytree(llama, raw / "mini")
    shutil.copytree(sparse_llama, raw / "theirs")
    tiny.write_jsonl(raw / "rows.jsonl", tiny.rows(6))
    (tmp_path / "data/sources.yaml").write_text(LIST)
    write_table(tmp_path / "data/calibration.parquet", "pool", [])
    write_params(tmp_path, external="file:theirs")
    return tmp_path


def write_params(project: Path, **prune: Any) -> None:
    settings = {"prune": prune, "model": {"precision": "float32"}, "runtime": {"threads": 1}}
    (project / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


def edit_weights(folder: Path, edit: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


def test_without_one_there_is_a_note_alone(project: Path) -> None:
    write_params(project)
    run_stage("fetch", project)
    folder = project / "data/sources/pruned"
    assert [path.name for path in folder.iterdir()] == ["note.json"]
    assert "prune.external is null" in read_json(folder / "note.json")["note"]


def test_the_given_model_takes_the_place_of_pruning(project: Path, sparse_llama: Path) -> None:
    import torch

    from paser.models.loading import load_causal_lm

    fetched = run_stage("fetch", project)
    assert fetched["params"]["prune.external"] == "file:theirs"
    assert fetched["facts"]["external"].startswith("sha256:")
    facts = run_stage("prune", project)["facts"]
    assert facts["scheme"] == "external"
    assert facts["sparsity"]["overall"] == pytest.approx(0.5, abs=0.01)
    assert facts["removed"]["share"] == 0.0
    found = load_causal_lm(project / "data/models/pruned", dtype=torch.bfloat16).state_dict()
    expected = load_causal_lm(sparse_llama, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_two_runs_leave_the_same_bytes(project: Path) -> None:
    first = [run_stage(name, project)["outputs"] for name in ("fetch", "prune")]
    assert [run_stage(name, project)["outputs"] for name in ("fetch", "prune")] == first


def test_a_folder_without_tokenizer_is_taken_with_the_originals(project: Path) -> None:
    for path in (project / "data/raw/theirs").glob("*token*"):
        path.unlink()
    run_stage("fetch", project)
    run_stage("prune", project)
    assert (project / "data/models/pruned/tokenizer.json").exists()


def refuse(project: Path, message: str) -> None:
    run_stage("fetch", project)
    with pytest.raises(PaserError, match=message):
        run_stage("prune", project)
    assert not (project / "data/models/pruned").exists()


def test_another_vocabulary_size_is_refused(project: Path) -> None:
    shutil.rmtree(project / "data/raw/theirs")
    larger = tiny.make_tokenizer()
    larger.add_tokens(["otter-like"])
    tiny.make_llama(project / "data/raw/theirs", tokenizer=larger)
    refuse(project, "knows 601 tokens, the original 600")


def test_a_tokenizer_that_numbers_tokens_otherwise_is_refused(project: Path) -> None:
    path = project / "data/raw/theirs/tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = [token for token in vocabulary if token.isalpha()][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    refuse(project, "tokenizer is not the original's: 2 tokens have other numbers")


def test_another_architecture_is_refused(project: Path) -> None:
    edit_config(project / "data/raw/theirs", model_type="mistral", architectures=["MistralForCausalLM"])
    refuse(project, "has the architecture mistral, the original llama")


def test_weights_that_are_not_finite_are_refused(project: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    edit_weights(project / "data/raw/theirs", lambda tensors: tensors[name][0].fill_(math.nan))
    refuse(project, f"the weight {name} holds numbers that are not finite")


def test_a_path_outside_of_raw_is_refused(project: Path) -> None:
    write_params(project, external="file:../../elsewhere")
    with pytest.raises(PaserError, match="lies outside"):
        run_stage("fetch", project)


def test_a_uri_of_no_known_kind_is_refused(project: Path) -> None:
    write_params(project, external="s3:bucket")
    with pytest.raises(PaserError, match=r"s3"):
        run_stage("fetch", project)
