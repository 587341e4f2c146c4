"""Token pruning of Q-Tuning (Wang et al. 2025, arXiv 2509.23873): which response tokens count in the loss.

Of a row that the model gets wrong with confidence, a *misconception*, the tokens hardest for it are taken for
noise. Unlike the paper's, they stay in the context, and all is decided once, before training.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from paser.models.packing import packs, row_attention
from paser.models.tokens import Encoded
from paser.progress import progress
from paser.recovery.batches import TrainingRow, portions, predicting_states
from paser.settings import RecoverSettings, TokenPruningSettings

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Predictions:
    """A model's predictions of one row's response, in nats, each of shape (response tokens,)."""

    loss: np.ndarray
    entropy: np.ndarray


def token_pruned(
    model: PreTrainedModel, rows: Sequence[TrainingRow], settings: RecoverSettings, *, pad_id: int
) -> list[TrainingRow]:
    """`rows` in their order, the misconceptions among them with the tokens that `model` leaves them.

    Rows without prompt or response are left as they are.
    """
    able = [i for i, row in enumerate(rows) if row.encoded.prompt_ids and row.encoded.response_ids]
    if not able:
        return list(rows)
    found = predictions(model, [rows[i] for i in able], settings, pad_id=pad_id)
    pruned = list(rows)
    for i, row, wrong in zip(able, found, misconceptions(found), strict=True):
        if wrong:
            pruned[i] = replace(rows[i], kept=kept_tokens(row.loss, settings.token_pruning))
    return pruned


def misconceptions(rows: Sequence[Predictions]) -> list[bool]:
    """Which rows have a mean loss above the median of the rows and a mean entropy below it."""
    import numpy as np

    loss, entropy = (np.array([getattr(row, name).mean() for row in rows]) for name in ("loss", "entropy"))
    wrong: list[bool] = ((loss > np.median(loss)) & (entropy < np.median(entropy))).tolist()
    return wrong


def kept_tokens(loss: np.ndarray, options: TokenPruningSettings) -> tuple[bool, ...]:
    """Which tokens of a misconception count: all but the floor(share x tokens) with the highest

        s_i = (1 - neighbours) ppl_i + neighbours (ppl_{i-1} + ppl_{i+1}) / 2,    ppl_i = exp(loss_i),

    ties to the earlier. At the ends the one neighbour stands for both, and one token alone for its own. As
    `share` is below 1, one token at least is kept.
    """
    import numpy as np

    ppl = np.exp(loss - loss.max())  # over the highest, which keeps the order and cannot overflow
    beside = np.pad(ppl, 1, mode="reflect")
    score = (1 - options.neighbours) * ppl + options.neighbours * (beside[:-2] + beside[2:]) / 2
    kept = np.ones(len(loss), dtype=bool)
    kept[np.argsort(-score, kind="stable")[: math.floor(options.share * len(loss))]] = False
    return tuple(kept.tolist())


def predictions(
    model: PreTrainedModel, rows: Sequence[TrainingRow], settings: RecoverSettings, *, pad_id: int
) -> list[Predictions]:
    """What training would count, from one reading of `rows`, in passes as large as those of training."""
    import torch

    packed = settings.packing and packs(model, max(row.encoded.tokens for row in rows))
    found: dict[int, Predictions] = {}
    with (
        torch.inference_mode(),
        row_attention(model) if packed else contextlib.nullcontext(),
        progress("token pruning", len(rows), "rows") as advance,
    ):
        for portion in portions(rows, settings, packed=packed):
            for numbers in portion.passes:
                batch = [rows[i].encoded for i in numbers]
                found.update(zip(numbers, _read(model, batch, packed=packed, pad_id=pad_id), strict=True))
                advance(len(numbers))
    return [found[i] for i in range(len(rows))]


def _read(
    model: PreTrainedModel, batch: Sequence[Encoded], *, packed: bool, pad_id: int
) -> list[Predictions]:
    import torch

    anything: Any = model
    states = predicting_states(model, batch, packed=packed, pad_id=pad_id)
    logits = anything.get_output_embeddings()(states).float()
    logs = torch.log_softmax(logits, dim=-1)
    labels = torch.tensor([t for row in batch for t in row.response_ids], device=logs.device)
    loss = -logs.gather(1, labels[:, None])[:, 0]
    lines = torch.stack([loss, torch.special.entr(logs.exp()).sum(dim=-1)]).double().cpu()
    parts = torch.split(lines, [len(row.response_ids) for row in batch], dim=1)
    return [Predictions(*part.numpy()) for part in parts]
