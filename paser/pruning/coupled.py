"""What goes together when a decoder block gets narrower: heads with their key-value head, and channels.

Removing a row of one matrix only makes sense with the columns that read it: a key-value head with its query
heads and their part of the output projection, a channel of the feed-forward layer in all three matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paser.errors import StageError
from paser.models.tokens import Encoded
from paser.progress import progress
from paser.pruning.calibration import finite_inputs, token_ids
from paser.pruning.layers import linear_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Families whose blocks have q_proj, k_proj, v_proj, o_proj and gate_proj, up_proj, down_proj apart.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "granite", "smollm3")

Kept = Sequence[int]


@dataclass(frozen=True)
class Block:
    """A decoder block by its number, and what it is made of.

    A *group* is a key-value head with its query heads; a *channel* is one number between the matrices of the
    feed-forward layer.
    """

    number: int
    layer: Any

    @property
    def attention(self) -> Any:
        return self.layer.self_attn

    @property
    def mlp(self) -> Any:
        return self.layer.mlp

    @property
    def groups(self) -> int:
        return int(self.attention.k_proj.out_features) // int(self.attention.head_dim)

    @property
    def group_width(self) -> int:
        """Columns of the output projection that one group feeds."""
        return int(self.attention.o_proj.in_features) // self.groups

    @property
    def channels(self) -> int:
        return int(self.mlp.down_proj.in_features)

    @property
    def group_size(self) -> int:
        """Parameters that go with one group."""
        a = self.attention
        rows = sum(_parameters(each) for each in (a.q_proj, a.k_proj, a.v_proj))
        return (rows + int(a.o_proj.weight.numel())) // self.groups

    @property
    def channel_size(self) -> int:
        """Parameters that go with one channel."""
        rows = sum(_parameters(each) for each in (self.mlp.gate_proj, self.mlp.up_proj))
        return (rows + int(self.mlp.down_proj.weight.numel())) // self.channels

    @property
    def parameters(self) -> int:
        return sum(int(weight.numel()) for weight in self.layer.parameters())

    def keep_groups(self, kept: Kept) -> None:
        """Leaves the groups of these numbers, in their order."""
        a = self.attention
        narrow, wide = _positions(kept, int(a.head_dim)), _positions(kept, self.group_width)
        take(a.q_proj, rows=wide)
        take(a.k_proj, rows=narrow)
        take(a.v_proj, rows=narrow)
        take(a.o_proj, columns=wide)

    def keep_channels(self, kept: Kept) -> None:
        """Leaves the channels of these numbers, in their order."""
        take(self.mlp.gate_proj, rows=kept)
        take(self.mlp.up_proj, rows=kept)
        take(self.mlp.down_proj, columns=kept)
        if hasattr(self.mlp, "intermediate_size"):
            self.mlp.intermediate_size = len(kept)


def _parameters(layer: torch.nn.Linear) -> int:
    return sum(int(weight.numel()) for weight in layer.parameters())


def _positions(kept: Kept, width: int) -> list[int]:
    return [number * width + offset for number in kept for offset in range(width)]


def take(layer: torch.nn.Linear, *, rows: Kept | None = None, columns: Kept | None = None) -> None:
    """Leaves these rows (outputs, with their bias) and columns (inputs) of a linear layer."""
    import torch

    weight = layer.weight.detach()
    if rows is not None:
        chosen = torch.tensor(list(rows), device=weight.device)
        weight = weight[chosen]
        if layer.bias is not None:
            layer.bias = torch.nn.Parameter(layer.bias.detach()[chosen], layer.bias.requires_grad)
    if columns is not None:
        weight = weight[:, torch.tensor(list(columns), device=weight.device)]
    layer.weight = torch.nn.Parameter(weight.contiguous(), layer.weight.requires_grad)
    layer.out_features, layer.in_features = weight.shape


def decoder_layers(model: PreTrainedModel, scheme: str, families: Sequence[str] = FAMILIES) -> Any:
    """The list of decoder blocks; raises `StageError` for a family that `scheme` does not know."""
    family = str(model.config.model_type)
    layers = getattr(model.base_model, "layers", None)
    if family not in families or layers is None:
        raise StageError(
            f"{scheme} does not know the architecture {family} ({type(model).__name__}); "
            f"it prunes {', '.join(families)}",
            remedy="choose an unstructured prune.scheme, or prune the model with another tool and name it in "
            "prune.external",
        )
    return layers


def blocks_of(model: PreTrainedModel, scheme: str) -> list[Block]:
    """All decoder blocks; raises `StageError` for an architecture that `scheme` does not know."""
    return [Block(number, layer) for number, layer in enumerate(decoder_layers(model, scheme))]


def cheapest(
    scores: Mapping[tuple[int, int], float], costs: Mapping[int, int], budget: int, most: Mapping[int, int]
) -> dict[int, list[int]]:
    """Which units go, by block: the lowest scores first, as long as their cost comes nearer to `budget`.

    `scores`: of each unit (block, number); `costs`: parameters of one unit of a block; `most`: units that a
    block may lose. Ties go by block and number.
    """
    gone: dict[int, list[int]] = {block: [] for block in costs}
    spent = 0
    for _, block, number in sorted((score, *unit) for unit, score in scores.items()):
        if len(gone[block]) == most[block]:
            continue
        if spent + costs[block] / 2 > budget:
            continue
        gone[block].append(number)
        spent += costs[block]
    return {block: sorted(numbers) for block, numbers in gone.items()}


def others(count: int, gone: Kept) -> list[int]:
    """The numbers below `count` that are not in `gone`."""
    lost = set(gone)
    return [number for number in range(count) if number not in lost]


def run_through(model: PreTrainedModel, samples: Sequence[Encoded], title: str) -> None:
    """Each sample once through the decoder, without gradients; for hooks that look on.

    Raises `StageError` naming the layer whose input is not finite.
    """
    import torch

    device = model.get_input_embeddings().weight.device
    with (
        torch.inference_mode(),
        finite_inputs(linear_layers(model)),
        progress(title, len(samples), "samples") as advance,
    ):
        for sample in samples:
            model.base_model(input_ids=token_ids(sample, device), use_cache=False)
            advance()


@contextmanager
def seeing(layers: Mapping[Any, torch.nn.Module], look: Any) -> Iterator[None]:
    """While open, `look(key, input)` gets what enters each layer: float32, shape (tokens, width)."""

    def hook(key: Any) -> Any:
        def see(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            look(key, inputs[0].detach().flatten(0, -2).float())

        return see

    handles = [layer.register_forward_pre_hook(hook(key)) for key, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def shape_facts(blocks: Sequence[Block]) -> dict[str, Any]:
    """Key-value groups and channels that each block has, for a report."""
    return {
        "kept_groups": [block.groups for block in blocks],
        "kept_channels": [block.channels for block in blocks],
    }


def out_of_reach(scheme: str, wanted: float, most: float, what: str) -> StageError:
    """The share asked for is more than the scheme can remove."""
    return StageError(
        f"prune.sparsity is {wanted:.1%}, but {scheme} can remove at most {most:.1%} of the pruned blocks' "
        f"parameters: {what}",
        remedy=f"set prune.sparsity to at most {int(most * 100) / 100}",
    )
