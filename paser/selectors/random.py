"""Random rows: the control against which every claim is made, at the same number of training tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paser.records import draw_key
from paser.selectors.protocol import ACCEPTED, REJECTED, Decided, ScoredRow, Selection


@dataclass(frozen=True)
class RandomSelector:
    """Rows in the order of a seeded digest of their ids, until the amount is spent.

    With `tokens`, the last place goes to the row that comes nearest to what is left, so that the total
    is within one sample of the amount without favouring short samples.
    """

    seed: int

    def __call__(self, rows: Sequence[ScoredRow], amount: int, unit: str) -> Selection:
        usable = [i for i, row in enumerate(rows) if row.refusal is None]
        order = sorted(usable, key=lambda i: draw_key("random", self.seed, rows[i].row_id))
        cost = {i: rows[i].tokens if unit == "tokens" else 1 for i in order}
        taken: set[int] = set()
        left = amount
        for position, i in enumerate(order):
            if cost[i] > left:
                fitting = [j for j in order[position:] if cost[j] <= left]
                if fitting:
                    taken.add(max(fitting, key=lambda j: cost[j]))
                break
            taken.add(i)
            left -= cost[i]
        decisions = []
        for i, row in enumerate(rows):
            if row.refusal:
                decisions.append(Decided(REJECTED, *row.refusal))
            elif i in taken:
                decisions.append(Decided(ACCEPTED, "selected"))
            else:
                decisions.append(Decided(REJECTED, "budget"))
        return Selection(decisions, {"budget": amount, "unit": unit, "spent": sum(cost[i] for i in taken)})
