"""The linear layers that unstructured schemes prune: all but the vocabulary projection.

A model whose matrices lie elsewhere (fused experts, transposed convolutions) is refused rather than
half pruned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paser.errors import StageError
from paser.settings import NM_PATTERNS, PruneSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Least share of a model's matrix weights, embeddings and vocabulary projection apart, in linear layers.
REACHED = 0.9


def linear_layers(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """The prunable linear layers by name, in the order of the forward pass as far as modules show it.

    Raises `StageError` when less than `REACHED` of the weights in matrices are in such layers.
    """
    import torch

    apart: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not any(module is other for other in apart)
    }
    ours = {id(layer.weight) for layer in layers.values()}
    apart += [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    skipped = {id(p) for module in apart if module is not None for p in module.parameters()}
    matrices = [(n, p) for n, p in model.named_parameters() if p.dim() >= 2 and id(p) not in skipped]
    missed = [(name, weight) for name, weight in matrices if id(weight) not in ours]
    total = sum(weight.numel() for _, weight in matrices)
    if not layers or sum(weight.numel() for _, weight in missed) > (1 - REACHED) * total:
        largest = max(missed, key=lambda named: named[1].numel(), default=("no matrix", None))[0]
        raise StageError(
            f"{type(model).__name__} keeps most of its weights outside of linear layers, as {largest}",
            remedy="this scheme prunes torch.nn.Linear only; prune the model with another tool and name "
            "it in prune.external",
        )
    return layers


def other_linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers that are not pruned: the vocabulary projection, whatever it is called."""
    import torch

    ours = linear_layers(model)
    return [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n not in ours]


def check_blocks(layers: dict[str, torch.nn.Linear], settings: PruneSettings) -> None:
    """Raises `StageError` when an N:M pattern does not divide the inputs of a layer."""
    if settings.pattern not in NM_PATTERNS:
        return
    block = NM_PATTERNS[settings.pattern][1]
    for name, layer in layers.items():
        if layer.in_features % block:
            raise StageError(
                f"prune.pattern {settings.pattern} does not fit layer {name}: "
                f"{layer.in_features} inputs are no multiple of {block}",
                remedy="set prune.pattern: unstructured",
            )
