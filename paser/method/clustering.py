"""Capability clusters on a manifold (method.md, section 1): symmetric NMF or k-means, what tells good
clusterings from bad ones (modularity, spectral gap, subsamples), and extension to other rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paser.errors import PaserError
from paser.method.manifold import Manifold, affinity_to
from paser.method.neighbours import NeighbourIndex

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse as sparse

NMF_ITERATIONS = 200
NMF_TOLERANCE = 1e-5
MOST_RESEEDS = 5
STABILITY_SHARE = 0.9
STABILITY_ROWS = 10_000
RESTARTS = 8
SWEEPS = 30
EXTEND_ROWS = 20_000
ALGORITHMS = ("nmf", "kmeans")


@dataclass(frozen=True)
class Clustering:
    """`labels`: (n,) numbered 0 .. `count` - 1 by falling size, ties by the smallest row."""

    labels: np.ndarray
    count: int


@dataclass(frozen=True)
class Gap:
    """The chosen number of clusters with its spectral gap, and the runner-up."""

    k: int
    gap: float
    runner_up: int | None
    runner_up_gap: float | None


def spectral_gap(eigenvalues: np.ndarray, k_min: int, k_max: int) -> Gap:
    """The K within k_min .. k_max with the largest lambda_K - lambda_{K+1} (trivial eigenvalue first).

    Ties go to the smaller K. Raises when no K of the range has both eigenvalues.
    """
    last = min(k_max, len(eigenvalues) - 1)
    if last < k_min:
        raise PaserError(
            f"the pool is too small for a choice of K between {k_min} and {k_max}: "
            f"{len(eigenvalues)} eigenvalues",
            remedy="set cluster.k to a number, or lower cluster.k_min",
        )
    gaps = sorted(
        ((float(eigenvalues[k - 1] - eigenvalues[k]), k) for k in range(k_min, last + 1)),
        key=lambda pair: (-pair[0], pair[1]),
    )
    second = gaps[1] if len(gaps) > 1 else (None, None)
    return Gap(gaps[0][1], gaps[0][0], second[1], second[0])


def symmetric_nmf(affinity: sparse.csr_matrix, start: np.ndarray, seed: int) -> np.ndarray:
    """H >= 0 of shape (n, K) that minimises |W - H H^T|_F^2, W = D^-1/2 A D^-1/2.

    Damped multiplicative updates, H <- H (1/2 + W H / (2 H H^T H)) (Ding, He and Simon 2005). `start`
    are labels (n,). A column that empties is re-seeded from the rows explained worst. Cost and memory
    grow with the entries of `affinity` times K.
    """
    import numpy as np
    import scipy.sparse as sparse

    count, columns = affinity.shape[0], int(start.max()) + 1
    degree = np.maximum(np.asarray(affinity.sum(axis=1)).ravel(), 1e-12)
    scale = sparse.diags(1 / np.sqrt(degree))
    weights = sparse.csr_matrix(scale @ affinity @ scale)
    rng = np.random.default_rng(seed)
    factor = np.full((count, columns), 0.1) + 0.01 * rng.random((count, columns))
    factor[np.arange(count), start] += 1.0
    gram = factor.T @ factor
    factor *= np.sqrt(max(float((factor * (weights @ factor)).sum()), 1e-12) / float((gram**2).sum()))
    previous, reseeds = np.inf, 0
    total = float(weights.multiply(weights).sum())
    for step in range(NMF_ITERATIONS):
        product = weights @ factor
        gram = factor.T @ factor
        loss = total - 2 * float((factor * product).sum()) + float((gram**2).sum())
        if step and previous - loss <= NMF_TOLERANCE * max(total, 1e-12):
            break
        previous = loss
        factor *= 0.5 + 0.5 * product / np.maximum(factor @ gram, 1e-12)
        if reseeds < MOST_RESEEDS and _reseed(factor, weights, rng):
            reseeds += 1
            previous = np.inf
    return np.asarray(factor)


def _reseed(factor: np.ndarray, weights: sparse.csr_matrix, rng: np.random.Generator) -> bool:
    """Gives each column that is nobody's largest the rows whose links are explained worst.

    Returns whether there was one; its loss rises then, and the updates go on.
    """
    import numpy as np

    count, columns = factor.shape
    sizes = np.bincount(factor.argmax(axis=1), minlength=columns)
    for column in np.flatnonzero(sizes == 0):
        explained = (factor**2).sum(axis=1)
        linked = np.asarray(weights.sum(axis=1)).ravel()
        worst = np.argsort(explained - linked, kind="stable")[: max(1, count // (10 * columns))]
        factor[:, column] = 1e-3 * rng.random(count) * factor.max()
        factor[worst, column] = factor.max()
    return bool((sizes == 0).any())


def modularity(affinity: sparse.csr_matrix, labels: np.ndarray) -> float:
    """Share of the affinity inside clusters beyond what degrees alone would give (Newman 2006), below 1.

    Of several factorisations the one with the highest modularity is kept: on real instructions it goes
    with the agreement with their sources, which the loss of the factorisation does not.
    """
    import numpy as np
    import scipy.sparse as sparse

    total = float(affinity.sum())
    if not total:
        return 0.0
    degree = np.asarray(affinity.sum(axis=1)).ravel()
    member = sparse.csr_matrix((np.ones(len(labels)), (np.arange(len(labels)), labels)))
    inside = float((member.T @ affinity @ member).diagonal().sum())
    return inside / total - float(((member.T @ degree / total) ** 2).sum())


def refined(affinity: sparse.csr_matrix, labels: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Labels after moves of single rows to the cluster that raises modularity most, and their modularity.

    The local moves of Blondel et al. (2008) at a fixed number of clusters, in sweeps: in each, half of the
    rows that would gain move together. The sweep with the highest modularity is returned, so it never falls.
    """
    import numpy as np

    total = float(affinity.sum())
    if not total:
        return labels, 0.0
    rng = np.random.default_rng(seed)
    rows = np.arange(len(labels))
    degree = np.asarray(affinity.sum(axis=1)).ravel()
    links = affinity @ np.eye(int(labels.max()) + 1)[labels]
    best, highest = labels, -np.inf
    for _ in range(SWEEPS):
        volume = np.bincount(labels, weights=degree, minlength=links.shape[1])
        found = float(links[rows, labels].sum()) / total - float(((volume / total) ** 2).sum())
        if found > highest:
            best, highest = labels, found
        gain = links - degree[:, None] * (volume / total)
        gain[rows, labels] += degree**2 / total  # a row is no company to itself
        wanted = gain.argmax(axis=1)
        if (wanted == labels).all():
            break
        moving = np.flatnonzero((wanted != labels) & (rng.random(len(labels)) < 0.5))
        change = np.zeros((len(moving), links.shape[1]))
        change[np.arange(len(moving)), wanted[moving]] = 1.0
        change[np.arange(len(moving)), labels[moving]] = -1.0
        links = links + affinity[moving].T @ change
        labels = labels.copy()
        labels[moving] = wanted[moving]
    return best, highest


