"""Depth pruning (Gromov et al. 2024): the consecutive blocks that together turn the hidden states least go.

What is left is an ordinary model with fewer blocks, which plain transformers loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paser.errors import StageError
from paser.models.shapes import describe
from paser.models.tokens import Encoded
from paser.pruning.angles import Angles
from paser.pruning.calibration import usable
from paser.pruning.coupled import decoder_layers, run_through
from paser.pruning.protocol import PrunedModel, PruningReport
from paser.settings import DepthOptions, PruneSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "depth"
LEAST_TOKENS = 16


def depth(
    model: PreTrainedModel, calibration: list[Encoded], settings: PruneSettings, seed: int
) -> PrunedModel:
    """Drops the whole blocks nearest to `settings.sparsity` of all, in place.

    `seed` is not needed: there is no random choice. Departures: the last block always stays, as the paper
    advises for its simpler rule; the angle is a mean over all tokens, because the last token of a sample, at
    which the paper looks (option `tokens: last`), is here the end of a turn and no text.
    """
    samples = usable(calibration, LEAST_TOKENS, "so that an angle is more than one sentence's")
    options = settings.options_as(DepthOptions)
    layers = decoder_layers(model, NAME)
    count = round(settings.sparsity * len(layers))
    if settings.sparsity > 0 and not 1 <= count < len(layers):
        raise StageError(
            f"prune.sparsity is {settings.sparsity:.1%}, which of {len(layers)} blocks is {count}",
            remedy=f"depth drops 1 to {len(layers) - 1} whole blocks: set prune.sparsity to a multiple of "
            f"1/{len(layers)}",
        )
    dropped: list[int] = []
    facts: dict[str, Any] = {}
    if count:
        angles = Angles(model, span=count, last=options.tokens == "last")
        with angles.watching():
            run_through(model, samples, NAME)
        distances = angles.means()
        start = min(range(max(len(layers) - count, 1)), key=lambda first: (distances[first], first))
        dropped = list(range(start, start + count))
        drop_blocks(model, dropped)
        facts = {"angular_distance": [round(value, 6) for value in distances]}
    describe(model, scheme=NAME)
    facts["dropped_blocks"] = dropped
    return PrunedModel(model, PruningReport(NAME, len(samples), sum(s.tokens for s in samples), facts))


def drop_blocks(model: PreTrainedModel, dropped: list[int]) -> None:
    """Removes blocks by their number and numbers the others anew, as their key-value cache needs it."""
    import torch

    decoder: Any = model.base_model
    config: Any = model.config
    kept = [number for number in range(len(decoder.layers)) if number not in set(dropped)]
    decoder.layers = torch.nn.ModuleList([decoder.layers[number] for number in kept])
    for number, layer in enumerate(decoder.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
    config.num_hidden_layers = len(kept)
    for name in ("layer_types", "no_rope_layers"):
        if getattr(config, name, None):
            setattr(config, name, [getattr(config, name)[number] for number in kept])
