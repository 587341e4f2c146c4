from __future__ import annotations

from pathlib import Path

import pytest

from paser.errors import PaserError
from paser.sources.fetching import read_index
from paser.stages.run import run_stage

LIST = """
sources:
  - {name: big, uri: "file:big", role: original}
  - {name: mini, uri: "file:mini", role: encoder}
  - {name: rows, uri: "file:rows.jsonl", role: pool, license: MIT, benchmark: MMLU}
  - {name: few, uri: "file:few.jsonl", role: calibration, license: BSD-3-Clause}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PASER_CACHE_DIR", raising=False)
    raw = tmp_path / "data" / "raw"
    for folder in ("big", "mini"):
        (raw / folder).mkdir(parents=True)
        (raw / folder / "config.json").write_text("{}")
        (raw / folder / "model.safetensors").write_text(folder)
    for name in ("rows", "few"):
        (raw / f"{name}.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (tmp_path / "data" / "sources.yaml").write_text(LIST)
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    return tmp_path


def test_every_role_has_its_files_and_an_index(project: Path) -> None:
    record = run_stage("fetch", project)
    sources = project / "data" / "sources"
    assert (sources / "original" / "big" / "model.safetensors").read_text() == "big"
    assert [entry.source.name for entry in read_index(sources / "pool")] == ["rows"]
    assert read_index(sources / "evaluation") == []
    assert record["facts"] == {
        "sources": {"original": 1, "encoder": 1, "pool": 1, "calibration": 1, "evaluation": 0},
        "benchmarks": ["MMLU"],
        "licenses": ["BSD-3-Clause", "MIT", "unknown"],
    }


def test_two_runs_give_the_same_digests_and_an_edit_another(project: Path) -> None:
    first = run_stage("fetch", project)["outputs"]
    assert run_stage("fetch", project)["outputs"] == first
    (project / "data" / "raw" / "rows.jsonl").write_text('{"instruction": "a", "output": "c"}\n')
    changed = run_stage("fetch", project)["outputs"]
    assert [a["path"] for a, b in zip(first, changed, strict=True) if a != b] == ["data/sources/pool"]


def test_a_failure_leaves_the_earlier_outputs_and_nothing_half_written(project: Path) -> None:
    run_stage("fetch", project)
    (project / "data" / "raw" / "few.jsonl").unlink()
    with pytest.raises(PaserError, match=r"few\.jsonl does not exist"):
        run_stage("fetch", project)
    assert read_index(project / "data" / "sources" / "calibration")
    assert not list((project / "data").rglob("*.partial-*"))
