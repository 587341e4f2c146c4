"""The rows of each cluster that win back the most for each token of training.

Damage says what is broken, not what training can mend; `recoverability` (paser/method/recoverability.py) says
how far a row's own response leads back to the original model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from paser.selectors.protocol import ScoredPool
from paser.selectors.ranked import Amount, damage_as
from paser.settings import Fraction, SelectSettings

if TYPE_CHECKING:
    import numpy as np


class RecoverableSettings(SelectSettings):
    """As for PASER, by recoverability, with the budget by it and by size, and no concept filter unless asked
    for. `order`: what of it ranks the rows of a cluster."""

    divergence: Literal["jsd", "kl", "reverse_kl", "delta_loss", "recoverability"] = "recoverability"
    policy: Literal["damage", "damage_size", "damage_power", "delta_loss", "uniform", "proportional"] = (
        "damage_size"
    )
    strictness: Fraction = 0.0
    order: Amount = "per_token"


def recoverable_order(pool: ScoredPool, settings: RecoverableSettings) -> np.ndarray:
    """A value a row by which `PaserSelector` can order a cluster, higher first. Shape (n,).

    By default sum over the response tokens of recoverability / (|x| + |y|).
    """
    return damage_as(pool, settings.order)
