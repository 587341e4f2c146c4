"""The stages recover and control: a plain sparse model with provenance, resumable, the same each time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paser.artifacts import file_digests, read_jsonl, sha256_path, write_jsonl
from paser.errors import StageError
from paser.recovery.objective import Objective
from paser.stages.run import run_stage

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PASER_CACHE_DIR", raising=False)


def test_the_recovered_model_keeps_the_zeros_and_loads_plainly(project: Make) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from paser.models.sparsity import same_zeros

    root = project()
    run_stage("recover", root)
    pruned, recovered = root / "data/models/pruned", root / "data/models/recovered"
    assert same_zeros(pruned, recovered) == []
    model = AutoModelForCausalLM.from_pretrained(recovered)
    AutoTokenizer.from_pretrained(recovered)
    before = AutoModelForCausalLM.from_pretrained(pruned)
    assert model.dtype == before.dtype == torch.float32
    assert json.loads((recovered / "config.json").read_text()) == json.loads(
        (pruned / "config.json").read_text()
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(model.state_dict()[name], before.state_dict()[name])
    assert torch.equal(model.model.embed_tokens.weight, before.model.embed_tokens.weight)


def test_provenance_is_written_last_and_covers_rows_and_inputs(project: Make) -> None:
    root = project()
    record = run_stage("recover", root)
    recovered = root / "data/models/recovered"
    provenance = json.loads((recovered / "provenance.json").read_text())
    rows = read_jsonl(root / "data/selected.jsonl")
    assert provenance["role"] == "recovered"
    assert provenance["row_ids"] == [row["row_id"] for row in rows]
    assert provenance["inputs"] == {
        path: sha256_path(root / path) for path in ("data/models/pruned", "data/selected.jsonl")
    }
    files = file_digests(recovered)
    files.pop("provenance.json")
    assert provenance["files"] == files
    assert {"adapter/adapter_model.safetensors", "model.safetensors"} <= set(files)
    assert record["facts"]["sparsity"]["overall"] == pytest.approx(0.5, abs=0.01)
    assert record["facts"]["dtype"] == "float32"
    for path in recovered.rglob("*.json"):
        assert str(root) not in path.read_text()


def test_two_runs_write_the_same_bytes_and_leave_no_checkpoint(project: Make) -> None:
    root = project()
    run_stage("recover", root)
    first = file_digests(root / "data/models/recovered")
    assert not any((root / ".paser/cache/recover").iterdir())
    run_stage("recover", root)
    assert file_digests(root / "data/models/recovered") == first


def test_a_stage_killed_in_training_goes_on_where_it_was(
    project: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project()
    run_stage("recover", root)
    expected = file_digests(root / "data/models/recovered")
    calls, original = 0, Objective.sums

    def killing(self: Objective, model: Any, rows: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(self, model, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "sums", killing)
        with pytest.raises(KeyboardInterrupt):
            run_stage("recover", root)
    assert not list((root / "data/models").glob("*.partial-*"))
    capsys.readouterr()
    run_stage("recover", root)
    assert "resuming after 6 of 12 rows" in capsys.readouterr().err
    assert file_digests(root / "data/models/recovered") == expected


def test_control_trains_on_its_own_rows(project: Make) -> None:
    root = project()
    run_stage("control", root)
    provenance = json.loads((root / "data/models/control/provenance.json").read_text())
    assert provenance["role"] == "control"
    assert provenance["row_ids"] == [row["row_id"] for row in read_jsonl(root / "data/control.jsonl")]


def test_a_control_that_is_switched_off_leaves_a_note_only(project: Make) -> None:
    root = project(control={"enabled": False})
    run_stage("control", root)
    assert file_digests(root / "data/models/control").keys() == {"note.json"}
    note = json.loads((root / "data/models/control/note.json").read_text())
    assert note == {"note": "control.enabled is false"}


def test_an_empty_selection_is_a_clear_error(project: Make) -> None:
    root = project(rows=0)
    with pytest.raises(StageError, match=r"data/selected.jsonl is empty.*\n.*select.budget"):
        run_stage("recover", root)


def test_an_altered_row_names_its_line(project: Make) -> None:
    root = project()
    rows = read_jsonl(root / "data/selected.jsonl")
    rows[2]["output"] += "!"
    write_jsonl(root / "data/selected.jsonl", rows)
    with pytest.raises(StageError, match=r"data/selected.jsonl, line 3.*altered"):
        run_stage("recover", root)
