"""What selectors read off a model's predictions of a response: loss, entropy and error, a mean a row.

Rows share forward passes where the model allows it, and none of them sees another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paser.models.packing import pack, packs, row_attention
from paser.models.passes import project
from paser.models.tokens import Encoded, SampleEncoder
from paser.recovery.batches import predicting_states
from paser.selectors.resources import Meter, Models

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

CAPACITY = 1024


@dataclass(frozen=True)
class Reading:
    """Means over the response tokens, each of shape (rows,), NaN for a row without a response.

    `loss`: negative log-likelihood, nats. `entropy` of the predictions, nats. `error`: the L2 norm of the
    predicted distribution minus the one-hot response token, 0 .. sqrt 2.
    """

    loss: np.ndarray
    entropy: np.ndarray
    error: np.ndarray


def read(model: PreTrainedModel, rows: Sequence[Encoded], meter: Meter) -> Reading:
    """One forward pass of `rows`, counted by `meter`."""
    import numpy as np
    import torch

    found = np.full((3, len(rows)), np.nan)
    able = [i for i, row in enumerate(rows) if row.prompt_ids and row.response_ids]
    capacity = max([CAPACITY, *(rows[i].tokens for i in able)])
    packed = packs(model, capacity)
    groups = pack([rows[i].tokens for i in able], capacity) if packed else [[p] for p in range(len(able))]
    meter.forward_tokens += sum(rows[i].tokens for i in able)
    with torch.inference_mode(), row_attention(model) if packed else contextlib.nullcontext():
        for group in groups:
            members = [able[p] for p in group]
            batch = [rows[i] for i in members]
            logits = project(model, predicting_states(model, batch, packed=packed, pad_id=0)).float()
            logs = torch.log_softmax(logits, dim=-1)
            share = logs.exp()
            labels = torch.tensor([t for row in batch for t in row.response_ids], device=logs.device)[:, None]
            chosen = logs.gather(1, labels)[:, 0]
            squares = (share**2).sum(-1) - 2 * chosen.exp() + 1
            lines = torch.stack([-chosen, -(share * logs).sum(-1), squares.clamp(min=0).sqrt()])
            parts = torch.split(lines, [len(row.response_ids) for row in batch], dim=1)
            for i, part in zip(members, parts, strict=True):
                found[:, i] = part.double().mean(dim=1).cpu().numpy()
    return Reading(*found)


def encoded(models: Models, encoder: SampleEncoder, positions: np.ndarray) -> list[Encoded]:
    """Rows of the pool at these positions, as `encoder` reads them."""
    return [encoder.encode(sample, models.max_tokens) for sample in models.samples(positions)]
