"""Random rows: the control against which every claim is made, at the same number of training tokens."""

from __future__ import annotations

from dataclasses import dataclass

from paser.records import draw_key
from paser.selectors.protocol import ScoredPool, Selection, costs


@dataclass(frozen=True)
class RandomSelector:
    """Rows in the order of a seeded digest of their ids, until the amount is spent.

    With `tokens`, the last place goes to the row that comes nearest to what is left, so that the total
    is within one sample of the amount without favouring short samples.
    """

    seed: int

    def __call__(self, pool: ScoredPool, amount: int, unit: str) -> Selection:
        import numpy as np

        drawn = (draw_key("random", self.seed, pool.row_ids[i]) for i in pool.usable.tolist())
        keys = np.fromiter(drawn, dtype="S64", count=len(pool.usable))
        order = pool.usable[np.argsort(keys, kind="stable")]
        cost = costs(pool, unit)[order]
        spent = np.cumsum(cost)
        whole = int(np.searchsorted(spent, amount, side="right"))
        left = amount - int(spent[whole - 1]) if whole else amount
        fitting = np.where(cost[whole:] <= left, cost[whole:], 0)
        if fitting.any():
            last = whole + int(fitting.argmax())
            left -= int(cost[last])
            taken = np.append(order[:whole], order[last])
        else:
            taken = order[:whole]
        reasons = np.where(pool.refusals == "", "budget", pool.refusals).astype(object)
        reasons[taken] = "selected"
        return Selection(
            accepted=reasons == "selected",
            reasons=reasons,
            detail=lambda i: pool.refusal_detail(i) if pool.refusals[i] else "",
            ies=np.full(len(pool), np.nan),
            rank=np.zeros(len(pool), dtype=np.int64),
            report={"budget": amount, "unit": unit, "spent": amount - left},
        )
