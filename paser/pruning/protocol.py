"""What every pruning scheme promises, and which schemes there are.

A scheme prunes a model in place and keeps no files; what it achieved is measured afterwards on the
saved weights (`paser.models.sparsity`), not reported by the scheme.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from paser.errors import StageError
from paser.models.tokens import Encoded
from paser.settings import PruneSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PruningReport:
    """How a model was pruned: the scheme, and what it was calibrated on (samples and tokens)."""

    scheme: str
    samples: int
    tokens: int


class Scheme(Protocol):
    """Prunes `model` in place on calibration samples; same inputs and seed, same weights."""

    def __call__(
        self, model: PreTrainedModel, calibration: list[Encoded], settings: PruneSettings, seed: int
    ) -> PruningReport: ...


def schemes() -> dict[str, Scheme]:
    """The schemes that `prune.scheme` may name."""
    from paser.pruning.wanda import wanda

    return {"wanda": wanda}


def scheme(name: str) -> Scheme:
    known = schemes()
    if name not in known:
        raise StageError(f"unknown pruning scheme {name!r}", remedy=f"one of {', '.join(known)}")
    return known[name]
