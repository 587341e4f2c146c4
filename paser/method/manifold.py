"""From embeddings to manifold coordinates (method.md, section 1).

The diffusion map is sparse, self-tuned and regularised: real pools hold many small, tight groups of
templated prompts, which without regularisation take over the leading eigenvectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paser.errors import PaserError
from paser.method.neighbours import NeighbourIndex

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse as sparse

LOCAL_NEIGHBOUR = 7
MOST_NEIGHBOURS = 30
EFFECTIVE_DIMENSIONS = 8.0
LONGEST_TIME = 1024.0
# What its authors recommend for clustering.
UMAP_DIMENSIONS, UMAP_NEIGHBOURS = 10, 15
_TINY = 1e-12
_DENSE_ROWS = 200
_EIGEN_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Graph:
    """Self-tuned neighbour affinity of a set of points.

    `affinity`: symmetric CSR (n, n), entries in (0, 1], no diagonal; `bandwidth`: s_i > 0, shape (n,).
    """

    affinity: sparse.csr_matrix
    bandwidth: np.ndarray


@dataclass(frozen=True)
class Manifold:
    """Where clusters are sought.

    `coordinates`: (n, d), rows of length 1 for diffusion. `points`: (n, w), the space whose neighbours
    make `graph`: the embeddings for diffusion, else the coordinates. `place(new)`: embeddings (m, width)
    -> that space (m, w). `eigenvalues`: descending, of the graph's regularised operator, the trivial one
    first. `time`: diffusion time, None for other manifolds.
    """

    coordinates: np.ndarray
    points: np.ndarray
    graph: Graph
    place: Callable[[np.ndarray], np.ndarray]
    eigenvalues: np.ndarray
    time: float | None = None


def default_neighbours(rows: int) -> int:
    """sqrt(N), between 10 and 30: more blurs the groups of a large pool (`docs/decisions/0008`)."""
    return int(min(max(round(math.sqrt(rows)), 10), MOST_NEIGHBOURS))


def self_tuned_graph(points: np.ndarray, neighbours: int, search: str = "exact", seed: int = 0) -> Graph:
    """A_ij = exp(-|p_i - p_j|^2 / (s_i s_j)) over neighbours, symmetrised by the larger of A_ij, A_ji.

    s_i is the distance to the 7th neighbour, at least a third of its median (Zelnik-Manor and Perona
    2004, with the floor of method.md).
    """
    import numpy as np
    import scipy.sparse as sparse

    count = len(points)
    if count < 2:
        return Graph(sparse.csr_matrix((count, count)), np.ones(count))
    distances, positions = NeighbourIndex(points, search=search, seed=seed).among(neighbours)
    bandwidth = _bandwidth(distances, None)
    rows = np.repeat(np.arange(count), positions.shape[1])
    columns = positions.ravel()
    values = np.exp(-(distances.ravel() ** 2) / (bandwidth[rows] * bandwidth[columns]))
    one_way = sparse.csr_matrix((values, (rows, columns)), shape=(count, count))
    return Graph(sparse.csr_matrix(one_way.maximum(one_way.T)), bandwidth)


def _bandwidth(distances: np.ndarray, median: float | None) -> np.ndarray:
    """s_i from each row's sorted distances, shape (n, neighbours); `median` is that of the graph's own s."""
    import numpy as np

    local = np.asarray(distances[:, min(LOCAL_NEIGHBOUR, distances.shape[1]) - 1], dtype=float)
    usual = float(np.median(local)) if median is None else median
    bandwidth: np.ndarray = np.maximum(local, max(usual / 3, _TINY))
    return bandwidth


def affinity_to(graph: Graph, distances: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The same kernel between other rows and their neighbours in the graph, shape of `distances`.

    Scaled by a factor a row, so that the nearest neighbour has 1: a row far from everything still leans
    to its nearest neighbours.
    """
    import numpy as np

    own = _bandwidth(distances, float(np.median(graph.bandwidth)))
    exponent = distances**2 / (own[:, None] * graph.bandwidth[positions])
    weights: np.ndarray = np.exp(exponent.min(axis=1, keepdims=True) - exponent)
    return weights


