"""Calibration samples for pruning: enough of them, one a batch, and a watch on what flows through layers.

One sample a batch means no padding, which would enter norms and gradients as if it were text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from paser.errors import StageError
from paser.models.tokens import Encoded

if TYPE_CHECKING:
    import torch


def usable(calibration: list[Encoded], least_tokens: int, why: str) -> list[Encoded]:
    """The samples that hold tokens; raises `StageError` when they have fewer than `least_tokens` in all.

    `why` ends the sentence "at least N are needed, ..." for the user.
    """
    samples = [sample for sample in calibration if sample.tokens > 0]
    remedy = "give the calibration role a source with more usable rows in data/sources.yaml"
    if not samples:
        raise StageError("there is no calibration sample to prune with", remedy=remedy)
    tokens = sum(sample.tokens for sample in samples)
    if tokens < least_tokens:
        raise StageError(
            f"calibration has {tokens} tokens in {len(samples)} samples; at least {least_tokens} are "
            f"needed, {why}",
            remedy=f"{remedy}, or raise prune.max_tokens",
        )
    return samples


def token_ids(sample: Encoded, device: Any = "cpu") -> torch.Tensor:
    """Prompt and response of one sample as a batch: int64, shape (1, tokens)."""
    import torch

    return torch.tensor([sample.prompt_ids + sample.response_ids], dtype=torch.long, device=device)


@contextlib.contextmanager
def finite_inputs(layers: Mapping[str, torch.nn.Module]) -> Iterator[None]:
    """While open, a layer whose input is not finite raises `StageError` that names the layer."""
    import torch

    def watch(name: str) -> Any:
        def check(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if not bool(torch.isfinite(inputs[0]).all()):
                raise StageError(
                    f"the activations that enter layer {name} are not finite in calibration",
                    remedy="set model.precision: float32; if it stays, the model or its weights are broken",
                )

        return check

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
