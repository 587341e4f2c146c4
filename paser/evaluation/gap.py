"""Damage, gap closed and fidelity gap by capability, with intervals (method.md, section 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

ORIGINAL, PRUNED = "original", "pruned"
LEVEL = 0.95


@dataclass(frozen=True)
class Measured:
    """Held-out rows of one capability. `loss[m]` and `jsd[m]`: shape (rows,), nats; JSD to the original
    (0 for the original itself)."""

    name: str
    loss: Mapping[str, np.ndarray]
    jsd: Mapping[str, np.ndarray]

    @property
    def rows(self) -> int:
        return len(self.loss[ORIGINAL])


def summarise(
    capabilities: Sequence[Measured], models: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    """The `overall` and `capabilities` parts of `metrics.json`.

    Gap closed in loss = (pruned - model) / (pruned - original): 0 at the pruned model, 1 at the original,
    above 1 marked, because training then taught a format that the original never had. Fidelity gap =
    1 - JSD_model / JSD_pruned, at most 1. Overall both are ratios of means over capabilities, never means
    of ratios; capabilities whose damage interval is not above 0 are listed and left out of the overall
    gap closed. Intervals: 95 % percentile bootstrap over the held-out rows within each capability.
    """
    import numpy as np

    compared = [m for m in models if m not in (ORIGINAL, PRUNED)]
    means: list[tuple[dict[str, float], dict[str, float]]] = []
    resampled: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
    entries: list[dict[str, Any]] = []
    for number, capability in enumerate(capabilities):
        rng = np.random.default_rng([seed, number])
        draws = rng.integers(0, capability.rows, size=(resamples, capability.rows))
        loss = {m: float(capability.loss[m].mean()) for m in models}
        jsd = {m: float(capability.jsd[m].mean()) for m in models}
        losses = {m: capability.loss[m][draws].mean(axis=1) for m in models}
        jsds = {m: capability.jsd[m][draws].mean(axis=1) for m in models}
        means.append((loss, jsd))
        resampled.append((losses, jsds))
        damage = interval(loss[PRUNED] - loss[ORIGINAL], losses[PRUNED] - losses[ORIGINAL])
        why = _why_not_averaged(damage)
        entries.append(
            {
                "name": capability.name,
                "rows": capability.rows,
                "averaged": why is None,
                "why_not_averaged": why,
                "damage": damage,
                "loss": loss,
                "jsd": jsd,
                "gap_closed": {m: _gap([means[-1]], [resampled[-1]], m) for m in compared},
                "fidelity_gap": {m: _fidelity([means[-1]], [resampled[-1]], m) for m in compared},
            }
        )
    averaged = [i for i, entry in enumerate(entries) if entry["averaged"]]
    overall = {}
    for m in models:
        overall[m] = {
            "loss": float(np.mean([loss[m] for loss, _ in means])),
            "jsd": float(np.mean([jsd[m] for _, jsd in means])),
            "gap_closed": _gap([means[i] for i in averaged], [resampled[i] for i in averaged], m)
            if m in compared and averaged
            else None,
            "fidelity_gap": _fidelity(means, resampled, m) if m in compared else None,
        }
    return {"overall": overall, "capabilities": entries}


def _why_not_averaged(damage: Mapping[str, float]) -> str | None:
    if damage["low"] > 0:
        return None
    if damage["high"] < 0:
        return "its loss fell when the model was pruned"
    return "the interval of its damage includes 0"


def interval(value: float, resampled: np.ndarray) -> dict[str, float]:
    """Value with the 2.5th and 97.5th percentile; resamples without a finite value do not count."""
    import numpy as np

    usable = resampled[np.isfinite(resampled)]
    if not len(usable):
        return {"value": value, "low": value, "high": value}
    low, high = np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": value, "low": float(low), "high": float(high)}


def _ratio(above: Any, below: Any) -> Any:
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(above, below)


def _gap(means: Sequence[Any], resampled: Sequence[Any], model: str) -> dict[str, Any] | None:
    def ratio(parts: Sequence[Any]) -> Any:
        closed = sum(loss[PRUNED] - loss[model] for loss, _ in parts)
        return _ratio(closed, sum(loss[PRUNED] - loss[ORIGINAL] for loss, _ in parts))

    value = float(ratio(means))
    if not abs(value) < float("inf"):
        return None
    return {**interval(value, ratio(resampled)), "above_one": value > 1}


def _fidelity(means: Sequence[Any], resampled: Sequence[Any], model: str) -> dict[str, float] | None:
    def ratio(parts: Sequence[Any]) -> Any:
        return 1 - _ratio(sum(jsd[model] for _, jsd in parts), sum(jsd[PRUNED] for _, jsd in parts))

    value = float(ratio(means))
    return interval(value, ratio(resampled)) if abs(value) < float("inf") else None
