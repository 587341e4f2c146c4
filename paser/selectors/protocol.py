"""What a selector gets and what it returns. PASER and its rivals share this, so they can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from paser.errors import StageError
from paser.progress import warn
from paser.settings import Budget

ACCEPTED, REJECTED = "accepted", "rejected"
USABLE = ("ok", "cut")


@dataclass(frozen=True)
class ScoredRow:
    """One pool row with what is known about it. `jsd` and `loss_increase` are None where unusable."""

    row_id: str
    text: str
    cluster: int
    status: str
    jsd: float | None
    loss_increase: float | None
    prompt_tokens: int
    response_tokens: int
    contaminated: str | None = None

    @property
    def tokens(self) -> int:
        """Training tokens: prompt and response."""
        return self.prompt_tokens + self.response_tokens

    @property
    def refusal(self) -> tuple[str, str] | None:
        """Why this row may not be chosen by anyone: reason and detail; None if it may."""
        if self.status not in USABLE or self.jsd is None:
            reason = "no_response" if self.status == "no_response" else "nonfinite"
            return reason, f"score status {self.status}"
        if self.contaminated:
            return "contaminated", f"equal or near to evaluation prompt {self.contaminated}"
        return None


@dataclass(frozen=True)
class Decided:
    """One row of `decisions.parquet`, without its ids."""

    decision: str
    reason: str
    detail: str = ""
    ies: float | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Selection:
    """`decisions`: one a row, in the rows' order. `report`: what `budget.json` says about it."""

    decisions: Sequence[Decided]
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accepted(self) -> list[int]:
        return [i for i, d in enumerate(self.decisions) if d.decision == ACCEPTED]


class Selector(Protocol):
    """Chooses rows worth at most `amount` of `unit` (`rows` or `tokens`) and decides on every row."""

    def __call__(self, rows: Sequence[ScoredRow], amount: int, unit: str) -> Selection: ...


def resolve_budget(budget: Budget, rows: Sequence[ScoredRow]) -> tuple[int, str]:
    """The budget as a whole number of `rows` or `tokens`; a share is of all rows, rounded down.

    Raises StageError when a share comes to no row; warns when more is asked for than there is.
    """
    usable = [row for row in rows if row.refusal is None]
    if budget.unit == "share":
        amount = int(budget.amount * len(rows) + 1e-9)
        if amount < 1:
            raise StageError(
                f"a budget of {budget.amount:.4%} of {len(rows)} rows is less than one row",
                remedy="raise select.budget",
            )
        return amount, "rows"
    there = sum(row.tokens for row in usable) if budget.unit == "tokens" else len(usable)
    if budget.amount > there:
        warn(
            f"the budget of {budget.amount:,.0f} {budget.unit} is larger than the pool's {there:,} usable "
            "ones; everything that the filter accepts is taken"
        )
    return int(budget.amount), budget.unit
