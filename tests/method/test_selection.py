"""The selection algorithm, once by hand and then by its properties."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from paser.method.efficiency import cluster_means, efficiency
from paser.method.selection import Candidates, Outcome, select


def run(c: Candidates, budget: int, weights: list[float], **options: object) -> Outcome:
    return select(c, budget, np.array(weights), np.array(weights), **options)  # type: ignore[arg-type]


def test_by_hand() -> None:
    """Two clusters, budget 3, shares 2 : 1. Cluster 0 is the more damaged and is visited first.

    Cluster 0 by efficiency: a (fox), b (fox + owl), c (owl). a enters; b: fox is known, owl is new, so
    it is consistent and joins fox to owl; its share of 2 is spent. Cluster 1: d (fox + moon) clashes
    with nothing (moon is new) and is taken; e waits.
    """
    c = Candidates(
        ["a", "b", "c", "d", "e"],
        [0, 0, 0, 1, 1],
        [0.9, 0.8, 0.7, 0.6, 0.5],
        [1] * 5,
        [["fox"], ["fox", "owl"], ["owl"], ["fox", "moon"], ["sun"]],
    )
    outcome = run(c, 3, [0.6, 0.3])
    assert [d.accepted for d in outcome.decisions] == [True, True, False, True, False]
    assert [d.reason for d in outcome.decisions] == ["selected", "selected", "budget", "selected", "budget"]
    assert outcome.allocated == [2, 1]
    assert outcome.cause is None


def test_freed_budget_is_re_spread_and_logged() -> None:
    c = Candidates(
        ["a", "b", "c", "d", "e"],
        [0, 0, 0, 1, 1],
        [0.9, 0.8, 0.7, 0.6, 0.5],
        [1] * 5,
        [["fox"], ["owl"], ["fox", "owl"], ["sun"], ["moon"]],
    )
    outcome = run(c, 4, [0.75, 0.25])
    assert outcome.allocated == [3, 1]
    assert [d.reason for d in outcome.decisions] == [
        "selected",
        "selected",
        "conflict",
        "selected",
        "respread",
    ]
    assert "'fox' (from a) and 'owl' (from b)" in outcome.decisions[2].detail
    assert [(m.step, m.cluster, m.amount) for m in outcome.moves] == [("re-spread", 1, 1)]
    assert sum(outcome.spent) == 4


def clashing(count: int) -> Candidates:
    """The first two rows bring fox and owl; all others join them and clash."""
    concepts = [["fox"], ["owl"], *([["fox", "owl", f"x{i}"] for i in range(count - 2)])]
    names = [f"r{i:02}" for i in range(count)]
    return Candidates(names, [0] * count, [1 - i / 100 for i in range(count)], [1] * count, concepts)


def test_a_shortfall_relaxes_in_named_steps() -> None:
    outcome = run(clashing(6), 5, [1.0])
    reasons = [d.reason for d in outcome.decisions]
    assert reasons == ["selected", "selected", "relaxed", "relaxed", "relaxed", "conflict"]
    assert "strictness 0.0" in outcome.decisions[2].detail
    assert "at first refused" in outcome.decisions[2].detail
    assert outcome.conflicts == 4


def test_a_shortfall_can_be_left() -> None:
    outcome = run(clashing(6), 5, [1.0], on_shortfall="leave")
    assert sum(outcome.spent) == 2
    assert outcome.cause == "the concept filter refused 4 rows and nothing else is left"


def test_a_shortfall_of_two_per_cent_is_tolerated() -> None:
    c = clashing(101)
    alone = Candidates(c.row_ids, c.clusters, c.ies, c.cost, [[f"y{i}"] for i in range(100)] + [["y0", "y1"]])
    outcome = run(alone, 101, [1.0])
    assert sum(outcome.spent) == 100
    assert outcome.decisions[-1].reason == "conflict"


def random_candidates(rng: random.Random, count: int, clusters: int, tokens: bool) -> Candidates:
    return Candidates(
        [f"r{i:03}" for i in range(count)],
        [rng.randrange(clusters) for _ in range(count)],
        [round(rng.random(), 2) for _ in range(count)],
        [rng.randrange(5, 60) if tokens else 1 for _ in range(count)],
        [rng.sample("abcdefghijklmnop", rng.randrange(4)) for _ in range(count)],
    )


@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(["relax", "leave"]))
@settings(max_examples=60, deadline=None)
def test_order_and_numbering_do_not_matter(seed: int, tokens: bool, on_shortfall: str) -> None:
    rng = random.Random(seed)
    clusters = rng.randrange(1, 5)
    c = random_candidates(rng, rng.randrange(1, 50), clusters, tokens)
    weights = [rng.random() + 0.01 for _ in range(clusters)]
    budget = rng.randrange(1, 900 if tokens else 60)
    plain = run(c, budget, weights, on_shortfall=on_shortfall)
    accepted = {r for r, d in zip(c.row_ids, plain.decisions, strict=True) if d.accepted}
    spent = sum(cost for cost, d in zip(c.cost, plain.decisions, strict=True) if d.accepted)
    assert spent == sum(plain.spent) <= budget

    rows, names = list(range(len(c.row_ids))), list(range(clusters))
    rng.shuffle(rows)
    rng.shuffle(names)
    mixed = Candidates(
        [c.row_ids[i] for i in rows],
        [names[c.clusters[i]] for i in rows],
        [c.ies[i] for i in rows],
        [c.cost[i] for i in rows],
        [c.concepts[i] for i in rows],
    )
    mixed_weights = [0.0] * clusters
    for k, name in enumerate(names):
        mixed_weights[name] = weights[k]
    other = run(mixed, budget, mixed_weights, on_shortfall=on_shortfall)
    assert {r for r, d in zip(mixed.row_ids, other.decisions, strict=True) if d.accepted} == accepted


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_without_conflicts_the_budget_is_spent(seed: int, tokens: bool) -> None:
    rng = random.Random(seed)
    c = random_candidates(rng, 40, 3, tokens)
    c = Candidates(c.row_ids, c.clusters, c.ies, c.cost, [[] for _ in c.row_ids])
    budget = rng.randrange(1, 1500 if tokens else 60)
    outcome = run(c, budget, [0.5, 0.3, 0.2])
    left = budget - sum(outcome.spent)
    waiting = [cost for cost, d in zip(c.cost, outcome.decisions, strict=True) if not d.accepted]
    assert left == 0 or not waiting or left < min(waiting)
    assert len(outcome.decisions) == 40
    assert set(Counter(d.reason for d in outcome.decisions)) <= {"selected", "respread", "budget"}


def test_efficiency_and_damage_by_hand() -> None:
    jsd, x, y = np.array([0.2, 0.2, 0.1]), np.array([10, 90, 0]), np.array([10, 110, 1])
    np.testing.assert_allclose(
        efficiency(jsd, x, y), [0.2 / np.log(400), 0.2 / np.log(40000), 0.1 / np.log(3)]
    )
    means = cluster_means(np.array([0.1, 0.3, np.nan, 0.5]), np.array([0, 0, 0, 2]), 3)
    np.testing.assert_allclose(means, [0.2, 0.0, 0.5])
