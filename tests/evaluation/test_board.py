"""One table for people, and the same numbers for programs."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np

from paser.evaluation.board import board, board_csv, board_table, headline
from paser.evaluation.gap import Measured, Metric, metric_gaps, summarise
from paser.evaluation.table import result_tables

MODELS = ["original", "pruned", "paser/1", "paser/2"]


def metrics() -> dict[str, Any]:
    levels = dict(zip(MODELS, (1.0, 2.0, 1.5, 1.25), strict=True))
    loss = {m: np.full(20, level) for m, level in levels.items()}
    jsd = {m: np.full(20, level - 1) for m, level in levels.items()}
    rising = {
        m: np.array([1.0] * k + [0.0] * (100 - k)) for m, k in zip(MODELS, (90, 40, 60, 70), strict=True)
    }
    even = {m: np.array([1.0, 0.0] * 50) for m in MODELS}
    tasks = metric_gaps(
        [Metric("quiz", "acc", rising, True), Metric("even", "acc", even, True)], MODELS, 200, 1
    )
    for entry in tasks["metrics"]:
        entry |= {"limit": "of 500", "protocol": "lm-eval 0, first 100 of 500 items", "notes": ["a note"],
                  "stderr": dict.fromkeys(MODELS, 0.05)}  # fmt: skip
    return {
        "models": MODELS,
        "notes": [],
        "clusters": [],
        "tasks": {**tasks, "spread": {}},
        "perplexity": {},
        **summarise([Measured("code", loss, jsd), Measured("maths", loss, jsd)], MODELS, 200, 1),
    }


def test_each_capability_and_task_has_a_row_and_each_model_a_column() -> None:
    found = metrics()
    rows = board(found)
    assert [(row["section"], row["name"], row["metric"]) for row in rows] == [
        ("capability", "code", "loss"), ("capability", "code", "JSD"),
        ("capability", "maths", "loss"), ("capability", "maths", "JSD"),
        ("task", "quiz", "acc"), ("task", "even", "acc"),
    ]  # fmt: skip
    assert all(list(row["values"]) == MODELS for row in rows)
    assert rows[0]["gap_closed"]["paser/1"]["value"] == 0.5
    assert rows[5]["no_gap"].startswith("no gap")
    lines = list(csv.DictReader(io.StringIO(board_csv(rows, MODELS))))
    assert lines[4]["paser/2"] == "0.7"
    assert lines[4]["paser/2 stderr"] == "0.05"
    assert lines[4]["paser/2 gap closed"] == "0.6"
    assert lines[5]["paser/2 gap closed"] == ""
    assert lines[4]["limit"] == "of 500"
    summary = headline(metrics(), rows)
    assert summary["task"]["quiz"]["acc"]["original"] == 0.9
    assert set(summary["gap closed"]) == {"paser/1", "paser/2"}
    assert "cluster" not in summary
    assert board_table(rows, MODELS).row_count == 6


def test_the_page_of_results_states_limits_seeds_and_missing_gaps() -> None:
    from rich.console import Console

    console = Console(width=170, record=True)
    console.print(result_tables(metrics()))
    text = console.export_text()
    assert "0.900 ± 0.050" in text
    assert "100 of 500" in text
    assert "even, acc: no gap: the interval of the damage includes 0" in text
    assert "paser: gap closed over 2 runs 0.625" in text
    assert "quiz: a note" in text
    assert "first 100 of 500 items" in text


def test_one_model_alone_is_a_table_without_gaps() -> None:
    from rich.console import Console

    loss = {"mine": np.array([1.0, 2.0])}
    console = Console(width=120, record=True)
    found = {"models": ["mine"], "notes": ["n"], **summarise([Measured("code", loss, {})], ["mine"], 100, 1)}
    console.print(result_tables(found))
    text = console.export_text()
    assert "1.500" in text
    assert "gap" not in text
