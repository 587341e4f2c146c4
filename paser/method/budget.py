"""Division of the budget over clusters (method.md, section 2).

Policies turn damage into weights; `allocate` turns weights into whole numbers that add up exactly, under
what each cluster has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from paser.errors import SettingsError

if TYPE_CHECKING:
    import numpy as np

# (CDS, rows, mean loss increase, gamma), each of shape (K,) but gamma -> weights of shape (K,)
Policy = Callable[["np.ndarray", "np.ndarray", "np.ndarray", float], "np.ndarray"]

POLICIES: dict[str, Policy] = {
    "damage": lambda cds, size, loss, gamma: cds,
    "damage_size": lambda cds, size, loss, gamma: cds * size,
    "damage_power": lambda cds, size, loss, gamma: cds**gamma,
    "delta_loss": lambda cds, size, loss, gamma: loss.clip(min=0.0),
    "uniform": lambda cds, size, loss, gamma: (size > 0).astype(float),
    "proportional": lambda cds, size, loss, gamma: size.astype(float),
}


def policy_weights(
    policy: str, cds: np.ndarray, sizes: np.ndarray, loss_increase: np.ndarray, gamma: float
) -> np.ndarray:
    """Non-negative weights of shape (K,) that sum to 1; uniform where a policy gives nothing at all."""
    import numpy as np

    if policy not in POLICIES:
        raise SettingsError(f"unknown policy {policy!r}", remedy=f"one of {', '.join(POLICIES)}")
    weights = np.where(sizes > 0, POLICIES[policy](cds, sizes, loss_increase, gamma), 0.0)
    if not weights.sum() > 0:
        weights = (sizes > 0).astype(float)
    total = weights.sum()
    return weights / total if total > 0 else weights


def allocate(
    total: int,
    weights: Sequence[float],
    caps: Sequence[int],
    order: Sequence[str],
    floors: Sequence[int] = (),
) -> list[int]:
    """Whole amounts n_k <= caps_k, as near to total * weights_k as can be, that add up to
    min(total, sum(caps)).

    Clusters whose share exceeds what they have are filled, and the rest is divided anew among the
    others until none overflows; then largest remainders round the shares. `floors`, one a cluster, are
    granted first, as far as `total` and the caps allow. Ties go by `order` (any stable name of the
    cluster), so that numbering does not matter. A cluster of weight 0 gets something only when all
    others are full.
    """
    from fractions import Fraction

    if total < 0 or any(cap < 0 for cap in caps) or any(not w >= 0 for w in weights):
        raise SettingsError("budget, weights and caps must not be negative")
    count = len(caps)
    given = [0] * count
    left = min(total, sum(caps))
    if any(floors):
        wanted = [min(floor, cap) for floor, cap in zip(floors, caps, strict=True)]
        given = wanted if sum(wanted) <= left else allocate(left, [1.0] * count, wanted, order)
        left -= sum(given)
    exact = [Fraction(float(w)) for w in weights]
    while left > 0:
        open_ = [k for k in range(count) if given[k] < caps[k]]
        if not any(exact[k] > 0 for k in open_):
            exact = [Fraction(1)] * count
        mass = sum((exact[k] for k in open_), Fraction(0))
        quota = {k: left * exact[k] / mass for k in open_}
        full = [k for k in open_ if quota[k] >= caps[k] - given[k]]
        if full:
            left -= sum(caps[k] - given[k] for k in full)
            for k in full:
                given[k] = caps[k]
            continue
        rest = left - sum(int(quota[k]) for k in open_)
        ranked = sorted(open_, key=lambda k: (int(quota[k]) - quota[k], -exact[k], order[k]))
        for position, k in enumerate(ranked):
            given[k] += int(quota[k]) + (position < rest)
        left = 0
    return given


def distance_from_uniform(amounts: Sequence[float]) -> float:
    """Total variation distance of a division from the uniform one: 0 (uniform) to 1 - 1/K."""
    total, count = float(sum(amounts)), len(amounts)
    if not total or not count:
        return 0.0
    return sum(abs(a / total - 1 / count) for a in amounts) / 2
