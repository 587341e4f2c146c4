"""Random pruning: the naive baseline that shows what a rule is worth.

Uniform, or with layer-wise ratios after Erdős and Rényi (Mocanu et al. 2018; Liu et al. 2022): a layer's
density is proportional to (inputs + outputs) / (inputs x outputs), so small layers keep more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from paser.artifacts import fingerprint
from paser.errors import StageError
from paser.models.tokens import Encoded
from paser.pruning import masks
from paser.pruning.layers import check_blocks, linear_layers
from paser.pruning.protocol import PrunedModel, PruningReport
from paser.settings import PruneSettings, RandomOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def random(
    model: PreTrainedModel, calibration: list[Encoded], settings: PruneSettings, seed: int
) -> PrunedModel:
    """Weights drawn at random become zero, in place; no calibration.

    Each layer draws from its own key of `seed` and its name, so that the draw of one does not depend on
    the others. Raises `StageError` for layer-wise ratios in an N:M pattern, which fixes the share.
    """
    import torch

    ratios = settings.options_as(RandomOptions).ratios
    layers = linear_layers(model)
    check_blocks(layers, settings)
    if ratios == "layerwise" and settings.pattern != "unstructured":
        raise StageError(
            f"prune.options.ratios is layerwise, but pattern {settings.pattern} fixes every layer's share",
            remedy="set prune.options.ratios: uniform, or prune.pattern: unstructured",
        )
    shares = layerwise(layers, settings.sparsity) if ratios == "layerwise" else {}
    for name, layer in layers.items():
        key = int(fingerprint(["random", seed, name])[:15], 16)
        scores = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(key))
        share = shares.get(name, settings.sparsity)
        scored = settings.model_copy(update={"sparsity": share})
        masks.apply(layer, masks.kept(scores, scored, rows=False))
    facts = {"lowest_share": min(shares.values()), "highest_share": max(shares.values())} if shares else {}
    return PrunedModel(model, PruningReport("random", 0, 0, facts))


def layerwise(layers: Mapping[str, torch.nn.Linear], sparsity: float) -> dict[str, float]:
    """The share of zeros of each layer, 0 .. 1, for `sparsity` overall.

    Density c (in + out) / (in x out), where c makes the densities add up; a layer whose density would pass
    1 stays dense and c is found again for the others.
    """
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    sums = {name: sum(layer.weight.shape) for name, layer in layers.items()}
    budget = (1 - sparsity) * sum(sizes.values())
    dense: set[str] = set()
    while True:
        rest = budget - sum(sizes[name] for name in dense)
        open_sums = sum(sums[name] for name in layers if name not in dense)
        factor = rest / open_sums if open_sums else 0.0
        over = {name for name in layers if name not in dense and factor * sums[name] > sizes[name]}
        if not over:
            break
        dense |= over
    return {name: 0.0 if name in dense else 1 - factor * sums[name] / sizes[name] for name in layers}
