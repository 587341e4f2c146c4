"""The selection algorithm, once by hand, against a slow version written from the book, and by its
properties."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paser.method.budget import policy_weights
from paser.method.concepts import ConceptGraph
from paser.method.efficiency import agreement, cluster_means, efficiency
from paser.method.selection import LOOK_AHEAD, Candidates, Outcome, acceptance_step, select

WORDS = "abcdefghijklmnop"


def candidates(
    row_ids: Sequence[str],
    clusters: Sequence[int],
    ies: Sequence[float],
    cost: Sequence[int],
    concepts: Sequence[Sequence[str]],
) -> Candidates:
    return Candidates(
        row_ids,
        np.array(clusters),
        np.array(ies, dtype=float),
        np.array(cost),
        lambda rows: [concepts[i] for i in rows],
    )


def concepts_of(c: Candidates) -> list[Sequence[str]]:
    return list(c.concepts(np.arange(len(c.row_ids))))


def run(c: Candidates, budget: int, weights: Sequence[float], **options: object) -> Outcome:
    return select(c, budget, np.array(weights), np.array(weights), **options)  # type: ignore[arg-type]


def reasons(outcome: Outcome) -> list[str]:
    return [outcome.reason(i) for i in range(len(outcome.reasons))]


def test_the_worked_example_of_the_docs() -> None:
    """docs/method.md, "By hand", number by number."""
    rows = [
        # id, cluster, JSD, tokens of prompt and response, concepts
        ("a", 0, 0.36, (8, 12), ["fox", "forest"]),
        ("b", 0, 0.40, (40, 60), ["owl", "night"]),
        ("c", 0, 0.32, (20, 30), ["fox", "owl"]),
        ("d", 0, 0.12, (8, 12), ["forest", "night"]),
        ("e", 1, 0.16, (20, 30), ["sun"]),
        ("f", 1, 0.08, (8, 12), ["fox", "sun"]),
        ("g", 1, 0.06, (40, 60), ["fox", "moon"]),
    ]
    clusters, jsd = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    x, y = (np.array([row[3][side] for row in rows]) for side in (0, 1))
    cds = cluster_means(jsd, clusters, 2)
    np.testing.assert_allclose(cds, [0.30, 0.10])
    weights = policy_weights("damage", cds, np.array([4, 3]), cds, cds, 1.0)
    np.testing.assert_allclose(weights, [0.75, 0.25])
    ies = efficiency(jsd, x, y)
    assert ies.round(4).tolist() == [0.0601, 0.0434, 0.0409, 0.0200, 0.0204, 0.0134, 0.0065]
    c = candidates(
        [row[0] for row in rows], clusters.tolist(), ies.tolist(), [1] * 7, [row[4] for row in rows]
    )

    left = select(c, 5, weights, cds, on_shortfall="leave")
    assert left.allocated == [4, 1]
    assert left.rank.tolist() == [1, 2, 3, 4, 1, 2, 3]
    assert reasons(left) == [
        "selected", "selected", "conflict", "conflict", "selected", "conflict", "respread",
    ]  # fmt: skip
    assert left.detail(2).startswith("'fox' (from a) and 'owl' (from b)")
    assert left.detail(3).startswith("'forest' (from a) and 'night' (from b)")
    assert left.detail(5).startswith("'fox' (from a) and 'sun' (from e)")
    assert [(move.step, move.cluster, move.amount) for move in left.moves] == [("re-spread", 1, 1)]
    assert list(left.spent) == [2, 2]
    assert left.cause == "the concept filter refused 3 rows and nothing else is left"

    relaxed = select(c, 5, weights, cds, on_shortfall="relax")
    assert reasons(relaxed)[2] == "relaxed"
    assert relaxed.detail(2).startswith("strictness 0.0; at first refused: 'fox' (from a)")
    assert list(relaxed.spent) == [3, 2]
    assert relaxed.cause is None


def clashing(count: int) -> Candidates:
    """The first two rows bring fox and owl; all others join them and clash."""
    concepts = [["fox"], ["owl"], *([["fox", "owl", f"x{i}"] for i in range(count - 2)])]
    names = [f"r{i:02}" for i in range(count)]
    return candidates(names, [0] * count, [1 - i / 100 for i in range(count)], [1] * count, concepts)


def test_a_shortfall_relaxes_in_named_steps() -> None:
    outcome = run(clashing(6), 5, [1.0])
    assert reasons(outcome) == ["selected", "selected", "relaxed", "relaxed", "relaxed", "conflict"]
    assert "strictness 0.0" in outcome.detail(2)
    assert "at first refused" in outcome.detail(2)
    assert outcome.conflicts == 4
    assert outcome.relaxed == {"0.0": 3}


def test_a_shortfall_can_be_left() -> None:
    outcome = run(clashing(6), 5, [1.0], on_shortfall="leave")
    assert sum(outcome.spent) == 2
    assert outcome.cause == "the concept filter refused 4 rows and nothing else is left"


def test_a_shortfall_of_two_per_cent_is_tolerated() -> None:
    concepts = [[f"y{i}"] for i in range(100)] + [["y0", "y1"]]
    outcome = run(replace(clashing(101), concepts=lambda rows: [concepts[i] for i in rows]), 101, [1.0])
    assert sum(outcome.spent) == 100
    assert reasons(outcome)[-1] == "conflict"
    assert outcome.cause == "the concept filter refused 1 rows; so little is left that it was not relaxed"


def test_a_row_refused_again_says_why_at_last() -> None:
    """At strictness 0.25, d joins p and r; so e clashes by p and s, with one of six pairs joined. What is
    left is 2 % and stays."""
    c = candidates(
        ["a", "b", "c1", "c2", "d", "e"],
        [0] * 6,
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
        [20, 20, 20, 20, 18, 2],
        [["p", "q"], ["r"], ["s"], ["t"], ["p", "q", "r"], ["p", "r", "s", "t"]],
    )
    outcome = run(c, 100, [1.0])
    assert reasons(outcome) == ["selected"] * 4 + ["relaxed", "conflict"]
    assert outcome.detail(4).startswith("strictness 0.25; at first refused: 'p' (from a) and 'r' (from b)")
    assert outcome.detail(5).startswith("'p' (from a) and 's' (from c1)")
    assert outcome.detail(5).endswith("1 of 6 known pairs are joined")
    assert outcome.cause == (
        "the concept filter refused 1 rows; so little is left that it was not relaxed below strictness 0.25"
    )


def test_a_refused_row_that_costs_too_much_is_the_cause_when_the_filter_was_relaxed() -> None:
    c = candidates(
        ["a", "b", "d", "e"],
        [0] * 4,
        [0.9, 0.8, 0.7, 0.6],
        [5, 5, 9, 9],
        [["p"], ["q"], ["p", "q"], ["p", "q"]],
    )
    outcome = run(c, 20, [1.0])
    assert reasons(outcome) == ["selected", "selected", "relaxed", "conflict"]
    assert (
        outcome.cause
        == "the concept filter refused 1 rows; when it was relaxed, each of them cost more than was left"
    )


def test_concepts_are_asked_for_only_where_the_budget_reaches() -> None:
    asked: list[int] = []

    def concepts(rows: np.ndarray) -> list[list[str]]:
        asked.extend(rows.tolist())
        return [[f"c{i}"] for i in rows]

    size = 20_000
    c = Candidates(
        [f"r{i:05}" for i in range(size)], np.zeros(size, int), -np.arange(size), np.ones(size, int), concepts
    )
    outcome = run(c, 3000, [1.0])
    assert outcome.accepted.sum() == 3000
    assert len(asked) == len(set(asked)) <= 3000 + LOOK_AHEAD


def by_the_book(
    rows: list[tuple[str, int, float, list[str]]], budget: int, weights: list[float], cds: list[float]
) -> dict[str, str]:
    """method.md, section 4, for a budget in rows, strictness 1 and `leave`: no care for speed."""
    waiting = {k: [row for row in rows if row[1] == k] for k in range(len(weights))}
    first = {k: min((row[0] for row in queue), default="~") for k, queue in waiting.items()}
    visiting = sorted(waiting, key=lambda k: (-cds[k], first[k]))
    decided = {row[0]: "budget" for row in rows}
    together: set[frozenset[str]] = set()
    known: set[str] = set()
    left = min(budget, len(rows))
    for reason in ("selected", *["respread"] * len(weights)):
        room = quotas(left, weights, [len(waiting[k]) for k in range(len(weights))], first)
        for k in visiting:
            for row in sorted(waiting[k], key=lambda row: (-row[2], row[0])):
                if room[k] == 0:
                    break
                waiting[k].remove(row)
                pairs = [frozenset(pair) for pair in combinations(sorted(set(row[3]) & known), 2)]
                if all(pair in together for pair in pairs):
                    decided[row[0]] = reason
                    known |= set(row[3])
                    together |= {frozenset(pair) for pair in combinations(row[3], 2)}
                    room[k] -= 1
                    left -= 1
                else:
                    decided[row[0]] = "conflict"
    return decided


def quotas(total: int, weights: list[float], caps: list[int], first: dict[int, str]) -> dict[int, int]:
    """Largest remainders under caps: fill what overflows, divide the rest anew."""
    given = dict.fromkeys(range(len(caps)), 0)
    open_ = {k for k in given if weights[k] > 0}
    while total > 0 and any(caps):
        if not open_:
            open_, weights = {k for k in given if given[k] < caps[k]}, [1.0] * len(caps)
            if not open_:
                break
        share = {k: total * Fraction(weights[k]) / sum(Fraction(weights[j]) for j in open_) for k in open_}
        full = {k for k in open_ if share[k] >= caps[k]}
        if not full:
            given |= {k: int(share[k]) for k in open_}
            by_remainder = sorted(
                open_, key=lambda k: (int(share[k]) - share[k], -Fraction(weights[k]), first[k])
            )
            for k in by_remainder[: total - sum(int(share[k]) for k in open_)]:
                given[k] += 1
            break
        for k in full:
            given[k] = caps[k]
            total -= caps[k]
        open_ -= full
    return given


@given(st.integers(0, 10**9))
@settings(max_examples=300, deadline=None)
def test_agrees_with_the_book(seed: int) -> None:
    rng = random.Random(seed)
    k = rng.randrange(1, 5)
    vocabulary = WORDS[: rng.randrange(2, len(WORDS))]
    rows = [
        (
            f"r{i:02}",
            rng.randrange(k),
            rng.randrange(12) / 8,
            rng.sample(vocabulary, rng.randrange(min(4, len(vocabulary)) + 1)),
        )
        for i in range(rng.randrange(1, 40))
    ]
    weights = [float(rng.randrange(4)) for _ in range(k)]
    cds = [float(rng.randrange(3)) for _ in range(k)]
    budget = rng.randrange(1, 45)
    c = candidates(
        [r[0] for r in rows],
        [r[1] for r in rows],
        [r[2] for r in rows],
        [1] * len(rows),
        [r[3] for r in rows],
    )
    outcome = select(c, budget, np.array(weights), np.array(cds), on_shortfall="leave")
    assert dict(zip(c.row_ids, reasons(outcome), strict=True)) == by_the_book(rows, budget, weights, cds)


def random_candidates(rng: random.Random, count: int, clusters: int, tokens: bool) -> Candidates:
    return candidates(
        [f"r{i:03}" for i in range(count)],
        [rng.randrange(clusters) for _ in range(count)],
        [round(rng.random(), 2) for _ in range(count)],
        [rng.randrange(5, 60) if tokens else 1 for _ in range(count)],
        [rng.sample(WORDS, rng.randrange(4)) for _ in range(count)],
    )


options = st.fixed_dictionaries(
    {
        "on_shortfall": st.sampled_from(["relax", "leave"]),
        "strictness": st.sampled_from([1.0, 0.75, 0.5, 0.0]),
        "floor": st.integers(0, 3),
    }
)


@given(st.integers(0, 10**6), st.booleans(), options)
@settings(max_examples=150, deadline=None)
def test_order_and_numbering_do_not_matter(seed: int, tokens: bool, chosen: dict[str, object]) -> None:
    rng = random.Random(seed)
    clusters = rng.randrange(1, 5)
    c = random_candidates(rng, rng.randrange(1, 50), clusters, tokens)
    weights = [float(rng.randrange(1, 4)) for _ in range(clusters)]
    budget = rng.randrange(1, 900 if tokens else 60)
    plain = run(c, budget, weights, **chosen)

    rows, names = list(range(len(c.row_ids))), list(range(clusters))
    rng.shuffle(rows)
    rng.shuffle(names)
    concepts = concepts_of(c)
    mixed = candidates(
        [c.row_ids[i] for i in rows],
        [names[c.clusters[i]] for i in rows],
        [c.ies[i] for i in rows],
        [c.cost[i] for i in rows],
        [concepts[i] for i in rows],
    )
    mixed_weights = [0.0] * clusters
    for k, name in enumerate(names):
        mixed_weights[name] = weights[k]
    other = run(mixed, budget, mixed_weights, **chosen)
    assert [other.reason(rows.index(i)) for i in range(len(rows))] == reasons(plain)
    assert [other.rank[rows.index(i)] for i in range(len(rows))] == plain.rank.tolist()
    assert [other.spent[names[k]] for k in range(clusters)] == list(plain.spent)
    filled = [k for k in range(clusters) if (c.clusters == k).any()]
    assert [names[k] for k in plain.visiting if k in filled] == [
        name for name in other.visiting if name in {names[k] for k in filled}
    ]


@given(st.integers(0, 10**6), st.booleans(), options)
@settings(max_examples=150, deadline=None)
def test_every_row_has_one_decision_and_the_budget_holds(
    seed: int, tokens: bool, chosen: dict[str, object]
) -> None:
    rng = random.Random(seed)
    c = random_candidates(rng, rng.randrange(1, 80), 3, tokens)
    budget = rng.randrange(1, 1500 if tokens else 90)
    outcome = run(c, budget, [0.5, 0.3, 0.2], **chosen)
    assert len(outcome.reasons) == len(c.row_ids)
    spent = [int(c.cost[outcome.accepted & (c.clusters == k)].sum()) for k in range(3)]
    assert spent == list(outcome.spent)
    assert sum(spent) <= budget
    assert sum(outcome.allocated) == min(budget, c.cost.sum())
    taken = {"allocation": [0] * 3} | {move.step: [0] * 3 for move in outcome.moves}
    for i in np.flatnonzero(outcome.accepted):
        step = outcome.step_names[outcome.steps[i]]
        taken[str(step)][c.clusters[i]] += int(c.cost[i])
        assert (outcome.reason(i) == "selected") == (step.name == "allocation")
        assert (outcome.detail(i) == "") == (step.name == "allocation")
    assert all(a <= n for a, n in zip(taken.pop("allocation"), outcome.allocated, strict=True))
    moved = {(move.step, move.cluster): move.amount for move in outcome.moves}
    assert moved == {(s, k): n for s, amounts in taken.items() for k, n in enumerate(amounts) if n}
    left = budget - sum(spent)
    assert (outcome.cause is None) == (left == 0)
    waiting = [int(cost) for i, cost in enumerate(c.cost) if outcome.reason(i) == "budget"]
    assert not left or not waiting or left < min(waiting)
    if chosen["on_shortfall"] == "relax" and budget <= c.cost.sum() and left > 0.02 * budget:
        assert all(left < cost for cost in c.cost[~outcome.accepted])
    for k in range(3):
        assert sorted(outcome.rank[c.clusters == k]) == list(range(1, (c.clusters == k).sum() + 1))


@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([1.0, 0.75, 0.5]))
@settings(max_examples=150, deadline=None)
def test_rejections_name_the_true_cause(seed: int, tokens: bool, strictness: float) -> None:
    """The run is replayed: at the end, and so ever since, the pair is known, and was not joined when the
    row was judged; the rows named were accepted, carry the concept, and are the first that do."""
    rng = random.Random(seed)
    c = random_candidates(rng, 60, 3, tokens)
    outcome = run(c, 1500 if tokens else 50, [0.5, 0.3, 0.2], strictness=strictness, on_shortfall="leave")
    concepts = concepts_of(c)
    order = sorted(np.flatnonzero(outcome.accepted), key=lambda i: place(outcome, i))
    first: dict[str, str] = {}
    for i in order:
        for concept in concepts[i]:
            first.setdefault(concept, c.row_ids[i])
    for i in np.flatnonzero(outcome.reasons == outcome.reasons.dtype.type(1)):
        clash = outcome.clashes[i]
        assert outcome.reason(i) == "conflict"
        assert {clash.first, clash.second} <= set(concepts[i])
        assert (first[clash.first], first[clash.second]) == (clash.first_row, clash.second_row)
        assert clash.joined < strictness * clash.known
        if strictness == 1.0:
            assert clash.second not in outcome.graph.concepts[clash.first].joined


def place(outcome: Outcome, i: int) -> tuple[object, ...]:
    step = acceptance_step(outcome.reason(i), outcome.detail(i))
    return step, list(outcome.visiting).index(outcome.clusters[i]), outcome.rank[i]


@given(st.integers(0, 10**6), st.booleans(), options)
@settings(max_examples=100, deadline=None)
def test_the_order_of_acceptance_follows_from_the_decisions(
    seed: int, tokens: bool, chosen: dict[str, object]
) -> None:
    rng = random.Random(seed)
    c = random_candidates(rng, 60, 3, tokens)
    outcome = run(c, rng.randrange(1, 1500 if tokens else 50), [0.5, 0.3, 0.2], **chosen)
    graph, concepts = ConceptGraph(), concepts_of(c)
    for i in sorted(np.flatnonzero(outcome.accepted), key=lambda i: place(outcome, i)):
        graph.add(concepts[i], c.row_ids[i])
    assert graph.concepts == outcome.graph.concepts


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_without_conflicts_the_budget_is_spent(seed: int, tokens: bool) -> None:
    rng = random.Random(seed)
    c = replace(random_candidates(rng, 40, 3, tokens), concepts=lambda rows: [[]] * len(rows))
    budget = rng.randrange(1, 1500 if tokens else 60)
    outcome = run(c, budget, [0.5, 0.3, 0.2])
    left = budget - sum(outcome.spent)
    assert left == 0 or outcome.accepted.all() or left < c.cost[~outcome.accepted].min()
    assert set(Counter(reasons(outcome))) <= {"selected", "respread", "budget"}


def test_efficiency_and_damage_by_hand() -> None:
    jsd, x, y = np.array([0.2, 0.2, 0.1]), np.array([10, 90, 0]), np.array([10, 110, 1])
    np.testing.assert_allclose(
        efficiency(jsd, x, y), [0.2 / np.log(400), 0.2 / np.log(40000), 0.1 / np.log(3)]
    )
    means = cluster_means(np.array([0.1, 0.3, np.nan, 0.5]), np.array([0, 0, 0, 2]), 3)
    np.testing.assert_allclose(means, [0.2, 0.0, 0.5])


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_damage_does_not_depend_on_the_order_of_rows(values: list[float], rng: random.Random) -> None:
    clusters = np.zeros(len(values), int)
    before = cluster_means(np.array(values), clusters, 1)
    rng.shuffle(values)
    assert cluster_means(np.array(values), clusters, 1) == before


def test_agreement_by_hand() -> None:
    up = np.arange(20.0)
    columns = {"up": up, "square": up**2, "down": -up, "ends": np.abs(up - 9.4), "flat": np.ones(20)}
    found = agreement(columns)
    assert found["up"]["square"] == {"spearman": 1.0, "top_overlap": 1.0}
    assert found["up"]["down"] == {"spearman": -1.0, "top_overlap": 0.0}
    assert found["up"]["ends"]["top_overlap"] == 0.5
    assert found["up"]["flat"] == {"spearman": None, "top_overlap": None}
    assert sum(map(len, found.values())) == 10
    halves = agreement({"up": up, "half": up // 10})
    assert halves["up"]["half"]["top_overlap"] == 0.2
    assert agreement({"a": np.zeros(0), "b": np.zeros(0)})["a"]["b"]["spearman"] is None


@pytest.mark.parametrize("reason", ["selected", "respread", "relaxed"])
def test_acceptance_steps_sort_as_they_happened(reason: str) -> None:
    details = {
        "selected": [""],
        "respread": ["re-spread", "re-spread, round 2", "re-spread, round 10"],
        "relaxed": [f"strictness {s}; at first refused: x, round 3" for s in ("0.75", "0.5", "0.0, round 2")],
    }
    steps = [acceptance_step(reason, detail) for detail in details[reason]]
    assert steps == sorted(steps)
    assert len(set(steps)) == len(steps)
    assert all(step > acceptance_step("selected", "") for step in steps if reason != "selected")
