"""Stage `embed`: sentence embeddings of pool and held-out prompts, in the row order of their tables."""

from __future__ import annotations

from paser.artifacts import read_rows, write_array
from paser.stages.run import Context

ENCODER = "data/sources/encoder"


def run(context: Context) -> None:
    from paser.models.encoder import PromptEmbedder

    embedder = PromptEmbedder.load(
        context.input(ENCODER), context.digest(ENCODER), context.settings, context.cache
    )
    cut = {}
    for table, target in (("pool", "embeddings"), ("holdout", "holdout-embeddings")):
        rows = read_rows(context.input(f"data/{table}.parquet"), "pool")
        vectors, cut[table] = embedder(rows)
        write_array(context.out(f"data/{target}.npy"), vectors)
    context.note(width=embedder.width, cut=cut)
