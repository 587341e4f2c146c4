from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synthetic_project
from rich.console import Console

from paser.artifacts import (
    read_json,
    read_jsonl,
    read_rows,
    sha256_file,
    write_json,
    write_jsonl,
    write_table,
)
from paser.export import export_model
from paser.lineage.entry import Entry
from paser.lineage.verify import Check, as_json, passed, render, verify, verify_folder
from paser.stages.run import run_stage
from tests import project as projects

MODEL = "data/models/recovered"


def failures(project: Path, model: str = MODEL) -> list[Check]:
    return [check for check in verify(project / model) if not check.ok]


def test_no_false_alarm_on_an_untouched_project(finished: Path) -> None:
    assert failures(finished) == []
    assert as_json(verify(finished / MODEL))["ok"] is True


def test_no_false_alarm_when_the_project_was_moved(finished: Path, tmp_path: Path) -> None:
    assert failures(Path(shutil.copytree(finished, tmp_path / "else where"))) == []


def test_every_flipped_byte_is_detected(project: Path) -> None:
    """Bytes at random places of every recorded file, the records and the entry."""
    random.seed(5)
    data = project / "data"
    files = [p for p in sorted(data.rglob("*")) if p.is_file() and not p.name.endswith(".run.json")]
    # The record of audit is the end of the chain: nothing recorded its digest.
    files.remove(data / "records" / "audit.json")
    missed = []
    for path in files:
        content = path.read_bytes()
        for _ in range(3):
            position, change = random.randrange(len(content)), random.randrange(1, 256)
            altered = bytearray(content)
            altered[position] ^= change
            path.write_bytes(bytes(altered))
            if not failures(project):
                missed.append((path.relative_to(data).as_posix(), position, change))
        path.write_bytes(content)
    assert missed == []
    assert failures(project) == []


def test_every_flipped_byte_of_a_copied_entry_is_detected(finished: Path, tmp_path: Path) -> None:
    """Outside its project nothing holds a digest of `entry.json`, yet it must follow from the rest."""
    random.seed(11)
    entry = Path(shutil.copytree(finished / "data/audit", tmp_path / "entry"))
    path = entry / "entry.json"
    content = path.read_bytes()
    missed = []
    for _ in range(60):
        position, change = random.randrange(len(content)), random.randrange(1, 256)
        altered = bytearray(content)
        altered[position] ^= change
        path.write_bytes(bytes(altered))
        if passed(verify(finished / MODEL, entry)):
            missed.append((position, change))
    assert missed == []


@pytest.mark.parametrize("path", ["model.safetensors", "config.json", "provenance.json"])
def test_a_missing_model_file_names_dvc_checkout(project: Path, path: str) -> None:
    (project / MODEL / path).unlink()
    text = " ".join(check.detail for check in failures(project))
    assert path in text
    assert "dvc checkout" in text


def test_a_file_added_to_the_model_is_detected(project: Path) -> None:
    (project / MODEL / "adapter.bin").write_bytes(b"x")
    assert any("adapter.bin was added" in check.detail for check in failures(project))


@pytest.mark.parametrize("whole", [False, True], ids=["an empty entry", "a copy of the entry"])
def test_an_entry_planted_inside_a_model_hides_nothing(project: Path, tmp_path: Path, whole: bool) -> None:
    """Neither what lies beside it, nor the project around the model, nor a model that was copied away."""
    planted = project / MODEL / "audit"
    if whole:
        shutil.copytree(project / "data/audit", planted)
    else:
        planted.mkdir()
        (planted / "entry.json").write_text("{}", "utf-8")
    (planted / "payload.py").write_text("import os", "utf-8")
    (project / MODEL / "README.md").write_text("Better than the original.", "utf-8")
    (project / "data/pool.parquet").write_bytes(b"other")
    details = [check.detail for check in failures(project)]
    for name in ("audit/entry.json", "audit/payload.py", "README.md"):
        assert any(f"{MODEL}/{name} was added" in detail for detail in details), name
    assert any(detail.startswith("data/pool.parquet: recorded") for detail in details)
    away = Path(shutil.copytree(project / MODEL, tmp_path / "away"))
    details = [check.detail for check in verify(away, project / "data/audit") if not check.ok]
    assert any("audit/payload.py was added" in detail for detail in details)


def test_a_link_to_a_folder_in_a_model_is_one_failed_check(project: Path, tmp_path: Path) -> None:
    """And the rest is checked all the same."""
    (project / MODEL / "more").symlink_to(tmp_path, target_is_directory=True)
    (project / "data/pool.parquet").write_bytes(b"other")
    details = [check.detail for check in failures(project)]
    assert any("more is a link to a folder" in detail for detail in details)
    assert any(detail.startswith("data/pool.parquet: recorded") for detail in details)


