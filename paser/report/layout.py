"""Positions for the map of clusters: high-dimensional embeddings laid out on a plane."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LEAST_ROWS_FOR_UMAP = 15


def sample_rows(count: int, most: int, seed: int) -> np.ndarray:
    """Indices of at most `most` of `count` rows, drawn evenly and sorted."""
    import numpy as np

    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, size=most, replace=False))


def typical_rows(embeddings: np.ndarray, clusters: Sequence[int], count: int) -> dict[int, list[int]]:
    """For each cluster the `count` rows that lie closest to its mean, as positions, closest first.

    `embeddings`: shape (n, d); `clusters`: n numbers. Ties go to the earlier row.
    """
    import numpy as np

    members = np.asarray(clusters)
    found = {}
    for cluster in sorted(set(members.tolist())):
        where = np.flatnonzero(members == cluster)
        points = np.asarray(embeddings[where], dtype=np.float32)
        order = np.argsort(-(points @ points.mean(axis=0)), kind="stable")[:count]
        found[int(cluster)] = where[order].tolist()
    return found


def lay_out(embeddings: np.ndarray, seed: int) -> np.ndarray:
    """Coordinates, shape (n, 2), for embeddings of shape (n, d).

    UMAP by cosine distance, seeded; principal components for fewer than 15 rows, where UMAP's
    neighbourhoods mean nothing. Rows that are close stay close; the axes have no unit.
    """
    import numpy as np

    points = np.asarray(embeddings, dtype=np.float32)
    if len(points) < LEAST_ROWS_FOR_UMAP:
        return _principal(points)
    from umap import UMAP

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reducer = UMAP(
            n_neighbors=min(15, len(points) - 1),
            min_dist=0.35,
            metric="cosine",
            init="pca",
            random_state=seed,
            n_jobs=1,
        )
        return within_reach(np.asarray(reducer.fit_transform(points), dtype=np.float64))


def within_reach(plane: np.ndarray) -> np.ndarray:
    """Far-away groups moved to the edge, so that they do not shrink all others.

    On each axis the box is the middle 90 % of the points and half of its width on both sides.
    """
    import numpy as np

    low, high = np.quantile(plane, [0.05, 0.95], axis=0)
    margin = (high - low) / 2
    placed: np.ndarray = np.clip(plane, low - margin, high + margin)
    return placed


def _principal(points: np.ndarray) -> np.ndarray:
    import numpy as np

    plane = np.zeros((len(points), 2))
    if len(points) < 2:
        return plane
    left, scale, _ = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    for axis in range(min(2, len(scale))):
        component = left[:, axis] * scale[axis]
        plane[:, axis] = component * (1.0 if component[np.abs(component).argmax()] >= 0 else -1.0)
    return plane
