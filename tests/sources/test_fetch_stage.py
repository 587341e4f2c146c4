from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from paser.errors import PaserError
from paser.sources.fetching import read_index
from paser.stages.run import run_stage

from .conftest import Index

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
        "sources": {"original": 1, "encoder": 1, "pool": 1, "calibration": 1, "evaluation": 0, "task": 0},
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


def test_a_full_disk_leaves_the_earlier_outputs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = run_stage("fetch", project)["outputs"]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(PaserError, match="no space left on the disk while writing"):
            run_stage("fetch", project)
    assert not list((project / "data").rglob("*.partial-*"))
    assert run_stage("fetch", project)["outputs"] == before


@pytest.mark.parametrize(("role", "benchmark"), [("pool", "mmlu"), ("calibration", "GSM8K")])
def test_an_evaluation_source_that_evaluate_will_refuse_is_warned_about(
    project: Path, capsys: pytest.CaptureFixture[str], role: str, benchmark: str
) -> None:
    asked = f'  - {{name: asked, uri: "file:rows.jsonl", role: evaluation, benchmark: {benchmark}}}\n'
    text = LIST.replace("license: BSD-3-Clause", "license: BSD-3-Clause, benchmark: gsm8k") + asked
    (project / "data" / "sources.yaml").write_text(text)
    run_stage("fetch", project)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert benchmark in line
    assert "`evaluate` will refuse it unless evaluate.allow_contaminated is set" in line


def test_a_benchmark_of_the_pool_alone_is_no_warning(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = '  - {name: asked, uri: "file:rows.jsonl", role: evaluation, benchmark: ARC}\n'
    (project / "data" / "sources.yaml").write_text(LIST + asked)
    run_stage("fetch", project)
    assert "warning" not in capsys.readouterr().err


def test_a_wrong_digest_stops_the_stage_before_anything_is_replaced(project: Path, index: Index) -> None:
    run_stage("fetch", project)
    found = index.add("demo_rows", {"demo_rows/a.jsonl": "{}"})
    given = found[::-1]
    (project / "data" / "sources.yaml").write_text(
        LIST.replace("file:rows.jsonl", f"pypi:demo_rows==1.0#{given}:demo_rows/a.jsonl")
    )
    with pytest.raises(PaserError, match=f"has the SHA-256 {found}, but the source list says {given}"):
        run_stage("fetch", project)
    assert (project / "data/sources/pool/rows/rows.jsonl").exists()
    assert not list((project / "data").rglob("*.partial-*"))
