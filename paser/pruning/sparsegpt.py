"""SparseGPT (Frantar & Alistarh 2023): weights go where the layer's output suffers least, and the weights
that stay are changed to make up for it.

llm-compressor does the work, layer by layer. The second moments of a layer's inputs take the place of
the Hessian of its squared output error; they need as many calibration tokens as the layer has inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paser.models.tokens import Encoded
from paser.pruning.calibration import usable
from paser.pruning.compressor import ignored, mask_structure, oneshot, quiet
from paser.pruning.layers import check_blocks, linear_layers
from paser.pruning.protocol import PrunedModel, PruningReport
from paser.settings import PruneSettings, SparseGptOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def sparsegpt(
    model: PreTrainedModel, calibration: list[Encoded], settings: PruneSettings, seed: int
) -> PrunedModel:
    """Prunes every linear layer but the vocabulary projection to `settings.sparsity`, in place.

    `model` must have been loaded from a folder. `seed` is not needed: SparseGPT makes no random choice.
    """
    options = settings.options_as(SparseGptOptions)
    layers = linear_layers(model)
    check_blocks(layers, settings)
    widest = max(layers, key=lambda name: layers[name].in_features)
    inputs = layers[widest].in_features
    samples = usable(calibration, inputs, f"because layer {widest} has {inputs} inputs to tell apart")
    if settings.sparsity > 0:
        with quiet():
            from llmcompressor.modifiers.pruning import SparseGPTModifier

            modifier = SparseGPTModifier(
                sparsity=settings.sparsity,
                mask_structure=mask_structure(settings),
                block_size=options.block_size,
                dampening_frac=options.dampening,
                ignore=ignored(model),
            )
            oneshot(model, samples, modifier, "sparsegpt")
    tokens = sum(sample.tokens for sample in samples)
    return PrunedModel(model, PruningReport("sparsegpt", len(samples), tokens))
