"""What selectors may use beside the scored pool: embeddings, losses of both models, and the pruned model.

Models are opened only by a selector that needs them, because most do not. What a selector sends through a
model is counted, so that the cost of selecting stands beside the cost of training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from paser.settings import RecoverSettings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

    from paser.models.tokens import SampleEncoder
    from paser.records import Sample


@dataclass
class Meter:
    """Tokens that went through models, and rows that were embedded; one meter a selection."""

    forward_tokens: int = 0
    backward_tokens: int = 0
    embedded_rows: int = 0

    def as_json(self) -> dict[str, int]:
        return dict(vars(self))


@dataclass(frozen=True)
class LanguageModel:
    """A model in evaluation mode, and the encoder of samples for its tokenizer."""

    model: PreTrainedModel
    encoder: SampleEncoder


def opener(path: Path, dtype: torch.dtype, device: str = "cpu") -> Callable[[], LanguageModel]:
    """Opens the model in the folder `path`, anew at every call."""

    def opened() -> LanguageModel:
        from paser.models.loading import load_causal_lm, load_tokenizer
        from paser.models.tokens import SampleEncoder

        model = load_causal_lm(path, dtype=dtype, device=device)
        return LanguageModel(model, SampleEncoder(load_tokenizer(path)))

    return opened


@dataclass(frozen=True)
class Models:
    """What a selector needs for passes of its own.

    `pruned()` and `small()` open a model that the caller may change: a new object at every call. `small` is
    the cheap stand-in of the small-model forms. `samples(positions)`: the samples at these positions of the
    pool. `targets`: samples of what the recovered model shall be good at, for gradient matching; never
    evaluation items. `recover`: settings of short training runs and of the LoRA parameters that gradients
    are taken of. Samples are cut at `max_tokens`.
    """

    pruned: Callable[[], LanguageModel]
    samples: Callable[[np.ndarray], Sequence[Sample]]
    small: Callable[[], LanguageModel] | None = None
    targets: Sequence[Sample] = ()
    recover: RecoverSettings = field(default_factory=RecoverSettings)
    max_tokens: int = 256


@dataclass(frozen=True)
class Resources:
    """`embeddings`: shape (n, e), rows in the pool's order. `loss_original`, `loss_pruned`: of these models,
    mean negative log-likelihood a response token in nats, each of shape (n,)."""

    embeddings: np.ndarray | None = None
    loss_original: np.ndarray | None = None
    loss_pruned: np.ndarray | None = None
    models: Models | None = None
