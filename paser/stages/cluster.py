"""Stage `cluster`: capability clusters of the pool, and the held-out rows' places among them."""

from __future__ import annotations

from collections import Counter

from paser.artifacts import read_array, read_rows, write_json, write_table
from paser.progress import say
from paser.records import row_to_sample
from paser.stages.run import Context


def run(context: Context) -> None:
    from paser.method.grouping import group

    settings = context.settings
    pool = read_rows(context.input("data/pool.parquet"), "pool")
    holdout = read_rows(context.input("data/holdout.parquet"), "pool")
    result = group(
        read_array(context.input("data/embeddings.npy")),
        read_array(context.input("data/holdout-embeddings.npy")),
        [row_to_sample(row).prompt for row in pool],
        settings.cluster,
        (settings.select.concepts, settings.select.phrase_words),
        settings.seed,
    )
    rows = [
        {"row_id": row["row_id"], "split": split, "cluster": int(cluster)}
        for split, table, clusters in (
            ("pool", pool, result.labels),
            ("holdout", holdout, result.new_labels),
        )
        for row, cluster in zip(table, clusters, strict=True)
    ]
    write_table(context.out("data/clusters.parquet"), "clusters", rows)
    description = result.describe()
    for entry in description["clusters"]:
        inside = [row["label"] for row, k in zip(pool, result.labels, strict=True) if k == entry["cluster"]]
        entry["labels"] = dict(sorted(Counter(label for label in inside if label).items()))
    description["agreement"] = _agreement([row["label"] for row in pool], result.labels.tolist())
    write_json(context.out("data/clusters.json"), description)
    say(f"  {description['k']} clusters by {description['manifold']} + {description['algorithm']}")
    for entry in description["clusters"]:
        say(f"    {entry['cluster']:>2}  {entry['rows']:>5} rows  {entry['name']}")


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
