"""How far decoder blocks turn the hidden states that pass through them.

A block that leaves their direction as it was does little; CFSP and depth pruning both start from that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Angles:
    """Mean angular distance between the input of block l and of block l + `span`, for every l it exists for.

    `last` looks at the last token of each sample alone, as Gromov et al. (2024) do.
    """

    def __init__(self, model: PreTrainedModel, span: int, *, last: bool = False) -> None:
        layers: Any = model.base_model.layers
        self.layers, self.span, self.last = layers, span, last
        self._sums = [0.0] * (len(layers) - span + 1)
        self._counts = [0] * len(self._sums)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While open, every pass of the model through its blocks counts."""
        states: list[torch.Tensor] = []

        def enter(_: Any, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
            entering = args[0] if args else kwargs["hidden_states"]
            states.append(self._chosen(entering))

        def leave(_: Any, __: Any, output: Any) -> None:
            states.append(self._chosen(output[0] if isinstance(output, tuple) else output))
            for first in range(len(self._sums)):
                found = angular_distance(states[first], states[first + self.span])
                self._sums[first] += float(found.sum())
                self._counts[first] += len(found)
            states.clear()

        handles = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in self.layers]
        handles.append(self.layers[-1].register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _chosen(self, hidden: torch.Tensor) -> torch.Tensor:
        tokens = hidden.detach().flatten(0, -2)
        return tokens[-1:] if self.last else tokens

    def means(self) -> list[float]:
        """A value 0 .. 1 for each l; 0 is the same direction, 1/2 a right angle."""
        return [total / count for total, count in zip(self._sums, self._counts, strict=True)]


def angular_distance(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """arccos(cosine) / pi of each token (Gromov et al. 2024, equation 5), float64; shapes (tokens, hidden).

    A token without a direction counts as a right angle.
    """
    import torch

    a, b = before.double(), after.double()
    cosine = (a * b).sum(dim=-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    return torch.arccos(cosine.nan_to_num(nan=0.0).clamp(-1.0, 1.0)) / math.pi
