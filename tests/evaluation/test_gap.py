"""Gap closed and fidelity gap, by hand and by their rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paser.evaluation.gap import Measured, Metric, choice_jsd, metric_gaps, seeds_of, spread, summarise
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


def task(
    name: str, original: float, pruned: float, recovered: float, items: int = 200, **rest: Any
) -> Metric:
    """Items of which these shares are right; the same items come first for every model."""
    shares = {"original": original, "pruned": pruned, "recovered": recovered}
    values = {m: (np.arange(items) < share * items).astype(float) for m, share in shares.items()}
    return Metric(name, "acc", values, True, **rest)


THREE = ["original", "pruned", "recovered"]


def test_gaps_of_tasks_are_of_accuracies_and_overall_a_ratio_of_means() -> None:
    found = metric_gaps([task("a", 0.9, 0.4, 0.65), task("b", 0.5, 0.4, 0.5)], THREE, 300, 1)
    first, second = found["metrics"]
    assert first["value"]["recovered"]["value"] == pytest.approx(0.65)
    assert first["damage"]["value"] == pytest.approx(0.5)
    assert first["gap_closed"]["recovered"]["value"] == pytest.approx(0.5)
    assert second["gap_closed"]["recovered"]["value"] == pytest.approx(1.0)
    assert found["overall"]["recovered"]["value"] == pytest.approx(0.35 / 0.6)
    gap = first["gap_closed"]["recovered"]
    assert gap["low"] < gap["value"] < gap["high"]


@pytest.mark.parametrize(("pruned", "why"), [(0.6, "includes 0"), (0.9, "better than the original")])
def test_where_pruning_did_no_damage_there_is_no_gap(pruned: float, why: str) -> None:
    found = metric_gaps([task("a", 0.6, pruned, 0.7), task("b", 0.9, 0.4, 0.65)], THREE, 300, 1)
    entry = found["metrics"][0]
    assert entry["no_gap"].startswith("no gap: ")
    assert why in entry["no_gap"]
    assert entry["gap_closed"] == {"recovered": None}
    assert found["overall"]["recovered"]["value"] == pytest.approx(0.5)
    alone = metric_gaps([task("a", 0.6, pruned, 0.7)], THREE, 300, 1)
    assert alone["overall"] == {"recovered": None}


def test_the_draws_are_paired_so_a_shared_wobble_cancels() -> None:
    rng = np.random.default_rng(0)
    wobble = rng.standard_normal(60)
    values = {m: wobble + shift for m, shift in zip(THREE, (0.0, 1.0, 0.5), strict=True)}
    (entry,) = metric_gaps([Metric("text", "log perplexity", values, False)], THREE, 300, 1)["metrics"]
    assert entry["damage"]["low"] == pytest.approx(1.0)
    assert entry["damage"]["high"] == pytest.approx(1.0)
    assert entry["gap_closed"]["recovered"]["low"] == pytest.approx(0.5)


def test_windows_count_by_their_tokens() -> None:
    values = {m: np.array([1.0 + k, 3.0 + k]) for k, m in enumerate(THREE)}
    weights = np.array([3.0, 1.0])
    (entry,) = metric_gaps([Metric("t", "x", values, False, weights=weights)], THREE, 200, 1)["metrics"]
    assert entry["value"]["original"]["value"] == pytest.approx(1.5)


def test_a_secondary_metric_does_not_count_in_the_overall_ratio() -> None:
    found = metric_gaps(
        [task("a", 0.9, 0.4, 0.65), task("a", 0.9, 0.4, 0.9, primary=False)], THREE, 200, 1
    )  # fmt: skip
    assert found["overall"]["recovered"]["value"] == pytest.approx(0.5)


def test_fidelity_of_choices_is_the_divergence_of_their_distributions() -> None:
    same = choice_jsd([[-1.0, -2.0], [-3.0, -3.0, -9.0]], [[-11.0, -12.0], [-3.0, -3.0, -9.0]])
    np.testing.assert_allclose(same, 0, atol=1e-12)
    assert choice_jsd([[0.0, -1e3]], [[-1e3, 0.0]])[0] == pytest.approx(np.log(2))
    jsd = {"original": np.zeros(200), "pruned": np.full(200, 0.2), "recovered": np.full(200, 0.05)}
    (entry,) = metric_gaps([task("a", 0.9, 0.4, 0.65, jsd=jsd)], THREE, 200, 1)["metrics"]
    assert entry["fidelity_gap"]["recovered"]["value"] == pytest.approx(0.75)


def test_runs_of_one_recipe_have_a_spread() -> None:
    models = ["original", "pruned", "paser/1", "paser/2", "paser/3", "random"]
    assert seeds_of(models) == {"paser": ["paser/1", "paser/2", "paser/3"]}
    points = {"paser/1": {"value": 0.4}, "paser/2": {"value": 0.5}, "paser/3": {"value": 0.6}, "random": None}
    assert spread(points, models)["paser"] == pytest.approx(
        {"runs": 3, "mean": 0.5, "sd": 0.1, "low": 0.4, "high": 0.6}
    )
    assert spread({**points, "paser/2": None}, models) == {}


def test_without_the_original_there_are_losses_alone() -> None:
    loss = {"mine": np.array([1.0, 3.0])}
    found = summarise([Measured("a", loss, {}), Measured("b", loss, {})], ["mine"], 100, 1)
    assert found["overall"] == {"mine": {"loss": 2.0}}
    assert [entry["rows"] for entry in found["capabilities"]] == [2, 2]
