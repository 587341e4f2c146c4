"""Rows packed into one sequence of fixed length, without padding and without sight of each other.

Floating-point products round differently when a matrix has another shape, so a row's score would
depend on which rows share its batch. Here every forward pass has the same shape, and attention is computed
for each row apart: a row's hidden states are the same bits wherever and beside whichever rows it stands.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_NAME = "paser_rows"
# Largest relative difference of a token's hidden state between a packed row and the row alone: many times
# what bfloat16 rounds away.
_TOLERANCE = 0.25
_PROBE = (5, 11)

Tokens = Sequence[int]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Positions grouped so that the lengths of a group add up to at most `capacity`.

    Best fit, longest first, ties by position. A length above `capacity` is a ValueError.
    """
    groups: list[list[int]] = []
    room: list[tuple[int, int]] = []
    shortest = min(lengths, default=0)
    for position in sorted(range(len(lengths)), key=lambda p: (-lengths[p], p)):
        length = lengths[position]
        if length > capacity:
            raise ValueError(f"a row of {length} tokens does not fit {capacity}")
        found = bisect.bisect_left(room, (length, -1))
        if found < len(room):
            left, group = room.pop(found)
        else:
            left, group = capacity, len(groups)
            groups.append([])
        groups[group].append(position)
        if left - length >= shortest:
            bisect.insort(room, (left - length, group))
    return groups


def packs(model: PreTrainedModel, capacity: int) -> bool:
    """Whether packed rows give this model the hidden states that the rows have alone.

    It is tried on short rows: a row must keep its bits when the row before it changes, and (to a tolerance on
    a GPU, whose kernels may divide the same product in different ways) when it changes places. A model with
    a state that runs along the sequence, or with positions of its own counting, fails and is run row by row.
    So is one whose attention looks back less far than `capacity`, because short rows do not show that.
    """
    import torch

    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if model.config._attn_implementation != "sdpa" or any(w and w < capacity for w in windows):
        return False
    if sum(_PROBE) > capacity:
        return False
    first, row = ([(7 * i + 3 * n) % int(config.vocab_size) for i in range(1, n + 1)] for n in _PROBE)
    with torch.inference_mode():
        try:
            with row_attention(model):
                behind = hidden_packed(model, [first, row], capacity)[-len(row) :]
                behind_another = hidden_packed(model, [first[::-1], row], capacity)[-len(row) :]
                ahead = hidden_packed(model, [row, first], capacity)[: len(row)]
        except (TypeError, ValueError, RuntimeError):  # it takes no position ids, or passes nothing on
            return False
        alone = hidden_alone(model, row)
    placed = torch.equal(behind, ahead) or (behind.is_cuda and _distance(behind, ahead) < _TOLERANCE)
    return torch.equal(behind, behind_another) and placed and _distance(behind, alone) < _TOLERANCE


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest relative difference of a token's hidden state."""
    difference = (found.double() - expected.double()).norm(dim=-1) / expected.double().norm(dim=-1)
    return float(difference.max())


def hidden_alone(model: PreTrainedModel, row: Tokens) -> torch.Tensor:
    """Last hidden states of one row, shape (tokens, width)."""
    import torch

    ids = torch.tensor([list(row)], device=device_of(model.get_input_embeddings()))
    states: torch.Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    return states


def hidden_packed(model: PreTrainedModel, rows: Sequence[Tokens], capacity: int) -> torch.Tensor:
    """Last hidden states of all rows, one after the other, shape (tokens, width), under `row_attention`."""
    import torch

    ids = torch.zeros(1, capacity, dtype=torch.long)
    positions = torch.zeros_like(ids)
    lengths = [len(row) for row in rows]
    size = sum(lengths)
    ids[0, :size] = torch.tensor([token for row in rows for token in row])
    positions[0, :size] = torch.cat([torch.arange(length) for length in lengths])
    device = device_of(model.get_input_embeddings())
    states: torch.Tensor = model.base_model(
        input_ids=ids.to(device), position_ids=positions.to(device), row_lengths=lengths, use_cache=False
    ).last_hidden_state
    return states[0, :size]


@contextlib.contextmanager
def row_attention(*models: PreTrainedModel) -> Iterator[None]:
    """Within it, these models' attention stays inside each row of `hidden_packed`."""
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _attention)
    before = [model.config._attn_implementation for model in models]
    try:
        for model in models:
            model.set_attn_implementation(_NAME)
        yield
    finally:
        for model, implementation in zip(models, before, strict=True):
            model.set_attn_implementation(implementation)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_lengths: Sequence[int],
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers' `sdpa` attention does, for each row apart; behind the last row stands zero."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if position_bias is not None:
        raise ValueError("a position bias belongs to the whole sequence")
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    lengths = [*row_lengths, query.shape[2] - sum(row_lengths)]
    *rows, rest = zip(*(torch.split(each, lengths, dim=2) for each in (query, key, value)), strict=True)
    parts = [
        scaled_dot_product_attention(
            q, k, v, scale=scaling, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
        ).transpose(1, 2)
        for q, k, v in rows
    ]
    heads, width = query.shape[1], value.shape[3]
    return torch.cat([*parts, query.new_zeros(len(query), rest[0].shape[2], heads, width)], dim=1), None


def device_of(module: torch.nn.Module) -> torch.device:
    """Where a module computes, also when accelerate keeps its weights elsewhere meanwhile."""
    import torch

    there = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return next(module.parameters()).device if there is None else torch.device(there)