def spectrum(
    affinity: sparse.csr_matrix, wanted: int, regularisation: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Leading eigenpairs of (D + rho)^-1/2 (A + rho 1 1^T / N) (D + rho)^-1/2.

    rho = `regularisation` x the mean degree; it enters as a rank-one term and is never densified.
    Returns eigenvalues (descending, at most `wanted`), eigenvectors (n, .) with the sign in which the
    largest entry is positive, D + rho, and rho.
    """
    import numpy as np
    from scipy.sparse.linalg import LinearOperator, eigsh

    count = affinity.shape[0]
    degree = np.asarray(affinity.sum(axis=1)).ravel()
    rho = regularisation * float(degree.mean()) if count else 0.0
    regular = np.maximum(degree + rho, _TINY)
    scale = 1 / np.sqrt(regular)

    def apply(vector: np.ndarray) -> np.ndarray:
        scaled = scale * vector.ravel()
        result: np.ndarray = scale * (affinity @ scaled + rho / count * scaled.sum())
        return result

    wanted = min(wanted, count)
    if count <= _DENSE_ROWS or wanted >= count - 1:
        dense = scale[:, None] * (affinity.toarray() + rho / count) * scale[None, :]
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
        values, vectors = values[::-1][:wanted], vectors[:, ::-1][:, :wanted]
    else:
        start = np.random.default_rng(seed).standard_normal(count)
        operator = LinearOperator((count, count), matvec=apply, dtype=np.float64)
        krylov = min(count - 1, max(2 * wanted + 20, 40))
        values, vectors = eigsh(operator, k=wanted, which="LA", v0=start, ncv=krylov, tol=_EIGEN_TOLERANCE)
        order = np.argsort(-values, kind="stable")
        values, vectors = values[order], vectors[:, order]
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.where(vectors[largest, np.arange(vectors.shape[1])] < 0, -1.0, 1.0)
    return values, vectors * signs, regular, rho


def unit_rows(points: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    import numpy as np

    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    scaled: np.ndarray = points / np.where(lengths > _TINY, lengths, 1.0)
    return scaled


def effective_dimensions(eigenvalues: np.ndarray, time: float) -> float:
    """How many coordinates lambda^t count at time t: exp of the entropy of lambda^(2t), from 1 to all.

    `eigenvalues`: those of the coordinates, in (0, 1], without the trivial one.
    """
    import numpy as np

    logs = 2 * time * np.log(eigenvalues)
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    return float(np.exp(-np.sum(weights * np.log(np.maximum(weights, 1e-300)))))


def diffusion_time(eigenvalues: np.ndarray, wanted: float = EFFECTIVE_DIMENSIONS) -> float:
    """The shortest time, from 1 to 1024, at which at most `wanted` dimensions count.

    At t = 1 dozens of coordinates count nearly alike, and most of them describe one template each. The
    larger the pool at a fixed number of neighbours, the longer the walk between two ends of a group.
    """
    shortest, longest = 1.0, LONGEST_TIME
    if effective_dimensions(eigenvalues, shortest) <= wanted:
        return shortest
    for _ in range(60):
        middle = math.sqrt(shortest * longest)
        if effective_dimensions(eigenvalues, middle) > wanted:
            shortest = middle
        else:
            longest = middle
    return longest


def diffusion(
    embeddings: np.ndarray,
    *,
    neighbours: int,
    dimensions: int,
    eigenvalues: int,
    time: float | None,
    regularisation: float,
    seed: int,
    search: str = "auto",
) -> Manifold:
    """Diffusion coordinates z = lambda^t (D + rho)^-1/2 v, without the trivial pair, rows of length 1.

    At least `eigenvalues` eigenvalues are computed, for the choice of K. With `time` None it is
    `diffusion_time` of them.
    """
    import numpy as np

    graph = self_tuned_graph(embeddings, neighbours, search, seed)
    values, vectors, regular, _ = spectrum(
        graph.affinity, max(dimensions + 1, eigenvalues), regularisation, seed
    )
    kept = [i for i in range(1, min(dimensions + 1, len(values))) if values[i] > 1e-8]
    if not kept:
        flat = np.zeros((len(embeddings), 1))
        return Manifold(flat, embeddings, graph, np.asarray, values, time or 1.0)
    used = np.minimum(values[kept], 1.0)
    if time is None:
        time = diffusion_time(used)
    coordinates = unit_rows(vectors[:, kept] / np.sqrt(regular)[:, None] * (used / used[0]) ** time)
    return Manifold(coordinates, embeddings, graph, np.asarray, values, time)


def manifold(
    name: str,
    embeddings: np.ndarray,
    *,
    neighbours: int,
    dimensions: int,
    eigenvalues: int,
    time: float | None,
    regularisation: float,
    seed: int,
    search: str = "auto",
) -> Manifold:
    """Coordinates by name: `diffusion`, `umap`, `pca` or `none` (the embeddings themselves).

    With fewer than four rows every choice is `none`: there is no manifold to find.
    """
    if name == "diffusion" and len(embeddings) >= 4:
        return diffusion(
            embeddings,
            neighbours=neighbours,
            dimensions=dimensions,
            eigenvalues=eigenvalues,
            time=time,
            regularisation=regularisation,
            seed=seed,
            search=search,
        )
    coordinates, place = _coordinates(name if len(embeddings) >= 4 else "none", embeddings, dimensions, seed)
    graph = self_tuned_graph(coordinates, neighbours, search, seed)
    values = spectrum(graph.affinity, eigenvalues, regularisation, seed)[0]
    return Manifold(coordinates, coordinates, graph, place, values)


def _coordinates(
    name: str, embeddings: np.ndarray, dimensions: int, seed: int
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Coordinates of a manifold that is not made of the graph, and the function that places new rows."""
    import numpy as np

    if name == "none":
        return embeddings, np.asarray
    if name == "umap":  # McInnes et al. 2018; seeded and single-threaded, so reruns agree
        import umap

        fitted = umap.UMAP(
            n_components=min(dimensions, UMAP_DIMENSIONS, len(embeddings) - 2),
            n_neighbors=min(UMAP_NEIGHBOURS, len(embeddings) - 1),
            min_dist=0.0,
            metric="cosine",
            random_state=seed,
            n_jobs=1,
        )
    elif name == "pca":
        from sklearn.decomposition import PCA

        fitted = PCA(n_components=min(dimensions, *embeddings.shape), random_state=seed)
    else:
        raise PaserError(f"unknown manifold {name!r}", remedy="diffusion, umap, pca or none")
    coordinates = np.asarray(fitted.fit_transform(embeddings))
    return coordinates, lambda new: fitted.transform(new) if len(new) else coordinates[:0]
