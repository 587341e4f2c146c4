"""LLM-Pruner (Ma et al. 2023): coupled structures whose removal would change the loss least are removed.

Importance is first order: a weight's is |dL/dw * w|, a structure's the sum over all its weights. The first
and last blocks are spared. torch-pruning finds the coupled structures of the feed-forward layer on the pinned
transformers, but its search does not end on grouped-query attention; so the groups are our own (`coupled`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paser.errors import StageError
from paser.models.shapes import describe
from paser.models.tokens import Encoded
from paser.progress import progress
from paser.pruning.calibration import finite_inputs, token_ids, usable
from paser.pruning.coupled import Block, blocks_of, cheapest, others, out_of_reach, shape_facts
from paser.pruning.layers import linear_layers
from paser.pruning.protocol import PrunedModel, PruningReport
from paser.settings import LlmPrunerOptions, PruneSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "llm-pruner"
LEAST_TOKENS = 64
# Shares of the blocks that the paper spares at either end of LLaMA-7B: 4 and 2 of 32.
SPARED_FIRST, SPARED_LAST = 4 / 32, 2 / 32


def llm_pruner(
    model: PreTrainedModel, calibration: list[Encoded], settings: PruneSettings, seed: int
) -> PrunedModel:
    """Removes `settings.sparsity` of the parameters of the blocks that are not spared, in place.

    Heads go in whole key-value groups, the least important of all pruned blocks first, because in one block a
    quarter of three groups is none; every block keeps one. Channels make up the rest, equally many a block,
    so each block loses its least important ones. Where every channel but one a block would not be enough,
    more groups go. `seed` is not needed: there is no random choice.

    Departures: the loss is averaged over all calibration samples in place of ten, and groups are ranked
    over blocks.
    """
    samples = usable(calibration, LEAST_TOKENS, "so that gradients are more than one sentence's")
    samples = [sample for sample in samples if sample.tokens > 1]
    options = settings.options_as(LlmPrunerOptions)
    blocks = blocks_of(model, NAME)
    chosen = pruned_range(len(blocks), options)
    pruned = [blocks[number] for number in chosen]
    facts: dict[str, Any] = {"blocks": chosen}
    if settings.sparsity > 0:
        facts |= _narrow(model, pruned, samples, settings.sparsity)
    describe(model, scheme=NAME)
    facts |= shape_facts(blocks)
    return PrunedModel(model, PruningReport(NAME, len(samples), sum(s.tokens for s in samples), facts))


def pruned_range(count: int, options: LlmPrunerOptions) -> list[int]:
    """Numbers of the blocks that are pruned, of `count`; raises `StageError` when none is left."""
    first = round(count * SPARED_FIRST) if options.spare_first == "auto" else options.spare_first
    last = round(count * SPARED_LAST) if options.spare_last == "auto" else options.spare_last
    if first + last >= count:
        raise StageError(
            f"prune.options spare {first} and {last} blocks of a model that has {count}",
            remedy="lower spare_first or spare_last",
        )
    return list(range(first, count - last))


def _narrow(
    model: PreTrainedModel, pruned: Sequence[Block], samples: Sequence[Encoded], sparsity: float
) -> dict[str, Any]:
    total = sum(block.parameters for block in pruned)
    attention = sum(block.groups * block.group_size for block in pruned)
    feed_forward = sum(block.channels * block.channel_size for block in pruned)
    target = round(sparsity * total)
    most_groups = {block.number: block.groups - 1 for block in pruned}
    sizes = {block.number: block.group_size for block in pruned}
    most = sum(most_groups[b.number] * b.group_size + (b.channels - 1) * b.channel_size for b in pruned)
    if target > most:
        raise out_of_reach(NAME, sparsity, most / total, "each block keeps a key-value group and a channel")

    most_channels = sum((block.channels - 1) * block.channel_size for block in pruned)
    needed = target - most_channels
    budget = round(sparsity * attention)
    if needed > 0:
        budget = max(budget, needed + max(sizes.values()) // 2 + 1)  # it is met to half a group
    of_groups, of_channels = importance(model, pruned, samples)
    gone = cheapest(of_groups, sizes, budget, most_groups)
    lost_attention = sum(len(numbers) * sizes[number] for number, numbers in gone.items())
    share = max((target - lost_attention) / feed_forward, 0.0)
    lost_channels = 0
    for block in pruned:
        count = min(round(share * block.channels), block.channels - 1)
        order = of_channels[block.number].argsort(stable=True).tolist()
        lost_channels += count * block.channel_size
        block.keep_channels(others(block.channels, order[:count]))
        if gone[block.number]:
            block.keep_groups(others(block.groups, gone[block.number]))
    return {
        "removed_from_attention": round(lost_attention / attention, 6),
        "removed_from_feed_forward": round(lost_channels / feed_forward, 6),
        "groups_removed": sum(len(numbers) for numbers in gone.values()),
    }


def importance(
    model: PreTrainedModel, blocks: Sequence[Block], samples: Sequence[Encoded]
) -> tuple[dict[tuple[int, int], float], dict[int, torch.Tensor]]:
    """Importance of each group (block, number), and of each block's channels, shape (channels).

    Sums of |w dL/dw| over the structure's weights (Ma et al., equation 5 to first order), in nats; the loss
    is the mean over samples of the mean over their tokens.
    """
    import torch

    products = _products(model, blocks, samples)
    groups: dict[tuple[int, int], float] = {}
    channels = {}
    for block in blocks:
        a, m = block.attention, block.mlp
        parts = [products[each].sum(dim=1) for each in (a.q_proj, a.k_proj, a.v_proj)]
        parts.append(products[a.o_proj].sum(dim=0))
        of_group = torch.stack([part.view(block.groups, -1).sum(dim=1) for part in parts]).sum(dim=0)
        groups |= {(block.number, number): float(value) for number, value in enumerate(of_group)}
        read = products[m.gate_proj].sum(dim=1) + products[m.up_proj].sum(dim=1)
        channels[block.number] = read + products[m.down_proj].sum(dim=0)
    return groups, channels


def _products(
    model: PreTrainedModel, blocks: Sequence[Block], samples: Sequence[Encoded]
) -> dict[Any, torch.Tensor]:
    """|w dL/dw| of each linear layer of the blocks, float32; gradients are summed in float32."""
    import torch

    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    layers = [getattr(block.attention, name) for block in blocks for name in names]
    layers += [getattr(block.mlp, name) for block in blocks for name in ("gate_proj", "up_proj", "down_proj")]
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    sums = {layer: torch.zeros_like(layer.weight, dtype=torch.float32) for layer in layers}
    anything: Any = model
    try:
        model.requires_grad_(False)
        for layer in layers:
            layer.weight.requires_grad_(True)
        device = model.get_input_embeddings().weight.device
        with finite_inputs(linear_layers(model)), progress(NAME, len(samples), "samples") as advance:
            for sample in samples:
                ids = token_ids(sample, device)
                loss = anything(input_ids=ids, labels=ids, use_cache=False).loss
                grads = torch.autograd.grad(loss, [layer.weight for layer in layers])
                for layer, grad in zip(layers, grads, strict=True):
                    sums[layer] += grad.float() / len(samples)
                advance()
    finally:
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)
    for layer, total in sums.items():
        if not bool(torch.isfinite(total).all()):
            raise StageError(
                "the gradients of the calibration loss are not finite",
                remedy="set model.precision: float32; if it stays, the model or its weights are broken",
            )
        total.mul_(layer.weight.detach().float()).abs_()
    return sums
