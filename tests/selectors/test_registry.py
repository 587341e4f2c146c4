"""Selectors by name: the same pool, amount and unit for all of them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paser.errors import SettingsError
from paser.records import draw_key
from paser.selectors.damage import PaserSelector
from paser.selectors.protocol import ScoredPool, Selection
from paser.selectors.registry import selector, selectors
from paser.selectors.resources import Resources
from paser.settings import SelectSettings
from tests.selectors.scored import changed, part, pool

CHEAP = [
    "random", "longest", "k-centre", "prototypes", "top-damage", "total-damage", "damage-per-token", "paser",
    "paser-no-clusters", "paser-uniform", "paser-random-inside", "paser-no-conflicts", "coverage",
    "per-token", "per-token-no-damage", "recoverable", "recoverable-coverage",
]  # fmt: skip


def embedded(count: int, seed: int = 0, width: int = 6) -> Resources:
    """Points around three centres, as the clusters of `pool`."""
    rng = np.random.default_rng(seed)
    centres = 3.0 * rng.normal(size=(3, width))
    points = centres[np.arange(count) % 3] + rng.normal(size=(count, width))
    return Resources(embeddings=points.astype(np.float32))


def run(name: str, rows: ScoredPool, amount: int, unit: str, seed: int = 3, **settings: Any) -> Selection:
    return selector(name, settings, embedded(len(rows)), seed)(rows, amount, unit)


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize(("amount", "unit"), [(17, "rows"), (1500, "tokens"), (10**6, "tokens"), (1, "rows")])
def test_the_amount_is_never_exceeded_and_refused_rows_stay_out(name: str, amount: int, unit: str) -> None:
    rows = replace(changed(pool(90), {5: "nonfinite", 8: "no_response"}), contaminated={2: "shares words"})
    selection = run(name, rows, amount, unit)
    spent = len(selection.positions) if unit == "rows" else int(rows.tokens[selection.accepted].sum())
    assert 0 < spent <= amount
    assert selection.report["spent"] == spent
    if amount < 10**6:
        assert amount - spent < (1 if unit == "rows" else rows.tokens.max())
    assert selection.reasons[[5, 8, 2]].tolist() == ["nonfinite", "no_response", "contaminated"]
    assert all(selection.reasons != "")
    assert selection.report["selector"] == name


@pytest.mark.parametrize("name", CHEAP)
def test_neither_a_second_run_nor_the_order_of_the_pool_changes_the_rows(name: str) -> None:
    rows, resources = pool(90), embedded(90)
    turned = list(range(89, -1, -1))
    assert resources.embeddings is not None
    other = Resources(embeddings=resources.embeddings[turned])
    chosen = {rows.row_ids[i] for i in selector(name, {}, resources, 3)(rows, 900, "tokens").positions}
    again = selector(name, {}, other, 3)(part(rows, turned), 900, "tokens")
    assert {rows.row_ids[turned[i]] for i in again.positions} == chosen


def test_cost_counts_scoring_only_where_scores_are_read() -> None:
    rows = pool(30)
    assert run("random", rows, 5, "rows").report["cost"] == {
        "forward_tokens": 0, "backward_tokens": 0, "embedded_rows": 0,
    }  # fmt: skip
    cost = run("coverage", rows, 5, "rows").report["cost"]
    assert cost == {
        "forward_tokens": 2 * int(rows.tokens.sum()), "backward_tokens": 0, "embedded_rows": 30,
    }  # fmt: skip


def test_unknown_names_options_and_missing_resources_are_named() -> None:
    with pytest.raises(SettingsError, match=r"unknown selector 'best'(?s:.*)random, full"):
        selector("best", {}, Resources(), 0)
    with pytest.raises(SettingsError, match=r"option side of the selector prototypes is 'left'"):
        selector("prototypes", {"side": "left"}, embedded(3), 0)
    with pytest.raises(SettingsError, match=r"option k of the selector random(?s:.*)options: none"):
        selector("random", {"k": 3}, Resources(), 0)
    with pytest.raises(SettingsError, match="k-centre needs embeddings"):
        selector("k-centre", {}, Resources(), 0)


def test_the_page_on_selectors_has_a_line_for_each() -> None:
    page = (Path(__file__).parents[2] / "docs" / "selectors.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z0-9-]+)` \|.*\|.*\|.*\|.*\|$", page, re.M)[: len(selectors())] == list(
        selectors()
    )


def test_full_takes_every_usable_row_whatever_the_amount() -> None:
    rows = changed(pool(20), {4: "nonfinite"})
    assert run("full", rows, 3, "rows").positions.tolist() == [i for i in range(20) if i != 4]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("longest", lambda rows, i: rows.response_tokens[i]),
        ("top-damage", lambda rows, i: rows.damage[i]),
        ("total-damage", lambda rows, i: rows.damage[i] * rows.response_tokens[i]),
        ("damage-per-token", lambda rows, i: rows.damage[i] * rows.response_tokens[i] / rows.tokens[i]),
    ],
)
def test_ranked_selectors_take_the_highest_values(name: str, value: Any) -> None:
    rows = pool(60)
    best = sorted(range(60), key=lambda i: (-value(rows, i), rows.row_ids[i]))[:9]
    assert set(run(name, rows, 9, "rows").positions) == set(best)


def test_k_centre_takes_the_row_farthest_from_those_before() -> None:
    rows = pool(40)
    points = embedded(40).embeddings
    assert points is not None
    taken = [min(range(40), key=lambda i: draw_key("k-centre", 3, rows.row_ids[i]))]
    while len(taken) < 8:
        taken.append(
            max(
                (i for i in range(40) if i not in taken),
                key=lambda i: min(float(np.linalg.norm(points[i] - points[j])) for j in taken),
            )
        )
    assert set(run("k-centre", rows, 8, "rows").positions) == set(taken)


def test_prototypes_take_the_farther_side_from_the_nearest_centre() -> None:
    from sklearn.cluster import KMeans

    rows = pool(45)
    points = embedded(45).embeddings
    assert points is not None
    unit = [p / np.linalg.norm(p) for p in points.astype(float)]
    centres = KMeans(3, n_init=4, random_state=3).fit(np.array(unit)).cluster_centers_
    distance = [min(1 - float(p @ c) / float(np.linalg.norm(c)) for c in centres) for p in unit]
    ranked = sorted(range(45), key=lambda i: distance[i])
    assert set(run("prototypes", rows, 6, "rows").positions) == set(ranked[-6:])
    assert set(run("prototypes", rows, 6, "rows", side="easy").positions) == set(ranked[:6])


def test_paser_by_name_is_the_selector_of_the_pipeline() -> None:
    rows = pool(90)
    settings = SelectSettings(selector="paser", policy="damage_size", strictness=0.5)
    expected = PaserSelector(settings)(rows, 20, "rows")
    found = selector("paser", settings, Resources(), 1)(rows, 20, "rows")
    assert found.positions.tolist() == expected.positions.tolist()
    assert found.report["clusters"] == expected.report["clusters"]


def test_per_token_without_damage_takes_of_each_cluster_the_rows_that_are_most_response() -> None:
    rows = pool(90)
    found = run("per-token-no-damage", rows, 21, "rows")
    harmless = replace(rows, divergences={n: v[::-1].copy() for n, v in rows.divergences.items()})
    again = run("per-token-no-damage", harmless, 21, "rows")
    assert sorted(again.positions.tolist()) == sorted(found.positions.tolist())
    share = rows.response_tokens / rows.tokens
    for k in range(3):
        inside = rows.clusters == k
        taken, left = share[inside & found.accepted], share[inside & ~found.accepted]
        assert len(taken) == 7
        assert taken.min() >= left.max()


def test_recoverable_takes_of_each_cluster_what_wins_back_most_for_each_token() -> None:
    rows = pool(90)
    won = np.random.default_rng(5).uniform(-0.1, 0.6, 90)
    assert rows.divergence == "jsd"
    rows = replace(rows, divergences={**rows.divergences, "recoverability": won})
    found = run("recoverable", rows, 21, "rows")
    rate = won * rows.response_tokens / rows.tokens
    sizes = [int((rows.clusters == k).sum()) for k in range(3)]
    weights = [float(won[rows.clusters == k].mean()) * sizes[k] for k in range(3)]
    for entry in found.report["clusters"]:
        assert entry["share"] == pytest.approx(weights[entry["cluster"]] / sum(weights))
        inside = rows.clusters == entry["cluster"]
        taken, left = rate[inside & found.accepted], rate[inside & ~found.accepted]
        assert taken.min() > left.max()
    assert found.report["conflicts"] == 0
    assert (found.report["selector"], found.report["order"]) == ("recoverable", "per_token")


def test_budget_by_rate_follows_what_a_training_token_wins_back() -> None:
    rows = pool(90)
    won = np.random.default_rng(5).uniform(0.05, 0.6, 90)
    won[rows.clusters == 1] *= -1.0
    rows = replace(rows, divergences={**rows.divergences, "recoverability": won})
    found = run("recoverable", rows, 21, "rows", policy="damage_rate", gamma=0.5)
    inside = [rows.clusters == k for k in range(3)]
    rates = [
        float((won * rows.response_tokens)[k].sum() / (rows.prompt_tokens + rows.response_tokens)[k].sum())
        for k in inside
    ]
    assert rates[1] < 0
    roots = [math.sqrt(max(rate, 0.0)) for rate in rates]
    shares = {entry["cluster"]: entry["share"] for entry in found.report["clusters"]}
    assert shares == pytest.approx({k: root / sum(roots) for k, root in enumerate(roots)})
    assert not found.accepted[inside[1]].any()


def test_a_selector_goes_by_its_own_divergence_or_says_what_is_missing() -> None:
    rows = pool(90)
    by_kl = replace(rows, divergences={**rows.divergences, "kl": -rows.damage})
    found = run("paser", by_kl, 21, "rows", divergence="kl")
    assert found.report["divergence"] == "kl"
    assert found.positions.tolist() != run("paser", by_kl, 21, "rows").positions.tolist()
    with pytest.raises(SettingsError, match=r"paser goes by reverse_kl(?s:.*)dvc repro -f score"):
        run("paser", rows, 21, "rows", divergence="reverse_kl")


def test_each_ablation_takes_away_what_its_name_says() -> None:
    from tests.selectors.test_graph import clashing

    rows, _ = clashing(90, 2)
    paser = run("paser", rows, 18, "rows", on_shortfall="leave")
    assert paser.report["conflicts"] > 0
    assert run("paser-no-conflicts", rows, 18, "rows").report["conflicts"] == 0
    shares = {e["share"] for e in run("paser-uniform", rows, 18, "rows").report["clusters"]}
    assert len({round(share, 9) for share in shares}) == 1
    assert len(run("paser-no-clusters", rows, 18, "rows").report["clusters"]) == 1
    inside = run("paser-random-inside", rows, 18, "rows", on_shortfall="leave")
    assert [e["allocated"] for e in inside.report["clusters"]] == [
        e["allocated"] for e in paser.report["clusters"]
    ]
    assert set(inside.positions) != set(paser.positions)
    assert set(inside.positions) != set(run("paser-random-inside", rows, 18, "rows", seed=4).positions)
