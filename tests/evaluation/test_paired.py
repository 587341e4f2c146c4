"""Trainings from one pruned model: metrics, draws of units and seeds, paired differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paser.evaluation.paired import RESAMPLES, Judge, draws, holm, shown, verdict

LABELS = ["a", "a", "a", "b", "b"]


def training(loss: list[float], jsd: list[float], right: list[int]) -> dict[str, Any]:
    return {"loss": loss, "jsd": jsd, "tasks": {"quiz": {"value": right}}}


ORIGINAL = training([1.0, 1.0, 1.0, 2.0, 2.0], [0.0] * 5, [1, 1, 1, 0])
PRUNED = training([2.0, 3.0, 2.0, 4.0, 5.0], [0.2, 0.3, 0.1, 0.4, 0.6], [0, 0, 1, 0])


def test_every_group_of_units_counts_alike_in_every_resample() -> None:
    found = draws(LABELS, 3, resamples=50)
    assert found.units.shape == (51, 5)
    for label in ("a", "b"):
        inside = [i for i, one in enumerate(LABELS) if one == label]
        assert np.allclose(found.units[:, inside].sum(axis=1), 0.5)
    assert np.allclose(found.units[0], [1 / 6, 1 / 6, 1 / 6, 1 / 4, 1 / 4])
    seeds = found.seeds(3)
    assert np.allclose(seeds.sum(axis=1), 1)
    assert np.allclose(seeds[0], 1 / 3)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_seeds_spread_as_widely_as_the_standard_error_of_their_mean(count: int) -> None:
    """The plain bootstrap would fall short by the root of (n - 1) / n, nearly a third with two seeds."""
    values = np.random.default_rng(1).normal(size=count)
    spread = (draws(LABELS, 3).seeds(count)[1:] @ values).std()
    assert spread == pytest.approx(values.std(ddof=1) / np.sqrt(count), rel=0.03)


def test_metrics_are_ratios_of_means_over_labels() -> None:
    judge = Judge(PRUNED, ORIGINAL, LABELS)
    ours = training([1.5, 2.0, 1.5, 3.0, 3.0], [0.1, 0.1, 0.1, 0.2, 0.2], [0, 1, 1, 0])
    fidelity = 1 - (np.mean([0.1, 0.1, 0.1]) + np.mean([0.2, 0.2])) / (np.mean([0.2, 0.3, 0.1]) + 0.5)
    assert judge.mean("fidelity gap", [ours])["value"] == pytest.approx(fidelity)
    assert judge.mean("task accuracy", [ours])["value"] == 0.5
    a = (np.mean([2, 3, 2]) - np.mean([1.5, 2, 1.5]), np.mean([2, 3, 2]) - 1)
    b = (4.5 - 3.0, 4.5 - 2.0)
    assert judge.damaged == ["a", "b"]
    assert judge.mean("gap closed", [ours])["value"] == pytest.approx((a[0] + b[0]) / (a[1] + b[1]))
    assert judge.by_label("gap closed", [ours]) == pytest.approx({"a": a[0] / a[1], "b": b[0] / b[1]})


def test_a_label_without_damage_has_no_part_in_the_gap() -> None:
    pruned = training([1.0, 0.5, 1.0, 4.0, 5.0], PRUNED["jsd"], [0, 0, 1, 0])
    judge = Judge(pruned, ORIGINAL, LABELS)
    assert judge.damaged == ["b"]
    ours = training([9.0, 9.0, 9.0, 3.0, 3.0], PRUNED["jsd"], [0, 0, 1, 0])
    assert judge.mean("gap closed", [ours])["value"] == pytest.approx(0.6)


def test_a_label_that_pruning_did_not_change_has_no_ratio_of_its_own() -> None:
    """It counts overall, where what training did to it is seen."""
    untouched = training([1.0, 1.0, 1.0, 4.0, 5.0], [0.0, 0.0, 0.0, 0.4, 0.6], [0, 0, 1, 0])
    judge = Judge(untouched, ORIGINAL, LABELS)
    assert judge.damaged == ["b"]
    ours = training([1.1, 1.1, 1.1, 3.0, 3.0], [0.1, 0.1, 0.1, 0.2, 0.2], [0, 0, 1, 0])
    assert judge.by_label("fidelity gap", [ours]) == pytest.approx({"b": 0.6})
    assert set(judge.by_label("gap closed", [ours])) == {"b"}
    assert judge.mean("fidelity gap", [ours])["value"] == pytest.approx(1 - (0.1 + 0.2) / 0.5)


@pytest.mark.filterwarnings("error")
def test_resamples_without_damage_do_not_count() -> None:
    sparse = training(PRUNED["loss"], [0.0, 0.0, 0.0, 0.0, 0.6], [0, 0, 1, 0])
    judge = Judge(sparse, ORIGINAL, LABELS)
    ours = training(PRUNED["loss"], [0.0, 0.0, 0.0, 0.0, 0.3], [0, 0, 1, 0])
    theirs = training(PRUNED["loss"], [0.0, 0.0, 0.0, 0.0, 0.4], [0, 0, 1, 0])
    found = judge.difference("fidelity gap", [ours], [theirs])
    assert found["value"] == pytest.approx(1 / 6)
    assert all(np.isfinite(found[key]) for key in ("low", "high", "p", "least"))
    assert found["p"] < 0.001


def test_differences_are_paired_over_seeds_and_rows() -> None:
    """Each seed differs a lot, but ours is better than theirs by the same in each: the interval is narrow."""
    judge = Judge(PRUNED, ORIGINAL, LABELS)
    rng = np.random.default_rng(0)
    ours, theirs = [], []
    for shift in rng.uniform(0.0, 0.15, size=4):
        jsd = np.array(PRUNED["jsd"]) * (0.8 - shift)
        theirs.append(training(PRUNED["loss"], jsd.tolist(), [0, 0, 1, 0]))
        ours.append(training(PRUNED["loss"], (jsd - 0.05 * np.array(PRUNED["jsd"])).tolist(), [0, 0, 1, 0]))
    found = judge.difference("fidelity gap", ours, theirs)
    assert found["value"] == pytest.approx(0.05)
    assert found["low"] == pytest.approx(0.05)
    assert found["high"] == pytest.approx(0.05)
    assert found["sd"] == pytest.approx(0, abs=1e-12)
    assert found["least"] == pytest.approx(0, abs=1e-12)
    assert found["p"] == pytest.approx(2 / (RESAMPLES + 1))
    same = judge.difference("task accuracy", ours, theirs)
    assert same["value"] == 0
    assert same["p"] == 1


def test_the_least_difference_knows_the_spread_of_rows_and_not_of_seeds_alone() -> None:
    """Seeds agree to the bit, but rows do not: what could be found is no better for that."""
    judge = Judge(PRUNED, ORIGINAL, LABELS)
    jsd = np.array(PRUNED["jsd"])
    ours = training(PRUNED["loss"], (jsd * [0.2, 1.0, 0.5, 0.9, 0.4]).tolist(), [0, 0, 1, 0])
    theirs = training(PRUNED["loss"], (jsd * 0.7).tolist(), [0, 0, 1, 0])
    found = judge.difference("fidelity gap", [ours] * 3, [theirs] * 3)
    assert found["sd"] == pytest.approx(0, abs=1e-12)
    standard_error = (found["high"] - found["low"]) / 3.92
    assert found["least"] == pytest.approx(2.8 * standard_error, rel=0.35)


def test_holm_corrects_from_the_smallest_up() -> None:
    assert holm({"x": 0.01, "y": 0.04, "z": 0.03}) == pytest.approx({"x": 0.03, "z": 0.06, "y": 0.06})
    assert holm({"x": 0.9, "y": 0.8}) == {"y": 1.0, "x": 1.0}


def test_without_tasks_there_are_two_metrics() -> None:
    bare = {key: {"loss": one["loss"], "jsd": one["jsd"]} for key, one in (("o", ORIGINAL), ("p", PRUNED))}
    whole, judge = Judge(PRUNED, ORIGINAL, LABELS), Judge(bare["p"], bare["o"], LABELS)
    for metric in ("fidelity gap", "gap closed"):
        assert judge.mean(metric, [bare["p"]]) == whole.mean(metric, [PRUNED])


def test_a_difference_counts_where_interval_and_corrected_p_agree() -> None:
    ahead = {"value": 0.1, "low": 0.02, "high": 0.2, "seeds": 3}
    assert verdict(ahead) == verdict(ahead, 0.01) == "ahead"
    assert verdict(ahead | {"value": -0.1, "low": -0.2, "high": -0.02}, 0.01) == "behind"
    assert verdict(ahead, 0.06) == "tie"
    assert verdict(ahead | {"low": -0.02}, 0.01) == "tie"
    assert verdict(ahead | {"seeds": 1}) == "one seed"


def test_a_small_p_value_is_never_shown_as_nothing() -> None:
    assert [shown(p) for p in (0.0001, 0.00099, 0.001, 0.0273, 1.0)] == [
        "< 0.001", "< 0.001", "0.001", "0.027", "1.000",
    ]  # fmt: skip
