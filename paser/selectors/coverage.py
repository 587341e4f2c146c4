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
from paser.progress import progress
from paser.selectors.protocol import ScoredPool, costs
from paser.selectors.ranked import Amount, damage_as
from paser.settings import Group

if TYPE_CHECKING:
    import numpy as np

# Rows that are ordered together: their similarities are held at once.
PART = 2048


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

    The value is minus the row's place in the greedy order; rows set aside as noise come last. A cluster of
    more than `PART` rows is dealt into parts by row id, each is ordered by itself, and their first rows come
    before their second ones (the first round of GreeDi, Mirzasoleiman et al., NeurIPS 2013).
    """
    import numpy as np

    values = np.full(len(pool), np.nan)
    usable = pool.usable
    place = places_by_id(pool.row_ids)
    mass = np.maximum(damage_as(pool, covering.weight), 0.0)
    cost = costs(pool, unit)

    def greedy(rows: np.ndarray, worth: float) -> np.ndarray:
        return facility_location(
            unit_rows(embeddings[rows].astype(np.float64)),
            mass[rows] ** covering.power,
            cost[rows].astype(float),
            covering.thrift,
            worth,
        )

    with progress("cover", len(usable)) as advance:
        for k in np.unique(pool.clusters[usable]):
            inside = usable[pool.clusters[usable] == k]
            inside = inside[np.argsort(place[inside])]
            by_damage = np.argsort(-mass[inside], kind="stable")
            aside = round(covering.noise * len(inside))
            kept = inside[np.sort(by_damage[aside:])]
            parts = -(-len(kept) // PART)
            turn = np.zeros(len(kept), dtype=np.int64)
            for part in range(parts):
                order = greedy(kept[part::parts], amount / parts)
                turn[part::parts][order] = np.arange(len(order))
                advance(len(order))
            whole = np.concatenate([kept[np.argsort(turn, kind="stable")], inside[by_damage[:aside]]])
            values[whole] = -np.arange(1, len(whole) + 1, dtype=float)
    return values


def facility_location(
    points: np.ndarray,
    weights: np.ndarray,
    cost: np.ndarray,
    thrift: float = 0.0,
    amount: float = float("inf"),
) -> np.ndarray:
    """All rows in the order of the lazy greedy algorithm (Minoux 1978) for the facility location function
    F(S) = sum_i w_i max_{j in S} max(cos(i, j), 0).

    Parameters: unit rows `points` (m, e), `weights` (m,) at least 0, `cost` (m,) above 0. The next row has
    the largest gain in F / cost^thrift; ties go to the smaller position. Once rows worth `amount` are
    placed, the others follow by the last known bound of their gain. Memory grows with m^2, time with m^2 e.
    """
    import heapq

    import numpy as np

    scale = cost**thrift
    similar = np.maximum(points @ points.T, 0.0)
    covered = np.zeros(len(points))
    heap = [(-float(bound), j, 0) for j, bound in enumerate(similar @ weights / scale)]
    heapq.heapify(heap)
    order: list[int] = []
    spent = 0.0
    while heap and spent < amount:
        _, j, seen = heapq.heappop(heap)
        if seen == len(order):
            covered = np.maximum(covered, similar[j])
            order.append(j)
            spent += float(cost[j])
            continue
        gain = float(weights @ np.maximum(similar[j] - covered, 0.0)) / float(scale[j])
        heapq.heappush(heap, (-gain, j, len(order)))
    order += [j for _, j, _ in sorted(heap)]
    return np.array(order, dtype=np.int64)
