"""Nearest neighbours: exact up to some tens of thousands of rows against as many, approximate beyond."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# Distances that exact search computes at most: 60,000 rows against 60,000.
EXACT_PAIRS = 60_000**2
# NN-descent follows links within this share beyond the best distance: recall above 0.98 on real embeddings
# (`python -m benchmarks scale`).
_EPSILON = 0.1
_APPROXIMATE_FROM = 1000


class NeighbourIndex:
    """Euclidean neighbours among `points`, shape (n, width).

    `search` is `exact` (scikit-learn), `approximate` (NN-descent, Dong et al. 2011, by pynndescent), or
    `auto`: exact while the points times the rows that will be looked up (`queries`, the points themselves
    by default) are at most `EXACT_PAIRS`. Fewer than 1,000 points are always searched exactly.
    """

    def __init__(
        self, points: np.ndarray, *, search: str = "auto", queries: int | None = None, seed: int = 0
    ) -> None:
        self.points, self.seed = points, seed
        pairs = len(points) * (len(points) if queries is None else queries)
        wanted = search == "approximate" or (search == "auto" and pairs > EXACT_PAIRS)
        self._searcher: Any = None
        self.approximate = wanted and len(points) >= _APPROXIMATE_FROM

    def among(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Each point's neighbours among the others: distances and positions, shape (n, count), nearest
        first; fewer where there are not so many points."""
        import numpy as np

        count = min(count, len(self.points) - 1)
        if self.approximate:
            positions, distances = self._descent(count + 1).neighbor_graph
            return _without_self(np.asarray(distances, float), np.asarray(positions), count)
        distances, positions = self._exact(count).kneighbors()
        return distances, positions

    def of(self, new: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours of other rows (m, width): distances and positions, shape (m, count)."""
        import numpy as np

        count = min(count, len(self.points))
        if self._searcher is None:
            self._searcher = self._descent(count) if self.approximate else self._exact(count)
        if self.approximate:
            rows = np.ascontiguousarray(new, dtype=np.float32)
            positions, distances = self._searcher.query(rows, k=count, epsilon=_EPSILON)
            return np.asarray(distances, float), np.asarray(positions)
        distances, positions = self._searcher.kneighbors(np.asarray(new))
        return distances, positions

    def _exact(self, count: int) -> Any:
        from sklearn.neighbors import NearestNeighbors

        return NearestNeighbors(n_neighbors=count, algorithm="brute").fit(self.points)

    def _descent(self, count: int) -> Any:
        import numpy as np
        from pynndescent import NNDescent

        points = np.ascontiguousarray(self.points, dtype=np.float32)
        return NNDescent(points, n_neighbors=max(count, 15), metric="euclidean", random_state=self.seed)


def _without_self(distances: np.ndarray, positions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Removes each row's own entry (or, among many equal rows, its last one)."""
    import numpy as np

    own = positions == np.arange(len(positions))[:, None]
    own[~own.any(axis=1), -1] = True
    kept = np.argsort(own, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(distances, kept, 1), np.take_along_axis(positions, kept, 1)
