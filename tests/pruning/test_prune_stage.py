"""The prune stage: two plain bfloat16 models on disk, and an honest record of the sparsity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from paser.artifacts import file_digests
from paser.errors import StageError
from paser.pruning.achieved import check_zeros
from paser.settings import PruneSettings
from tests import project as projects


@pytest.fixture(scope="module")
def project(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    projects.make_prune_inputs(root, llama)
    settings: dict[str, Any] = {"model": {"precision": "float32"}, "runtime": {"threads": 1}}
    (root / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def record(project: Path) -> dict[str, Any]:
    from paser.stages.run import run_stage

    return run_stage("prune", project)


def test_the_record_says_what_was_achieved(project: Path, record: dict[str, Any]) -> None:
    facts = json.loads((project / "data/records/prune.json").read_text())["facts"]
    assert facts["sparsity"] == {
        "overall": 0.5, "lowest_layer": 0.5, "highest_layer": 0.5, "layers": 14, "pattern": "unstructured",
    }  # fmt: skip
    assert facts["calibration_samples"] == 8
    assert facts["dtype"] == "float32"


def test_the_saved_original_gives_the_logits_of_the_source(project: Path, record: dict[str, Any]) -> None:
    import torch

    from paser.models.loading import load_causal_lm, model_directory

    ids = torch.arange(5, 45)[None]
    source = load_causal_lm(model_directory(project / "data/sources/original"), dtype=torch.bfloat16)
    saved = load_causal_lm(project / "data/models/original", dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(source(ids).logits, saved(ids).logits)


def test_models_are_plain_bfloat16_safetensors_that_name_no_path(
    project: Path, record: dict[str, Any]
) -> None:
    from safetensors import safe_open

    for name in ("original", "pruned"):
        folder = project / "data/models" / name
        with safe_open(folder / "model.safetensors", framework="pt") as stream:
            assert {str(stream.get_tensor(key).dtype) for key in stream.keys()} == {"torch.bfloat16"}  # noqa: SIM118
        for path in folder.glob("*.json"):
            assert str(project) not in path.read_text()
            assert "partial" not in path.read_text()
        assert not [p for p in folder.iterdir() if "recipe" in p.name]


def test_a_second_run_writes_the_same_bytes(project: Path, record: dict[str, Any]) -> None:
    from paser.stages.run import run_stage

    before = file_digests(project / "data/models")
    again = run_stage("prune", project)
    assert file_digests(project / "data/models") == before
    assert again == record


def test_a_missed_sparsity_fails_with_both_numbers(project: Path, record: dict[str, Any]) -> None:
    from paser.models.sparsity import measure

    measured = measure(project / "data/models/pruned")
    check_zeros(measured, PruneSettings(sparsity=0.505))
    with pytest.raises(StageError, match=r"60.0%.*50.0%"):
        check_zeros(measured, PruneSettings(sparsity=0.6))
    with pytest.raises(StageError, match=r"2:4, but 14 layers do not keep it"):
        check_zeros(measured, PruneSettings(pattern="2:4"))
