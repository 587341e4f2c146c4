"""What a selector gets and what it returns. PASER and its rivals share this, so they can be compared.

Both are columns, because pools have millions of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from paser.errors import StageError
from paser.progress import warn
from paser.settings import Budget

if TYPE_CHECKING:
    import numpy as np

USABLE = ("ok", "cut")
JSD, DELTA_LOSS = "jsd", "delta_loss"


@dataclass(frozen=True)
class ScoredPool:
    """The n rows of a pool with what is known about them.

    `clusters`: int, 0 .. K-1. `status`: the score's status, objects. `divergences`: float columns by name,
    NaN where unknown; `jsd` and `delta_loss` (the loss increase, negative where pruning helped) always
    among them. `divergence`: the one that counts as damage. `prompt_tokens`, `response_tokens`: int.
    `contaminated`: what of the evaluation a row shows, by position. `texts(positions)`: prompt and response
    of these rows. All arrays have shape (n,).
    """

    row_ids: Sequence[str]
    texts: Callable[[np.ndarray], Sequence[str]]
    clusters: np.ndarray
    status: np.ndarray
    divergences: Mapping[str, np.ndarray]
    prompt_tokens: np.ndarray
    response_tokens: np.ndarray
    contaminated: Mapping[int, str] = field(default_factory=dict)
    divergence: str = JSD

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def damage(self) -> np.ndarray:
        """The divergence that is selected by."""
        return self.divergences[self.divergence]

    @property
    def tokens(self) -> np.ndarray:
        """Training tokens: prompt and response."""
        tokens: np.ndarray = self.prompt_tokens + self.response_tokens
        return tokens

    @cached_property
    def refusals(self) -> np.ndarray:
        """Why a row may not be chosen by anyone; empty where it may. Objects (str)."""
        import numpy as np

        refusals = np.full(len(self), "", dtype=object)
        refusals[list(self.contaminated)] = "contaminated"
        scored = np.isfinite(self.divergences[JSD]) & np.isfinite(self.damage)
        refusals[~(np.isin(self.status, USABLE) & scored)] = "nonfinite"
        refusals[self.status == "no_response"] = "no_response"
        return refusals

    @cached_property
    def usable(self) -> np.ndarray:
        """Positions of the rows that may be chosen."""
        import numpy as np

        return np.flatnonzero(self.refusals == "")

    def part(self, positions: np.ndarray) -> ScoredPool:
        """The pool that has only the rows at these positions, in this order."""
        places = positions.tolist()
        arrays = ("clusters", "status", "prompt_tokens", "response_tokens")
        return replace(
            self,
            row_ids=[self.row_ids[p] for p in places],
            texts=lambda asked: self.texts(positions[asked]),
            divergences={name: values[positions] for name, values in self.divergences.items()},
            contaminated={i: self.contaminated[p] for i, p in enumerate(places) if p in self.contaminated},
            **{name: getattr(self, name)[positions] for name in arrays},
        )

    def refusal_detail(self, position: int) -> str:
        if self.refusals[position] == "contaminated":
            return self.contaminated[position]
        status = self.status[position]
        return f"{self.divergence} is not finite" if status in USABLE else f"score status {status}"


@dataclass(frozen=True)
class Selection:
    """What became of the n rows of a pool.

    `accepted`: bool. `reasons`: objects (str). `detail(position)`: the reason in words. `ies`: efficiency,
    or the score that another selector ranks by; NaN where there is none. `rank`: place by it in the row's
    cluster, 1 the first, 0 where it has none. All arrays have shape (n,). `report`: what
    `budget.json` says about it.
    """

    accepted: np.ndarray
    reasons: np.ndarray
    detail: Callable[[int], str]
    ies: np.ndarray
    rank: np.ndarray
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def positions(self) -> np.ndarray:
        """Positions of the accepted rows."""
        import numpy as np

        return np.flatnonzero(self.accepted)

    @property
    def rejected(self) -> dict[str, int]:
        """Rejected rows by reason, reasons in alphabetical order."""
        return dict(sorted(Counter(self.reasons[~self.accepted].tolist()).items()))


class Selector(Protocol):
    """Chooses rows worth at most `amount` of `unit` (`rows` or `tokens`) and decides on every row."""

    def __call__(self, pool: ScoredPool, amount: int, unit: str) -> Selection: ...


def costs(pool: ScoredPool, unit: str) -> np.ndarray:
    """What each row takes from a budget of this unit: 1, or its training tokens. Shape (n,)."""
    import numpy as np

    return pool.tokens if unit == "tokens" else np.ones(len(pool), dtype=np.int64)


def resolve_budget(budget: Budget, pool: ScoredPool) -> tuple[int, str]:
    """The budget as a whole number of `rows` or `tokens`; a share is of all rows, or of the training tokens
    of all rows, rounded down.

    Raises StageError when a share comes to no row; warns when more is asked for than there is.
    """
    if budget.unit == "share":
        amount = int(budget.amount * len(pool) + 1e-9)
        if amount < 1:
            raise StageError(
                f"a budget of {budget.amount:.4%} of {len(pool)} rows is less than one row",
                remedy="raise select.budget",
            )
        return amount, "rows"
    if budget.unit == "token_share":
        return int(budget.amount * int(pool.tokens.sum()) + 1e-9), "tokens"
    there = int(costs(pool, budget.unit)[pool.usable].sum())
    if budget.amount > there:
        warn(
            f"the budget of {budget.amount:,.0f} {budget.unit} is larger than the pool's {there:,} usable "
            "ones; everything that the filter accepts is taken"
        )
    return int(budget.amount), budget.unit
