"""PASER, its ablations and the rules of ours, from scores to rows, against slow loops of method.md."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from paser.method.concepts import key_phrases
from paser.records import draw_key
from paser.selectors.protocol import ScoredPool
from tests.method.test_selection import by_the_book
from tests.selectors.test_coverage import plain
from tests.selectors.test_graph import clashing
from tests.selectors.test_registry import embedded, run

COUNT, BUDGET, SEED = 90, 25, 3


@dataclass(frozen=True)
class Rule:
    """Share of a cluster by its rows, value of a row, and whether clusters and concepts take part.

    `damage`: which of the pool's divergences.
    """

    damage: str = "jsd"
    share: str = "mean"
    value: str = "efficiency"
    clusters: bool = True
    concepts: bool = True


RULES = {
    "paser": Rule(),
    "paser-no-clusters": Rule(clusters=False),
    "paser-uniform": Rule(share="even"),
    "paser-random-inside": Rule(value="random"),
    "paser-no-conflicts": Rule(concepts=False),
    "per-token": Rule(share="total", value="per token", concepts=False),
    "per-token-no-damage": Rule(share="rows", value="response share", concepts=False),
    "coverage": Rule(share="total", value="coverage of damage", concepts=False),
    "recoverable": Rule("recoverability", "total", "per token", concepts=False),
    "recoverable-coverage": Rule("recoverability", "root of rate", "coverage", concepts=False),
}


def shares(rule: Rule, rows: ScoredPool, members: list[list[int]]) -> list[float]:
    damage, x, y = rows.divergences[rule.damage], rows.prompt_tokens, rows.response_tokens
    found = []
    for inside in members:
        total = sum(float(damage[i]) for i in inside)
        rate = sum(float(damage[i] * y[i]) for i in inside) / sum(int(x[i] + y[i]) for i in inside)
        if rule.share == "even":
            found.append(1.0)
        elif rule.share == "rows":
            found.append(float(len(inside)))
        elif rule.share == "root of rate":
            found.append(math.sqrt(max(rate, 0.0)))
        else:
            found.append(max(total / (len(inside) if rule.share == "mean" else 1), 0.0))
    return found


def values(rule: Rule, rows: ScoredPool, members: list[list[int]]) -> dict[int, float]:
    damage, x, y = rows.divergences[rule.damage], rows.prompt_tokens, rows.response_tokens
    if rule.value == "efficiency":
        return {i: float(damage[i]) / math.log(float(x[i] + y[i]) ** 2) for i in range(COUNT)}
    if rule.value == "random":
        turns = sorted(range(COUNT), key=lambda i: draw_key("random-inside", SEED, rows.row_ids[i]))
        return {i: -float(turns.index(i)) for i in range(COUNT)}
    if rule.value == "response share":
        return {i: float(y[i]) / float(x[i] + y[i]) for i in range(COUNT)}
    by_token = {i: float(damage[i]) * float(y[i]) / float(x[i] + y[i]) for i in range(COUNT)}
    if rule.value == "per token":
        return by_token
    points = embedded(COUNT).embeddings
    assert points is not None
    unit = points.astype(float) / np.linalg.norm(points.astype(float), axis=1, keepdims=True)
    gains: dict[int, float] = {}
    for inside in members:
        ones = np.ones(len(inside))
        if rule.value == "coverage of damage":
            _, added = plain(unit[inside], damage[inside], ones, 0.0)
        else:
            own = np.array([max(by_token[i], 0.0) for i in inside])
            _, added = plain(unit[inside], own, ones, 0.5, np.sqrt(own))
        gains |= {inside[place]: gain for place, gain in added.items()}
    return gains


@pytest.mark.parametrize("name", RULES)
def test_a_rule_chooses_from_scores_what_a_slow_loop_does(name: str) -> None:
    rule = RULES[name]
    rows, _ = clashing(COUNT, 2)
    cluster = [int(k) if rule.clusters else 0 for k in rows.clusters]
    members = [[i for i in range(COUNT) if cluster[i] == k] for k in range(max(cluster) + 1)]
    mean = [float(np.mean(rows.divergences[rule.damage][inside])) for inside in members]
    worth = values(rule, rows, members)
    concepts = [list(key_phrases(rows.texts([i])[0], 8, 3)) if rule.concepts else [] for i in range(COUNT)]
    expected = by_the_book(
        [(rows.row_ids[i], cluster[i], worth[i], concepts[i]) for i in range(COUNT)],
        BUDGET,
        shares(rule, rows, members),
        mean,
    )
    found = run(name, rows, BUDGET, "rows", seed=SEED, on_shortfall="leave")
    assert dict(zip(rows.row_ids, found.reasons.tolist(), strict=True)) == expected
    assert ("conflict" in expected.values()) == rule.concepts
