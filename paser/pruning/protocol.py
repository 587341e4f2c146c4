"""What every pruning scheme promises, and which schemes there are.

A scheme prunes a model in memory and keeps no files; what it achieved is measured afterwards on the
saved weights (`paser.pruning.achieved`), not reported by the scheme.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from paser.errors import StageError
from paser.models.tokens import Encoded
from paser.settings import PruneSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# unstructured: zeros in matrices of the same shape. structured: narrower layers. depth: fewer blocks.
# sliced: a narrower residual stream, with shortcut matrices.
Kind = Literal["unstructured", "structured", "depth", "sliced"]


@dataclass(frozen=True)
class PruningReport:
    """How a model was pruned: the scheme, what it was calibrated on (samples and tokens), measured facts.

    `facts` are plain JSON types that two runs share: no clock, no device, no path. A structured scheme that
    leaves blocks alone names the others in `facts["blocks"]`, a list of block numbers of the original.
    """

    scheme: str
    samples: int
    tokens: int
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PrunedModel:
    """The pruned model (the given object, or a new one where the architecture changes) and its report."""

    model: PreTrainedModel
    report: PruningReport


class Prune(Protocol):
    """Prunes `model` on calibration samples, each a batch of its own, so that no padding is ever seen.

    Same inputs and seed, same weights. What is not pruned stays equal to the last bit. Raises `StageError`
    on an architecture, a calibration or a pattern that the scheme cannot work with.
    """

    def __call__(
        self, model: PreTrainedModel, calibration: list[Encoded], settings: PruneSettings, seed: int
    ) -> PrunedModel: ...


@dataclass(frozen=True)
class Scheme:
    """A scheme and what the pipeline must know of it.

    `patterns`: it can place zeros in N:M patterns. `ties`: embeddings that were tied stay tied.
    """

    kind: Kind
    prune: Prune
    patterns: bool = False
    ties: bool = True


def schemes() -> dict[str, Scheme]:
    """The schemes that `prune.scheme` may name, as `paser.settings.PRUNE_OPTIONS` lists them."""
    from paser.pruning.cfsp import cfsp
    from paser.pruning.depth import depth
    from paser.pruning.flap import flap
    from paser.pruning.gblm import gblm
    from paser.pruning.llm_pruner import llm_pruner
    from paser.pruning.magnitude import global_magnitude, magnitude
    from paser.pruning.random import random
    from paser.pruning.slicegpt import slicegpt
    from paser.pruning.sparsegpt import sparsegpt
    from paser.pruning.wanda import wanda

    return {
        "wanda": Scheme("unstructured", wanda, patterns=True),
        "sparsegpt": Scheme("unstructured", sparsegpt, patterns=True),
        "magnitude": Scheme("unstructured", magnitude, patterns=True),
        "global-magnitude": Scheme("unstructured", global_magnitude),
        "random": Scheme("unstructured", random, patterns=True),
        "gblm": Scheme("unstructured", gblm, patterns=True),
        "llm-pruner": Scheme("structured", llm_pruner),
        "slicegpt": Scheme("sliced", slicegpt, ties=False),
        "flap": Scheme("structured", flap),
        "cfsp": Scheme("structured", cfsp),
        "depth": Scheme("depth", depth),
    }


def scheme(name: str) -> Scheme:
    known = schemes()
    if name not in known:
        raise StageError(f"unknown pruning scheme {name!r}", remedy=f"one of {', '.join(known)}")
    return known[name]


def prune(
    model: PreTrainedModel, calibration: list[Encoded], settings: PruneSettings, seed: int
) -> PrunedModel:
    """Prunes `model` by the scheme that the settings name; refuses a pattern that it cannot place."""
    chosen = scheme(settings.scheme)
    if settings.pattern != "unstructured" and not chosen.patterns:
        able = ", ".join(name for name, other in schemes().items() if other.patterns)
        raise StageError(
            f"prune.pattern is {settings.pattern}, but {settings.scheme} places no N:M pattern",
            remedy=f"set prune.pattern: unstructured, or prune.scheme to one of {able}",
        )
    return chosen.prune(model, calibration, settings, seed)
