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
    `standing`: a row stands for others by its own damage to this power (0: all alike), so that an undamaged
    row near damaged ones, or a wrong answer to a good prompt, stands for little.
    """

    weight: Amount = "mean"
    power: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    noise: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    thrift: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    standing: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0


# `select.order: coverage`.
BY_THE_TOKEN = Covering(weight="per_token", thrift=0.5, standing=0.5)


def coverage_order(
    pool: ScoredPool, embeddings: np.ndarray, covering: Covering, amount: int, unit: str
) -> np.ndarray:
    """A value a row by which `PaserSelector` can order a cluster, higher first. Shape (n,); NaN for rows that
    may not be chosen.

    The value is what the row adds in its turn (`facility_location`); rows set aside as noise are below 0. A
    cluster of more than `PART` rows is dealt into parts by row id, of which each is covered by itself (the
    first round of GreeDi, Mirzasoleiman et al., NeurIPS 2013).
    """
    import numpy as np

    values = np.full(len(pool), np.nan)
    usable = pool.usable
    place = places_by_id(pool.row_ids)
    mass = np.maximum(damage_as(pool, covering.weight), 0.0)
    cost = costs(pool, unit)
    with progress("cover", len(usable)) as advance:
        for k in np.unique(pool.clusters[usable]):
            inside = usable[pool.clusters[usable] == k]
            inside = inside[np.argsort(place[inside])]
            by_damage = np.argsort(-mass[inside], kind="stable")
            aside = round(covering.noise * len(inside))
            values[inside[by_damage[:aside]]] = -np.arange(1, aside + 1, dtype=float)
            kept = inside[np.sort(by_damage[aside:])]
            parts = -(-len(kept) // PART)
            for part in range(parts):
                rows = kept[part::parts]
                values[rows] = facility_location(
                    unit_rows(embeddings[rows].astype(np.float64)),
                    mass[rows] ** covering.power,
                    cost[rows].astype(float),
                    covering.thrift,
                    amount / parts,
                    mass[rows] ** covering.standing,
                )
                advance(len(rows))
    return values


def facility_location(
    points: np.ndarray,
    weights: np.ndarray,
    cost: np.ndarray,
    thrift: float = 0.0,
    amount: float = float("inf"),
    standing: np.ndarray | None = None,
) -> np.ndarray:
    """What each row adds to F(S) = sum_i w_i max_{j in S} v_j max(cos(i, j), 0), facility location, when its
    turn comes in the lazy greedy algorithm (Minoux 1978), in F / cost^thrift. Shape (m,), 0 or more.

    Parameters: unit rows `points` (m, e), `weights` w (m,) at least 0, `cost` (m,) above 0, `standing` v (m,)
    at least 0, 1 where none is given. The next row has the largest gain, so that the order of turns is that
    of the values, highest first; ties go to the smaller position. Once rows worth `amount` had their turn,
    the others have the last known bound of their gain. Memory grows with m^2, time with m^2 e.
    """
    import heapq

    import numpy as np

    scale = cost**thrift
    similar = np.maximum(points @ points.T, 0.0)  # of a row j with all i
    if standing is not None:
        similar *= standing[:, None]
    covered = np.zeros(len(points))
    gains: np.ndarray = similar @ weights / scale
    heap = [(-float(bound), j, 0) for j, bound in enumerate(gains)]
    heapq.heapify(heap)
    turn, spent = 0, 0.0
    while heap and spent < amount:
        _, j, seen = heapq.heappop(heap)
        if seen == turn:
            covered = np.maximum(covered, similar[j])
            spent += float(cost[j])
            turn += 1
            continue
        gains[j] = float(weights @ np.maximum(similar[j] - covered, 0.0)) / float(scale[j])
        heapq.heappush(heap, (-float(gains[j]), j, turn))
    return gains
