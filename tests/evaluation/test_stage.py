"""The stage on an unlabelled pool with an evaluation source, without control, and on a contaminated one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from paser.artifacts import read_json, read_rows
from paser.errors import StageError
from paser.stages.run import run_stage
from tests import project as projects
from tests import tiny

BEFORE = ("fetch", "pool", "prune", "embed", "cluster", "score", "select", "recover", "control")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, llama: Path, encoder: Path) -> Path:
    """A project up to `control`: no labels in the pool, three of whose prompts are evaluation prompts."""
    folder = projects.make_project(tmp_path_factory.mktemp("evaluation") / "p", llama, encoder, rows=90)
    raw = folder / "data/raw"
    lines = [json.loads(line) for line in (raw / "pool.jsonl").read_text(encoding="utf-8").splitlines()]
    tiny.write_jsonl(raw / "pool.jsonl", [{**line, "label": None} for line in lines])
    tiny.write_jsonl(raw / "exam.jsonl", [*tiny.rows(6, seed=77), *lines[:40:13]])
    path = folder / "data/sources.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    exam = {"name": "exam", "uri": "file:exam.jsonl", "role": "evaluation", "benchmark": "Tiny Exam"}
    content["sources"].append({**exam, "format": "alpaca", "license": "MIT"})
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    settings = {**projects.SETTINGS, "control": {"enabled": False}, "select": {"budget": "60%"}}
    projects.write_settings(folder, settings)
    for name in BEFORE:
        run_stage(name, folder)
    return folder


def test_without_labels_capabilities_are_clusters_and_evaluation_stands_apart(project: Path) -> None:
    run_stage("evaluate", project)
    metrics = read_json(project / "data/metrics.json")
    assert metrics["capability_kind"] == "cluster"
    assert metrics["models"] == ["original", "pruned", "recovered"]
    names = [c["name"] for c in metrics["capabilities"]]
    assert "evaluation: exam" in names
    assert {name.split(" ")[0] for name in names} == {"cluster", "evaluation:"}
    rows = read_rows(project / "data/evaluation.parquet", "evaluation")
    exam = [r for r in rows if r["split"] == "evaluation" and r["model"] == "pruned"]
    assert len(exam) == next(c["rows"] for c in metrics["capabilities"] if c["name"] == "evaluation: exam")
    assert all(r["jsd"] == 0 for r in rows if r["model"] == "original")
    assert (project / "data/models/control/note.json").exists()


def test_rows_that_are_evaluation_prompts_are_never_selected(project: Path) -> None:
    decisions = read_rows(project / "data/decisions.parquet", "decisions")
    refused = [d for d in decisions if d["reason"] == "contaminated"]
    assert 1 <= len(refused) <= 4
    assert all(d["decision"] == "rejected" and "evaluation prompt" in d["detail"] for d in refused)


def test_evaluation_on_a_benchmark_that_was_trained_on_is_refused(project: Path) -> None:
    path = project / "data/sources/pool/index.json"
    index = read_json(path)
    index["sources"][0]["benchmark"] = "tiny-exam"
    path.write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(StageError, match=r"Tiny Exam is contaminated[\s\S]*allow_contaminated"):
        run_stage("evaluate", project)
    settings = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    settings["evaluate"]["allow_contaminated"] = True
    (project / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    run_stage("evaluate", project)
    metrics = read_json(project / "data/metrics.json")
    assert metrics["benchmarks"] == ["tiny-exam"]
    assert "mean nothing" in " ".join(metrics["notes"])
