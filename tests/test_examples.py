"""The scripts of `examples/` run as they stand, on tiny models."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from paser.artifacts import read_jsonl
from paser.pool.clean import normalised
from paser.records import Sample
from tests import project as projects
from tests import tiny

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(folder: Path, script: str, *words: str | Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, words)]
    return projects.run(folder, *command).stdout


def test_select_from_python(tmp_path: Path, llama: Path, sparse_llama: Path, encoder: Path) -> None:
    pool = tiny.write_jsonl(tmp_path / "pool.jsonl", tiny.rows(60))
    shown = run(
        tmp_path, "select_from_python.py", llama, sparse_llama, pool, "--encoder", encoder, "--out", "picked",
    )  # fmt: skip
    assert "6 samples to train on" in shown
    assert len(read_jsonl(tmp_path / "picked/selected.jsonl")) == 6


def test_damage_report(tmp_path: Path, llama: Path, sparse_llama: Path) -> None:
    samples = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.rows(45))
    shown = run(tmp_path, "damage_report.py", llama, sparse_llama, "--samples", samples)
    assert re.search(r"sparse lost most in (sums|animals|recipes): [+-]\d", shown)
    assert (tmp_path / "damage-report/damage.svg").exists()


def test_recover_and_verify(tmp_path: Path, sparse_llama: Path) -> None:
    rows = tiny.rows(12)
    path = tiny.write_jsonl(tmp_path / "selected.jsonl", rows)
    shown = run(tmp_path, "recover_and_verify.py", sparse_llama, path, "again", "--epochs", "1")
    first = Sample("", "", "", rows[0]["instruction"], rows[0]["input"], rows[0]["output"])
    assert f"row {normalised(first).row_id[:11]} is in it: proven" in shown
    assert "FAILED" not in shown


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_a_script_says_how_it_is_called(tmp_path: Path, script: str) -> None:
    assert "usage:" in run(tmp_path, script, "--help")
