"""Clusters of real instructions against their sources: ours and the usual rivals, at a given K and their own.

Sources (labels) judge and never choose. Defaults were chosen on one half of the rows, split by digest; what
is reported is the other half.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.data import ROOT, as_sample, default_pool, pool_large_embeddings, real_rows
from benchmarks.measure import measured
from paser.artifacts import fingerprint, read_json, sha256_path, write_json
from paser.cache import Cache
from paser.lineage.record import code_digest
from paser.progress import say

if TYPE_CHECKING:
    import numpy as np

SEEDS = (0, 1, 2)
SIZES = (2_500, 10_000, 39_922)
AUTO = 0
# Rows per cluster that HDBSCAN asks for at least, and K candidates of the rivals that need a number.
HDBSCAN_SHARE = 100
K_RANGE = range(4, 17)
SILHOUETTE_ROWS = 2_000


def ours(points: np.ndarray, k: int, seed: int, rule: str = "auto", **changes: Any) -> np.ndarray:
    from paser.method.grouping import group
    from paser.settings import ClusterSettings

    settings = ClusterSettings.model_validate({"k": k or rule, "stability_runs": 0, **changes})
    return group(points, points[:0], lambda rows: [""] * len(rows), settings, (8, 3), seed).labels


def kmeans(points: np.ndarray, k: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    if not k:
        k = _by_silhouette(points, seed, lambda n: KMeans(n, n_init=1, random_state=seed).fit(points).labels_)
    labels: np.ndarray = KMeans(k, n_init=10, random_state=seed).fit(points).labels_
    return labels


def spectral(points: np.ndarray, k: int, seed: int) -> np.ndarray:
    from sklearn.cluster import SpectralClustering

    def fit(n: int) -> np.ndarray:
        model = SpectralClustering(n, affinity="nearest_neighbors", n_neighbors=15, random_state=seed)
        labels: np.ndarray = model.fit(points).labels_
        return labels

    return fit(k or _by_silhouette(points, seed, fit))


def umap_kmeans(points: np.ndarray, k: int, seed: int) -> np.ndarray:
    return kmeans(_umap(points, seed)[0], k, seed)


def umap_hdbscan(points: np.ndarray, k: int, seed: int) -> np.ndarray:
    """At its own K; given a K, the smallest cluster size (of a ladder) that comes nearest to it."""
    import numpy as np
    from sklearn.cluster import HDBSCAN
    from sklearn.neighbors import NearestCentroid

    flat = _umap(points, seed)[0]
    shares = (HDBSCAN_SHARE,) if not k else (400, 200, 100, 50, 25)
    best: np.ndarray | None = None
    for share in shares:
        found = HDBSCAN(min_cluster_size=max(5, len(points) // share), copy=True).fit(flat).labels_
        if found.max() < 1:
            continue
        if best is None or abs(found.max() + 1 - k) < abs(best.max() + 1 - k):
            best = found
    if best is None:
        return np.zeros(len(points), dtype=np.int64)
    noise = best < 0
    if noise.any():
        best = best.copy()
        best[noise] = NearestCentroid().fit(flat[~noise], best[~noise]).predict(flat[noise])
    return best


_FLAT: dict[tuple[int, int], tuple[np.ndarray, float]] = {}


def _umap(points: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """UMAP's coordinates and how long they took; made once for the methods that start from them."""
    import umap

    key = len(points), seed
    if key not in _FLAT:
        start = time.perf_counter()
        model = umap.UMAP(
            n_components=10, n_neighbors=15, min_dist=0.0, metric="cosine", random_state=seed, n_jobs=1
        )
        _FLAT[key] = model.fit_transform(points), time.perf_counter() - start
    return _FLAT[key]


def _by_silhouette(points: np.ndarray, seed: int, fit: Callable[[int], np.ndarray]) -> int:
    """The K with the best silhouette, the usual automatic choice where a method has none."""
    from sklearn.metrics import silhouette_score

    size = min(SILHOUETTE_ROWS, len(points))
    scores = {
        k: silhouette_score(points, fit(k), sample_size=size, random_state=seed)
        for k in K_RANGE
        if k < len(points)
    }
    return max(scores, key=lambda k: (scores[k], -k))


