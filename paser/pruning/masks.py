"""Which weights stay, from their scores: by row, by layer, or in N:M patterns.

Every mask is boolean in the shape of the scores, True where a weight stays. Equal scores are told apart
by position, so that a mask never depends on the order in which a sort leaves ties.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paser.settings import NM_PATTERNS, PruneSettings

if TYPE_CHECKING:
    import torch


def lowest_go(scores: torch.Tensor, count: int) -> torch.Tensor:
    """In each row of `scores`, shape (rows, columns), the `count` lowest go."""
    import torch

    lowest = scores.float().argsort(dim=1, stable=True)[:, :count]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)


def by_row(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """In each row the `int(columns * sparsity)` lowest scores go. `scores`: (out, in)."""
    return lowest_go(scores, int(scores.shape[1] * sparsity))


def by_layer(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """In the whole matrix the `int(elements * sparsity)` lowest scores go."""
    return lowest_go(scores.reshape(1, -1), int(scores.numel() * sparsity)).reshape(scores.shape)


def by_pattern(scores: torch.Tensor, kept: int, block: int) -> torch.Tensor:
    """Of each `block` neighbours along the input the `kept` highest scores stay. `scores`: (out, in)."""
    return lowest_go(scores.reshape(-1, block), block - kept).reshape(scores.shape)


def kept(scores: torch.Tensor, settings: PruneSettings, *, rows: bool) -> torch.Tensor:
    """The mask that the settings ask for: N:M, else by row (`rows`) or over the whole layer."""
    if settings.pattern in NM_PATTERNS:
        return by_pattern(scores, *NM_PATTERNS[settings.pattern])
    return by_row(scores, settings.sparsity) if rows else by_layer(scores, settings.sparsity)


def apply(layer: torch.nn.Linear, stays: torch.Tensor) -> None:
    """Writes zeros into the layer's weight where `stays` (any shape of as many elements) is False."""
    import torch

    gone = ~stays.reshape(layer.weight.shape).to(layer.weight.device)
    with torch.no_grad():
        layer.weight.masked_fill_(gone, 0.0)
