"""Which weights stay, from their scores: by row, by layer, or in N:M patterns.

Every mask is boolean in the shape of the scores, True where a weight stays. Equal scores are told apart
by position, so that a mask never depends on the order in which a sort leaves ties.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paser.settings import NM_PATTERNS, PruneSettings

if TYPE_CHECKING:
    import torch


def by_row(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """In each row the `int(columns * sparsity)` lowest scores go. `scores`: (out, in)."""
    import torch

    count = int(scores.shape[1] * sparsity)
    lowest = scores.float().argsort(dim=1, stable=True)[:, :count]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)


def by_layer(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """In the whole matrix the `int(elements * sparsity)` lowest scores go."""
    return by_row(scores.reshape(1, -1), sparsity).reshape(scores.shape)


def by_pattern(scores: torch.Tensor, kept: int, block: int) -> torch.Tensor:
    """Of each `block` neighbours along the input the `kept` highest scores stay. `scores`: (out, in)."""
    groups = scores.reshape(-1, block)
    return by_row(groups, (block - kept) / block).reshape(scores.shape)


def kept(scores: torch.Tensor, settings: PruneSettings, *, rows: bool) -> torch.Tensor:
    """The mask that the settings ask for: N:M, else by row (`rows`) or over the whole layer."""
    if settings.pattern in NM_PATTERNS:
        return by_pattern(scores, *NM_PATTERNS[settings.pattern])
    return by_row(scores, settings.sparsity) if rows else by_layer(scores, settings.sparsity)
