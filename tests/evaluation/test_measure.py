"""Results of several models beside each other: gaps, fidelity, limits, spread, and items of one task only."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from paser.errors import PaserError, SourceError
from paser.evaluation.harness import TaskResult
from paser.evaluation.measure import Measurement, item_rows, open_texts, tasks_part, texts_part
from paser.evaluation.perplexity import Perplexity
from paser.sources.catalog import Source

RIGHT = {"original": 90, "pruned": 40, "mine/1": 60, "mine/2": 70}


def result(right: int, sharp: float, items: int = 100) -> TaskResult:
    values = [float(i < right) for i in range(items)]
    return TaskResult(
        task="quiz",
        origin="here",
        protocol="as told",
        items=items,
        of=500,
        metrics={"acc": {"value": right / items, "stderr": 0.05}, "acc_norm": {"value": 0.5, "stderr": 0.05}},
        values={"acc": values, "acc_norm": [float(i % 2) for i in range(items)]},
        ids=[f"a:{i}" for i in range(items)],
        choices=[[-sharp, -1.0] for _ in range(items)],
        notes=["a note"],
    )


def text(loss: float) -> Perplexity:
    losses = tuple(loss + 0.1 * (i % 3) for i in range(9))
    return Perplexity(math.exp(loss + 0.1), loss + 0.1, 90, 9, "in windows", losses, (10,) * 9)


@pytest.fixture
def measured() -> dict[str, Measurement]:
    sharp = {"original": 9.0, "pruned": 1.0, "mine/1": 5.0, "mine/2": 9.0}
    losses = {"original": 2.0, "pruned": 3.0, "mine/1": 2.5, "mine/2": 2.25}
    return {
        m: Measurement({"quiz": result(right, sharp[m])}, {"prose": text(losses[m])})
        for m, right in RIGHT.items()
    }


def test_every_metric_of_a_task_has_its_gap_error_and_limit(measured: dict[str, Measurement]) -> None:
    part = tasks_part(measured, 200, 1)
    acc, norm = part["metrics"]
    assert (acc["metric"], norm["metric"]) == ("acc", "acc_norm")
    assert acc["limit"] == "of 500"
    assert acc["stderr"] == dict.fromkeys(RIGHT, 0.05)
    assert acc["gap_closed"]["mine/2"]["value"] == pytest.approx(0.6)
    assert acc["spread"]["gap_closed"]["mine"]["mean"] == pytest.approx(0.5)
    assert norm["primary"]
    assert not acc["primary"]
    assert norm["no_gap"] == "no gap: the interval of the damage includes 0"
    assert norm["fidelity_gap"]["mine/2"]["value"] == pytest.approx(1)
    assert 0 < norm["fidelity_gap"]["mine/1"]["value"] < 1
    assert part["overall"] == {"mine/1": None, "mine/2": None}
    assert acc["notes"] == ["a note"]


def test_the_gap_of_a_perplexity_is_that_of_its_logarithm(measured: dict[str, Measurement]) -> None:
    (entry,) = texts_part(measured, 200, 1)["metrics"]
    assert entry["perplexity"]["original"] == pytest.approx(math.exp(2.1))
    assert entry["value"]["original"]["value"] == pytest.approx(2.1)
    assert entry["gap_closed"]["mine/1"]["value"] == pytest.approx(0.5)
    assert entry["units"] == 9
    assert not entry["higher_is_better"]


def test_models_that_were_asked_other_items_are_not_compared(measured: dict[str, Measurement]) -> None:
    measured["pruned"] = Measurement({"quiz": result(4, 1.0, items=10)}, {})
    with pytest.raises(PaserError, match="pruned was asked other items"):
        tasks_part(measured, 200, 1)


def test_every_item_is_a_row(measured: dict[str, Measurement]) -> None:
    rows = item_rows(measured)
    assert len(rows) == 4 * 2 * 100
    assert sum(r["value"] for r in rows if (r["model"], r["metric"]) == ("mine/1", "acc")) == 60


def test_a_text_is_read_whole_and_a_task_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("two.", encoding="utf-8")
    (tmp_path / "a.txt").write_text("One, ", encoding="utf-8")
    local = {
        "prose": (tmp_path, Source("prose", "file:x", "task", "text")),
        "quiz": (tmp_path, Source("quiz", "file:x", "task", "choices")),
    }
    assert open_texts(["prose"], local)[0].text == "One, two."
    for name in ("quiz", "unknown"):
        with pytest.raises(SourceError, match="format: text"):
            open_texts([name], local)
