"""The whole of S2RIC on arrays: manifold, number of clusters, clustering, names, stability, extension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from paser.method.clustering import (
    Gap,
    assign,
    cluster,
    cluster_phrases,
    spectral_gap,
    stability,
)
from paser.method.concepts import key_phrases
from paser.method.manifold import Manifold, default_neighbours, manifold, self_tuned_graph, spectrum

if TYPE_CHECKING:
    import numpy as np


class Options(Protocol):
    """What `group` needs to know; `settings.ClusterSettings` has it, and explains each."""

    @property
    def manifold(self) -> str: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def k(self) -> Literal["auto"] | int: ...
    @property
    def k_min(self) -> int: ...
    @property
    def k_max(self) -> int: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def neighbours(self) -> Literal["auto"] | int: ...
    @property
    def time(self) -> float: ...
    @property
    def regularisation(self) -> float: ...
    @property
    def stability_runs(self) -> int: ...


@dataclass(frozen=True)
class Grouping:
    """Clusters of the pool (`labels`) and of new rows (`new_labels`), and how they came about."""

    labels: np.ndarray
    new_labels: np.ndarray
    settings: Options
    neighbours: int
    gap: Gap | None
    eigenvalues: list[float]
    aris: list[float]
    phrases: list[list[str]]

    def describe(self) -> dict[str, Any]:
        """What `clusters.json` says, without labels."""
        import numpy as np

        sizes = np.bincount(self.labels, minlength=len(self.phrases))
        names = _unique([" / ".join(p[:3]) or f"cluster {k}" for k, p in enumerate(self.phrases)])
        return {
            "k": len(self.phrases),
            "automatic": self.settings.k == "auto",
            "manifold": self.settings.manifold,
            "algorithm": self.settings.algorithm,
            "neighbours": self.neighbours,
            "gap": vars(self.gap) if self.gap else None,
            "eigenvalues": [round(value, 6) for value in self.eigenvalues],
            "stability": {
                "runs": len(self.aris),
                "mean_ari": round(sum(self.aris) / len(self.aris), 6),
                "aris": [round(ari, 6) for ari in self.aris],
            }
            if self.aris
            else None,
            "clusters": [
                {"cluster": k, "name": names[k], "rows": int(sizes[k]), "phrases": phrases}
                for k, phrases in enumerate(self.phrases)
            ],
        }


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result


def group(
    embeddings: np.ndarray,
    new: np.ndarray,
    texts: Sequence[str],
    settings: Options,
    phrase_limits: tuple[int, int],
    seed: int,
) -> Grouping:
    """Clusters embeddings of shape (n, width), n >= 1; `new` (m, width) gets clusters by extension.

    `texts` are the pool's prompts, for the names; `phrase_limits` are phrases a row and words a phrase.
    """
    import numpy as np

    count = len(embeddings)
    neighbours = default_neighbours(count) if settings.neighbours == "auto" else settings.neighbours
    neighbours = max(1, min(neighbours, count - 1))
    embeddings = np.asarray(embeddings, dtype=np.float64)
    space = _manifold(embeddings, settings, neighbours, seed)
    gap, k, values = _number(space, settings, neighbours, count, seed)
    clustering = cluster(settings.algorithm, space.coordinates, k, neighbours, seed)

    def rerun(rows: np.ndarray, run_seed: int) -> np.ndarray:
        part = _manifold(embeddings[rows], settings, neighbours, run_seed)
        return cluster(settings.algorithm, part.coordinates, min(k, len(rows)), neighbours, run_seed).labels

    runs = settings.stability_runs if count >= 20 else 0
    phrases = [key_phrases(text, *phrase_limits) for text in texts]
    return Grouping(
        labels=clustering.labels,
        new_labels=assign(clustering, space.coordinates, space.extend(np.asarray(new, float)), neighbours),
        settings=settings,
        neighbours=neighbours,
        gap=gap,
        eigenvalues=[float(v) for v in values],
        aris=stability(rerun, clustering.labels, runs, seed),
        phrases=cluster_phrases(phrases, clustering.labels.tolist(), clustering.count),
    )


def _manifold(embeddings: np.ndarray, settings: Options, neighbours: int, seed: int) -> Manifold:
    return manifold(
        settings.manifold,
        embeddings,
        neighbours=max(1, min(neighbours, len(embeddings) - 1)),
        dimensions=settings.dimensions,
        eigenvalues=settings.k_max + 1,
        time=settings.time,
        regularisation=settings.regularisation,
        seed=seed,
    )


def _number(
    space: Manifold, settings: Options, neighbours: int, count: int, seed: int
) -> tuple[Gap | None, int, np.ndarray]:
    """The number of clusters: given, or by the spectral gap; pools of a few rows get what they can."""
    import numpy as np

    values = space.eigenvalues
    if values is None and count >= 4:
        affinity = self_tuned_graph(space.coordinates, neighbours).affinity
        values = spectrum(affinity, settings.k_max + 1, settings.regularisation, seed)[0]
    if values is None:
        values = np.ones(1)
    if settings.k != "auto":
        return None, settings.k, values
    k_max = min(settings.k_max, count // 2)
    if k_max < settings.k_min or len(values) <= settings.k_min:
        return None, max(1, min(settings.k_min, count // 2)), values
    gap = spectral_gap(values, settings.k_min, k_max)
    return gap, gap.k, values