def cluster(algorithm: str, space: Manifold, k: int, seed: int, restarts: int = RESTARTS) -> Clustering:
    """`k` clusters (fewer if some stay empty) by `nmf` or `kmeans`.

    k-means works on the coordinates, with `restarts` starts, the best by inertia. The factorisation works
    on the manifold's graph, from the labels of each of these starts, and is refined there; the best by
    modularity is kept.
    """
    import numpy as np
    from sklearn.cluster import KMeans

    coordinates = space.coordinates
    count = len(coordinates)
    if k > count:
        raise PaserError(
            f"{k} clusters were asked for, but the pool has {count} rows",
            remedy="set cluster.k to auto or to a smaller number",
        )
    if algorithm not in ALGORITHMS:
        raise PaserError(f"unknown clustering {algorithm!r}", remedy="nmf or kmeans")
    if k == 1:
        return Clustering(np.zeros(count, dtype=np.int64), 1)
    distinct = min(k, len(np.unique(coordinates, axis=0)))
    if algorithm == "kmeans" or count < 4:
        return _numbered(KMeans(distinct, n_init=restarts, random_state=seed).fit(coordinates).labels_)
    best, highest = None, -np.inf
    affinity = space.graph.affinity
    for start in range(restarts):
        fitted = KMeans(distinct, n_init=1, random_state=seed + start).fit(coordinates)
        factor = symmetric_nmf(affinity, fitted.labels_, seed + start)
        labels, found = refined(affinity, factor.argmax(axis=1), seed + start)
        if found > highest:
            best, highest = labels, found
    assert best is not None
    return _numbered(best)


