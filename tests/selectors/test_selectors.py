"""PASER and the random control on the same scored rows."""

from __future__ import annotations

import random

import pytest

from paser.errors import StageError
from paser.records import draw_key
from paser.selectors.choose import choose, scored_rows, training_rows
from paser.selectors.damage import PaserSelector
from paser.selectors.protocol import ScoredRow, resolve_budget
from paser.selectors.random import RandomSelector
from paser.settings import Budget, SelectSettings

NAMES = {0: "zero", 1: "one", 2: "two"}


def pool(count: int = 90, seed: int = 0) -> list[ScoredRow]:
    rng = random.Random(seed)
    return [
        ScoredRow(
            row_id=f"r1-{i:064x}",
            text=f"topic{i} with detail{i}",
            cluster=i % 3,
            status="ok",
            jsd=(0.05, 0.1, 0.3)[i % 3] * (0.5 + rng.random()),
            loss_increase=0.1,
            prompt_tokens=rng.randrange(20, 60),
            response_tokens=rng.randrange(5, 90),
        )
        for i in range(count)
    ]


def test_most_damaged_cluster_gets_most_and_its_most_efficient_rows() -> None:
    rows = pool()
    selection = PaserSelector(SelectSettings())(rows, 18, "rows")
    entries = {c["cluster"]: c for c in selection.report["clusters"]}
    assert entries[2]["accepted"] > entries[1]["accepted"] > entries[0]["accepted"]
    assert sum(c["spent"] for c in entries.values()) == 18 == len(selection.accepted)
    inside = [(d.rank, d.decision) for r, d in zip(rows, selection.decisions, strict=True) if r.cluster == 2]
    accepted = {rank for rank, decision in inside if decision == "accepted"}
    assert accepted == set(range(1, len(accepted) + 1))
    assert len(selection.decisions) == len(rows)


def test_the_control_has_the_same_training_tokens_within_a_sample() -> None:
    rows = pool(300)
    selection, control, report = choose(rows, SelectSettings(budget="20%"), 3, NAMES)
    shortest = min(row.tokens for row in rows)
    assert report["rows"] == 60 == len(selection.accepted)
    assert 0 <= report["tokens"] - report["control"]["tokens"] < shortest
    assert set(control.accepted) != set(selection.accepted)
    assert {c["name"] for c in report["clusters"]} == {"zero", "one", "two"}


def test_a_token_budget_is_spent_within_one_sample() -> None:
    rows = pool(300)
    selection, _, report = choose(rows, SelectSettings(budget="2000 tokens"), 3, NAMES)
    spent = sum(rows[i].tokens for i in selection.accepted)
    assert report["spent"] == spent
    assert 2000 - min(rows[i].tokens for i in range(300)) < spent <= 2000


def test_unusable_rows_are_rejected_with_their_reason() -> None:
    rows = pool(12)
    broken = [
        ScoredRow(**{**vars(rows[0]), "status": "nonfinite", "jsd": None}),
        ScoredRow(**{**vars(rows[1]), "status": "no_response", "jsd": None}),
        ScoredRow(**{**vars(rows[2]), "contaminated": "'Who?'"}),
        *rows[3:],
    ]
    selection, control, report = choose(broken, SelectSettings(budget="100%"), 1, NAMES)
    assert [d.reason for d in selection.decisions[:3]] == ["nonfinite", "no_response", "contaminated"]
    assert selection.accepted == control.accepted == list(range(3, 12))
    assert report["unspent"] == 3
    assert report["cause"] == "every usable row was taken"
    assert report["rejected"] == {"contaminated": 1, "no_response": 1, "nonfinite": 1}


def test_a_budget_above_the_pool_takes_everything_and_warns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = pool(12)
    selection, _, report = choose(rows, SelectSettings(budget="500"), 1, NAMES)
    assert len(selection.accepted) == 12
    assert "larger than the pool's 12" in capsys.readouterr().err
    assert report["unspent"] == 488


def test_a_share_below_one_row_is_an_error() -> None:
    with pytest.raises(StageError, match="less than one row"):
        resolve_budget(Budget.parse("1%"), pool(50))
    assert resolve_budget(Budget.parse("10%"), pool(59)) == (5, "rows")


