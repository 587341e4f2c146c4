"""The audit of a real, tiny pipeline: what dvc.lock alone would not tell, decisions made again, a model
trained again."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from paser.artifacts import read_array, read_json, read_rows, write_array, write_json, write_table
from paser.errors import PaserError, StageError
from paser.lineage.deep import follows
from paser.lineage.reproduce import reproduce
from paser.lineage.verify import Check, verify
from paser.stages.run import run_stage
from tests import project as projects

MODEL = "data/models/recovered"


@pytest.fixture
def copy(after_repro: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(after_repro, tmp_path / "p", symlinks=True))


def failures(project: Path, **more: Any) -> list[Check]:
    return [check for check in verify(project / MODEL, **more) if not check.ok]


def test_a_real_run_verifies_with_its_lock_and_its_decisions_follow(after_repro: Path) -> None:
    assert failures(after_repro, deep=True) == []
    names = {check.name for check in verify(after_repro / MODEL, deep=True) if check.applies}
    assert {f"dvc.lock, stage {stage}" for stage in ("fetch", "select", "recover", "report")} <= names
    assert "decisions follow from scores, clusters and settings" in names


def test_the_decisions_of_coverage_follow_from_the_embeddings(copy: Path) -> None:
    settings = yaml.safe_load((copy / "params.yaml").read_text("utf-8"))
    settings["select"]["selector"] = "recoverable-coverage"
    (copy / "params.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    record = run_stage("select", copy)
    assert read_json(copy / "data/budget.json")["order"] == "coverage"
    found = follows(record, copy / "data", lambda path: copy / path)
    assert [one.problem for one in found] == [None] * 5
    points = read_array(copy / "data/embeddings.npy")
    write_array(copy / "data/embeddings.npy", points[::-1].copy())
    assert "decisions.parquet" in str(follows(record, copy / "data", lambda path: copy / path)[0].problem)
    write_array(copy / "data/embeddings.npy", points[1:].copy())
    with pytest.raises(StageError, match=r"embeddings\.npy has \d+ rows, the pool"):
        run_stage("select", copy)


def test_every_digest_of_dvc_for_code_and_data_is_computed_as_dvc_does(after_repro: Path) -> None:
    """Code was compared too, so MD5s of folders and files agree with DVC's own in both."""
    details = [c.detail for c in verify(after_repro / MODEL) if c.name.startswith("dvc.lock, stage")]
    assert len(details) == 12
    assert not any("its code has changed" in detail for detail in details)


def test_outputs_of_somebody_else_that_dvc_commit_accepted_are_detected(copy: Path) -> None:
    """`dvc commit -f` takes foreign rows for the stage's own; `dvc status` is then content."""
    path = copy / "data/selected.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[1:] + lines[:1]), "utf-8")
    projects.run(copy, "dvc", "commit", "-f", "-q", "select", "recover", "control", "audit")
    assert json.loads(projects.run(copy, "dvc", "status", "--json", "select").stdout or "{}") == {}
    details = [check.detail for check in failures(copy)]
    assert any(
        "dvc.lock vouches for data/selected.jsonl" in d and "something else wrote it" in d for d in details
    )
    assert any(d.startswith("data/selected.jsonl: recorded") for d in details)


