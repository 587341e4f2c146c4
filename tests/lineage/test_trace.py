from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_project import build

from paser.artifacts import read_json, read_jsonl, read_rows, write_jsonl, write_table
from paser.errors import PaserError, StageError
from paser.lineage.trace import render, trace
from paser.lineage.verify import passed, verify
from paser.stages.run import run_stage


def shown(found: object, *, all_rows: bool = False) -> str:
    console = Console(file=io.StringIO(), width=140)
    render(found, console, all_rows=all_rows)  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_trace_counts_the_rows_the_model_was_trained_on(finished: Path) -> None:
    found = trace(finished / "data/models/recovered")
    selected = read_jsonl(finished / "data/selected.jsonl")
    assert (found.rows, found.tokens) == (len(selected), sum(row["tokens"] for row in selected))
    mit = next(group for group in found.by_license if group["name"] == "MIT")
    assert mit["rows"] == sum(row["license"] == "MIT" for row in selected)
    assert sum(group["tokens"] for group in found.by_source) == found.tokens
    jsd = {row["row_id"]: row["jsd"] for row in read_rows(finished / "data/scores.parquet", "scores")}
    cluster = found.by_cluster[0]
    values = [jsd[row["row_id"]] for row in selected if row["cluster"] == cluster["cluster"]]
    assert cluster["jsd_max"] == max(values)
    assert next(link["stage"] for link in found.chain) == "fetch"
    assert json.loads(json.dumps(found.as_json()))["merkle_root"] == found.merkle_root


def test_the_printed_trace_shows_source_licence_cluster_settings_and_chain(finished: Path) -> None:
    found = trace(finished / "data/models/recovered")
    text = shown(found)
    for expected in (
        found.merkle_root, "more-itertools", "BSD-3-Clause", "python function", "recover.rank=8",
        "data/scores.parquet", "benchmark items",
    ):  # fmt: skip
        assert expected in text


