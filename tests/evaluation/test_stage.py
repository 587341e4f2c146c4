"""The stage on an unlabelled pool with an evaluation source, without control, and on a contaminated one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from paser.artifacts import read_json, read_jsonl, read_rows
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
    quiz = [
        {
            "question": f"Which {animal} lives near the river?",
            "choices": ["this one", "that one"],
            "gold": k % 2,
        }
        for k, animal in enumerate(("otter", "heron", "badger", "lynx", "mole"))
    ]
    for line in lines[41:52]:  # which of them are held out, the seed decides
        shown = f"{line['instruction']}\n\n{line['input']}" if line["input"] else line["instruction"]
        quiz.append({"question": shown, "choices": ["a", "b"], "gold": 0})
    tiny.write_jsonl(raw / "quiz.jsonl", quiz)
    (raw / "prose.txt").write_text("The otter lives near the river. " * 90, encoding="utf-8")
    (raw / "unused.txt").write_text("Nobody asks for this.", encoding="utf-8")
    path = folder / "data/sources.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    exam = {"name": "exam", "uri": "file:exam.jsonl", "role": "evaluation", "benchmark": "Tiny Exam"}
    content["sources"].append({**exam, "format": "alpaca", "license": "MIT"})
    for name, file, kind in (
        ("quiz", "quiz.jsonl", "choices"), ("prose", "prose.txt", "text"), ("unused", "unused.txt", "text"),
    ):  # fmt: skip
        task = {"name": name, "uri": f"file:{file}", "role": "task", "format": kind, "license": "MIT"}
        content["sources"].append(task)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    settings = {**projects.SETTINGS, "control": {"enabled": False}, "select": {"budget": "60%"}}
    settings["evaluate"] = {"bootstrap": 100, "tasks": ["quiz"], "perplexity": ["prose"], "context": 64}
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
    assert refused
    assert all(d["decision"] == "rejected" and "evaluation prompt" in d["detail"] for d in refused)
    listed = read_json(project / "data/contamination.json")
    assert {row["row_id"] for row in listed["rows"]} == {d["row_id"] for d in refused}
    assert listed["overlapping"] == len(refused)
    assert listed["selected"] == 0
    assert sum(listed["by_set"].values()) == len(refused)
    assert {"evaluation exam", "task quiz"} <= set(listed["by_set"])


def test_with_report_overlapping_rows_may_be_selected_and_are_listed(project: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(project, tmp_path / "p")
    settings = yaml.safe_load((copy / "params.yaml").read_text(encoding="utf-8"))
    settings["select"] |= {"contamination": "report", "budget": "100%"}
    (copy / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    run_stage("select", copy)
    listed = read_json(copy / "data/contamination.json")
    chosen = {row["row_id"] for row in read_jsonl(copy / "data/selected.jsonl")}
    assert listed["selected"] == len(chosen & {row["row_id"] for row in listed["rows"]}) >= 1
    decisions = read_rows(copy / "data/decisions.parquet", "decisions")
    assert not any(d["reason"] == "contaminated" for d in decisions)


def test_tasks_and_texts_are_measured_and_only_those_asked_for(project: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra `tasks` is not installed")
    assert not (project / "data/sources/task/unused").exists()
    run_stage("evaluate", project)
    metrics = read_json(project / "data/metrics.json")
    (text,) = metrics["perplexity"]["metrics"]
    assert text["perplexity"]["pruned"] > 1
    assert "windows of 64 tokens" in text["protocol"]
    acc, norm = metrics["tasks"]["metrics"]
    assert (acc["metric"], norm["metric"], acc["units"]) == ("acc", "acc_norm", 16)
    rows = read_rows(project / "data/tasks.parquet", "tasks")
    mine = [row["value"] for row in rows if (row["model"], row["metric"]) == ("recovered", "acc")]
    assert sum(mine) / 16 == pytest.approx(acc["value"]["recovered"]["value"])
    assert {entry["name"].split()[0] for entry in metrics["clusters"]} == {"cluster"}
    assert all(entry["title"] for entry in metrics["clusters"])
    board = read_json(project / "data/scoreboard.json")
    assert {row["section"] for row in board} == {"capability", "cluster", "task", "text"}
    head = (project / "data/scoreboard.csv").read_text(encoding="utf-8").splitlines()[0]
    assert head.startswith("row,section,name,metric,better,units,limit,no_gap,original")
    assert metrics["contamination"]["overlapping"] >= 1


def test_dvc_shows_the_numbers_and_draws_them(project: Path) -> None:
    run_stage("evaluate", project)
    shown = projects.run(project, "dvc", "metrics", "show", "--json", "data/summary.json").stdout
    summary = json.loads(shown)[""]["data"]["data/summary.json"]["data"]
    assert set(summary["capability"]["evaluation: exam"]["loss"]) == {"original", "pruned", "recovered"}
    table = projects.run(project, "dvc", "metrics", "show", "data/summary.json").stdout
    assert "task.quiz.acc.recovered" in table
    drawn = projects.run(project, "dvc", "plots", "show", "gaps", "--json").stdout
    assert "recovered gap closed" in drawn


def test_evaluation_on_a_benchmark_that_was_trained_on_is_refused(project: Path) -> None:
    path = project / "data/sources/pool/index.json"
    index = read_json(path)
    index["sources"][0]["benchmark"] = "tiny-exam"
    path.write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(StageError, match=r"Tiny Exam is contaminated[\s\S]*allow_contaminated"):
        run_stage("evaluate", project)
    settings = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    asked = settings["evaluate"]["tasks"]
    settings["evaluate"]["tasks"] = ["truthfulqa_mc1"]
    (project / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    path.write_text(json.dumps(index).replace("tiny-exam", "TruthfulQA"), encoding="utf-8")
    with pytest.raises(StageError, match=r"TruthfulQA is contaminated[\s\S]*evaluate\.tasks"):
        run_stage("evaluate", project)
    settings["evaluate"]["tasks"] = asked
    path.write_text(json.dumps(index), encoding="utf-8")
    settings["evaluate"]["allow_contaminated"] = True
    (project / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    run_stage("evaluate", project)
    metrics = read_json(project / "data/metrics.json")
    assert metrics["benchmarks"] == ["tiny-exam"]
    assert "mean nothing" in " ".join(metrics["notes"])
