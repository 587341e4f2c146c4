"""From an order of rows to a selection within a budget: the one way in which every rival of PASER fills it.

They share it so that two selectors differ by their order alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paser.method.selection import places_by_id
from paser.selectors.protocol import ScoredPool, Selection, costs

if TYPE_CHECKING:
    import numpy as np

SELECTED, BUDGET, FILTERED = "selected", "budget", "filtered"


@dataclass(frozen=True)
class Scored:
    """`values`: one score a row of the pool, shape (n,), higher is chosen first; NaN is never chosen.

    `facts`: what the report says about how they came about, plain JSON types.
    """

    values: np.ndarray
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def at(
        cls, rows: np.ndarray, scores: np.ndarray, pool: ScoredPool, facts: Mapping[str, Any] | None = None
    ) -> Scored:
        """`scores` of the rows at these positions, shape (rows,); NaN for all others."""
        import numpy as np

        values = np.full(len(pool), np.nan)
        values[rows] = scores
        return cls(values, facts or {})


def fill(order: np.ndarray, pool: ScoredPool, amount: int, unit: str) -> np.ndarray:
    """Positions that are taken: the first of `order`, until the next row does not fit the amount.

    With `tokens`, the last place goes to the row that comes nearest to what is left (the first of them in
    `order`), so that the total is within one sample of the amount without favouring short samples.
    """
    import numpy as np

    cost = costs(pool, unit)[order]
    spent = np.cumsum(cost)
    whole = int(np.searchsorted(spent, amount, side="right"))
    left = amount - int(spent[whole - 1]) if whole else amount
    fitting = np.where(cost[whole:] <= left, cost[whole:], 0)
    if not fitting.any():
        return order[:whole]
    return np.append(order[:whole], order[whole + int(fitting.argmax())])


def take_in_order(
    order: np.ndarray,
    pool: ScoredPool,
    amount: int,
    unit: str,
    scores: np.ndarray | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Selection:
    """The selection of rows by `order`: positions of the rows that may be taken, the first ones first.

    Usable rows that are not in `order` have the reason `filtered`. `scores`: what the order comes from,
    shape (n,); `facts` go into the report.
    """
    import numpy as np

    taken = fill(order, pool, amount, unit)
    reasons = np.where(pool.refusals == "", FILTERED, pool.refusals).astype(object)
    reasons[order] = BUDGET
    reasons[taken] = SELECTED
    spent = int(costs(pool, unit)[taken].sum())
    return Selection(
        accepted=reasons == SELECTED,
        reasons=reasons,
        detail=lambda i: pool.refusal_detail(i) if pool.refusals[i] else "",
        ies=np.full(len(pool), np.nan) if scores is None else np.asarray(scores, dtype=float),
        rank=_rank(order, pool),
        report={
            "budget": amount,
            "unit": unit,
            "spent": spent,
            "unspent": amount - spent,
            "filtered": int((reasons == FILTERED).sum()),
            **(facts or {}),
        },
    )


def take_best(scored: Scored, pool: ScoredPool, amount: int, unit: str) -> Selection:
    """The rows with the highest scores, ties by row id; rows whose score is NaN are left out."""
    return take_in_order(best_first(scored.values, pool), pool, amount, unit, scored.values, scored.facts)


def best_first(values: np.ndarray, pool: ScoredPool) -> np.ndarray:
    """Positions of the usable rows with a score, the highest first, ties by row id."""
    import numpy as np

    able = pool.usable[~np.isnan(values[pool.usable])]
    order: np.ndarray = able[np.lexsort((places_by_id(pool.row_ids)[able], -values[able]))]
    return order


def by_id(pool: ScoredPool) -> np.ndarray:
    """Positions of the usable rows in the order of their ids, so that no result hangs on the pool's order."""
    import numpy as np

    order: np.ndarray = pool.usable[np.argsort(places_by_id(pool.row_ids)[pool.usable])]
    return order


def _rank(order: np.ndarray, pool: ScoredPool) -> np.ndarray:
    """Place of each row of `order` in its cluster, 1 the first, 0 elsewhere. Shape (n,)."""
    import numpy as np

    rank = np.zeros(len(pool), dtype=np.int64)
    clusters = pool.clusters[order]
    for k in np.unique(clusters):
        inside = order[clusters == k]
        rank[inside] = np.arange(1, len(inside) + 1)
    return rank
