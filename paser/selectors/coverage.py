"""Coverage of the damage: inside each cluster, facility location weighted by damage in place of the top of
a list.

The rows with the highest scores resemble each other. Here a row counts by what it adds: the damaged rows near
it that no row before it stands for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from paser.method.manifold import unit_rows
from paser.method.selection import places_by_id
from paser.selectors.protocol import ScoredPool, costs
from paser.selectors.ranked import Amount, damage_as
from paser.settings import Group

if TYPE_CHECKING:
    import numpy as np

_BLOCK = 1024
# So many rows of a cluster stand for all of it as what is to be covered.
WITNESSES = 8192


class Covering(Group):
    """What the coverage of a cluster counts.

    `weight`: which damage a row to be covered counts by, to the power `power` (0: all alike). `noise`: the
    share of a cluster's rows, those with the most damage, that are neither covered nor taken before the
    others. `thrift`: gains are divided by cost to this power (0: cost does not matter, 1: gain a token).
    """

    weight: Amount = "mean"
    power: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    noise: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    thrift: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0


# `select.order: coverage`.
BY_THE_TOKEN = Covering(weight="per_token", thrift=0.5)


def coverage_order(
    pool: ScoredPool, embeddings: np.ndarray, covering: Covering, amount: int, unit: str
) -> np.ndarray:
    """A value a row by which `PaserSelector` can order a cluster, higher first. Shape (n,); NaN for rows that
    may not be chosen.

    The value is minus the row's place in the greedy order; rows set aside as noise come last. In a cluster of
    more than `WITNESSES` rows, every so manieth of them by id is one to be covered; all may be taken.
    """
    import numpy as np

    values = np.full(len(pool), np.nan)
    usable = pool.usable
    place = places_by_id(pool.row_ids)
    mass = np.maximum(damage_as(pool, covering.weight), 0.0)
    cost = costs(pool, unit)
    for k in np.unique(pool.clusters[usable]):
        inside = usable[pool.clusters[usable] == k]
        inside = inside[np.argsort(place[inside])]
        aside = round(covering.noise * len(inside))
        by_damage = np.argsort(-mass[inside], kind="stable")
        kept = np.sort(by_damage[aside:])
        witnesses = _witnesses(len(kept))
        order = facility_location(
            unit_rows(embeddings[inside[kept]].astype(np.float64)),
            mass[inside[kept[witnesses]]] ** covering.power,
            cost[inside[kept]].astype(float),
            covering.thrift,
            amount,
            witnesses,
        )
        whole = np.concatenate([inside[kept[order]], inside[by_damage[:aside]]])
        values[whole] = -np.arange(1, len(whole) + 1, dtype=float)
    return values


def _witnesses(count: int) -> np.ndarray | slice:
    """Positions among `count` rows that stand for all of them, evenly spaced."""
    import numpy as np

    if count <= WITNESSES:
        return slice(None)
    return np.linspace(0, count - 1, WITNESSES).round().astype(np.int64)


def facility_location(
    points: np.ndarray,
    weights: np.ndarray,
    cost: np.ndarray,
    thrift: float = 0.0,
    amount: float = float("inf"),
    witnesses: np.ndarray | slice = slice(None),
) -> np.ndarray:
    """All rows in the order of the lazy greedy algorithm (Minoux 1978) for the facility location function
    F(S) = sum_i w_i max_{j in S} max(cos(i, j), 0), i over the positions `witnesses`, which are all or some.

    Parameters: unit rows `points` (m, e), `weights` of the v witnesses (v,) at least 0, `cost` (m,) above 0.
    The next row has the largest gain in F / cost^thrift; ties go to the smaller position. Once rows worth
    `amount` are placed, the others follow by the last known bound of their gain. Time grows with m v e.
    """
    import heapq

    import numpy as np

    count, seen_from = len(points), points[witnesses]
    scale = cost**thrift
    covered = np.zeros(len(seen_from))
    bounds = np.concatenate(
        [
            np.maximum(points[begin : begin + _BLOCK] @ seen_from.T, 0.0) @ weights
            for begin in range(0, count, _BLOCK)
        ]
    ) / scale if count else np.zeros(0)  # fmt: skip
    heap = [(-float(bound), j, 0) for j, bound in enumerate(bounds)]
    heapq.heapify(heap)
    order: list[int] = []
    spent = 0.0
    while heap and spent < amount:
        _, j, seen = heapq.heappop(heap)
        similar = np.maximum(seen_from @ points[j], 0.0)
        if seen == len(order):
            covered = np.maximum(covered, similar)
            order.append(j)
            spent += float(cost[j])
            continue
        gain = float(weights @ np.maximum(similar - covered, 0.0)) / float(scale[j])
        heapq.heappush(heap, (-gain, j, len(order)))
    order += [j for _, j, _ in sorted(heap)]
    return np.array(order, dtype=np.int64)
