"""FLAP (An et al. 2024): what hardly fluctuates on calibration data is removed, and its mean becomes a bias.

The metric is standardised within each layer, so that one ranking over all of them decides how much each
block loses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paser.models.shapes import describe
from paser.models.tokens import Encoded
from paser.pruning.calibration import usable
from paser.pruning.coupled import (
    Block,
    blocks_of,
    cheapest,
    others,
    out_of_reach,
    run_through,
    seeing,
    shape_facts,
)
from paser.pruning.protocol import PrunedModel, PruningReport
from paser.settings import PruneSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "flap"
LEAST_TOKENS = 64


@dataclass
class Moments:
    """Mean of a layer's input and sum of squares about it, float64, shape (inputs); tokens seen."""

    mean: torch.Tensor
    squares: torch.Tensor
    tokens: int = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Takes in the inputs of one sample, shape (tokens, inputs)."""
        seen = self.tokens + len(inputs)
        mean = inputs.double().mean(dim=0)
        away = mean - self.mean
        self.squares += (inputs.double() - mean).pow(2).sum(dim=0)
        self.squares += away.pow(2) * self.tokens * len(inputs) / seen
        self.mean += away * len(inputs) / seen
        self.tokens = seen

    @property
    def variance(self) -> torch.Tensor:
        return self.squares / (self.tokens - 1)


def flap(
    model: PreTrainedModel, calibration: list[Encoded], settings: PruneSettings, seed: int
) -> PrunedModel:
    """Removes `settings.sparsity` of all blocks' parameters, in place; touched layers get a bias.

    The output projections of attention and feed-forward layer gain the bias W x for the mean x of what was
    removed. Every block keeps a key-value group and a channel. `seed` is not needed: nothing is random.

    Departures: heads go in whole key-value groups; units cost the parameters they really have, in place of a
    constant; the metric of attention is not squared before it is standardised (the paper does not, the
    authors' code does).
    """
    samples = usable(calibration, LEAST_TOKENS, "so that fluctuations about the mean can be estimated")
    blocks = blocks_of(model, NAME)
    if settings.sparsity > 0:
        _narrow(model, blocks, samples, settings.sparsity)
    describe(model, scheme=NAME)
    report = PruningReport(NAME, len(samples), sum(s.tokens for s in samples), shape_facts(blocks))
    return PrunedModel(model, report)


def _narrow(
    model: PreTrainedModel, blocks: Sequence[Block], samples: Sequence[Encoded], sparsity: float
) -> None:
    total = sum(block.parameters for block in blocks)
    most = sum(
        (block.groups - 1) * block.group_size + (block.channels - 1) * block.channel_size for block in blocks
    )
    if round(sparsity * total) > most:
        raise out_of_reach(NAME, sparsity, most / total, "each block keeps a key-value group and a channel")
    moments = _moments(model, blocks, samples)
    scores: dict[tuple[int, int], float] = {}
    costs, limits = {}, {}
    for place, block in enumerate(blocks):
        parts = ((block.attention.o_proj, block.groups), (block.mlp.down_proj, block.channels))
        for half, (layer, units) in enumerate(parts):
            key = 2 * place + half
            values = standardised(fluctuation(layer.weight, moments[layer].variance))
            values = values.view(units, -1).mean(dim=1)
            scores |= {(key, number): value for number, value in enumerate(values.tolist())}
            costs[key] = block.channel_size if half else block.group_size
            limits[key] = units - 1
    gone = cheapest(scores, costs, round(sparsity * total), limits)
    for place, block in enumerate(blocks):
        heads, channels = gone[2 * place], gone[2 * place + 1]
        if heads:
            width = block.group_width
            lost = [number * width + offset for number in heads for offset in range(width)]
            compensate(block.attention.o_proj, lost, moments[block.attention.o_proj].mean)
            block.keep_groups(others(block.groups, heads))
        if channels:
            compensate(block.mlp.down_proj, channels, moments[block.mlp.down_proj].mean)
            block.keep_channels(others(block.channels, channels))


def _moments(
    model: PreTrainedModel, blocks: Sequence[Block], samples: Sequence[Encoded]
) -> dict[Any, Moments]:
    import torch

    layers = [layer for block in blocks for layer in (block.attention.o_proj, block.mlp.down_proj)]
    moments = {
        layer: Moments(*torch.zeros(2, layer.in_features, dtype=torch.float64, device=layer.weight.device))
        for layer in layers
    }
    with seeing({layer: layer for layer in layers}, lambda layer, inputs: moments[layer].add(inputs)):
        run_through(model, samples, NAME)
    return moments


def fluctuation(weight: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """WIFV of each input: sample variance over tokens x squared norm of its column (An et al., equation 5).

    `weight`: (out, in); `variance` and result: (in).
    """
    return variance * weight.detach().double().pow(2).sum(dim=0)


def standardised(metric: torch.Tensor) -> torch.Tensor:
    """Mean 0 and standard deviation 1 over one layer; equal values stay 0."""
    import torch

    spread = metric.std()
    return torch.zeros_like(metric) if not spread > 0 else (metric - metric.mean()) / spread


def compensate(layer: torch.nn.Linear, lost: Sequence[int], mean: torch.Tensor) -> None:
    """Adds to the layer's bias what its inputs `lost` give on average; `mean`: (in)."""
    import torch

    weight = layer.weight.detach()
    bias = weight[:, list(lost)].double() @ mean[list(lost)]
    if layer.bias is not None:
        bias = bias + layer.bias.detach().double()
    layer.bias = torch.nn.Parameter(bias.to(weight.dtype), weight.requires_grad)
