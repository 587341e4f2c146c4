"""Selectors that look at embeddings alone: k-centre and self-supervised prototypes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from paser.errors import StageError
from paser.method.manifold import unit_rows
from paser.selectors.filling import Scored, by_id
from paser.selectors.protocol import ScoredPool, costs
from paser.selectors.random import drawn
from paser.settings import Group

if TYPE_CHECKING:
    import numpy as np

_STARTS = 4


class PrototypeOptions(Group):
    """`side`: rows far from their prototype (`hard`) or near it (`easy`). `k`: how many prototypes; `auto`
    takes as many as the pool has clusters."""

    side: Literal["hard", "easy"] = "hard"
    k: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"


def k_centre(pool: ScoredPool, embeddings: np.ndarray, amount: int, unit: str, seed: int) -> np.ndarray:
    """Positions in the order of greedy k-centre (Sener and Savarese 2018, arXiv 1708.00489): each next row is
    the one farthest (Euclidean) from those before it; the first is drawn by `seed`; ties by row id.

    Rows beyond what `amount` of `unit` can pay for follow by their distance to those that were visited.
    """
    import numpy as np

    rows = by_id(pool)
    if not len(rows):
        return rows
    points = embeddings[rows].astype(np.float64)
    cost = costs(pool, unit)[rows]
    near = np.full(len(rows), np.inf)
    order: list[int] = []
    following = int(np.flatnonzero(rows == drawn(pool, rows, "k-centre", seed)[0])[0])
    spent = 0
    while len(order) < len(rows) and spent <= amount:
        order.append(following)
        spent += int(cost[following])
        near = np.minimum(near, np.sqrt(((points - points[following]) ** 2).sum(axis=1)))
        near[following] = -1.0
        following = int(near.argmax())
    rest = np.argsort(-near, kind="stable")
    rest = rest[near[rest] >= 0]
    whole: np.ndarray = rows[np.concatenate([np.array(order, dtype=np.int64), rest])]
    return whole


def prototypes(pool: ScoredPool, embeddings: np.ndarray, options: PrototypeOptions, seed: int) -> Scored:
    """Cosine distance (0 .. 2) to the nearest k-means centre (Sorscher et al. 2022, arXiv 2206.14486);
    its negative with `side: easy`."""
    import numpy as np
    from sklearn.cluster import KMeans

    rows = by_id(pool)
    points = unit_rows(embeddings[rows].astype(np.float64))
    wanted = len(np.unique(pool.clusters[rows])) if options.k == "auto" else options.k
    if wanted > len(rows):
        raise StageError(
            f"{wanted} prototypes were asked for, but only {len(rows)} rows can be chosen",
            remedy="lower the option k of the selector prototypes",
        )
    centres = KMeans(wanted, n_init=_STARTS, random_state=seed).fit(points).cluster_centers_
    distance = 1.0 - (points @ unit_rows(centres).T).max(axis=1)
    score = distance if options.side == "hard" else -distance
    return Scored.at(rows, score, pool, {"prototypes": wanted, "side": options.side})