def _numbered(labels: np.ndarray) -> Clustering:
    """Numbers clusters by falling size, ties by the smallest row; drops empty ones."""
    import numpy as np

    found, first, inverse, sizes = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    place = np.argsort(np.lexsort((first, -sizes)))
    return Clustering(place[inverse].astype(np.int64), len(found))


def assign(
    clustering: Clustering,
    space: Manifold,
    new: np.ndarray,
    neighbours: int,
    search: str = "auto",
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Cluster of rows that were not clustered: out-of-sample extension.

    `new`: embeddings (m, width), read in blocks, so they may lie on disk; with `rows`, only those at these
    positions. Shape (m,), or that of `rows`. A row joins the cluster to which its nearest rows are tied most
    by the graph's own kernel (the Nystroem formula, applied to clusters in place of eigenvectors).
    """
    import numpy as np

    rows = np.arange(len(new)) if rows is None else rows
    result = np.zeros(len(rows), dtype=np.int64)
    index = NeighbourIndex(space.points, search=search, queries=len(rows))
    for begin in range(0, len(rows), EXTEND_ROWS):
        block = slice(begin, begin + EXTEND_ROWS)
        distances, positions = index.of(space.place(new[rows[block]]), neighbours)
        weights = affinity_to(space.graph, distances, positions)
        # One bin for each pair of row and cluster.
        cells = np.arange(len(positions))[:, None] * clustering.count + clustering.labels[positions]
        ties = np.bincount(cells.ravel(), weights.ravel(), len(positions) * clustering.count)
        result[block] = ties.reshape(len(positions), clustering.count).argmax(axis=1)
    return result


def subsamples(rows: int, runs: int, seed: int) -> list[np.ndarray]:
    """Positions (sorted) of the rows in each run: 90 % of them, or of 10,000 drawn from more."""
    import numpy as np

    size = max(2, round(STABILITY_SHARE * min(rows, STABILITY_ROWS)))
    draws = [np.random.default_rng([seed, number]) for number in range(runs)]
    return [np.sort(rng.choice(rows, size=size, replace=False)) for rng in draws]


def cluster_phrases(
    phrases: Sequence[Sequence[str]], labels: Sequence[int], count: int, top: int = 8
) -> list[list[str]]:
    """The key phrases that tell each cluster from the others: class-based TF-IDF, best first.

    tf is the share of the cluster's rows with the phrase, idf the log of rows over rows with it, times
    the phrase's words, because longer phrases say more. A phrase counts when two rows have it.
    """
    import math
    from collections import Counter

    everywhere: Counter[str] = Counter()
    inside: list[Counter[str]] = [Counter() for _ in range(count)]
    sizes: Mapping[int, int] = Counter(labels)
    for row, label in zip(phrases, labels, strict=True):
        everywhere.update(set(row))
        inside[label].update(set(row))
    result = []
    for label, counter in enumerate(inside):
        scores = {
            phrase: found
            / sizes[label]
            * math.log(1 + len(labels) / everywhere[phrase])
            * len(phrase.split())
            for phrase, found in counter.items()
            if found > 1 or sizes[label] < 4
        }
        result.append(sorted(scores, key=lambda phrase: (-scores[phrase], phrase))[:top])
    return result
