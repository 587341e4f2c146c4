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

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse as sparse

LOCAL_NEIGHBOUR = 7
_TINY = 1e-12
_DENSE_ROWS = 200


@dataclass(frozen=True)
class Graph:
    """Self-tuned neighbour affinity of a set of points.

    `affinity`: symmetric CSR (n, n), entries in (0, 1], no diagonal; `bandwidth`: s_i > 0, shape (n,).
    """

    affinity: sparse.csr_matrix
    bandwidth: np.ndarray


@dataclass(frozen=True)
class Manifold:
    """Coordinates of the pool and a function that places new points among them.

    `coordinates`: (n, d), rows of length 1 for diffusion; `eigenvalues`: descending, of the regularised
    operator, the trivial one first, or None where the manifold has none; `extend(new)`: embeddings
    (m, width) -> coordinates (m, d).
    """

    coordinates: np.ndarray
    eigenvalues: np.ndarray | None
    extend: Callable[[np.ndarray], np.ndarray]


def default_neighbours(rows: int) -> int:
    """About 0.5 sqrt(N), between 10 and 100."""
    return int(min(max(round(0.5 * math.sqrt(rows)), 10), 100))


def nearest(points: np.ndarray, queries: np.ndarray | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact Euclidean neighbours: distances and positions, shape (queries, count), nearest first.

    With `queries` None, each point's neighbours among the others (it is not its own). Fewer than
    `count` where there are not so many points.
    """
    from sklearn.neighbors import NearestNeighbors

    count = min(count, len(points) - (queries is None))
    index = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(points)
    distances, positions = index.kneighbors(queries)
    return distances, positions


def self_tuned_graph(points: np.ndarray, neighbours: int) -> Graph:
    """A_ij = exp(-|p_i - p_j|^2 / (s_i s_j)) over neighbours, symmetrised by the larger of A_ij, A_ji.

    s_i is the distance to the 7th neighbour, at least a third of its median (Zelnik-Manor and Perona
    2004, with the floor of method.md).
    """
    import numpy as np
    import scipy.sparse as sparse

    count = len(points)
    if count < 2:
        return Graph(sparse.csr_matrix((count, count)), np.ones(count))
    distances, positions = nearest(points, None, neighbours)
    width = positions.shape[1]
    local = distances[:, min(LOCAL_NEIGHBOUR, width) - 1]
    bandwidth = np.maximum(local, max(float(np.median(local)) / 3, _TINY))
    rows = np.repeat(np.arange(count), width)
    columns = positions.ravel()
    values = np.exp(-(distances.ravel() ** 2) / (bandwidth[rows] * bandwidth[columns]))
    one_way = sparse.csr_matrix((values, (rows, columns)), shape=(count, count))
    return Graph(sparse.csr_matrix(one_way.maximum(one_way.T)), bandwidth)


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
        values, vectors = eigsh(operator, k=wanted, which="LA", v0=start, ncv=max(4 * wanted, 40))
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


def diffusion(
    embeddings: np.ndarray,
    *,
    neighbours: int,
    dimensions: int,
    eigenvalues: int,
    time: float,
    regularisation: float,
    seed: int,
) -> Manifold:
    """Diffusion coordinates z = lambda^t (D + rho)^-1/2 v, without the trivial pair, rows of length 1.

    At least `eigenvalues` eigenvalues are computed, for the choice of K. New points are placed by the
    Nystroem formula psi(x) = (1 / lambda) sum_j p(x, j) psi(j).
    """
    import numpy as np

    graph = self_tuned_graph(embeddings, neighbours)
    values, vectors, regular, rho = spectrum(
        graph.affinity, max(dimensions + 1, eigenvalues), regularisation, seed
    )
    kept = [i for i in range(1, min(dimensions + 1, len(values))) if values[i] > 1e-8]
    psi = vectors[:, kept] / np.sqrt(regular)[:, None]
    psi = psi * math.sqrt(len(embeddings))
    powers = values[kept] ** time if kept else np.zeros(0)

    def extend(new: np.ndarray) -> np.ndarray:
        if not len(new) or not kept:
            return np.zeros((len(new), max(len(kept), 1)))
        distances, positions = nearest(embeddings, new, neighbours)
        local = distances[:, min(LOCAL_NEIGHBOUR, distances.shape[1]) - 1]
        own = np.maximum(local, max(float(np.median(graph.bandwidth)) / 3, _TINY))
        affinity = np.exp(-(distances**2) / (own[:, None] * graph.bandwidth[positions]))
        total = np.einsum("ij,ijk->ik", affinity, psi[positions]) + rho * psi.mean(axis=0)
        placed = total / np.maximum(affinity.sum(axis=1) + rho, _TINY)[:, None] / values[kept]
        return unit_rows(placed * powers)

    if not kept:
        return Manifold(np.zeros((len(embeddings), 1)), values, extend)
    return Manifold(unit_rows(psi * powers), values, extend)


def umap_coordinates(embeddings: np.ndarray, dimensions: int, neighbours: int, seed: int) -> Manifold:
    """UMAP coordinates (McInnes et al. 2018), seeded and single-threaded, so reruns agree."""
    import umap

    fitted = umap.UMAP(
        n_components=dimensions,
        n_neighbors=min(neighbours, len(embeddings) - 1),
        min_dist=0.0,
        metric="cosine",
        random_state=seed,
        n_jobs=1,
    )
    coordinates = fitted.fit_transform(embeddings)
    return Manifold(coordinates, None, lambda new: fitted.transform(new) if len(new) else new[:, :dimensions])


def pca_coordinates(embeddings: np.ndarray, dimensions: int, seed: int) -> Manifold:
    """Principal components."""
    from sklearn.decomposition import PCA

    fitted = PCA(n_components=min(dimensions, *embeddings.shape), random_state=seed)
    coordinates = fitted.fit_transform(embeddings)
    return Manifold(coordinates, None, lambda new: fitted.transform(new) if len(new) else new[:, :dimensions])


def manifold(
    name: str,
    embeddings: np.ndarray,
    *,
    neighbours: int,
    dimensions: int,
    eigenvalues: int,
    time: float,
    regularisation: float,
    seed: int,
) -> Manifold:
    """Coordinates by name: `diffusion`, `umap`, `pca` or `none` (the embeddings themselves).

    With fewer than four rows every choice is `none`: there is no manifold to find.
    """
    import numpy as np

    embeddings = np.asarray(embeddings, dtype=np.float64)
    if name == "none" or len(embeddings) < 4:
        return Manifold(embeddings, None, lambda new: np.asarray(new, dtype=np.float64))
    if name == "diffusion":
        return diffusion(
            embeddings,
            neighbours=neighbours,
            dimensions=dimensions,
            eigenvalues=eigenvalues,
            time=time,
            regularisation=regularisation,
            seed=seed,
        )
    if name == "umap":
        return umap_coordinates(embeddings, min(dimensions, len(embeddings) - 2), neighbours, seed)
    if name == "pca":
        return pca_coordinates(embeddings, dimensions, seed)
    raise PaserError(f"unknown manifold {name!r}", remedy="diffusion, umap, pca or none")
