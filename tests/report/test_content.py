from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from synthetic_project import build

from paser.artifacts import read_json, read_rows
from paser.report import content
from paser.report.content import Tables, funnel, headline, interval, number, percent
from paser.stages.run import run_stage


def gap(value: float, width: float = 0.02, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": value - width, "high": value + width, **more}


def metrics(
    recovered: dict[str, Any] | None,
    control: dict[str, Any] | None,
    closed: tuple[dict[str, Any], dict[str, Any]] | None = None,
    seeds: int = 1,
) -> dict[str, Any]:
    closed = closed or (gap(0.5), gap(0.5))
    overall = {"recovered": {"fidelity_gap": recovered, "gap_closed": closed[0]}}
    if control:
        overall["control"] = {"fidelity_gap": control, "gap_closed": closed[1]}
    return {"overall": overall, "seeds": seeds}


def test_a_win_is_called_one_only_when_the_intervals_part() -> None:
    found = headline(metrics(gap(0.49), gap(0.41)))
    assert found.sentence == "The recovered model won back 49\u00a0% of the distance to the original"
    assert found.verdict.startswith("That is more than random rows")
    assert found.tone == "good"


def test_overlapping_intervals_are_said_whoever_is_ahead() -> None:
    for recovered, control, side in ((0.43, 0.41, "0.02 above it"), (0.40, 0.43, "0.03 below it")):
        found = headline(metrics(gap(recovered), gap(control)))
        assert "the intervals overlap" in found.verdict
        assert side in found.verdict
        assert found.tone == "neutral"


def test_a_defeat_is_said_as_plainly_as_a_win() -> None:
    found = headline(metrics(gap(0.30), gap(0.41)))
    assert found.verdict.startswith("Random rows with the same number of training tokens did better")
    assert found.tone == "bad"


def test_moving_away_from_the_original_is_the_headline() -> None:
    found = headline(metrics(gap(-0.2), gap(-0.3)))
    assert "20\u00a0% further from the original than the pruned one" in found.sentence


def test_an_interval_around_nothing_and_measures_that_disagree_are_said() -> None:
    found = headline(metrics(gap(0.01), gap(-0.1), (gap(0.2), gap(0.5))))
    assert any("includes 0" in note for note in found.notes)
    assert any("the two measures disagree" in note for note in found.notes)


def test_a_gap_closed_above_one_and_a_single_seed_are_said() -> None:
    found = headline(metrics(gap(0.5), gap(0.4), (gap(1.2, above_one=True), gap(0.5))))
    assert any("above 1" in note for note in found.notes)
    assert any("One training seed" in note for note in found.notes)
    assert not any("seed" in note for note in headline(metrics(gap(0.5), gap(0.4), seeds=3)).notes)


def test_without_control_or_damage_nothing_is_claimed() -> None:
    assert "There is no control" in headline(metrics(gap(0.5), None)).verdict
    assert "nothing to recover" in headline(metrics(None, None)).sentence


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(-0.004), "0.00"),
        (number(-0.4), "−0.40"),
        (number(None), "–"),
        (number(float("nan")), "–"),
        (percent(0.495), "50\u00a0%"),
        (interval(None), "–"),
        (interval({"value": 0.5, "low": None, "high": None}), "0.50"),
        (interval(gap(1.1, above_one=True)), "1.10†\u00a0[1.08,\u00a01.12]"),
    ],
)
def test_numbers_read_as_text(shown: str, expected: str) -> None:
    assert shown == expected


def tables_of(data: Path) -> Tables:
    return Tables(
        pool=read_rows(data / "pool.parquet", "pool"),
        holdout=read_rows(data / "holdout.parquet", "pool"),
        quarantine=read_rows(data / "quarantine.parquet", "quarantine"),
        clusters=read_rows(data / "clusters.parquet", "clusters"),
        cluster_info=read_json(data / "clusters.json"),
        scores=read_rows(data / "scores.parquet", "scores"),
        decisions=read_rows(data / "decisions.parquet", "decisions"),
        budget=read_json(data / "budget.json"),
        metrics=read_json(data / "metrics.json"),
        entry=read_json(data / "audit/entry.json"),
    )


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    root = build(tmp_path_factory.mktemp("content") / "project", per_label=9)
    run_stage("audit", root)
    return tables_of(root / "data")


