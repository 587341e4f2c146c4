"""Rows in the order of one column of the scored pool: length, damage, damage in all, damage a token; or all.

The simplest rivals, and the ablation of PASER that drops its clusters altogether.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from paser.selectors.filling import Scored, by_id, take_in_order
from paser.selectors.protocol import ScoredPool, Selection

if TYPE_CHECKING:
    import numpy as np

Amount = Literal["mean", "total", "per_token"]


def longest(pool: ScoredPool) -> Scored:
    """Response tokens (Zhao et al. 2024, arXiv 2402.04833)."""
    return Scored(pool.response_tokens.astype(float))


def damage_as(pool: ScoredPool, amount: Amount) -> np.ndarray:
    """Damage of each row, shape (n,): the `mean` over its response tokens, the `total` (mean x |y|), or the
    total `per_token` of training, total / (|x| + |y|)."""
    import numpy as np

    if amount == "mean":
        return pool.damage
    total: np.ndarray = pool.damage * pool.response_tokens
    return total if amount == "total" else total / np.maximum(pool.tokens, 1)


@dataclass(frozen=True)
class FullSelector:
    """Every usable row, whatever the amount: what training on all of the pool gives."""

    def __call__(self, pool: ScoredPool, amount: int, unit: str) -> Selection:
        everything = int(pool.tokens[pool.usable].sum()) if unit == "tokens" else len(pool.usable)
        return take_in_order(by_id(pool), pool, everything, unit)
