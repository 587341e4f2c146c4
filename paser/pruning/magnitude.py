"""Magnitude pruning: the smallest weights go, in each layer by itself or in the whole model at once.

The oldest rule (Janowsky 1989; Han et al. 2015), and the baseline of every paper. It sees no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from paser.errors import StageError
from paser.models.tokens import Encoded
from paser.pruning import masks
from paser.pruning.layers import check_blocks, linear_layers
from paser.pruning.protocol import PrunedModel, PruningReport
from paser.settings import NM_PATTERNS, GlobalMagnitudeOptions, PruneSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_LARGEST_FLOAT32 = 0x7F7FFFFF  # its bits: those of numbers that are not negative order as the numbers do


def magnitude(
    model: PreTrainedModel, calibration: list[Encoded], settings: PruneSettings, seed: int
) -> PrunedModel:
    """The smallest |weight| of each linear layer become zero, in place; no calibration, no random choice.

    torch's own pruning does it for a share of a layer; N:M patterns it does not know.
    """
    from torch.nn.utils import prune

    layers = linear_layers(model)
    check_blocks(layers, settings)
    for layer in layers.values():
        if settings.pattern in NM_PATTERNS:
            masks.apply(layer, masks.by_pattern(layer.weight.abs(), *NM_PATTERNS[settings.pattern]))
        else:
            prune.l1_unstructured(layer, "weight", amount=settings.sparsity)  # type: ignore[no-untyped-call]
            prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
    return PrunedModel(model, PruningReport("magnitude", 0, 0))


def global_magnitude(
    model: PreTrainedModel, calibration: list[Encoded], settings: PruneSettings, seed: int
) -> PrunedModel:
    """The smallest |weight| of all linear layers together become zero, in place.

    Each layer keeps at least `prune.options.keep_at_least` of its weights: without such a limit a layer of
    small weights goes whole, and the model with it (layer collapse). Raises `StageError` when
    the limit leaves too few weights to remove. The report says what the sparsest layers keep.
    """
    least = settings.options_as(GlobalMagnitudeOptions).keep_at_least
    if least > 1 - settings.sparsity + 1e-9:
        raise StageError(
            f"prune.options.keep_at_least is {least}, but prune.sparsity {settings.sparsity} leaves "
            f"{1 - settings.sparsity:.6g} of the weights",
            remedy=f"choose keep_at_least of at most {1 - settings.sparsity:.6g}",
        )
    layers = linear_layers(model)
    counts = _shares(layers, settings.sparsity, least)
    for name, layer in layers.items():
        masks.apply(layer, masks.lowest_go(layer.weight.abs().reshape(1, -1), counts[name]))
    at_limit = sum(counts[name] >= int((1 - least) * layer.weight.numel()) for name, layer in layers.items())
    return PrunedModel(model, PruningReport("global-magnitude", 0, 0, {"layers_at_limit": at_limit}))


def _shares(layers: Mapping[str, torch.nn.Linear], sparsity: float, least: float) -> dict[str, int]:
    """How many of each layer's weights go, so that one threshold holds for all but the layers at the limit.

    The threshold is found by bisection on the bits of |weight| as float32, one layer at a time, so that a
    model's weights never lie in memory twice. Weights equal to it go in the layers' order until the
    count is right.
    """
    import torch

    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    most = {name: int((1 - least) * size) for name, size in sizes.items()}
    target = int(sparsity * sum(sizes.values()))

    def below(bits: int) -> dict[str, int]:
        threshold = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        return {
            name: min(int((layer.weight.detach().abs().float() < threshold).sum()), most[name])
            for name, layer in layers.items()
        }

    low, high = 0, _LARGEST_FLOAT32
    while low < high:
        middle = (low + high + 1) // 2
        if sum(below(middle).values()) <= target:
            low = middle
        else:
            high = middle - 1
    counts, upper = below(low), below(low + 1)
    missing = target - sum(counts.values())
    for name in layers:
        more = min(upper[name] - counts[name], missing)
        counts[name] += more
        missing -= more
    return counts
