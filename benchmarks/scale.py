"""Clustering from ten thousand to millions of rows: time, memory, growth; and the search for neighbours."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.data import ROOT, as_sample, pool_large_embeddings, real_rows
from benchmarks.measure import measured
from paser.artifacts import staged
from paser.cache import Cache
from paser.errors import PaserError
from paser.progress import say

if TYPE_CHECKING:
    import numpy as np

SIZES = (10_000, 100_000, 1_000_000, 2_580_000)
REAL = 39_922
NOISE = 0.02
NEIGHBOURS = 30
INDEX_ROWS = 20_000
_BLOCK = 50_000


def synthetic(rows: int) -> Path:
    """Embeddings on disk, float32 (rows, 384): real ones drawn with replacement, moved by a little noise."""
    import numpy as np

    target = Cache.of(ROOT).entry("bench", f"synthetic-{rows}.npy")
    if not target.exists():
        real = pool_large_embeddings()
        with staged(target) as partial:
            array = np.lib.format.open_memmap(partial, "w+", np.float32, (rows, real.shape[1]))
            for begin in range(0, rows, _BLOCK):
                rng = np.random.default_rng([rows, begin])
                size = min(_BLOCK, rows - begin)
                block = real[rng.integers(len(real), size=size)]
                block = block + NOISE * rng.standard_normal(block.shape, dtype=np.float32)
                array[begin : begin + size] = block / np.linalg.norm(block, axis=1, keepdims=True)
            array.flush()
            del array
    return target


def clustered(path: str, stability_runs: int) -> dict[str, Any]:
    """`group` with the default settings on the embeddings in a file, names and stability included."""
    import numpy as np

    from paser.artifacts import read_array
    from paser.method.grouping import group
    from paser.settings import ClusterSettings

    vectors = read_array(Path(path))
    prompts = [as_sample(i, row).prompt for i, row in enumerate(real_rows())]
    start = time.perf_counter()
    found = group(
        vectors,
        vectors[:0],
        lambda rows: [prompts[int(i) % len(prompts)] for i in rows],
        ClusterSettings(stability_runs=stability_runs),
        (8, 3),
        0,
    )
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "k": len(np.unique(found.labels)), "stability": found.aris}


def searches(index_rows: int) -> list[dict[str, Any]]:
    """Time and recall of several searches for 30 neighbours of real rows among other real rows."""
    import numpy as np

    from paser.method.neighbours import NeighbourIndex

    vectors = pool_large_embeddings()
    order = np.random.default_rng(0).permutation(len(vectors))
    points, queries = vectors[order[:index_rows]], vectors[order[index_rows:]]
    exact = NeighbourIndex(points, search="exact").of(queries, NEIGHBOURS)[1]

    def ours(search: str) -> np.ndarray:
        return NeighbourIndex(points, search=search).of(queries, NEIGHBOURS)[1]

    def hnsw() -> np.ndarray:
        import hnswlib

        index = hnswlib.Index("l2", points.shape[1])
        index.init_index(len(points), ef_construction=100, M=16, random_seed=0)
        index.add_items(points)
        index.set_ef(60)
        found: np.ndarray = index.knn_query(queries, NEIGHBOURS)[0]
        return found

    def faiss_flat() -> np.ndarray:
        import faiss

        index = faiss.IndexFlatL2(points.shape[1])
        index.add(points)
        found: np.ndarray = index.search(queries, NEIGHBOURS)[1]
        return found

    results = []
    for name, search in (
        ("exact, scikit-learn (default up to 60,000 x 60,000)", lambda: ours("exact")),
        ("approximate, pynndescent (default beyond)", lambda: ours("approximate")),
        ("approximate, hnswlib", hnsw),
        ("exact, faiss", faiss_flat),
    ):
        search()
        start = time.perf_counter()
        found = search()
        seconds = time.perf_counter() - start
        shared = [len(set(a) & set(b)) for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
        recall = sum(shared) / (len(shared) * NEIGHBOURS)
        results.append({"search": name, "seconds": seconds, "recall": recall, "queries": len(queries)})
        say(f"  {results[-1]}")
    return results


def run() -> dict[str, Any]:
    runs = []
    for rows in (REAL, *SIZES):
        if rows == REAL:
            path = Cache.of(ROOT).entry("bench", "real.npy")
            if not path.exists():
                import numpy as np

                with staged(path) as partial, partial.open("wb") as stream:
                    np.save(stream, pool_large_embeddings())
        else:
            path = synthetic(rows)
        runs_of = 5 if rows == REAL else 0
        found = measured("benchmarks.scale:clustered", path=str(path), stability_runs=runs_of)
        runs.append({"rows": rows, "real": rows == REAL, **found})
        say(f"  {runs[-1]}")
        if rows == max(SIZES):
            path.unlink()
    return {"runs": runs, "searches": measured("benchmarks.scale:searches", index_rows=INDEX_ROWS)["result"]}


def exponent(runs: list[dict[str, Any]], small: int = 10_000, large: int = 1_000_000) -> float:
    """Growth of time between two sizes: the slope in double logarithms."""
    seconds = {entry["rows"]: entry["seconds"] for entry in runs if not entry["real"]}
    if small not in seconds or large not in seconds:
        raise PaserError(f"no run of {small} and {large} rows")
    return math.log(seconds[large] / seconds[small]) / math.log(large / small)


def render(result: dict[str, Any]) -> str:
    lines = [
        "## Clustering at scale\n",
        "The default settings, embeddings on disk, embedding itself not counted. The real rows include five "
        "stability reruns; the synthetic ones (real embeddings drawn with replacement, plus noise) none. "
        "Targets: 40,000 rows in 60 s and 3 GB; 2.58 million in 60 minutes and 16 GB; growth exponent from "
        "10 thousand to a million at most 1.2.\n",
        "| rows | | seconds | peak GB (with the real rows' texts) | K |",
        "|--:|---|--:|--:|--:|",
    ]
    for entry in result["runs"]:
        kind = "real" if entry["real"] else "synthetic"
        lines.append(
            f"| {entry['rows']:,} | {kind} | {entry['seconds']:.1f} | {entry['peak_gb']:.1f} "
            f"| {entry['result']['k']} |"
        )
    lines.append(f"\nGrowth exponent: {exponent(result['runs']):.2f}.\n")
    count = result["searches"][0]["queries"]
    lines += [
        f"### Search for neighbours\n\n{NEIGHBOURS} neighbours of {count:,} rows among {INDEX_ROWS:,}, "
        "building the index included.\n",
        "| search | seconds | recall |\n|---|--:|--:|",
    ]
    lines += [f"| {s['search']} | {s['seconds']:.1f} | {s['recall']:.3f} |" for s in result["searches"]]
    return "\n".join(lines)
