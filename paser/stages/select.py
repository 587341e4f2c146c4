"""Stage `select`: the rows that repair the damage within the budget, and a random control beside them."""

from __future__ import annotations

from paser.artifacts import read_json, read_rows, write_json, write_jsonl, write_table
from paser.pool.build import read_sources
from paser.progress import say, warn
from paser.records import row_to_sample
from paser.selectors.choose import (
    choose,
    contaminated,
    decision_rows,
    scored_rows,
    summary,
    training_rows,
)
from paser.stages.run import Context


def run(context: Context) -> None:
    settings = context.settings
    pool = read_rows(context.input("data/pool.parquet"), "pool")
    clusters = read_rows(context.input("data/clusters.parquet"), "clusters")
    scores = read_rows(context.input("data/scores.parquet"), "scores")
    names = {c["cluster"]: c["name"] for c in read_json(context.input("data/clusters.json"))["clusters"]}
    evaluation = read_sources(context.input("data/sources/evaluation").parent, "evaluation")
    near = contaminated(
        {row["row_id"]: row_to_sample(row).prompt for row in pool},
        [sample.prompt for sample in evaluation],
        settings.pool.near_duplicate,
        settings.seed,
    )
    rows = scored_rows(pool, clusters, scores, near)
    selection, control, report = choose(rows, settings.select, settings.seed, names)
    write_table(context.out("data/decisions.parquet"), "decisions", decision_rows(rows, selection))
    write_jsonl(context.out("data/selected.jsonl"), training_rows(pool, rows, selection, settings.seed))
    write_jsonl(context.out("data/control.jsonl"), training_rows(pool, rows, control, settings.seed))
    write_json(context.out("data/budget.json"), report)
    context.note(rows=report["rows"], tokens=report["tokens"], unspent=report["unspent"])
    say(f"  {summary(report, len(pool))}")
    if report["unspent"]:
        warn(f"{report['unspent']} {report['unit']} of the budget are unspent: {report['cause']}")
