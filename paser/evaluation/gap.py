"""Damage, gap closed and fidelity gap by capability, task and text, with intervals (method.md, section 5)."""

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
        return len(next(iter(self.loss.values())))


def summarise(
    capabilities: Sequence[Measured], models: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    """The `overall` and `capabilities` parts of `metrics.json`.

    Gap closed in loss = (pruned - model) / (pruned - original): 0 at the pruned model, 1 at the original,
    above 1 marked, because training then taught a format that the original never had. Fidelity gap =
    1 - JSD_model / JSD_pruned, at most 1. Overall both are ratios of means over capabilities, never means
    of ratios; capabilities whose damage interval is not above 0 are listed and left out of the overall
    gap closed. Intervals: 95 % percentile bootstrap over the held-out rows within each capability.
    Without the original and the pruned model there are no gaps; without the original, no divergences.
    """
    import numpy as np

    if ORIGINAL not in models or PRUNED not in models:
        return _without_gaps(capabilities, models)
    compared = compared_models(models)
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
    overall: dict[str, dict[str, Any]] = {}
    for m in models:
        overall[m] = {
            "loss": float(np.mean([loss[m] for loss, _ in means])),
            "jsd": float(np.mean([jsd[m] for _, jsd in means])),
            "gap_closed": _gap([means[i] for i in averaged], [resampled[i] for i in averaged], m)
            if m in compared and averaged
            else None,
            "fidelity_gap": _fidelity(means, resampled, m) if m in compared else None,
        }
    spreads = {
        key: spread({m: overall[m][key] for m in compared}, models) for key in ("gap_closed", "fidelity_gap")
    }
    return {"overall": overall, "capabilities": entries, "spread": spreads}


def _without_gaps(capabilities: Sequence[Measured], models: Sequence[str]) -> dict[str, Any]:
    entries: list[dict[str, Any]] = [
        {
            "name": capability.name,
            "rows": capability.rows,
            "averaged": True,
            "why_not_averaged": None,
            "loss": {m: float(capability.loss[m].mean()) for m in models},
            "jsd": {m: float(capability.jsd[m].mean()) for m in models if m in capability.jsd},
        }
        for capability in capabilities
    ]
    overall: dict[str, Any] = {}
    for m in models:
        overall[m] = {}
        for key in ("loss", "jsd"):
            values = [entry[key][m] for entry in entries if m in entry[key]]
            if values:
                overall[m][key] = sum(values) / len(values)
    return {"overall": overall, "capabilities": entries, "spread": {}}


@dataclass(frozen=True)
class Metric:
    """One number of several models over the same units: items of a task, windows of a text.

    `values[m]`: shape (units,); the number is their mean, weighted by `weights` where there are any.
    `higher`: whether more is better. `jsd[m]`: divergence to the original by unit, where it is known.
    `primary`: it counts in the overall ratio, as one of the numbers of the task `name`.
    """

    name: str
    metric: str
    values: Mapping[str, np.ndarray]
    higher: bool
    weights: np.ndarray | None = None
    jsd: Mapping[str, np.ndarray] | None = None
    primary: bool = True


def metric_gaps(
    metrics: Sequence[Metric], models: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    """`metrics`: one entry each, in order; `overall`: gap closed over the damaged primary ones, by model.

    In an entry: `value` by model, `damage` (how much worse the pruned model is; positive is worse),
    `gap_closed` and `fidelity_gap` by compared model, as `summarise` defines them. Where the interval of
    the damage is not above 0, `no_gap` says so and there is no gap closed. All models share the bootstrap's
    draws of units. Overall it is a ratio of means, never a mean of ratios.
    """
    import numpy as np

    compared = compared_models(models)
    entries: list[dict[str, Any]] = []
    damaged: list[tuple[Any, Any]] = []
    for number, metric in enumerate(metrics):
        units = len(metric.values[models[0]])
        draws = np.random.default_rng([seed, number]).integers(0, units, size=(resamples, units))
        point = {m: float(np.average(metric.values[m], weights=metric.weights)) for m in models}
        drawn = {m: _drawn_mean(metric.values[m], metric.weights, draws) for m in models}
        entry: dict[str, Any] = {
            "name": metric.name,
            "metric": metric.metric,
            "units": units,
            "higher_is_better": metric.higher,
            "primary": metric.primary,
            "value": {m: interval(point[m], drawn[m]) for m in models},
            "damage": None,
            "no_gap": None,
            "gap_closed": {},
            "fidelity_gap": {},
        }
        if ORIGINAL in models and PRUNED in models:
            sign = -1 if metric.higher else 1
            worst = {m: sign * point[m] for m in models}
            worse = {m: sign * drawn[m] for m in models}
            entry["damage"] = interval(worst[PRUNED] - worst[ORIGINAL], worse[PRUNED] - worse[ORIGINAL])
            entry["no_gap"] = _why_no_gap(entry["damage"])
            entry["gap_closed"] = {
                m: None if entry["no_gap"] else _gap([worst], [worse], m, pairs=False) for m in compared
            }
            if metric.primary and not entry["no_gap"]:
                damaged.append((worst, worse))
        if metric.jsd is not None and PRUNED in models:
            jsd = {m: float(metric.jsd[m].mean()) for m in models}
            jsds = {m: metric.jsd[m][draws].mean(axis=1) for m in models}
            entry["jsd"] = jsd
            entry["fidelity_gap"] = {m: _fidelity([({}, jsd)], [({}, jsds)], m) for m in compared}
        entries.append(entry)
    overall = {
        m: _gap([point for point, _ in damaged], [drawn for _, drawn in damaged], m, pairs=False)
        if damaged
        else None
        for m in compared
    }
    return {"metrics": entries, "overall": overall}


def _drawn_mean(values: np.ndarray, weights: np.ndarray | None, draws: np.ndarray) -> np.ndarray:
    if weights is None:
        means: np.ndarray = values[draws].mean(axis=1)
        return means
    drawn: np.ndarray = (values * weights)[draws].sum(axis=1) / weights[draws].sum(axis=1)
    return drawn


def choice_jsd(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> np.ndarray:
    """Jensen-Shannon divergence of two models' distributions over the choices of each item, 0 .. ln 2.

    Log-likelihoods of the choices, which may differ in number from item to item; softmax makes them a
    distribution. Shape (items,).
    """
    import numpy as np
    from scipy.special import log_softmax, rel_entr

    found = []
    for first, second in zip(reference, other, strict=True):
        p, q = np.exp(log_softmax(np.array(first))), np.exp(log_softmax(np.array(second)))
        middle = (p + q) / 2
        found.append(float(rel_entr(p, middle).sum() + rel_entr(q, middle).sum()) / 2)
    return np.array(found)


def compared_models(models: Sequence[str]) -> list[str]:
    """The models beside the original and the pruned one."""
    return [m for m in models if m not in (ORIGINAL, PRUNED)]


def seeds_of(models: Sequence[str]) -> dict[str, list[str]]:
    """Models that are runs of one recipe, by its name: `paser/1` and `paser/2` are runs of `paser`."""
    runs: dict[str, list[str]] = {}
    for m in compared_models(models):
        if "/" in m:
            runs.setdefault(m.rsplit("/", 1)[0], []).append(m)
    return {name: members for name, members in runs.items() if len(members) > 1}


def spread(points: Mapping[str, Mapping[str, Any] | None], models: Sequence[str]) -> dict[str, Any]:
    """Mean, sample standard deviation, least and largest value over the runs of each recipe.

    A recipe of which some run has no value is left out.
    """
    import statistics

    found = {}
    for name, members in seeds_of(models).items():
        values = [point["value"] for m in members if (point := points.get(m)) is not None]
        if len(values) == len(members):
            found[name] = {
                "runs": len(values),
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values),
                "low": min(values),
                "high": max(values),
            }
    return found


def _why_no_gap(damage: Mapping[str, float]) -> str | None:
    """None where pruning did damage that its interval tells from none."""
    if damage["low"] > 0:
        return None
    if damage["high"] < 0:
        return "no gap: the pruned model is better than the original"
    return "no gap: the interval of the damage includes 0"


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


def _gap(
    means: Sequence[Any], resampled: Sequence[Any], model: str, *, pairs: bool = True
) -> dict[str, Any] | None:
    """Of losses, or what grows likewise with harm; in `pairs` they stand before the divergences."""

    def ratio(parts: Sequence[Any]) -> Any:
        losses = [part[0] for part in parts] if pairs else parts
        closed = sum(loss[PRUNED] - loss[model] for loss in losses)
        return _ratio(closed, sum(loss[PRUNED] - loss[ORIGINAL] for loss in losses))

    value = float(ratio(means))
    if not abs(value) < float("inf"):
        return None
    return {**interval(value, ratio(resampled)), "above_one": value > 1}


def _fidelity(means: Sequence[Any], resampled: Sequence[Any], model: str) -> dict[str, float] | None:
    def ratio(parts: Sequence[Any]) -> Any:
        return 1 - _ratio(sum(jsd[model] for _, jsd in parts), sum(jsd[PRUNED] for _, jsd in parts))

    value = float(ratio(means))
    return interval(value, ratio(resampled)) if abs(value) < float("inf") else None