def test_trace_lists_the_rows_in_training_order_with_origin_and_scores(finished: Path) -> None:
    found = json.loads(json.dumps(trace(finished / "data/models/recovered").as_json()))["selected"]
    selected = read_jsonl(finished / "data/selected.jsonl")
    decisions = {row["row_id"]: row for row in read_rows(finished / "data/decisions.parquet", "decisions")}
    assert [row["row_id"] for row in found] == [row["row_id"] for row in selected]
    for row, chosen in zip(found, selected, strict=True):
        for key in ("source", "source_row", "license", "label", "cluster", "tokens"):
            assert row[key] == chosen[key]
        for key in ("jsd", "ies", "rank", "reason"):
            assert row[key] == decisions[row["row_id"]][key]
        assert row["instruction"] == chosen["instruction"]


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with more selected rows than a trace shows unasked."""
    root = build(tmp_path_factory.mktemp("larger") / "project", per_label=15)
    run_stage("audit", root)
    return root


def test_the_printed_trace_shows_ten_rows_and_how_to_see_all(larger: Path) -> None:
    found = trace(larger / "data/models/recovered")
    assert found.rows > 10
    short, whole = shown(found), shown(found, all_rows=True)
    present = [row["row_id"][:15] in short for row in found.selected]
    assert present == [True] * 10 + [False] * (found.rows - 10)
    assert f"the first 10 of {found.rows}" in short
    assert "--rows shows all rows" in short
    assert all(row["row_id"][:15] in whole for row in found.selected)
    assert "--rows" not in whole


def test_markup_and_control_sequences_in_an_instruction_are_shown_as_text(project: Path) -> None:
    path = project / "data/audit/selected.jsonl"
    rows = read_jsonl(path)
    rows[0]["instruction"] = "[red]hidden[/] \x1b[31m\u202eturned\nnext " + "long " * 40
    write_jsonl(path, rows)
    text = shown(trace(project / "data/models/recovered"))
    assert "[red]hidden[/]" in text
    assert not {"\x1b", "\u202e"} & set(text)
    assert text.count("long") < 20


def test_a_control_can_be_traced_to_its_own_rows(finished: Path) -> None:
    control = [row["row_id"] for row in read_jsonl(finished / "data/control.jsonl")]
    found = trace(finished / "data/models/control")
    assert found.role == "control"
    assert sum(group["rows"] for group in found.by_label) == len(control)
    assert [row["row_id"] for row in found.selected] == control
    assert {row["reason"] for row in found.selected} == {"random"}
    assert control[0][:15] in shown(found)
    assert passed(verify(finished / "data/models/control"))


def test_a_model_that_was_copied_away_needs_its_entry(finished: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(finished / "data/models/recovered", tmp_path / "deployed"))
    entry = Path(shutil.copytree(finished / "data/audit", tmp_path / "proof"))
    with pytest.raises(PaserError, match="no audit entry found"):
        trace(model)
    assert trace(model, entry).rows == trace(finished / "data/models/recovered").rows


def test_an_entry_of_another_model_is_refused(finished: Path, project: Path) -> None:
    path = project / "data/models/recovered/provenance.json"
    path.write_text(path.read_text("utf-8").replace('"seed": 17', '"seed": 18'), "utf-8")
    with pytest.raises(PaserError, match="is not of"):
        trace(project / "data/models/recovered", finished / "data/audit")


def test_entry_holds_every_row_with_its_role_and_no_text(finished: Path) -> None:
    entry = finished / "data/audit"
    rows = read_rows(entry / "rows.parquet", "rows")
    tables = ("pool", "holdout", "calibration")
    expected = sum(len(read_rows(finished / f"data/{name}.parquet", "pool")) for name in tables)
    expected += len(read_rows(finished / "data/quarantine.parquet", "quarantine"))
    assert len(rows) == expected
    roles = read_json(entry / "entry.json")["summary"]["roles"]
    assert roles == {role: sum(row["role"] == role for row in rows) for role in roles}
    assert all(roles.values())
    assert all(row["occurrences"] for row in rows)
    assert b"case pool" not in (entry / "rows.parquet").read_bytes()


def test_the_same_project_gives_the_same_entry(project: Path) -> None:
    before = {p: p.read_bytes() for p in sorted((project / "data/audit").rglob("*.*"))}
    record = (project / "data/records/audit.json").read_bytes()
    run_stage("audit", project)
    assert {p: p.read_bytes() for p in sorted((project / "data/audit").rglob("*.*"))} == before
    assert (project / "data/records/audit.json").read_bytes() == record


def test_entry_names_the_pools_sources_and_the_rows_that_were_not_drawn(finished: Path) -> None:
    summary = read_json(finished / "data/audit/entry.json")["summary"]
    sources = finished / "data/sources/pool"
    assert summary["pool_sources"] == sorted(path.name for path in sources.iterdir() if path.is_dir())
    assert summary["not_drawn"] == {"mmlu-cot": 5, "calibration-champ": 7}


TABLES = {
    "pool": "pool", "holdout": "pool", "calibration": "pool", "quarantine": "quarantine",
    "clusters": "clusters", "scores": "scores", "decisions": "decisions",
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_audit_refuses_a_table_that_its_stage_did_not_write(project: Path, name: str) -> None:
    path = project / f"data/{name}.parquet"
    write_table(path, TABLES[name], read_rows(path, TABLES[name])[:-1])
    with pytest.raises(StageError, match=f"data/{name}.parquet is not what its stage wrote"):
        run_stage("audit", project)


def test_audit_refuses_a_model_that_its_stage_did_not_write(project: Path) -> None:
    (project / "data/models/recovered/model.safetensors").write_bytes(b"another")
    with pytest.raises(StageError, match="data/models/recovered is not what its stage wrote"):
        run_stage("audit", project)
    assert not list((project / "data").glob("audit.partial-*"))