METHODS: dict[str, Callable[[Any, int, int], Any]] = {
    "diffusion + NMF (default)": ours,
    "diffusion + k-means": lambda p, k, s: ours(p, k, s, algorithm="kmeans"),
    "diffusion + NMF, K by gap": lambda p, k, s: ours(p, k, s, rule="gap"),
    "diffusion + NMF, t = 1, d = 16": lambda p, k, s: ours(p, k, s, time=1.0, dimensions=16),
    "k-means on embeddings": kmeans,
    "SpectralClustering": spectral,
    "UMAP + k-means": umap_kmeans,
    "UMAP + HDBSCAN": umap_hdbscan,
}
# Run in one process, so that imports and compilations are paid once.
FAMILIES = (tuple(METHODS)[:4], tuple(METHODS)[4:5], tuple(METHODS)[5:6], tuple(METHODS)[6:])
# Only where K is chosen does this variant differ from the default.
AUTO_ONLY = ("diffusion + NMF, K by gap",)
# A dozen spectral clusterings for their silhouettes take longer than all the rest: no own K from 5,000 rows,
# one seed from 20,000.
SLOW, SLOW_AUTO, SLOW_SEEDS = ("SpectralClustering",), 5_000, 20_000


def family(methods: list[str], data: str, size: int, given: int) -> list[dict[str, Any]]:
    """Clusterings by these methods, at the given K and at their own, with every seed."""
    import numpy as np
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

    results = []
    for seed in SEEDS:
        points, labels, judged = _drawn(data, size, seed)
        for method in methods:
            METHODS[method](points[:1000], 5, seed)
            _FLAT.pop((1000, seed), None)
            for k in (given, AUTO):
                if (k and method in AUTO_ONLY) or (method in SLOW and _too_slow(size, k, seed)):
                    continue
                shared = _FLAT[len(points), seed][1] if (len(points), seed) in _FLAT else 0.0
                start = time.perf_counter()
                found = np.asarray(METHODS[method](points, k, seed))
                entry = {
                    "data": data,
                    "size": size,
                    "method": method,
                    "given": k,
                    "seed": seed,
                    "seconds": shared + time.perf_counter() - start,
                    "k": len(np.unique(found)),
                    "ami": float(adjusted_mutual_info_score(labels[judged], found[judged])),
                    "ari": float(adjusted_rand_score(labels[judged], found[judged])),
                }
                say(f"  {entry}")
                results.append(entry)
    return results


def _too_slow(size: int, k: int, seed: int) -> bool:
    return (k == AUTO and size > SLOW_AUTO) or (seed != SEEDS[0] and size > SLOW_SEEDS)


def kept(call: str, **arguments: Any) -> dict[str, Any]:
    """`measured`, kept under the digest of its arguments and of the code, so that a stopped run goes on."""
    digest = fingerprint([call, arguments, code_digest(("paser/method",)), sha256_path(Path(__file__))])
    entry = Cache.of(ROOT).entry("bench", f"{digest}.json")
    if not entry.exists():
        write_json(entry, measured(call, **arguments))
    found: dict[str, Any] = read_json(entry)
    return found