def test_the_funnel_loses_nothing_on_the_way(tables: Tables) -> None:
    stocks, running = [], 0
    for _, rows, kind in funnel(tables):
        if kind == "stock":
            if stocks:
                assert running == rows
            running = rows
            stocks.append(rows)
        else:
            running -= rows
    assert stocks[-1] == tables.budget["rows"]


def test_the_funnel_starts_with_every_row_of_the_pools_sources_and_no_other(tables: Tables) -> None:
    steps = {label: rows for label, rows, _ in funnel(tables)}
    quarantined = [row for row in tables.quarantine if row["source"] != "calibration-champ"]
    assert len(quarantined) < len(tables.quarantine)
    assert steps["not drawn (max_rows or share)"] == 5, "7 more are of a calibration source"
    assert steps["Rows read"] == len(tables.pool) + len(tables.holdout) + len(quarantined) + 5
    summary = {**tables.entry["summary"], "not_drawn": {}}
    found = funnel(dataclasses.replace(tables, entry={**tables.entry, "summary": summary}))
    assert not any(label.startswith("not drawn") for label, _, _ in found)


def test_clusters_come_most_damaged_first_with_the_spread_of_their_rows(tables: Tables) -> None:
    clusters = content.build(tables).clusters
    damages = [line["cds"] for line in clusters]
    assert damages == sorted(damages, reverse=True)
    assert all(low <= high for low, high in (line["spread"] for line in clusters))


def test_conflicts_show_whole_concepts_and_short_row_ids(tables: Tables) -> None:
    conflicts = content.build(tables).conflicts
    assert len({example["cluster"] for example in conflicts}) == len(conflicts), "one a cluster first"
    assert "'return value' (from r1-" in conflicts[0]["detail"]
    assert not re.search(r"r1-[0-9a-f]{20}", conflicts[0]["detail"])


def test_without_labels_results_are_named_after_their_cluster(tables: Tables) -> None:
    metrics = copy.deepcopy(dict(tables.metrics))
    metrics["capability_kind"] = "cluster"
    metrics["capabilities"][0]["name"] = "cluster 0"
    found = content.build(dataclasses.replace(tables, metrics=metrics))
    assert "cluster 0 · python function, iterable, return" in [c["name"] for c in found.capabilities]


def test_an_unspent_budget_says_why(tables: Tables) -> None:
    budget = {**tables.budget, "unspent": 3, "cause": "every usable row was taken"}
    found = content.build(dataclasses.replace(tables, budget=budget)).budget_facts
    assert "3 rows stayed unspent: every usable row was taken." in found


def test_a_cluster_shows_its_most_typical_instructions_each_once(tables: Tables) -> None:
    ids = [row["row_id"] for row in tables.clusters if row["split"] == "pool" and row["cluster"] == 0][:5]
    pool = [row | {"instruction": "Say hello."} if row["row_id"] in ids[:2] else row for row in tables.pool]
    found = content.build(dataclasses.replace(tables, pool=pool, typical={0: ids}))
    shown = next(line["examples"] for line in found.clusters if line["cluster"] == 0)
    assert shown[0] == "Say hello."
    assert len(shown) == len(set(shown)) == 3


def test_a_sweeps_cells_without_a_result_are_left_out_and_the_rest_ordered_by_tokens() -> None:
    done = {"cell": "b", "tokens": "900", "fidelity_gap_recovered": "0.4", "gap_closed_recovered": ""}
    failed = {"cell": "a", "tokens": "", "fidelity_gap_recovered": ""}
    less = {**done, "cell": "c", "tokens": "100"}
    points = content.sweep_points([done, failed, less])
    assert [(p["cell"], p["tokens"]) for p in points] == [("c", 100), ("b", 900)]
    assert points[0]["gap_closed_recovered"] is None
