"""GBLM-Pruner (Das et al. 2023, arXiv 2311.04902): Wanda's score, and beside it what the gradient says.

The score of a weight is |W| ||X||_2 + alpha |W| ||G||_2. Normalised as in the authors' code: ||X||^2 is
summed over tokens and divided by the number of samples; ||G|| is the square root of the squared
gradients summed over samples, where a sample's gradient is that of its mean loss a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from paser.errors import StageError
from paser.models.tokens import Encoded
from paser.progress import progress
from paser.pruning import masks
from paser.pruning.calibration import finite_inputs, token_ids, usable
from paser.pruning.compressor import ignored, mask_structure, oneshot, quiet
from paser.pruning.layers import check_blocks, linear_layers
from paser.pruning.protocol import PrunedModel, PruningReport
from paser.settings import GblmOptions, PruneSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LEAST_TOKENS = 16


def gblm(
    model: PreTrainedModel, calibration: list[Encoded], settings: PruneSettings, seed: int
) -> PrunedModel:
    """In each row of each linear layer the lowest scores become zero, in place.

    Gradients are those of the model before pruning; input norms are taken layer by layer with the layers
    before already pruned, by llm-compressor. No random choice.
    """
    alpha = settings.options_as(GblmOptions).alpha
    samples = usable(calibration, LEAST_TOKENS, "so that norm and gradient are more than one token's")
    layers = linear_layers(model)
    check_blocks(layers, settings)
    if settings.sparsity > 0:
        norms = gradient_norms(model, layers, samples)
        with quiet():
            oneshot(model, samples, _modifier(model, layers, norms, alpha, settings), "gblm")
    tokens = sum(sample.tokens for sample in samples)
    return PrunedModel(model, PruningReport("gblm", len(samples), tokens))


def scores(
    weight: torch.Tensor, input_norms: torch.Tensor, gradient: torch.Tensor, alpha: float
) -> torch.Tensor:
    """|W| (||X||_2 + alpha ||G||_2), float32, shape (out, in).

    `input_norms`: (in,), `gradient`: (out, in), both at least 0.
    """
    return weight.float().abs() * (input_norms[None] + alpha * gradient)


def gradient_norms(
    model: PreTrainedModel, layers: Mapping[str, torch.nn.Linear], samples: list[Encoded]
) -> dict[str, torch.Tensor]:
    """||G||_2 of each layer's weight over samples, float32, in the weight's shape.

    A weight's gradient is taken as soon as it is there and then freed, so that never two layers' gradients
    lie in memory. Raises `StageError` when one is not finite.
    """
    import torch

    squares = {name: torch.zeros_like(layer.weight, dtype=torch.float32) for name, layer in layers.items()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    handles = []

    def gather(name: str) -> Any:
        def take(weight: torch.Tensor) -> None:
            assert weight.grad is not None
            squares[name] += weight.grad.float() ** 2
            weight.grad = None

        return take

    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        for name, layer in layers.items():
            weight: Any = layer.weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(gather(name)))
        with progress("gradients", len(samples), "samples") as advance, finite_inputs(layers):
            for sample in samples:
                ids = token_ids(sample, model.device)
                if ids.shape[1] > 1:
                    _loss(model, ids).backward()  # type: ignore[no-untyped-call]
                advance()
    finally:
        for handle in handles:
            handle.remove()
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)
    for name, total in squares.items():
        if not bool(torch.isfinite(total).all()):
            raise StageError(
                f"the gradient of layer {name} is not finite in calibration",
                remedy="set model.precision: float32",
            )
    return {name: total.sqrt_() for name, total in squares.items()}


def _loss(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the next tokens of one sample, float32."""
    import torch

    called: Any = model
    logits = called(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:])


def _modifier(
    model: PreTrainedModel,
    layers: Mapping[str, torch.nn.Linear],
    norms: Mapping[str, torch.Tensor],
    alpha: float,
    settings: PruneSettings,
) -> Any:
    """llm-compressor's Wanda with another score; everything else of its sequential run is kept."""
    from llmcompressor.modifiers.pruning import WandaPruningModifier

    gradients = {layer: norms[name] for name, layer in layers.items()}

    class GblmPruningModifier(WandaPruningModifier):  # type: ignore[misc]
        def compress_modules(self) -> None:
            counted: Any = self._num_samples
            for layer in list(counted):
                inputs = self._row_scalars.pop(layer).sqrt()
                found = scores(layer.weight.detach(), inputs, gradients.pop(layer), alpha)
                masks.apply(layer, masks.kept(found, settings, rows=True))
                del counted[layer]

    return GblmPruningModifier(
        sparsity=settings.sparsity, mask_structure=mask_structure(settings), ignore=ignored(model)
    )
