"""CFSP (Wang et al. 2024): blocks that turn their input most keep most; within a block, activations decide.

Coarse: how far a block turns the hidden states gives it its share of the channels. Fine: a channel's
relative weight in the three matrices of the feed-forward layer, times the size of its activation. One pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from paser.models.shapes import describe
from paser.models.tokens import Encoded
from paser.pruning.angles import Angles
from paser.pruning.calibration import usable
from paser.pruning.coupled import Block, blocks_of, others, out_of_reach, run_through, seeing, shape_facts
from paser.pruning.protocol import PrunedModel, PruningReport
from paser.settings import CfspOptions, PruneSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "cfsp"
LEAST_TOKENS = 64


def cfsp(
    model: PreTrainedModel, calibration: list[Encoded], settings: PruneSettings, seed: int
) -> PrunedModel:
    """Removes `settings.sparsity` of all blocks' parameters, in place, from feed-forward layers only.

    `seed` is not needed: there is no random choice.

    Departures: widths are not rounded to multiples of 128 (option `multiple`); the angular distance is a mean
    a token, scaled by what the authors' sum over 131,072 tokens comes to, so that it does not depend on
    the calibration's size; weights are relative to the other channels of the same hidden dimension (the
    authors' code divides by a channel's own sum, which cancels the weights); every block keeps a channel.
    """
    samples = usable(calibration, LEAST_TOKENS, "so that activations are more than one sentence's")
    options = settings.options_as(CfspOptions)
    blocks = blocks_of(model, NAME)
    facts: dict[str, list[float]] = {}
    if settings.sparsity > 0:
        facts = _narrow(model, blocks, samples, settings.sparsity, options)
    describe(model, scheme=NAME)
    all_facts = facts | shape_facts(blocks)
    return PrunedModel(model, PruningReport(NAME, len(samples), sum(s.tokens for s in samples), all_facts))


def _narrow(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    samples: Sequence[Encoded],
    sparsity: float,
    options: CfspOptions,
) -> dict[str, list[float]]:
    import torch

    total = sum(block.parameters for block in blocks)
    feed_forward = sum(block.channels * block.channel_size for block in blocks)
    most = sum((block.channels - 1) * block.channel_size for block in blocks)
    if round(sparsity * total) > most:
        raise out_of_reach(NAME, sparsity, most / total, "only feed-forward layers are pruned")
    device = blocks[0].mlp.down_proj.weight.device
    squares = {
        block.number: torch.zeros(block.channels, dtype=torch.float64, device=device) for block in blocks
    }

    def look(number: int, inputs: torch.Tensor) -> None:
        squares[number] += inputs.double().pow(2).sum(dim=0)

    angles = Angles(model, span=1)
    with angles.watching(), seeing({block.number: block.mlp.down_proj for block in blocks}, look):
        run_through(model, samples, NAME)
    distances = angles.means()
    tokens = sum(sample.tokens for sample in samples)
    kept = kept_shares(distances, 1 - sparsity * total / feed_forward, options.slope)
    for block, share in zip(blocks, kept, strict=True):
        step = options.multiple
        count = min(max(round(share * block.channels / step), 1) * step, block.channels)
        norms = (squares[block.number] / tokens).sqrt()
        mlp = block.mlp
        scores = channel_scores(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight, norms)
        order = scores.argsort(stable=True).tolist()
        block.keep_channels(others(block.channels, order[: block.channels - count]))
    return {"angular_distance": [round(value, 6) for value in distances]}


def kept_shares(distances: Sequence[float], mean_kept: float, slope: float) -> list[float]:
    """Share of its channels that each block keeps, 0 .. 1; their mean is `mean_kept`.

    Proportional to a sigmoid of the block's angular distance less the mean one (Wang et al., section 3.2);
    drawn together where the highest would exceed 1.
    """
    centre = sum(distances) / len(distances)
    weights = [1 / (1 + math.exp(-slope * (value - centre))) for value in distances]
    average = sum(weights) / len(weights)
    shares = [mean_kept * weight / average for weight in weights]
    highest = max(shares)
    if highest > 1:
        pull = (1 - mean_kept) / (highest - mean_kept)
        shares = [mean_kept + pull * (share - mean_kept) for share in shares]
    return shares


def channel_scores(
    gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, norms: torch.Tensor
) -> torch.Tensor:
    """Score of each channel, float64, shape (channels).

    For channel j with activation norm a_j: a_j times the mean over hidden dimensions i of the channel's
    shares of |down_ij| a_j, |up_ji| and |gate_ji| among all channels. `gate`, `up`: (channels, hidden);
    `down`: (hidden, channels); `norms`: (channels).
    """
    weighted = down.detach().double().abs() * norms
    parts = [weighted, up.detach().double().abs().t(), gate.detach().double().abs().t()]
    relative = sum(part / part.sum(dim=1, keepdim=True).clamp_min(1e-300) for part in parts)
    scores: torch.Tensor = (relative * norms).mean(dim=0)
    return scores
