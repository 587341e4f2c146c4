"""Facility location weighted by damage, against the plain greedy algorithm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paser.errors import SettingsError
from paser.selectors import coverage
from paser.selectors.choose import choose
from paser.selectors.coverage import BY_THE_TOKEN, Covering, coverage_order, facility_location
from paser.selectors.protocol import ScoredPool
from paser.selectors.registry import selector
from paser.selectors.resources import Resources
from paser.settings import SelectSettings
from tests.selectors.scored import pool
from tests.selectors.test_registry import embedded, run


def plain(
    points: np.ndarray,
    weights: np.ndarray,
    cost: np.ndarray,
    thrift: float,
    standing: np.ndarray | None = None,
) -> tuple[list[int], dict[int, float]]:
    """Order and gains of the greedy algorithm: every gain of every step from the definition of F."""
    own = np.ones(len(points)) if standing is None else standing

    def worth(chosen: list[int]) -> float:
        return sum(
            float(weights[i])
            * max((float(own[j]) * max(float(points[i] @ points[j]), 0.0) for j in chosen), default=0.0)
            for i in range(len(points))
        )

    order: list[int] = []
    added: dict[int, float] = {}
    while len(order) < len(points):
        rest = [j for j in range(len(points)) if j not in order]
        gains = {j: (worth([*order, j]) - worth(order)) / float(cost[j]) ** thrift for j in rest}
        order.append(max(rest, key=lambda j: (round(gains[j], 9), -j)))
        added[order[-1]] = gains[order[-1]]
    return order, added


def turns(values: np.ndarray) -> list[int]:
    return np.argsort(-values, kind="stable").tolist()


@pytest.mark.parametrize("stands", [False, True])
@pytest.mark.parametrize("thrift", [0.0, 0.5, 1.0])
def test_lazy_greedy_is_greedy(thrift: float, stands: bool) -> None:
    rng = np.random.default_rng(1)
    points = rng.normal(size=(14, 5))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    weights, cost = rng.random(14), rng.integers(5, 60, size=14).astype(float)
    standing = weights**2 if stands else None
    order, gains = plain(points, weights, cost, thrift, standing)
    found = facility_location(points, weights, cost, thrift, standing=standing)
    # The last rows add nothing, up to rounding, and may come in any order.
    assert turns(found)[:8] == order[:8]
    assert found == pytest.approx([gains[j] for j in range(14)], abs=1e-12)


def test_rows_that_cover_only_themselves_go_by_weight_also_beyond_the_budget() -> None:
    points = np.eye(4)
    assert turns(facility_location(points, np.ones(4), np.ones(4))) == [0, 1, 2, 3]
    found = facility_location(points, np.array([1.0, 4.0, 2.0, 3.0]), np.ones(4), amount=2)
    assert turns(found) == [1, 3, 2, 0]


def test_clusters_share_the_budget_by_damage_times_size() -> None:
    rows = pool(90)
    entries = run("coverage", rows, 30, "rows").report["clusters"]
    mass = np.array([rows.damage[rows.clusters == k].mean() * (rows.clusters == k).sum() for k in range(3)])
    assert [e["share"] for e in entries] == pytest.approx(mass / mass.sum())


def test_the_most_damaged_rows_are_taken_last_where_they_count_as_noise() -> None:
    rows, resources = pool(60), embedded(60)
    assert resources.embeddings is not None
    order = coverage_order(rows, resources.embeddings, Covering(noise=0.1), 60, "rows")
    for k in range(3):
        inside = np.flatnonzero(rows.clusters == k)
        worst = inside[np.argsort(-rows.damage[inside])[:2]]
        assert set(inside[np.argsort(order[inside])[:2]]) == set(worst)
    taken = selector("coverage", {"noise": 0.1}, resources, 0)(rows, 30, "rows")
    without = selector("coverage", {}, resources, 0)(rows, 30, "rows")
    assert set(taken.positions) != set(without.positions)


def test_an_undamaged_row_stands_for_damaged_ones_only_where_all_stand_alike() -> None:
    """A row in the middle of damaged ones, and one of these."""
    points = np.array([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    weights, cost = np.array([0.1, 1.0, 1.0]), np.ones(3)
    assert turns(facility_location(points, weights, cost))[0] == 0
    assert turns(facility_location(points, weights, cost, standing=weights))[0] == 1


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


@pytest.mark.parametrize("covering", [Covering(), BY_THE_TOKEN])
def test_a_large_cluster_is_dealt_into_parts_that_are_covered_by_themselves(
    monkeypatch: pytest.MonkeyPatch, covering: Covering
) -> None:
    monkeypatch.setattr(coverage, "PART", 8)
    rows, resources = pool(60), embedded(60)
    assert resources.embeddings is not None
    values = coverage_order(rows, resources.embeddings, covering, int(rows.tokens.sum()), "tokens")
    unit = resources.embeddings.astype(float)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    mass, standing, thrift = rows.damage, None, 0.0
    if covering == BY_THE_TOKEN:
        mass = rows.damage * rows.response_tokens / rows.tokens
        standing, thrift = np.sqrt(mass), 0.5
    for k in range(3):
        inside = sorted(np.flatnonzero(rows.clusters == k), key=lambda i: rows.row_ids[i])
        assert len(inside) == 20
        for dealt in (inside[0::3], inside[1::3], inside[2::3]):
            own = None if standing is None else standing[dealt]
            _, gains = plain(unit[dealt], mass[dealt], rows.tokens[dealt].astype(float), thrift, own)
            assert values[dealt] == pytest.approx([gains[j] for j in range(len(dealt))], abs=1e-12)


def won_back(count: int) -> ScoredPool:
    rows = pool(count)
    won = np.random.default_rng(7).uniform(-0.1, 0.6, count)
    return replace(rows, divergences={**rows.divergences, "recoverability": won})


def test_the_rule_by_name_is_coverage_by_recoverability_a_token_with_a_budget_by_rate() -> None:
    rows = won_back(90)
    found = run("recoverable-coverage", rows, 2000, "tokens")
    written = run(
        "coverage", rows, 2000, "tokens", divergence="recoverability", policy="damage_rate", gamma=0.5,
        weight="per_token", thrift=0.5, standing=0.5,
    )  # fmt: skip
    assert found.positions.tolist() == written.positions.tolist()
    assert found.ies.tolist() == written.ies.tolist()
    assert found.report["clusters"] == written.report["clusters"]
    other = run("recoverable", rows, 2000, "tokens", policy="damage_rate", gamma=0.5)
    assert found.positions.tolist() != other.positions.tolist()


def test_the_pipeline_ranks_by_coverage_as_the_selector_does() -> None:
    rows = replace(won_back(90), divergence="recoverability")
    settings = SelectSettings(selector="recoverable-coverage", budget="2000 tokens")
    points = embedded(90).embeddings
    assert points is not None
    chosen, _, report = choose(rows, settings, 3, {}, lambda: points)
    assert chosen.positions.tolist() == run("recoverable-coverage", rows, 2000, "tokens").positions.tolist()
    assert (report["order"], report["policy"]) == ("coverage", "damage_rate")


@pytest.mark.parametrize("name", ["paser", "paser-no-clusters", "paser-no-conflicts", "per-token"])
def test_each_rule_may_rank_by_coverage(name: str) -> None:
    rows = pool(90)
    found, plain = run(name, rows, 21, "rows", order="coverage"), run(name, rows, 21, "rows")
    assert found.positions.tolist() != plain.positions.tolist()


def test_coverage_without_embeddings_says_what_is_missing() -> None:
    settings = SelectSettings(order="coverage")
    with pytest.raises(SettingsError, match="order `coverage` needs embeddings"):
        choose(pool(90), settings, 3, {})