def _drawn(data: str, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings, labels, and which rows are judged: those that took no part in choosing defaults."""
    import numpy as np

    if data == "default":
        vectors, names = default_pool()
        return vectors, np.array(names), np.ones(len(names), bool)
    vectors, rows = pool_large_embeddings(), real_rows()
    held = np.array([reported(as_sample(i, row).row_id) for i, row in enumerate(rows)])
    names = np.array([row["label"] for row in rows])
    if size >= len(rows):
        return vectors, names, held
    inside = np.sort(np.random.default_rng(seed).permutation(np.flatnonzero(held))[:size])
    return vectors[inside], names[inside], np.ones(size, bool)


def reported(row_id: str) -> bool:
    """Whether a row is in the half that is reported; the other half was for choosing defaults."""
    return int(row_id[3], 16) >= 8


def reruns(size: int, seed: int, runs: int = 4) -> dict[str, Any]:
    """ARI between clusterings of different 90 % subsamples, on the rows that two of them share."""
    import numpy as np
    from sklearn.metrics import adjusted_rand_score

    points, _, _ = _drawn("pool-large", size, seed)
    fixed = len(np.unique(ours(points, AUTO, seed)))
    labels = []
    for run in range(runs):
        rows = np.sort(np.random.default_rng([seed, run]).choice(len(points), int(0.9 * len(points)), False))
        full = np.full(len(points), -1)
        full[rows] = ours(points[rows], fixed, seed + run)
        labels.append(full)
    scores = []
    for i, a in enumerate(labels):
        for b in labels[i + 1 :]:
            both = (a >= 0) & (b >= 0)
            scores.append(float(adjusted_rand_score(a[both], b[both])))
    return {"k": fixed, "ari": scores}


def run() -> dict[str, Any]:
    pool_large_embeddings()
    names = sorted({row["label"] for row in real_rows()})
    inputs = [("pool-large", size, len(names)) for size in SIZES]
    inputs.append(("default", len(default_pool()[1]), len(set(default_pool()[1]))))
    results: list[dict[str, Any]] = []
    for data, size, given in inputs:
        for methods in FAMILIES:
            call = "benchmarks.clustering:family"
            found = kept(call, methods=methods, data=data, size=size, given=given)
            results += [{**entry, "peak_gb": found["peak_gb"]} for entry in found["result"]]
    stable = [
        {
            "size": size,
            "seed": seed,
            **measured("benchmarks.clustering:reruns", size=size, seed=seed)["result"],
        }
        for size in SIZES
        for seed in SEEDS
    ]
    return {"labels": len(names), "runs": results, "stability": stable}


def render(result: dict[str, Any]) -> str:
    import pandas

    frame = pandas.DataFrame(result["runs"])
    lines = [
        "## Clusters of real instructions\n",
        f"Agreement of clusters with the rows' {result['labels']} sources: adjusted mutual information and "
        "adjusted Rand index (1 is perfect, 0 is chance), means over three seeds. *Given K* is the number of "
        "labels; *own K* is each method's automatic choice (modularity for the default, silhouette for "
        "k-means and SpectralClustering, HDBSCAN's own with a hundredth of the rows as the smallest "
        "cluster). HDBSCAN's noise goes to the nearest cluster's centre; at a given K its smallest cluster "
        "is the size out of five that comes nearest to that K. Defaults were chosen on one half of the rows, "
        "these are the others; of 39,922 rows all are clustered, and these judged. `default` is the pool of "
        "`make demo`. Seconds are without imports and compilation.\n",
    ]
    for (data, size), part in frame.groupby(["data", "size"], sort=False):
        lines.append(f"### {data}, {size:,} rows\n")
        lines.append("| method | AMI, given K | ARI | s | AMI, own K | ARI | K found | s | peak GB |")
        lines.append("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
        for method in METHODS:
            cells = []
            for own in (False, True):
                rows = part[(part["method"] == method) & ((part["given"] == AUTO) == own)]
                if rows.empty:
                    cells += ["-"] * (4 if own else 3)
                    continue
                mean = rows[["ami", "ari", "seconds"]].mean()
                spread = f"{mean['ami']:.3f} ± {rows['ami'].std():.3f}"
                found = [f"{rows['k'].min()}-{rows['k'].max()}"] if own else []
                cells += [spread, f"{mean['ari']:.3f}", *found, f"{mean['seconds']:.1f}"]
            peak = part[part["method"] == method]["peak_gb"].max()
            lines.append(f"| {method} | " + " | ".join(cells) + f" | {peak:.1f} |")
        lines.append("")
    lines.append("### Stability\n")
    lines.append(
        "Adjusted Rand index between runs on different 90 % subsamples (four runs, six pairs), at the K "
        "chosen on all rows. Target: at least 0.8.\n"
    )
    lines.append("| rows | seed | K | mean ARI | lowest |\n|--:|--:|--:|--:|--:|")
    for entry in result["stability"]:
        aris = entry["ari"]
        mean = sum(aris) / len(aris)
        lines.append(f"| {entry['size']:,} | {entry['seed']} | {entry['k']} | {mean:.3f} | {min(aris):.3f} |")
    return "\n".join(lines)
