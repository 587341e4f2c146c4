"""Stage `cluster`: capability clusters of the pool, and the held-out rows' places among them."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from paser.artifacts import read_array, read_columns, write_batches, write_json
from paser.progress import say
from paser.records import prompt_text
from paser.stages.run import Context

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

COLUMNS = ("row_id", "instruction", "input", "label")


def run(context: Context) -> None:
    from paser.method.grouping import group

    settings = context.settings
    pool = read_columns(context.input("data/pool.parquet"), COLUMNS)
    holdout = read_columns(context.input("data/holdout.parquet"), COLUMNS)
    result = group(
        read_array(context.input("data/embeddings.npy")),
        read_array(context.input("data/holdout-embeddings.npy")),
        partial(prompts, pool),
        settings.cluster,
        (settings.select.concepts, settings.select.phrase_words),
        settings.seed,
    )
    splits = (("pool", pool, result.labels), ("holdout", holdout, result.new_labels))
    write_batches(
        context.out("data/clusters.parquet"),
        "clusters",
        (
            {
                "row_id": table["row_id"].combine_chunks(),
                "split": [split] * len(clusters),
                "cluster": clusters,
            }
            for split, table, clusters in splits
        ),
    )
    description = result.describe()
    labels, clusters = pool["label"].to_pylist(), result.labels.tolist()
    inside = Counter(zip(clusters, labels, strict=True))
    for entry in description["clusters"]:
        own = {label: n for (k, label), n in inside.items() if k == entry["cluster"] and label}
        entry["labels"] = dict(sorted(own.items()))
    description["agreement"] = _agreement(labels, clusters)
    write_json(context.out("data/clusters.json"), description)
    say(f"  {description['k']} clusters by {description['manifold']} + {description['algorithm']}")
    for entry in description["clusters"]:
        say(f"    {entry['cluster']:>2}  {entry['rows']:>5} rows  {entry['name']}")


def prompts(table: pa.Table, positions: np.ndarray) -> list[str]:
    """The prompts of the rows at `positions`."""
    part = table.select(["instruction", "input"]).take(positions)
    return [
        prompt_text(*pair) for pair in zip(*(part[c].to_pylist() for c in part.column_names), strict=True)
    ]


def _agreement(labels: list[str | None], clusters: list[int]) -> dict[str, float] | None:
    """How well the clusters match the sources' labels, for checking only; None without labels."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    known = [(label, k) for label, k in zip(labels, clusters, strict=True) if label]
    if len({label for label, _ in known}) < 2:
        return None
    truth, found = [label for label, _ in known], [k for _, k in known]
    return {
        "nmi": float(normalized_mutual_info_score(truth, found)),
        "ari": float(adjusted_rand_score(truth, found)),
    }
