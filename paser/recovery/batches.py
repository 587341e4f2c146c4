"""Which rows share an optimiser step and a forward pass: steps in the order given, passes without padding.

A step has `batch_size` rows whatever the number of processes. Inside a step the order does not matter, so its
rows are packed: each pass takes as many as fit `micro_batch_size` times `max_tokens`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paser.models.packing import device_of, hidden_packed, pack
from paser.models.tokens import Encoded
from paser.settings import RecoverSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TrainingRow:
    """One row to train on, by its id; `weight` multiplies its share of the loss.

    `kept`: which response tokens count in the loss, one value each; None where all do.
    """

    row_id: str
    encoded: Encoded
    weight: float = 1.0
    kept: tuple[bool, ...] | None = None

    @property
    def counted(self) -> int:
        """Response tokens that count in the loss."""
        return len(self.encoded.response_ids) if self.kept is None else sum(self.kept)


@dataclass(frozen=True)
class Plan:
    """Optimiser steps of a run, from the number of rows and the settings.

    `warmup` below 2 is a share of all steps, else a number of steps.
    """

    rows: int
    batch: int
    epochs: int
    warmup: float

    @classmethod
    def of(cls, rows: int, settings: RecoverSettings) -> Plan:
        return cls(rows, settings.batch_size, settings.epochs, settings.warmup)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows / self.batch)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def warmup_steps(self) -> int:
        if self.warmup >= 2:
            return min(int(self.warmup), self.steps)
        return math.ceil(self.warmup * self.steps)

    def rows_done(self, step: int) -> int:
        """Rows seen after `step` optimiser steps."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        return epochs * self.rows + min(rest * self.batch, self.rows)


@dataclass(frozen=True)
class Portion:
    """What one process does in one optimiser step.

    `passes`: positions of rows, by forward pass; `tokens`: response tokens that count in the
    whole step, in all processes, by which the loss is divided.
    """

    passes: tuple[tuple[int, ...], ...]
    tokens: int


def portions(
    rows: Sequence[TrainingRow], settings: RecoverSettings, *, packed: bool, processes: int = 1
) -> list[Portion]:
    """The steps of one epoch in order, each as one portion a process.

    Row `len(rows)` stands for a row without a response, for a process that has nothing else in a step.
    """
    lengths = [row.encoded.tokens for row in rows]
    found = []
    for begin in range(0, len(rows), settings.batch_size):
        step = list(range(begin, min(begin + settings.batch_size, len(rows))))
        tokens = sum(rows[i].counted for i in step)
        for share in _dealt(step, lengths, processes):
            passes = _passes(share, lengths, settings, packed=packed) or [[len(rows)]]
            found.append(Portion(tuple(tuple(part) for part in passes), tokens))
    return found


def _dealt(step: list[int], lengths: Sequence[int], processes: int) -> list[list[int]]:
    """The rows of a step by process: each row, the longest first, to the process with the fewest tokens."""
    shares: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for i in sorted(step, key=lambda i: (-lengths[i], i)):
        least = loads.index(min(loads))
        shares[least].append(i)
        loads[least] += lengths[i]
    return [sorted(share) for share in shares]


def _passes(
    rows: list[int], lengths: Sequence[int], settings: RecoverSettings, *, packed: bool
) -> list[list[int]]:
    size = settings.micro_batch_size
    if not packed:
        ordered = sorted(rows, key=lambda i: (lengths[i], i))
        return [ordered[begin : begin + size] for begin in range(0, len(ordered), size)]
    groups = pack([lengths[i] for i in rows], size * settings.max_tokens)
    return [sorted(rows[p] for p in group) for group in groups]


def padding_share(passes: Sequence[Sequence[int]], lengths: Sequence[int], *, packed: bool) -> float:
    """Padding over all tokens that go through the model, 0 .. 1; lower is better."""
    used = computed = 0
    for rows in passes:
        sizes = [lengths[i] for i in rows]
        used += sum(sizes)
        computed += sum(sizes) if packed else len(sizes) * max(sizes)
    return 1 - used / computed


def predicting_states(
    model: PreTrainedModel, rows: Sequence[Encoded], *, packed: bool, pad_id: int
) -> torch.Tensor:
    """Last hidden states that predict the response tokens of `rows`, one after the other: (tokens, width).

    One forward pass; with `packed` under `row_attention`, else padded on the right.
    """
    import torch

    sequences = [row.prompt_ids + row.response_ids for row in rows]
    if packed:
        states = hidden_packed(model, sequences, sum(map(len, sequences)))
        wanted, begin = [], 0
        for row in rows:
            wanted.append(torch.arange(begin + len(row.prompt_ids) - 1, begin + row.tokens - 1))
            begin += row.tokens
        return states[torch.cat(wanted).to(states.device)]
    inputs = padded(sequences, pad_id)
    device = device_of(model.get_input_embeddings())
    anything: Any = model
    states = anything.base_model(
        **{name: tensor.to(device) for name, tensor in inputs.items()}, use_cache=False
    ).last_hidden_state
    parts = [states[i, len(row.prompt_ids) - 1 : row.tokens - 1] for i, row in enumerate(rows)]
    return torch.cat(parts)


def padded(sequences: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, both (rows, longest), padded on the right."""
    import torch

    shape = (len(sequences), max(map(len, sequences)))
    ids = torch.full(shape, pad_id, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    for index, sequence in enumerate(sequences):
        ids[index, : len(sequence)] = torch.tensor(sequence)
        mask[index, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}
