"""PASER, or `per-token`, with one of its parts taken away, to see what the part is worth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paser.selectors.damage import PaserSelector, Ranking
from paser.selectors.protocol import ScoredPool, Selection
from paser.selectors.random import drawn
from paser.settings import SelectSettings

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class OneCluster:
    """PASER on a pool that is one single cluster."""

    settings: SelectSettings
    ranking: Ranking | None = None

    def __call__(self, pool: ScoredPool, amount: int, unit: str) -> Selection:
        import numpy as np

        whole = replace(pool, clusters=np.zeros(len(pool), dtype=np.int64))
        return PaserSelector(self.settings, self.ranking)(whole, amount, unit)


def random_inside(seed: int) -> Ranking:
    """Values in the order of a seeded digest of the row ids, in place of efficiency."""

    def values(pool: ScoredPool, amount: int, unit: str) -> np.ndarray:
        import numpy as np

        found = np.full(len(pool), np.nan)
        order = drawn(pool, pool.usable, "random-inside", seed)
        found[order] = -np.arange(1, len(order) + 1, dtype=float)
        return found

    return values


def response_share(pool: ScoredPool, amount: int, unit: str) -> np.ndarray:
    """Response tokens over all training tokens: the order of `per-token` if all tokens were damaged alike."""
    share: np.ndarray = pool.response_tokens / pool.tokens
    return share