def test_weights_of_somebody_else_that_dvc_commit_accepted_are_detected(copy: Path) -> None:
    weights = next((copy / MODEL).glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    projects.run(copy, "dvc", "commit", "-f", "-q", "recover", "evaluate", "audit")
    assert any("dvc.lock vouches for data/models/recovered" in c.detail for c in failures(copy))


def test_a_dependency_edited_during_the_run_fails_the_stage(copy: Path) -> None:
    """DVC would take the digest after the command, of a file that the command never read."""
    edit = "import pathlib; p = pathlib.Path('data/withdrawn.csv'); p.write_text(p.read_text() + '\\n')"
    stage, head = copy / "paser/stages/pool.py", "def run(context: Context) -> None:\n"
    text = stage.read_text("utf-8").replace(head, f"{head}    exec({edit!r})\n")
    stage.write_text(text, "utf-8")
    failed = subprocess.run(
        ["dvc", "repro", "-s", "pool"],
        cwd=copy,
        env=projects.ENVIRONMENT | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode
    assert "data/withdrawn.csv changed while stage pool ran" in failed.stderr


def test_a_dependency_edited_between_the_run_and_dvcs_look_at_it_is_detected(copy: Path) -> None:
    """The edit comes after the stage has checked its inputs, so DVC locks bytes that nobody read."""
    dvc = yaml.safe_load((copy / "dvc.yaml").read_text("utf-8"))
    dvc["stages"]["pool"]["cmd"] = ["paser stage pool", "echo >> data/withdrawn.csv"]
    (copy / "dvc.yaml").write_text(yaml.safe_dump(dvc, sort_keys=False), "utf-8")
    projects.run(copy, "dvc", "repro", "-s", "pool")
    lock = yaml.safe_load((copy / "dvc.lock").read_text("utf-8"))
    assert json.loads(projects.run(copy, "dvc", "status", "--json", "pool").stdout or "{}") == {}
    lock["stages"]["pool"]["cmd"] = "paser stage pool"
    (copy / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False), "utf-8")
    details = [check.detail for check in failures(copy)]
    assert any(
        "dvc.lock vouches for data/withdrawn.csv" in d and "edited during the run" in d for d in details
    )


def forge(copy: Path, change: Callable[[list[dict[str, Any]]], None]) -> list[Check]:
    """Decisions altered together with every digest that names them: only --deep can tell."""
    for path in (copy / "data/decisions.parquet", copy / "data/audit/decisions.parquet"):
        rows = read_rows(path, "decisions")
        change(rows)
        write_table(path, "decisions", rows)
    return [c for c in failures(copy, deep=True) if "follow" in c.name and "entry" not in c.name]


def test_deep_finds_a_row_that_was_let_in_although_another_ranks_higher(copy: Path) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        accepted = next(row for row in rows if row["decision"] == "accepted")
        rejected = next(row for row in rows if row["decision"] == "rejected")
        keys = ("decision", "reason", "detail")
        for key in keys:
            accepted[key], rejected[key] = rejected[key], accepted[key]

    found = {check.name: check.detail for check in forge(copy, change)}
    assert "decisions follow from scores, clusters and settings" in found
    assert "selection follows from the decisions" in found
    assert "decisions.parquet, row" in found["decisions follow from scores, clusters and settings"]


@pytest.mark.parametrize(
    ("file", "key", "name"),
    [
        ("data/audit/budget.json", "spent", "budget follows from scores and settings"),
        ("data/contamination.json", "overlapping", "contamination follows from pool and evaluation"),
    ],
)
def test_deep_finds_a_number_that_was_made_up(copy: Path, file: str, key: str, name: str) -> None:
    path = copy / file
    content = read_json(path)
    content[key] += 1
    write_json(path, content)
    found = {check.name: check.detail for check in failures(copy, deep=True)}
    assert f"{path.name}: {key} is" in found[name]


def test_a_model_trained_again_has_the_same_bytes(after_repro: Path, tmp_path: Path) -> None:
    mine = tmp_path / "again.cache" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine", "utf-8")
    found = reproduce(after_repro / MODEL, tmp_path / "again")
    assert found.same
    assert {"model.safetensors", "adapter/adapter_model.safetensors"} <= {file.file for file in found.files}
    assert found.differences == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "again.cache"]
    assert mine.read_text("utf-8") == "mine"
    control = reproduce(after_repro / "data/models/control", tmp_path / "control")
    assert control.same
    assert control.stage == "control"


def test_other_weights_are_told_with_how_far_they_are_off(copy: Path, tmp_path: Path) -> None:
    """Weights that no training on the recorded rows gives, with records rewritten to match them."""
    from safetensors.torch import load_file, save_file

    from paser.artifacts import sha256_file

    weights = copy / MODEL / "model.safetensors"
    tensors = load_file(weights)
    name = next(n for n in sorted(tensors) if "norm" in n)
    tensors[name] = tensors[name] + 0.25
    save_file(tensors, weights, metadata={"format": "pt"})
    provenance = read_json(copy / MODEL / "provenance.json")
    provenance["files"]["model.safetensors"] = sha256_file(weights)
    write_json(copy / MODEL / "provenance.json", provenance)
    path = copy / "data/audit/records/recover.json"
    record = read_json(path)
    record["outputs"][0]["files"]["provenance.json"] = sha256_file(copy / MODEL / "provenance.json")
    write_json(path, record)
    found = reproduce(copy / MODEL, tmp_path / "again")
    assert [file.file for file in found.files if not file.same] == ["model.safetensors"]
    assert found.largest_change == pytest.approx(0.25, abs=1e-6)


def test_what_is_not_as_recorded_is_named_and_foreign_inputs_are_refused(copy: Path, tmp_path: Path) -> None:
    params = copy / "params.yaml"
    params.write_text(params.read_text("utf-8").replace("rank: 8", "rank: 4"), "utf-8")
    found = reproduce(copy / MODEL, tmp_path / "again")
    assert found.same
    assert any("recover.rank is 4" in difference for difference in found.differences)
    (copy / "data/selected.jsonl").write_text("", "utf-8")
    with pytest.raises(PaserError, match="data/selected.jsonl is not what stage recover read"):
        reproduce(copy / MODEL, tmp_path / "third")
