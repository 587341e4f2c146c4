"""The whole of S2RIC on arrays: manifold, number of clusters, clustering, names, stability, extension."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

from paser.method.clustering import (
    Clustering,
    Gap,
    assign,
    cluster,
    cluster_phrases,
    modularity,
    spectral_gap,
    subsamples,
)
from paser.method.concepts import key_phrases
from paser.method.manifold import Manifold, default_neighbours, manifold

if TYPE_CHECKING:
    import numpy as np

# Rows of a larger pool that are clustered; the others follow by extension.
LANDMARKS = 20_000
# Mean adjusted Rand index from which a clustering counts as stable. The fewest clusters are always the most
# stable ones, so the rule takes the largest K that is (as prediction strength does, Tibshirani and Walther
# 2005), or the most stable one when none is.
STABLE = 0.9
# Modularity hardly tells one more small cluster (Fortunato and Barthelemy 2007): of the numbers of clusters
# whose modularity lies this share below the highest or less, the largest is taken.
LEVEL = 0.005
# Pools of fewer rows have no measure of stability.
STABILITY_FROM = 20
_SCAN_RESTARTS = 2
_LEAST_RUNS = 3


class Options(Protocol):
    """What `group` needs to know; `settings.ClusterSettings` has it, and explains each."""

    @property
    def manifold(self) -> str: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def k(self) -> Literal["auto", "gap", "stability"] | int: ...
    @property
    def k_min(self) -> int: ...
    @property
    def k_max(self) -> int: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def neighbours(self) -> Literal["auto"] | int: ...
    @property
    def search(self) -> str: ...
    @property
    def landmarks(self) -> Literal["auto"] | int: ...
    @property
    def time(self) -> Literal["auto"] | float: ...
    @property
    def regularisation(self) -> float: ...
    @property
    def stability_runs(self) -> int: ...


@dataclass(frozen=True)
class Choice:
    """How many clusters, by which rule (`modularity`, `gap`, `stability`, `given`, or `rows` where the pool
    is too small for a choice), each candidate's value, and the spectral gap whatever the rule."""

    k: int
    rule: str
    scores: Mapping[int, float] = field(default_factory=dict)
    gap: Gap | None = None

    @property
    def runner_up(self) -> int | None:
        """The second best K by the rule's own value, ties to the smaller."""
        others = {k: value for k, value in self.scores.items() if k != self.k}
        return _highest(others) if others else None


@dataclass(frozen=True)
class Grouping:
    """Clusters of the pool (`labels`) and of new rows (`new_labels`), and how they came about."""

    labels: np.ndarray
    new_labels: np.ndarray
    settings: Options
    neighbours: int
    landmarks: int | None
    time: float | None
    choice: Choice
    eigenvalues: list[float]
    aris: list[float]
    phrases: list[list[str]]

    def describe(self) -> dict[str, Any]:
        """What `clusters.json` says, without labels."""
        import numpy as np

        sizes = np.bincount(self.labels, minlength=len(self.phrases))
        names = _unique([" / ".join(p[:3]) or f"cluster {k}" for k, p in enumerate(self.phrases)])
        choice = self.choice
        return {
            "k": len(self.phrases),
            "automatic": choice.rule != "given",
            "choice": {
                "rule": choice.rule,
                "k": choice.k,
                "runner_up": choice.runner_up,
                "scores": {str(k): round(value, 6) for k, value in choice.scores.items()},
            },
            "manifold": self.settings.manifold,
            "algorithm": self.settings.algorithm,
            "neighbours": self.neighbours,
            "landmarks": self.landmarks,
            "time": self.time and round(self.time, 6),
            "gap": vars(choice.gap) if choice.gap else None,
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
    texts: Callable[[np.ndarray], list[str]],
    settings: Options,
    phrase_limits: tuple[int, int],
    seed: int,
) -> Grouping:
    """Clusters embeddings of shape (n, width), n >= 1; `new` (m, width) gets clusters by extension.

    Both may lie on disk (memory-mapped). Of a pool larger than `settings.landmarks` a seeded draw of that
    many rows is clustered, and the others follow like new rows. `texts(positions)` gives the prompts of
    pool rows, for the names; `phrase_limits` are phrases a row and words a phrase.
    """
    import numpy as np

    count = len(embeddings)
    most = LANDMARKS if settings.landmarks == "auto" else settings.landmarks
    if count > most:
        drawn = np.sort(np.random.default_rng([seed, count]).permutation(count)[:most])
    else:
        drawn = np.arange(count)
    run = _Run(np.asarray(embeddings[drawn]), settings, seed)
    choice = run.choose()
    clustering = cluster(settings.algorithm, run.space, choice.k, seed)
    labels = _extended(embeddings, drawn, clustering, run)
    new_labels = assign(clustering, run.space, new, run.neighbours, settings.search)
    order = np.argsort(-np.bincount(labels, minlength=clustering.count), kind="stable")
    place = np.argsort(order)
    labels, new_labels = place[labels], place[new_labels]
    phrases = [key_phrases(text, *phrase_limits) for text in texts(drawn)]
    return Grouping(
        labels=labels,
        new_labels=new_labels,
        settings=settings,
        neighbours=run.neighbours,
        landmarks=len(drawn) if len(drawn) < count else None,
        time=run.space.time,
        choice=choice,
        eigenvalues=[float(v) for v in run.space.eigenvalues],
        aris=run.stability(choice.k, clustering.labels),
        phrases=cluster_phrases(phrases, labels[drawn].tolist(), clustering.count),
    )


