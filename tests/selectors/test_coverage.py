"""Facility location weighted by damage, against the plain greedy algorithm."""

from __future__ import annotations

import numpy as np
import pytest

from paser.selectors.coverage import CoverageSettings, coverage_order, facility_location
from paser.selectors.registry import selector
from paser.selectors.resources import Resources
from tests.selectors.scored import pool
from tests.selectors.test_registry import embedded, run


def plain(points: np.ndarray, weights: np.ndarray, cost: np.ndarray, thrift: float) -> list[int]:
    """Every gain of every step from the definition of F."""

    def worth(chosen: list[int]) -> float:
        return sum(
            float(weights[i]) * max((max(float(points[i] @ points[j]), 0.0) for j in chosen), default=0.0)
            for i in range(len(points))
        )

    order: list[int] = []
    while len(order) < len(points):
        rest = [j for j in range(len(points)) if j not in order]
        gains = {j: (worth([*order, j]) - worth(order)) / float(cost[j]) ** thrift for j in rest}
        order.append(max(rest, key=lambda j: (round(gains[j], 9), -j)))
    return order


@pytest.mark.parametrize("thrift", [0.0, 0.5, 1.0])
def test_lazy_greedy_is_greedy(thrift: float) -> None:
    rng = np.random.default_rng(1)
    points = rng.normal(size=(14, 5))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    weights, cost = rng.random(14), rng.integers(5, 60, size=14).astype(float)
    expected = plain(points, weights, cost, thrift)
    found = facility_location(points, weights, cost, thrift)
    # The last rows add nothing, up to rounding, and may come in any order.
    assert found.tolist()[:8] == expected[:8]
    assert sorted(found) == list(range(14))


def test_without_damage_weights_and_budget_left_over_every_row_is_placed_once() -> None:
    points = np.eye(4)
    assert facility_location(points, np.ones(4), np.ones(4)).tolist() == [0, 1, 2, 3]
    found = facility_location(points, np.array([1.0, 4.0, 2.0, 3.0]), np.ones(4), amount=2)
    assert found.tolist() == [1, 3, 2, 0]


def test_clusters_share_the_budget_by_damage_times_size() -> None:
    rows = pool(90)
    entries = run("coverage", rows, 30, "rows").report["clusters"]
    mass = np.array([rows.damage[rows.clusters == k].mean() * (rows.clusters == k).sum() for k in range(3)])
    assert [e["share"] for e in entries] == pytest.approx(mass / mass.sum())


def test_the_most_damaged_rows_are_taken_last_where_they_count_as_noise() -> None:
    rows, resources = pool(60), embedded(60)
    assert resources.embeddings is not None
    order = coverage_order(rows, resources.embeddings, CoverageSettings(noise=0.1), 60, "rows")
    for k in range(3):
        inside = np.flatnonzero(rows.clusters == k)
        worst = inside[np.argsort(-rows.damage[inside])[:2]]
        assert set(inside[np.argsort(order[inside])[:2]]) == set(worst)
    taken = selector("coverage", {"noise": 0.1}, resources, 0)(rows, 30, "rows")
    without = selector("coverage", {}, resources, 0)(rows, 30, "rows")
    assert set(taken.positions) != set(without.positions)


def test_coverage_spreads_where_top_damage_piles_up() -> None:
    """Four copies of one damaged text count once."""
    rows, resources = pool(60), embedded(60)
    assert resources.embeddings is not None
    copies = np.flatnonzero(rows.clusters == 2)[:4]
    points = resources.embeddings.copy()
    points[copies] = points[copies[0]]
    rows.divergences["jsd"][copies] = 0.6
    taken = selector("coverage", {}, Resources(embeddings=points), 0)(rows, 9, "rows")
    assert len(set(copies) & set(taken.positions)) == 1
