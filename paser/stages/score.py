"""Stage `score`: damage of every pool row, from one fused pass of the original and the pruned model."""

from __future__ import annotations

from paser.artifacts import read_rows, write_table
from paser.models.workload import open_models, score_rows
from paser.progress import say, warn
from paser.stages.run import Context


def run(context: Context) -> None:
    settings = context.settings
    pool = read_rows(context.input("data/pool.parquet"), "pool")
    paths = {name: context.input(f"data/models/{name}") for name in ("original", "pruned")}
    digests = {name: context.digest(f"data/models/{name}") for name in paths}
    models = open_models(paths, digests, settings, context.cache)
    rows = score_rows(pool, models, digests, settings.score, context.cache)
    write_table(context.out("data/scores.parquet"), "scores", rows)
    counts = {name: sum(r["status"] == name for r in rows) for name in sorted({r["status"] for r in rows})}
    context.note(precision=models.precision, template=models.encoder.template, status=counts)
    unusable = sum(count for status, count in counts.items() if status not in ("ok", "cut"))
    if unusable:
        warn(f"{unusable} of {len(rows)} rows have no usable score; they will be rejected with the reason")
    known = [r["jsd"] for r in rows if r["jsd"] is not None]
    if known:
        say(f"  mean divergence {sum(known) / len(known):.4f} over {len(known)} rows (0 .. ln 2 = 0.6931)")
