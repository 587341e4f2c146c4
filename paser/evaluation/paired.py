"""Metrics of trainings that began from one pruned model, and paired differences between two selections.

All arrays of one metric have a row a seed and a column a unit (a held-out row, or an item of a task).
Units are resampled within their group (label, task), and all groups count alike. Seeds are few, and the
plain bootstrap of n of them has a variance that is too small by (n - 1) / n; their weights are rescaled for
that (Rao and Wu 1988).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paser.evaluation.gap import interval

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 10_000
# Apart from the streams of the units' groups, which have two numbers.
_OF_SEEDS = 1
FIDELITY, ACCURACY, CLOSED = "fidelity gap", "task accuracy", "gap closed"
# `loss`, `jsd`: of each held-out row; `tasks`: by name, `value` of each item.
Training = Mapping[str, Any]


@dataclass(frozen=True)
class Draws:
    """Weights of the units in each resample, which sum to 1 in each row: shape (resamples, units); the first
    row is the sample itself. `seeds(count)`: shape (resamples, count), likewise for seeds, rescaled."""

    units: np.ndarray
    seed: int

    def seeds(self, count: int) -> np.ndarray:
        import numpy as np

        rng = np.random.default_rng([self.seed, count, _OF_SEEDS])
        chosen = rng.integers(0, count, size=(len(self.units), count))
        weights = np.stack([(chosen == k).sum(axis=1) for k in range(count)], axis=1) / count
        weights[0] = 1 / count
        rescaled: np.ndarray = 1 / count + math.sqrt(count / max(count - 1, 1)) * (weights - 1 / count)
        return rescaled


def draws(groups: Sequence[str], seed: int, resamples: int = RESAMPLES) -> Draws:
    """Resamples of units within their groups; every group has the same weight."""
    import numpy as np

    names = sorted(set(groups))
    weights = np.zeros((resamples + 1, len(groups)))
    for number, name in enumerate(names):
        inside = np.flatnonzero([group == name for group in groups])
        rng = np.random.default_rng([seed, number])
        chosen = rng.integers(0, len(inside), size=(resamples, len(inside)))
        for place, unit in enumerate(inside):
            weights[1:, unit] = (chosen == place).sum(axis=1)
        weights[0, inside] = 1
        weights[:, inside] /= len(inside) * len(names)
    return Draws(weights, seed)


class Judge:
    """Metrics of trainings that began from one pruned model.

    `pruned`, `original`: what was measured of these models. `labels`: of the held-out rows. `damaged`: labels
    that answer otherwise and whose loss rose by pruning, interval and all; the others have no gap to close.
    """

    def __init__(self, pruned: Training, original: Training, labels: Sequence[str]) -> None:
        import numpy as np

        self.pruned, self.original, self.labels = pruned, original, list(labels)
        self.names = list(original.get("tasks", {}))
        self.rows = draws(self.labels, 1)
        self.items = draws([n for n in self.names for _ in original["tasks"][n]["value"]], 2)
        damage, jsd = np.array(pruned["loss"]) - np.array(original["loss"]), np.array(pruned["jsd"])
        self.damaged = []
        for label in sorted(set(self.labels)):
            inside = self.inside(label)
            weights = self.rows.units[1:, inside]
            drawn = (weights @ damage[inside]) / weights.sum(axis=1)
            if jsd[inside].any() and interval(float(damage[inside].mean()), drawn)["low"] > 0:
                self.damaged.append(label)
        kept = np.array([label in self.damaged for label in self.labels])
        self.damaged_rows = np.where(kept, self.rows.units, 0.0)

    def inside(self, label: str) -> np.ndarray:
        import numpy as np

        return np.array([one == label for one in self.labels])

    def value(self, metric: str, trainings: Sequence[Training]) -> np.ndarray:
        """Shape (resamples + 1, seeds), the first row the value itself."""
        import numpy as np

        if metric == ACCURACY:
            values = np.array([[v for n in self.names for v in t["tasks"][n]["value"]] for t in trainings])
            found: np.ndarray = self.items.units @ values.T
            return found
        if metric == FIDELITY:
            jsd = np.array([t["jsd"] for t in trainings])
            before = self.rows.units @ np.array(self.pruned["jsd"])
            with np.errstate(divide="ignore", invalid="ignore"):
                gap: np.ndarray = 1 - (self.rows.units @ jsd.T) / before[:, None]
            return gap
        loss = np.array([t["loss"] for t in trainings])
        pruned, original = np.array(self.pruned["loss"]), np.array(self.original["loss"])
        with np.errstate(divide="ignore", invalid="ignore"):
            closed: np.ndarray = (self.damaged_rows @ (pruned[:, None] - loss.T)) / (
                self.damaged_rows @ (pruned - original)
            )[:, None]
        return closed

    def draws_of(self, metric: str) -> Draws:
        return self.items if metric == ACCURACY else self.rows

    def mean(self, metric: str, trainings: Sequence[Training]) -> dict[str, float]:
        """The mean over seeds with its interval."""
        values = self.value(metric, trainings)
        drawn = (values * self.draws_of(metric).seeds(len(trainings))).sum(axis=1)
        return interval(float(drawn[0]), drawn[1:])

    def difference(self, metric: str, ours: Sequence[Training], theirs: Sequence[Training]) -> dict[str, Any]:
        """Mean over seeds of ours minus theirs, its interval, the two-sided p-value, `sd` of the paired
        difference over seeds (None with one seed), and `least`: 2.8 bootstrap standard errors, over seeds and
        units, which is the least difference that would be found four times in five at the 5 % level.
        Resamples without damage have no value and do not count."""
        import numpy as np

        by_seed = self.value(metric, ours) - self.value(metric, theirs)
        drawn = (by_seed * self.draws_of(metric).seeds(len(ours))).sum(axis=1)
        usable = drawn[1:][np.isfinite(drawn[1:])]
        beyond = min(int((usable <= 0).sum()), int((usable >= 0).sum()))
        sd = float(by_seed[0].std(ddof=1)) if len(ours) > 1 else None
        return {
            **interval(float(drawn[0]), usable),
            "p": min(2 * (beyond + 1) / (len(usable) + 1), 1.0),
            "sd": sd,
            "least": 2.8 * float(usable.std()) if len(usable) else 0.0,
            "seeds": len(ours),
        }

    def by_label(self, metric: str, trainings: Sequence[Training]) -> dict[str, float]:
        """Fidelity gap of the labels that pruning changed, or gap closed of the damaged ones, by label, means
        over seeds."""
        import numpy as np

        key = "jsd" if metric == FIDELITY else "loss"
        values = np.array([t[key] for t in trainings]).mean(axis=0)
        pruned, original = np.array(self.pruned[key]), np.array(self.original[key])
        found = {}
        for label in sorted(set(self.labels)) if metric == FIDELITY else self.damaged:
            inside = self.inside(label)
            gap = pruned[inside].mean() - (0.0 if key == "jsd" else original[inside].mean())
            if gap > 0:
                found[label] = float((pruned[inside].mean() - values[inside].mean()) / gap)
        return found


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected by Holm's method, at most 1."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for number, name in enumerate(sorted(values, key=lambda n: values[n])):
        largest = max(largest, min(1.0, (len(values) - number) * values[name]))
        corrected[name] = largest
    return corrected


def verdict(difference: Mapping[str, Any], p: float | None = None) -> str:
    """What a paired difference says: one seed, tie, ahead or behind; `p` is its corrected p-value."""
    if difference["seeds"] < 2:
        return "one seed"
    if difference["low"] <= 0 <= difference["high"] or (p is not None and p > 0.05):
        return "tie"
    return "ahead" if difference["value"] > 0 else "behind"


def shown(p: float) -> str:
    """A p-value as tables have it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
