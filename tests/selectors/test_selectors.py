"""PASER and the random control on the same scored rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from paser.artifacts import columns_of, read_rows, write_batches
from paser.errors import SettingsError, StageError
from paser.pool.contamination import Probe
from paser.records import Sample, draw_key, sample_to_row
from paser.selectors.choose import choose, contaminated
from paser.selectors.damage import PaserSelector, PaserSettings
from paser.selectors.derive import measured
from paser.selectors.protocol import resolve_budget
from paser.selectors.random import RandomSelector
from paser.selectors.tables import decision_batches, prompts, scored_pool, training_rows
from paser.settings import Budget
from tests.selectors.scored import changed, part, pool, texts

NAMES = {0: "zero", 1: "one", 2: "two"}


def test_most_damaged_cluster_gets_most_and_its_most_efficient_rows() -> None:
    rows = pool()
    selection = PaserSelector(PaserSettings())(rows, 18, "rows")
    entries = {c["cluster"]: c for c in selection.report["clusters"]}
    assert entries[2]["accepted"] > entries[1]["accepted"] > entries[0]["accepted"]
    assert sum(c["spent"] for c in entries.values()) == 18 == len(selection.positions)
    assert [entries[k]["visited"] for k in (2, 1, 0)] == [1, 2, 3]
    inside = rows.clusters == 2
    taken = sorted(selection.rank[inside & selection.accepted])
    assert taken == list(range(1, len(taken) + 1))
    ranked = selection.ies[inside][np.argsort(selection.rank[inside])]
    assert (np.diff(ranked) <= 0).all()


def test_the_control_has_the_same_training_tokens_within_a_sample() -> None:
    rows = pool(300)
    selection, control, report = choose(rows, PaserSettings(budget="20%"), 3, NAMES)
    assert report["rows"] == 60 == len(selection.positions)
    assert 0 <= report["tokens"] - report["control"]["tokens"] < rows.tokens.min()
    assert set(control.positions) != set(selection.positions)
    assert {c["name"] for c in report["clusters"]} == {"zero", "one", "two"}


def test_a_token_budget_is_spent_within_one_sample() -> None:
    rows = pool(300)
    selection, _, report = choose(rows, PaserSettings(budget="2000 tokens"), 3, NAMES)
    spent = rows.tokens[selection.accepted].sum()
    assert report["spent"] == spent
    assert 2000 - rows.tokens.min() < spent <= 2000


def test_unusable_rows_are_rejected_with_their_reason() -> None:
    broken = replace(
        changed(pool(12), {0: "nonfinite", 1: "no_response"}), contaminated={2: "shares words with 'Who?'"}
    )
    selection, control, report = choose(broken, PaserSettings(budget="100%"), 1, NAMES)
    assert selection.reasons[:3].tolist() == ["nonfinite", "no_response", "contaminated"]
    assert selection.detail(0) == "score status nonfinite"
    assert selection.detail(2) == "shares words with 'Who?'"
    assert selection.positions.tolist() == control.positions.tolist() == list(range(3, 12))
    assert report["unspent"] == 3
    assert report["cause"] == "every usable row was taken"
    assert report["rejected"] == {"contaminated": 1, "no_response": 1, "nonfinite": 1}


def test_a_budget_above_the_pool_takes_everything_and_warns(capsys: pytest.CaptureFixture[str]) -> None:
    selection, _, report = choose(pool(12), PaserSettings(budget="500"), 1, NAMES)
    assert len(selection.positions) == 12
    assert "larger than the pool's 12" in capsys.readouterr().err
    assert report["unspent"] == 488


def test_a_share_below_one_row_is_an_error() -> None:
    with pytest.raises(StageError, match="less than one row"):
        resolve_budget(Budget.parse("1%"), pool(50))
    assert resolve_budget(Budget.parse("10%"), pool(59)) == (5, "rows")
    everything = int(pool(59).tokens.sum())
    assert resolve_budget(Budget.parse("10% tokens"), pool(59)) == (everything // 10, "tokens")


def test_nothing_usable_is_an_error() -> None:
    rows = changed(pool(4), dict.fromkeys(range(4), "nonfinite"))
    with pytest.raises(StageError, match=r"none of the 4 rows .* nonfinite 4"):
        choose(rows, PaserSettings(), 0, NAMES)


def test_random_depends_on_the_seed_and_not_on_row_order() -> None:
    rows = pool(80)
    chosen = {rows.row_ids[i] for i in RandomSelector(1)(rows, 15, "rows").positions}
    turned = part(rows, range(79, -1, -1))
    assert {turned.row_ids[i] for i in RandomSelector(1)(turned, 15, "rows").positions} == chosen
    assert {rows.row_ids[i] for i in RandomSelector(2)(rows, 15, "rows").positions} != chosen
    assert len(chosen) == 15


def test_random_takes_the_first_by_digest_and_then_the_one_that_fits_best() -> None:
    rows = pool(60)
    order = sorted(range(60), key=lambda i: draw_key("random", 4, rows.row_ids[i]))
    tokens = rows.tokens.tolist()
    amount = sum(tokens[i] for i in order[:20]) + tokens[order[20]] - 1
    taken = RandomSelector(4)(rows, amount, "tokens")
    rest = [i for i in order[20:] if tokens[i] < tokens[order[20]]]
    last = max(rest, key=lambda i: tokens[i])
    assert set(taken.positions) == {*order[:20], last}
    assert taken.report["spent"] == sum(tokens[i] for i in (*order[:20], last)) <= amount


def test_the_control_does_not_miss_what_the_held_out_draw_took() -> None:
    """Holding rows out and drawing the control use one seed; the second draw must not follow the first."""
    rows = pool(900)
    held = set(sorted(rows.row_ids, key=lambda i: draw_key("holdout", 17, i))[:300])
    small = [i for i in range(900) if rows.row_ids[i] not in held and rows.clusters[i] == 0][:40]
    mixed = part(rows, [*small, *(i for i in range(900) if rows.clusters[i] == 1)])
    taken = RandomSelector(17)(mixed, 170, "rows").positions
    assert 0.3 < sum(taken < len(small)) / len(small) < 0.7


def test_a_budget_above_the_pool_takes_only_what_the_filter_accepts() -> None:
    rows = replace(pool(3), texts=texts(["red fox, green owl", "green owl", "red fox"]))
    selection, _, report = choose(rows, PaserSettings(budget="500"), 1, NAMES)
    assert sorted(selection.reasons) == ["conflict", "selected", "selected"]
    assert "refused 1 rows" in report["cause"]


def test_floor_means_rows_also_in_a_token_budget() -> None:
    settings = PaserSettings(budget="1200 tokens", policy="damage_power", gamma=9.0, floor=2)
    selection, _, _ = choose(pool(90), settings, 1, NAMES)
    assert min(c["accepted"] for c in selection.report["clusters"]) >= 2


@pytest.mark.parametrize("divergence", ["kl", "reverse_kl", "delta_loss"])
def test_another_divergence_decides_over_budget_and_order(divergence: str) -> None:
    rows = pool(90)
    turned = rows.divergences["jsd"].max() - rows.divergences["jsd"]
    rows = replace(rows, divergences={**rows.divergences, divergence: turned}, divergence=divergence)
    selection, _, report = choose(rows, PaserSettings(budget="18"), 1, NAMES)
    entries = {c["cluster"]: c for c in report["clusters"]}
    assert entries[0]["accepted"] > entries[2]["accepted"]
    assert entries[0]["damage"] == pytest.approx(turned[0::3].mean())
    assert entries[0]["cds"] == pytest.approx(rows.divergences["jsd"][0::3].mean())
    assert report["divergence"] == divergence
    if divergence != "delta_loss":
        assert report["agreement"]["jsd"][divergence] == {"spearman": -1.0, "top_overlap": 0.0}
    first = np.flatnonzero((rows.clusters == 0) & (selection.rank == 1))[0]
    expected = turned[first] / np.log(float(rows.tokens[first]) ** 2)
    assert selection.ies[first] == pytest.approx(expected)


def test_a_cluster_that_pruning_improved_gets_nothing_by_loss_increase() -> None:
    rows = pool(90)
    increase = np.choose(rows.clusters, [-0.5, 0.1, 0.3])
    rows = replace(rows, divergences={**rows.divergences, "delta_loss": increase}, divergence="delta_loss")
    _, _, report = choose(rows, PaserSettings(budget="12"), 1, NAMES)
    assert [c["allocated"] for c in report["clusters"]] == [0, 3, 9]
    assert report["clusters"][0]["damage"] == pytest.approx(-0.5)


def test_a_row_without_the_divergence_asked_for_is_not_chosen() -> None:
    rows = pool(9)
    kl = np.ones(9)
    kl[4] = np.nan
    rows = replace(rows, divergences={**rows.divergences, "kl": kl}, divergence="kl")
    selection, _, _ = choose(rows, PaserSettings(budget="100%"), 1, NAMES)
    assert (selection.reasons[4], selection.detail(4)) == ("nonfinite", "kl is not finite")


def tables(count: int, **columns: list[Any]) -> tuple[pa.Table, pa.Table, pa.Table]:
    """A pool and its tables, each in another order."""
    samples = [Sample("s", str(i), "MIT", f"task{i}", "", f"answer{i}") for i in range(count)]
    ids = [sample.row_id for sample in samples]
    scores = [
        {"row_id": ids[i], "jsd": 0.1 * i, "loss_original": 1.0, "loss_pruned": 1.5 + i, "prompt_tokens": 3,
         "response_tokens": 4 + i, "status": "cut" if i == 3 else "ok"}
        for i in reversed(range(count))
    ]  # fmt: skip
    clusters = [{"row_id": ids[i], "split": "pool", "cluster": i % 3} for i in (*range(1, count), 0)]
    clusters.insert(0, {"row_id": ids[-1], "split": "holdout", "cluster": 9})
    score_table = columns_of("scores", scores).select(
        ["row_id", "jsd", "loss_original", "loss_pruned", "prompt_tokens", "response_tokens", "status"]
    )
    for name, values in columns.items():
        score_table = score_table.append_column(name, pa.array(values[::-1], type=pa.float64()))
    return (
        columns_of("pool", [sample_to_row(s, tokens=7) for s in samples]),
        columns_of("clusters", clusters),
        score_table,
    )


def test_tables_are_joined_by_row_id_and_a_gap_is_named() -> None:
    table, clusters, scores = tables(5)
    joined = scored_pool(table, clusters, scores, {1: "'q'"})
    assert joined.row_ids == table["row_id"].to_pylist()
    assert joined.clusters.tolist() == [0, 1, 2, 0, 1]
    np.testing.assert_allclose(joined.divergences["jsd"], [0, 0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(joined.divergences["delta_loss"], [0.5, 1.5, 2.5, 3.5, 4.5])
    assert joined.tokens.tolist() == [7, 8, 9, 10, 11]
    assert joined.status.tolist() == ["ok", "ok", "ok", "cut", "ok"]
    assert joined.texts(np.array([3, 0])) == ["task3\nanswer3", "task0\nanswer0"]
    assert joined.refusals.tolist() == ["", "contaminated", "", "", ""]
    missing = pa.concat_tables([scores.slice(0, 2), scores.slice(3)])
    with pytest.raises(StageError, match=rf"row {joined.row_ids[2]} .* missing in scores\.parquet"):
        scored_pool(table, clusters, missing, {})


def test_rows_are_fetched_from_tables_of_many_pieces() -> None:
    table, clusters, scores = tables(9)
    pieces = pa.concat_tables([table.slice(0, 4), table.slice(4, 0), table.slice(4, 1), table.slice(5)])
    joined = scored_pool(pieces, clusters, scores, {})
    assert joined.texts(np.array([8, 4, 0, 5, 3])) == [f"task{i}\nanswer{i}" for i in (8, 4, 0, 5, 3)]


def test_divergences_are_read_where_they_are_and_missed_only_when_asked_for() -> None:
    assert set(scored_pool(*tables(3), {}).divergences) == {"jsd", "delta_loss"}
    with pytest.raises(SettingsError, match=r"scores\.parquet has no column 'kl'"):
        scored_pool(*tables(3), {}, "kl")
    joined = scored_pool(*tables(3, kl=[1.0, None, 3.0]), {}, "kl")
    np.testing.assert_allclose(joined.damage, [1.0, np.nan, 3.0])
    assert joined.usable.tolist() == [0, 2]


def test_a_divergence_that_nothing_measured_is_missed_and_not_taken_for_broken_numbers() -> None:
    table, clusters, scores = tables(3, kl=[None, None, None], recoverability=[None, 0.5, None])
    assert measured(scores).column_names == [name for name in scores.column_names if name != "kl"]
    with pytest.raises(SettingsError, match=r"scores\.parquet has no column 'kl'"):
        scored_pool(table, clusters, measured(scores), {}, "kl")
    nothing = scores.set_column(scores.column_names.index("jsd"), "jsd", pa.nulls(3, pa.float64()))
    assert measured(nothing).column_names == nothing.column_names


def test_every_row_has_one_decision_in_the_table(tmp_path: Any) -> None:
    rows = replace(changed(pool(30), {3: "nonfinite"}), contaminated={5: "'Who?'"})
    selection, _, _ = choose(rows, PaserSettings(budget="6"), 1, NAMES)
    write_batches(tmp_path / "d.parquet", "decisions", decision_batches(rows, selection))
    decided = read_rows(tmp_path / "d.parquet", "decisions")
    assert [d["row_id"] for d in decided] == list(rows.row_ids)
    assert sum(d["decision"] == "accepted" for d in decided) == 6
    assert decided[3] | {"row_id": ""} == {
        "row_id": "", "cluster": 0, "jsd": None, "ies": None, "rank": None, "decision": "rejected",
        "reason": "nonfinite", "detail": "score status nonfinite",
    }  # fmt: skip
    waiting = next(d for d in decided if d["reason"] == "budget")
    assert waiting["detail"].startswith(f"cluster {waiting['cluster']} had spent its ")
    assert waiting["rank"] >= 1


def test_contamination_is_looked_up_by_position_and_skipped_without_evaluation() -> None:
    table, _, _ = tables(4)
    found = contaminated(prompts(table), [Probe("exam", "7", ("other", "task2"))], 0.8, 0)
    assert {position: str(overlap) for position, overlap in found.items()} == {
        2: "nearly equal to evaluation prompt 7 of exam: 'task2'"
    }
    untouched = prompts(table)
    assert contaminated(untouched, [], 0.8, 0) == {}
    assert next(untouched) == "task0"


def test_training_order_mixes_clusters() -> None:
    table, clusters, scores = tables(90)
    rows = scored_pool(table, clusters, scores, {})
    selection, _, _ = choose(rows, PaserSettings(budget="50%"), 3, NAMES)
    lines = list(training_rows(table, rows, selection, 3))
    assert {line["row_id"] for line in lines} == {rows.row_ids[i] for i in selection.positions}
    first = lines[0]
    number = int(first["source_row"])
    assert first == {
        "row_id": rows.row_ids[number], "instruction": f"task{number}", "input": "", "source": "s",
        "output": f"answer{number}", "source_row": str(number), "license": "MIT", "label": None,
        "cluster": number % 3, "tokens": 7 + number,
    }  # fmt: skip
    order = [line["cluster"] for line in lines]
    assert order != sorted(order)
    assert order != sorted(order, reverse=True)
    assert len(set(order[:15])) > 1
