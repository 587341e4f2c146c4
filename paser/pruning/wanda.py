"""Wanda (Sun et al. 2023): weights with the smallest |weight| x input norm of each output become zero.

llm-compressor does the work, layer by layer, each layer calibrated on the pruned ones before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paser.models.tokens import Encoded
from paser.pruning.calibration import usable
from paser.pruning.compressor import ignored, mask_structure, oneshot, quiet
from paser.pruning.layers import check_blocks, linear_layers
from paser.pruning.protocol import PrunedModel, PruningReport
from paser.settings import PruneSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST_TOKENS = 16


def wanda(
    model: PreTrainedModel, calibration: list[Encoded], settings: PruneSettings, seed: int
) -> PrunedModel:
    """Prunes every linear layer but the vocabulary projection to `settings.sparsity`, in place.

    `model` must have been loaded from a folder. `seed` is not needed: Wanda makes no random choice.
    """
    samples = usable(calibration, LEAST_TOKENS, "so that the norm of an input is more than one token's")
    check_blocks(linear_layers(model), settings)
    if settings.sparsity > 0:
        with quiet():
            from llmcompressor.modifiers.pruning import WandaPruningModifier

            modifier = WandaPruningModifier(
                sparsity=settings.sparsity, mask_structure=mask_structure(settings), ignore=ignored(model)
            )
            oneshot(model, samples, modifier, "wanda")
    return PrunedModel(model, PruningReport("wanda", len(samples), sum(sample.tokens for sample in samples)))