@pytest.fixture(params=[False, True], ids=["without a README", "with its own README"])
def exported(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export of a model, which may have a README.md of its own, as structured models do."""
    if request.param:
        weights = synthetic_project._weights

        def with_readme(folder: Path, rng: Any) -> None:
            weights(folder, rng)
            (folder / "README.md").write_text("Load it with PASER.\n", "utf-8")

        monkeypatch.setattr(synthetic_project, "_weights", with_readme)
    root = synthetic_project.build(tmp_path / "project", per_label=3)
    run_stage("audit", root)
    export_model(root / MODEL, tmp_path / "away" / "export")
    return tmp_path / "away" / "export"


def test_no_false_alarm_on_an_export(exported: Path) -> None:
    assert [check for check in verify(exported) if not check.ok] == []
    assert [check for check in verify_folder(exported) if not check.ok] == []
    assert any(check.name == "README.md follows from the entry" for check in verify(exported))


def test_nothing_in_an_export_is_unchecked(exported: Path) -> None:
    """The card, the entry and what is added to it; also where the entry that is given is another one."""
    entry = shutil.copytree(exported / "audit", exported.parent / "entry")
    assert any("audit/entry.json was added" in c.detail for c in verify(exported, entry) if not c.ok)
    for name in sorted(p.relative_to(exported).as_posix() for p in exported.rglob("*") if p.is_file()):
        content = (exported / name).read_bytes()
        (exported / name).write_bytes(content + b"\n")
        for checks in (verify(exported), verify_folder(exported)):
            assert any(name.rpartition("/")[2] in c.detail for c in checks if not c.ok), name
        (exported / name).write_bytes(content)
    (exported / "audit/more.txt").write_text("more", "utf-8")
    assert any("audit/more.txt was added" in c.detail for c in verify(exported) if not c.ok)


def test_a_missing_output_names_dvc_checkout_and_the_rest_is_still_checked(project: Path) -> None:
    (project / "data/embeddings.npy").unlink()
    (project / "data/pool.parquet").write_bytes(b"other")
    details = [check.detail for check in failures(project)]
    assert any("data/embeddings.npy is missing" in d and "dvc checkout" in d for d in details)
    assert any(d.startswith("data/pool.parquet: recorded") for d in details)


def test_a_failure_names_the_file_and_both_digests(project: Path) -> None:
    path = project / MODEL / "model.safetensors"
    recorded = sha256_file(path)
    path.write_bytes(b"other weights")
    console = Console(file=io.StringIO(), width=100)
    checks = verify(project / MODEL)
    render(checks, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert not passed(checks)
    assert "FAILED" in text
    assert f"model.safetensors: recorded {recorded}, found {sha256_file(path)}" in text


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_that_is_not_utf_8_is_answered_too(project: Path, encoding: str) -> None:
    (project / MODEL / "ж é.txt").write_text("added", "utf-8")

    def answer(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "paser", "audit", "verify", MODEL, *words],
            cwd=project,
            env=projects.ENVIRONMENT | {"PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        return done.stdout.decode(encoding)

    assert "FAILED files of the model" in answer()
    assert any("ж é.txt was added" in check["detail"] for check in json.loads(answer("--json"))["checks"])


def remove(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows[:-1]


def add(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*rows, {**rows[0], "output": "slipped in"}]


def swap(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rows[1], rows[0], *rows[2:]]


def repeat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*rows, rows[0]]


def reword(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**rows[0], "output": rows[0]["output"] + " And more."}, *rows[1:]]


def relicense(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**rows[0], "license": "CC0-1.0"}, *rows[1:]]


@pytest.mark.parametrize("alter", [remove, add, swap, repeat, reword, relicense])
@pytest.mark.parametrize("covered", [False, True], ids=["plain", "digests mended"])
def test_altered_selected_rows_are_detected(
    finished: Path,
    tmp_path: Path,
    alter: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    covered: bool,
) -> None:
    """Also when whoever altered the entry wrote the new digest of the file into `entry.json`."""
    model = Path(shutil.copytree(finished / MODEL, tmp_path / "model"))
    entry = Path(shutil.copytree(finished / "data/audit", tmp_path / "entry"))
    path = entry / "selected.jsonl"
    write_jsonl(path, alter(read_jsonl(path)))
    if covered:
        mend(entry)
    assert not passed(verify(model, entry))


def mend(entry: Path) -> None:
    """Makes `entry.json` agree with the files beside it again, as a careful forger would."""
    source = Entry(entry)
    (entry / "entry.json").write_text(source.derived_text(source.files(), source.selected()), "utf-8")


def test_altered_text_is_detected_by_its_id_alone(finished: Path, tmp_path: Path) -> None:
    entry = Path(shutil.copytree(finished / "data/audit", tmp_path / "entry"))
    path = entry / "selected.jsonl"
    write_jsonl(path, reword(read_jsonl(path)))
    mend(entry)
    names = [check.name for check in verify(finished / MODEL, entry) if not check.ok]
    assert "row ids follow from the texts" in names


@pytest.mark.parametrize("table", ["decisions", "scores", "rows"])
def test_an_altered_table_is_detected_though_digests_were_mended(
    finished: Path, tmp_path: Path, table: str
) -> None:
    entry = Path(shutil.copytree(finished / "data/audit", tmp_path / "entry"))
    path = entry / f"{table}.parquet"
    rows = read_rows(path, table)
    chosen = {row["row_id"] for row in read_jsonl(entry / "selected.jsonl")}
    first = next(row for row in rows if row["row_id"] in chosen)
    first |= {
        "decisions": {"decision": "rejected", "reason": "budget"},
        "scores": {"jsd": 0.5},
        "rows": {"license": "CC0-1.0"},
    }[table]
    write_table(path, table, rows)
    mend(entry)
    expected = {
        "decisions": "selected rows are the accepted rows",
        "scores": "decisions rest on the recorded scores",
        "rows": "register names the selected rows",
    }[table]
    assert expected in [check.name for check in verify(finished / MODEL, entry) if not check.ok]


@pytest.mark.parametrize(
    ("stage", "edit"),
    [
        ("recover", lambda record: record["params"]["recover"].update(rank=64)),
        ("recover", lambda record: record.update(seed=18)),
        ("score", lambda record: record["params"]["score"].update(temperature=2.0)),
        ("select", lambda record: record["inputs"].pop()),
        ("select", lambda record: record["outputs"][0].update(rows=1)),
        ("prune", lambda record: record["outputs"][0].update(sha256="0" * 64)),
        ("prune", lambda record: record["outputs"][1]["files"].update(extra="0" * 64)),
        ("evaluate", lambda record: record["inputs"][2].update(sha256="0" * 64)),
        ("fetch", lambda record: record.update(versions={})),
    ],
)
@pytest.mark.parametrize("where", ["data/records", "data/audit/records"])
def test_an_edited_record_is_detected(
    project: Path, where: str, stage: str, edit: Callable[[dict[str, Any]], Any]
) -> None:
    path = project / where / f"{stage}.json"
    record = read_json(path)
    edit(record)
    write_json(path, record)
    (project / "data/records/audit.json").unlink()
    assert failures(project)


def test_a_chain_that_does_not_join_is_detected_in_a_consistent_forgery(
    finished: Path, tmp_path: Path
) -> None:
    """Record edited and `entry.json` derived again: the digests that were read no longer fit."""
    entry = Path(shutil.copytree(finished / "data/audit", tmp_path / "entry"))
    path = entry / "records/score.json"
    record = read_json(path)
    record["inputs"][0]["sha256"] = "0" * 64
    write_json(path, record)
    mend(entry)
    names = [check.name for check in verify(finished / MODEL, entry) if not check.ok]
    assert "score read what pool wrote" in names


def test_settings_in_the_model_must_be_those_of_its_record(finished: Path, tmp_path: Path) -> None:
    entry = Path(shutil.copytree(finished / "data/audit", tmp_path / "entry"))
    path = entry / "records/recover.json"
    record = read_json(path)
    record["params"]["recover"]["rank"] = 64
    write_json(path, record)
    mend(entry)
    found = [check for check in verify(finished / MODEL, entry) if not check.ok]
    assert any("setting recover" in check.detail for check in found)


def test_a_model_copied_elsewhere_is_verified_with_its_entry(finished: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(finished / MODEL, tmp_path / "deployed"))
    entry = Path(shutil.copytree(finished / "data/audit", tmp_path / "proof"))
    checks = verify(model, entry)
    assert passed(checks)
    assert [check.name for check in checks if not check.applies] == ["signature", "files of the project"]
    (model / "model.safetensors").write_bytes(b"x")
    assert not passed(verify(model, entry))


def test_a_model_without_its_entry_is_not_verified(finished: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(finished / MODEL, tmp_path / "deployed"))
    checks = verify(model)
    assert not passed(checks)
    assert "--entry" in checks[-1].detail
    assert checks[0].ok, "its own files are checked all the same"


def test_another_models_entry_fails(finished: Path, tmp_path: Path) -> None:
    from synthetic_project import build

    other = build(tmp_path / "other", per_label=7, seed=9)
    run_stage("audit", other)
    assert passed(verify(other / MODEL))
    names = [check.name for check in verify(finished / MODEL, other / "data/audit") if not check.ok]
    assert "Merkle roots agree" in names


def test_a_control_says_which_checks_do_not_apply(finished: Path) -> None:
    checks = verify(finished / "data/models/control")
    assert passed(checks)
    assert {check.name for check in checks if not check.applies} >= {"row ids follow from the texts"}


def test_a_control_with_another_row_fails(project: Path) -> None:
    path = project / "data/models/control/provenance.json"
    content = json.loads(path.read_text("utf-8"))
    content["row_ids"][0] = "r1-" + "0" * 64
    write_json(path, content)
    names = [check.name for check in failures(project, "data/models/control")]
    assert "Merkle root of the model" in names
    assert "rows of the control are rows of the pool" in names


def test_a_project_without_control_verifies(tmp_path: Path) -> None:
    from synthetic_project import build

    root = build(tmp_path / "project", control=False)
    run_stage("audit", root)
    assert failures(root) == []
    assert any("provenance.json" in check.detail for check in failures(root, "data/models/control"))
