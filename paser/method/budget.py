"""Division of the budget over clusters (method.md, section 2).

Policies turn damage into weights; `allocate` turns weights into whole numbers that add up exactly, under
what each cluster has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from paser.errors import SettingsError

if TYPE_CHECKING:
    import numpy as np

# (CDS >= 0, rows, mean loss increase, damage a training token >= 0, gamma), each of shape (K,) but gamma
# -> weights of shape (K,)
Policy = Callable[["np.ndarray", "np.ndarray", "np.ndarray", "np.ndarray", float], "np.ndarray"]

POLICIES: dict[str, Policy] = {
    "damage": lambda cds, size, loss, rate, gamma: cds,
    "damage_size": lambda cds, size, loss, rate, gamma: cds * size,
    "damage_power": lambda cds, size, loss, rate, gamma: _power(cds, size, gamma),
    "damage_rate": lambda cds, size, loss, rate, gamma: _power(rate, size, gamma),
    "delta_loss": lambda cds, size, loss, rate, gamma: loss.clip(min=0.0),
    "uniform": lambda cds, size, loss, rate, gamma: (size > 0).astype(float),
    "proportional": lambda cds, size, loss, rate, gamma: size.astype(float),
}


def policy_weights(
    policy: str,
    cds: np.ndarray,
    sizes: np.ndarray,
    loss_increase: np.ndarray,
    rates: np.ndarray,
    gamma: float,
) -> np.ndarray:
    """Non-negative weights of shape (K,) that sum to 1; uniform where a policy gives nothing at all.

    `rates`: damage of all response tokens over all training tokens of a cluster. It and `cds` may be negative
    when the divergence is a loss increase; a cluster that lost nothing by it counts as 0. Clusters without
    rows get 0.
    """
    import numpy as np

    if policy not in POLICIES:
        raise SettingsError(f"unknown policy {policy!r}", remedy=f"one of {', '.join(POLICIES)}")
    damaged, rates = cds.clip(min=0.0), rates.clip(min=0.0)
    weights = np.where(sizes > 0, POLICIES[policy](damaged, sizes, loss_increase, rates, gamma), 0.0)
    if not weights.sum() > 0:
        weights = (sizes > 0).astype(float)
    total = weights.sum()
    return weights / total if total > 0 else weights


def _power(damage: np.ndarray, sizes: np.ndarray, gamma: float) -> np.ndarray:
    """damage^gamma of clusters with rows; in units of the largest where floats do not hold the powers."""
    import numpy as np

    inside = np.where(sizes > 0, damage, 0.0)
    with np.errstate(over="ignore", under="ignore"):
        powers: np.ndarray = inside**gamma
        largest = inside.max(initial=0.0)
        if largest > 0 and not np.finfo(float).tiny <= powers.sum() < np.inf:
            powers = (inside / largest) ** gamma
    return powers


def allocate(
    total: int,
    weights: Sequence[float],
    caps: Sequence[int],
    order: Sequence[str],
    floors: Sequence[int] = (),
) -> list[int]:
    """Whole amounts n_k <= caps_k, as near to total * weights_k as can be, that add up to
    min(total, sum(caps)).

    A share above what a cluster has, or below its floor, is set to that bound, and the rest is divided
    anew among the others until all shares are within their bounds; so a floor that does not bind changes
    nothing. Then largest remainders round the shares. When `total` is less than the floors, it is divided
    evenly under them. Ties go by `order` (any stable name of the cluster), so that numbering does not
    matter. A cluster of weight 0 gets more than its floor only when all others are full.

    Raises SettingsError for negative numbers and NaN.
    """
    if total < 0 or any(cap < 0 for cap in caps) or any(not w >= 0 for w in weights):
        raise SettingsError("budget, weights and caps must not be negative")
    count = len(caps)
    total = min(total, sum(caps))
    low = [min(floor, cap) for floor, cap in zip(floors, caps, strict=True)] if floors else [0] * count
    if sum(low) > total:
        return allocate(total, [1.0] * count, low, order)
    exact = [Fraction(float(w)) for w in weights]
    given = list(low)
    for group in ([k for k in range(count) if exact[k] > 0], [k for k in range(count) if exact[k] == 0]):
        rest = total - sum(given) + sum(low[k] for k in group)
        share = exact if any(exact[k] for k in group) else [Fraction(1)] * count
        for k, amount in _rounded(_within_bounds(rest, share, low, caps, group), share, order).items():
            given[k] = amount
    return given


def _within_bounds(
    rest: int, share: Sequence[Fraction], low: Sequence[int], high: Sequence[int], group: Sequence[int]
) -> dict[int, Fraction]:
    """Quotas of `group` in proportion to `share`, within low .. high, that add up to `rest` or to all
    that the group can take.

    In each pass, whichever bound is violated by more in total fixes its violators, which no later pass
    would free; CSS's flexible boxes are laid out in the same way.
    """
    rest = min(rest, sum(high[k] for k in group))
    fixed: dict[int, Fraction] = {}
    open_ = list(group)
    while open_:
        mass = sum((share[k] for k in open_), Fraction(0))
        left = rest - sum(fixed.values(), Fraction(0))
        quota = {k: left * share[k] / mass for k in open_}
        above = {k: quota[k] - high[k] for k in open_ if quota[k] > high[k]}
        below = {k: low[k] - quota[k] for k in open_ if quota[k] < low[k]}
        if not above and not below:
            return fixed | quota
        excess = sum(above.values(), Fraction(0)) - sum(below.values(), Fraction(0))
        if excess >= 0:
            fixed |= {k: Fraction(high[k]) for k in above}
        if excess <= 0:
            fixed |= {k: Fraction(low[k]) for k in below}
        open_ = [k for k in open_ if k not in fixed]
    return fixed


def _rounded(quota: dict[int, Fraction], share: Sequence[Fraction], order: Sequence[str]) -> dict[int, int]:
    """Whole numbers with the same sum: each quota rounded down, the rest to the largest remainders."""
    given = {k: int(amount) for k, amount in quota.items()}
    missing = int(sum(quota.values(), Fraction(0))) - sum(given.values())
    ranked = sorted(quota, key=lambda k: (given[k] - quota[k], -share[k], order[k]))
    return {k: amount + (k in ranked[:missing]) for k, amount in given.items()}


def distance_from_uniform(amounts: Sequence[float]) -> float:
    """Total variation distance of a division from the uniform one: 0 (uniform) to 1 - 1/K."""
    total, count = float(sum(amounts)), len(amounts)
    if not total or not count:
        return 0.0
    return sum(abs(a / total - 1 / count) for a in amounts) / 2