def _extended(embeddings: np.ndarray, drawn: np.ndarray, clustering: Clustering, run: _Run) -> np.ndarray:
    """Labels of all rows, from those of the rows drawn."""
    import numpy as np

    if len(drawn) == len(embeddings):
        return clustering.labels
    others = np.setdiff1d(np.arange(len(embeddings)), drawn)
    labels = np.zeros(len(embeddings), dtype=np.int64)
    labels[drawn] = clustering.labels
    labels[others] = assign(clustering, run.space, embeddings, run.neighbours, run.settings.search, others)
    return labels


def _highest(scores: Mapping[int, float]) -> int:
    """The key of the highest value, ties to the smaller key."""
    return min(scores, key=lambda k: (-scores[k], k))


class _Run:
    """Manifold, subsamples and choice of K on the rows that are clustered."""

    def __init__(self, embeddings: np.ndarray, settings: Options, seed: int) -> None:
        self.embeddings, self.settings, self.seed = embeddings, settings, seed
        count = len(embeddings)
        wanted = default_neighbours(count) if settings.neighbours == "auto" else settings.neighbours
        self.neighbours = max(1, min(wanted, count - 1))
        self.space = self._manifold(embeddings, seed)

    def _manifold(self, embeddings: np.ndarray, seed: int) -> Manifold:
        settings = self.settings
        return manifold(
            settings.manifold,
            embeddings,
            neighbours=max(1, min(self.neighbours, len(embeddings) - 1)),
            dimensions=settings.dimensions,
            eigenvalues=settings.k_max + 1,
            time=None if settings.time == "auto" else settings.time,
            regularisation=settings.regularisation,
            seed=seed,
            search=settings.search,
        )

    @cached_property
    def _reruns(self) -> list[tuple[np.ndarray, Manifold, int]]:
        """Rows, manifold and seed of each run on a subsample."""
        runs = self.settings.stability_runs
        if self.settings.k == "stability":
            runs = max(runs, _LEAST_RUNS)
        if len(self.embeddings) < STABILITY_FROM:
            return []
        drawn = subsamples(len(self.embeddings), runs, self.seed)
        seeds = [self.seed + 1 + number for number in range(runs)]
        return [
            (rows, self._manifold(self.embeddings[rows], seed), seed)
            for rows, seed in zip(drawn, seeds, strict=True)
        ]

    def stability(self, k: int, labels: np.ndarray) -> list[float]:
        """Adjusted Rand index of `labels` with those of each run on a subsample."""
        from sklearn.metrics import adjusted_rand_score

        algorithm = self.settings.algorithm
        return [
            float(
                adjusted_rand_score(labels[rows], cluster(algorithm, space, min(k, len(rows)), seed).labels)
            )
            for rows, space, seed in self._reruns
        ]

    def choose(self) -> Choice:
        """K: given, or by rule within k_min .. k_max; pools of a few rows get what they can."""
        settings, count, values = self.settings, len(self.embeddings), self.space.eigenvalues
        if isinstance(settings.k, int):
            return Choice(settings.k, "given")
        k_max = min(settings.k_max, count // 2)
        if k_max < settings.k_min or len(values) <= settings.k_min:
            return Choice(max(1, min(settings.k_min, count // 2)), "rows")
        gap = spectral_gap(values, settings.k_min, k_max)
        candidates = range(settings.k_min, k_max + 1)
        if settings.k == "gap":
            gaps = {k: float(values[k - 1] - values[k]) for k in candidates if k < len(values)}
            return Choice(gap.k, "gap", gaps, gap)
        if settings.k == "stability" and self._reruns:
            scores = {k: self._mean_stability(k) for k in candidates}
            stable = [k for k in candidates if scores[k] >= STABLE]
            return Choice(max(stable) if stable else _highest(scores), "stability", scores, gap)
        scores = {}
        for k in candidates:
            reached, value = self._modularity(k)
            scores[reached] = max(value, scores.get(reached, value))
        highest = max(scores.values())
        enough = highest - LEVEL * abs(highest)
        return Choice(max(k for k in scores if scores[k] >= enough), "modularity", scores, gap)

    def _mean_stability(self, k: int) -> float:
        labels = cluster(self.settings.algorithm, self.space, k, self.seed, _SCAN_RESTARTS).labels
        found = self.stability(k, labels)
        return sum(found) / len(found)

    def _modularity(self, k: int) -> tuple[int, float]:
        """How many clusters come out when `k` are asked for, and their modularity."""
        found = cluster(self.settings.algorithm, self.space, k, self.seed, _SCAN_RESTARTS)
        return found.count, modularity(self.space.graph.affinity, found.labels)
