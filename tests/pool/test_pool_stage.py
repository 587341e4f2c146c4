from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from paser.artifacts import read_rows
from paser.pool.build import read_sources
from paser.stages.run import run_stage
from tests.tiny import make_tokenizer, rows, write_jsonl

LIST = """
sources:
  - {name: big, uri: "file:big", role: original}
  - {name: mini, uri: "file:mini", role: encoder}
  - {name: rows, uri: "file:rows.jsonl", role: pool, license: MIT, benchmark: TINY}
  - {name: few, uri: "file:few.jsonl", role: calibration, license: MIT, max_rows: 6}
  - {name: asked, uri: "file:asked.jsonl", role: evaluation, license: MIT}
"""
TABLES = ("pool", "holdout", "calibration", "quarantine")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    project = tmp_path_factory.mktemp("project")
    raw = project / "data" / "raw"
    for folder in ("big", "mini"):
        (raw / folder).mkdir(parents=True)
        (raw / folder / "config.json").write_text('{"model_type": "llama"}')
        (raw / folder / "model.safetensors").write_text("")
    make_tokenizer().save_pretrained(raw / "big")
    given = rows(60)
    broken = [
        {"instruction": "Say nothing.", "output": ""},
        {"instruction": "Long.", "output": "on and " * 200},
    ]
    write_jsonl(raw / "rows.jsonl", [*given, given[0], *broken])
    write_jsonl(raw / "few.jsonl", rows(12, seed=8))
    write_jsonl(raw / "asked.jsonl", rows(2, seed=6))
    (project / "data" / "sources.yaml").write_text(LIST)
    (project / "data" / "withdrawn.csv").write_text("kind,value,reason,date\n")
    (project / "params.yaml").write_text("seed: 1\npool: {holdout_per_label: 4, max_tokens: 256}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PASER_CACHE_DIR", raising=False)
        run_stage("fetch", project)
        run_stage("pool", project)
        yield project


def test_the_four_tables_have_their_columns_and_rows(built: Path) -> None:
    pool = read_rows(built / "data" / "pool.parquet", "pool")
    holdout = read_rows(built / "data" / "holdout.parquet", "pool")
    assert (len(pool), len(holdout)) == (48, 12)
    assert len(read_rows(built / "data" / "calibration.parquet", "pool")) == 6
    assert {row["benchmark"] for row in pool} == {"TINY"}
    assert {row["label"] for row in holdout} == {"sums", "animals", "recipes"}
    assert all(0 < row["tokens"] <= 256 for row in pool + holdout)


def test_left_out_rows_are_in_quarantine_with_their_reason(built: Path) -> None:
    found = {row["reason"]: row for row in read_rows(built / "data" / "quarantine.parquet", "quarantine")}
    assert set(found) == {"duplicate", "empty_response", "too_long"}
    assert found["duplicate"]["duplicate_of"] == found["duplicate"]["row_id"]
    assert found["duplicate"]["source_row"] == "rows.jsonl:61"
    assert found["too_long"]["detail"].endswith(" tokens")


def test_a_second_run_writes_the_same_bytes(built: Path) -> None:
    first = [(built / "data" / f"{table}.parquet").read_bytes() for table in TABLES]
    run_stage("pool", built)
    assert [(built / "data" / f"{table}.parquet").read_bytes() for table in TABLES] == first


def test_a_withdrawn_row_is_gone_from_the_next_build(built: Path) -> None:
    row = read_rows(built / "data" / "pool.parquet", "pool")[0]["row_id"]
    path = built / "data" / "withdrawn.csv"
    before = path.read_text()
    path.write_text(f"{before}row,{row},asked by its author,2026-02-01\n")
    try:
        record = run_stage("pool", built)
        assert record["facts"]["quarantine_by_reason"]["withdrawn"] == 1
        kept = read_rows(built / "data" / "pool.parquet", "pool")
        assert row not in {other["row_id"] for other in kept}
    finally:
        path.write_text(before)
        run_stage("pool", built)


def test_a_withdrawal_that_names_no_row_is_told(built: Path, capfd: pytest.CaptureFixture[str]) -> None:
    row = read_rows(built / "data" / "pool.parquet", "pool")[0]["row_id"]
    path = built / "data" / "withdrawn.csv"
    before = path.read_text()
    unknown = [f"text,r1-{number:064x},asked,2026-02-01\n" for number in range(6)]
    path.write_text(f"{before}row,{row},asked,2026-02-01\nrow,rowz:rows.jsonl:1,asked,2026-02-01\n")
    try:
        run_stage("pool", built)
        shown = capfd.readouterr().err
        assert "warning: data/withdrawn.csv: row rowz:rows.jsonl:1 names no row that was read" in shown
        assert row not in shown
        path.write_text(before + "".join(unknown))
        run_stage("pool", built)
        assert "and 1 more names no row that was read" in capfd.readouterr().err
    finally:
        path.write_text(before)
        run_stage("pool", built)
    assert "names no row" not in capfd.readouterr().err


def test_the_record_counts_what_was_built(built: Path) -> None:
    facts = run_stage("pool", built)["facts"]
    assert facts["template"] == "chat"
    assert facts["rows"] == {"pool": 48, "holdout": 12, "calibration": 6, "quarantine": 3}
    assert facts["not_drawn_by_source"] == {"few": 6}


def test_evaluation_rows_are_read_like_any_other(built: Path) -> None:
    samples = read_sources(built / "data" / "sources", "evaluation")
    assert [sample.source for sample in samples] == ["asked", "asked"]
