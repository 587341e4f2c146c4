"""Random rows: the control against which every claim is made, at the same number of training tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paser.records import draw_key
from paser.selectors.filling import take_in_order
from paser.selectors.protocol import ScoredPool, Selection

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class RandomSelector:
    """Rows in the order of a seeded digest of their ids, until the amount is spent (`filling.fill`)."""

    seed: int

    def __call__(self, pool: ScoredPool, amount: int, unit: str) -> Selection:
        import numpy as np

        selection = take_in_order(drawn(pool, pool.usable, "random", self.seed), pool, amount, unit)
        return replace(
            selection,
            rank=np.zeros(len(pool), dtype=np.int64),
            report={name: selection.report[name] for name in ("budget", "unit", "spent")},
        )


def drawn(pool: ScoredPool, positions: np.ndarray, purpose: str, seed: int) -> np.ndarray:
    """These positions in the order of a seeded digest of their row ids; see `records.draw_key`."""
    import numpy as np

    keys = np.fromiter(
        (draw_key(purpose, seed, pool.row_ids[i]) for i in positions.tolist()),
        dtype="S64",
        count=len(positions),
    )
    order: np.ndarray = positions[np.argsort(keys, kind="stable")]
    return order
