"""Gap closed and fidelity gap, by hand and by their rules."""

from __future__ import annotations

import numpy as np
import pytest

from paser.evaluation.gap import Measured, summarise
from paser.evaluation.table import result_tables, with_interval

MODELS = ["original", "pruned", "recovered", "control"]


def capability(
    name: str,
    original: float,
    pruned: float,
    recovered: float,
    control: float,
    rows: int = 40,
    noise: float = 0.01,
) -> Measured:
    jsd = (0.2, 0.05, 0.15)
    rng = np.random.default_rng(len(name))
    wobble = noise * rng.standard_normal(rows)
    values = dict(zip(MODELS, (original, pruned, recovered, control), strict=True))
    return Measured(
        name,
        {m: v + wobble * (i + 1) for i, (m, v) in enumerate(values.items())},
        {m: np.full(rows, j) for m, j in zip(MODELS, (0.0, *jsd), strict=True)},
    )


def test_ratio_of_means_not_mean_of_ratios() -> None:
    # damage 1.0 of which 0.5 is closed, damage 0.1 of which 0.1: (0.5 + 0.1) / (1.0 + 0.1), not 0.75
    found = summarise(
        [capability("big", 1, 2, 1.5, 2, noise=0), capability("small", 1, 1.1, 1.0, 1.1, noise=0)],
        MODELS, 200, 1,
    )  # fmt: skip
    overall = found["overall"]["recovered"]
    assert overall["gap_closed"]["value"] == pytest.approx(0.6 / 1.1)
    assert overall["fidelity_gap"]["value"] == pytest.approx(0.75)
    assert found["overall"]["control"]["gap_closed"]["value"] == pytest.approx(0)
    assert found["overall"]["pruned"]["gap_closed"] is None
    assert found["capabilities"][0]["gap_closed"]["recovered"]["value"] == pytest.approx(0.5)


def test_undamaged_capabilities_are_listed_not_averaged() -> None:
    found = summarise(
        [
            capability("damaged", 1, 2, 1.5, 2),
            capability("untouched", 1, 1.2, 0.2, 1, noise=0.8),
            capability("improved", 1, 0.5, 0.2, 1),
        ],
        MODELS, 300, 1,
    )  # fmt: skip
    by_name = {c["name"]: c for c in found["capabilities"]}
    assert by_name["damaged"]["averaged"]
    assert by_name["untouched"]["damage"]["value"] > 0
    assert "includes 0" in by_name["untouched"]["why_not_averaged"]
    assert "fell" in by_name["improved"]["why_not_averaged"]
    assert found["overall"]["recovered"]["gap_closed"]["value"] == pytest.approx(0.5, abs=0.05)


def test_intervals_hold_the_value_and_shrink_with_rows() -> None:
    def width(rows: int) -> float:
        found = summarise([capability("a", 1, 2, 1.5, 2, rows=rows, noise=0.3)], MODELS, 400, 1)
        gap = found["capabilities"][0]["gap_closed"]["recovered"]
        assert gap["low"] <= gap["value"] <= gap["high"]
        return float(gap["high"] - gap["low"])

    assert width(400) < width(20)


def test_values_above_one_are_marked() -> None:
    found = summarise([capability("a", 1, 2, 0.5, 2)], MODELS, 200, 1)
    gap = found["capabilities"][0]["gap_closed"]["recovered"]
    assert gap["above_one"]
    assert with_interval(gap).startswith("1.50*")


def test_nothing_damaged_gives_no_overall_gap() -> None:
    found = summarise([capability("a", 1, 0.5, 0.4, 0.4)], MODELS, 200, 1)
    assert found["overall"]["recovered"]["gap_closed"] is None
    assert found["overall"]["recovered"]["fidelity_gap"] is not None


def test_same_seed_same_intervals() -> None:
    measured = [capability("a", 1, 2, 1.5, 1.7, noise=0.2)]
    assert summarise(measured, MODELS, 200, 5) == summarise(measured, MODELS, 200, 5)


def test_the_table_shows_every_capability_and_never_reads_markup() -> None:
    from rich.console import Console

    found = summarise([capability("[red]a", 1, 2, 1.5, 2), capability("b", 1, 0.5, 0.4, 1)], MODELS, 200, 1)
    metrics = {"models": MODELS, "capability_kind": "label", "seeds": 1, "notes": ["a note"],
               "budget": {"rows": 3, "tokens": 1234}, **found}  # fmt: skip
    console = Console(width=160, record=True)
    console.print(result_tables(metrics))
    text = console.export_text()
    assert "[red]a" in text
    assert "not averaged in gap closed: b: its loss fell" in text
    assert "1,234 training tokens" in text
    assert "a note" in text