def test_nothing_usable_is_an_error() -> None:
    rows = [ScoredRow(**{**vars(r), "status": "nonfinite", "jsd": None}) for r in pool(4)]
    with pytest.raises(StageError, match="none of the 4 rows"):
        choose(rows, SelectSettings(), 0, NAMES)


def test_random_depends_on_the_seed_and_not_on_row_order() -> None:
    rows = pool(80)
    chosen = {rows[i].row_id for i in RandomSelector(1)(rows, 15, "rows").accepted}
    turned = rows[::-1]
    assert {turned[i].row_id for i in RandomSelector(1)(turned, 15, "rows").accepted} == chosen
    assert {rows[i].row_id for i in RandomSelector(2)(rows, 15, "rows").accepted} != chosen
    assert len(chosen) == 15


def test_the_control_does_not_miss_what_the_held_out_draw_took() -> None:
    """Holding rows out and drawing the control use one seed; the second draw must not follow the first."""
    rows = pool(900)
    held = set(sorted((r.row_id for r in rows), key=lambda i: draw_key("holdout", 17, i))[:300])
    left = [r for r in rows if r.row_id not in held]
    small = [r for r in left if r.cluster == 0][:40]
    mixed = small + [r for r in rows if r.cluster == 1]
    taken = {mixed[i].row_id for i in RandomSelector(17)(mixed, 170, "rows").accepted}
    share = sum(r.row_id in taken for r in small) / len(small)
    assert 0.3 < share < 0.7


def test_a_budget_above_the_pool_takes_only_what_the_filter_accepts() -> None:
    rows = [
        ScoredRow(**{**vars(r), "text": text})
        for r, text in zip(pool(3), ("red fox, green owl", "green owl", "red fox"), strict=True)
    ]
    selection, _, report = choose(rows, SelectSettings(budget="500"), 1, NAMES)
    assert sorted(d.reason for d in selection.decisions) == ["conflict", "selected", "selected"]
    assert "refused 1 rows" in report["cause"]


def test_floor_means_rows_also_in_a_token_budget() -> None:
    settings = SelectSettings(budget="1200 tokens", policy="damage_power", gamma=9.0, floor=2)
    selection, _, _ = choose(pool(90), settings, 1, NAMES)
    entries = selection.report["clusters"]
    assert min(c["accepted"] for c in entries) >= 2


def test_tables_are_joined_by_row_id_and_a_gap_is_named() -> None:
    table = [
        {"row_id": f"r{i}", "instruction": "a", "input": "", "output": "b", "source": "s",
         "source_row": str(i), "license": "MIT", "label": None, "occurrences": []}
        for i in range(3)
    ]  # fmt: skip
    clusters = [{"row_id": f"r{i}", "split": "pool", "cluster": i} for i in (2, 0, 1)]
    scores = [
        {"row_id": f"r{i}", "jsd": 0.1 * i, "loss_original": 1.0, "loss_pruned": 1.5, "prompt_tokens": 3,
         "response_tokens": 4, "status": "ok"}
        for i in (1, 2, 0)
    ]  # fmt: skip
    joined = scored_rows(table, clusters, scores, {"r1": "'q'"})
    assert [(r.row_id, r.cluster, r.loss_increase) for r in joined] == [
        ("r0", 0, 0.5),
        ("r1", 1, 0.5),
        ("r2", 2, 0.5),
    ]
    assert joined[1].contaminated == "'q'"
    with pytest.raises(StageError, match=r"row r2 .* missing in scores\.parquet"):
        scored_rows(table, clusters, scores[:1] + scores[2:], {})


def test_training_order_mixes_clusters() -> None:
    rows = pool(90)
    table = [
        {"row_id": r.row_id, "instruction": "a", "input": "", "output": "b", "source": "s", "source_row": "1",
         "license": "MIT", "label": None}
        for r in rows
    ]  # fmt: skip
    selection, _, _ = choose(rows, SelectSettings(budget="50%"), 3, NAMES)
    lines = training_rows(table, rows, selection, 3)
    assert {line["row_id"] for line in lines} == {rows[i].row_id for i in selection.accepted}
    order = [line["cluster"] for line in lines]
    assert order != sorted(order)
    assert order != sorted(order, reverse=True)
    assert len(set(order[:15])) > 1
