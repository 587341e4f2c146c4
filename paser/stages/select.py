"""Stage `select`: the rows that repair the damage within the budget, and a random control beside them."""

from __future__ import annotations

from paser.artifacts import read_columns, read_json, write_batches, write_json, write_jsonl
from paser.pool.build import read_sources
from paser.progress import say, warn
from paser.selectors.choose import choose, contaminated, summary
from paser.selectors.tables import (
    CLUSTER_COLUMNS,
    OTHER_DIVERGENCES,
    POOL_COLUMNS,
    SCORE_COLUMNS,
    decision_batches,
    prompts,
    scored_pool,
    training_rows,
)
from paser.stages.run import Context


def run(context: Context) -> None:
    settings = context.settings
    table = read_columns(context.input("data/pool.parquet"), POOL_COLUMNS)
    clusters = read_columns(context.input("data/clusters.parquet"), CLUSTER_COLUMNS)
    scores = read_columns(context.input("data/scores.parquet"), SCORE_COLUMNS, OTHER_DIVERGENCES)
    names = {c["cluster"]: c["name"] for c in read_json(context.input("data/clusters.json"))["clusters"]}
    evaluation = read_sources(context.input("data/sources/evaluation").parent, "evaluation")
    near = contaminated(
        prompts(table),
        [sample.prompt for sample in evaluation],
        settings.pool.near_duplicate,
        settings.seed,
    )
    pool = scored_pool(table, clusters, scores, near, settings.select.divergence)
    selection, control, report = choose(pool, settings.select, settings.seed, names)
    write_batches(context.out("data/decisions.parquet"), "decisions", decision_batches(pool, selection))
    write_jsonl(context.out("data/selected.jsonl"), training_rows(table, pool, selection, settings.seed))
    write_jsonl(context.out("data/control.jsonl"), training_rows(table, pool, control, settings.seed))
    write_json(context.out("data/budget.json"), report)
    context.note(rows=report["rows"], tokens=report["tokens"], unspent=report["unspent"])
    say(f"  {summary(report, len(pool))}")
    if report["unspent"]:
        warn(f"{report['unspent']} {report['unit']} of the budget are unspent: {report['cause']}")
