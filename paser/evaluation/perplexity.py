"""Perplexity of a text under a causal language model, with every choice of the protocol spelled out.

By default the protocol of the pruning literature (GPTQ, SparseGPT, Wanda): the text is tokenised once as a
whole and cut into windows of the model's context, which do not overlap; each token but a window's
first is predicted from those before it in its window.
"""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paser.errors import ModelError, SourceError
from paser.progress import progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Positions in one vocabulary projection, and tokens in one forward pass of shorter windows.
CHUNK = 256
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Perplexity:
    """`value` = exp(`loss`), where `loss` is the mean negative log-likelihood of `tokens` tokens, in nats.

    `protocol` says in one line how it was measured; two values compare only under the same one.
    """

    value: float
    loss: float
    tokens: int
    windows: int
    protocol: str


def corpus_text(path: Path) -> str:
    """A text file, or one packed with gzip, as it stands: its lines stay joined by their line ends."""
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist", remedy="name a text file") from error
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise SourceError(f"{path} is no UTF-8 text: {error}", remedy="name a text file") from error


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    context: int,
    stride: int | None = None,
    windows: int | None = None,
) -> Perplexity:
    """Perplexity of `text` in windows of `context` tokens that begin `stride` tokens apart.

    Without `stride` the windows do not overlap. With a smaller one each window after the first counts only
    its last `stride` tokens, which then see at least `context - stride` tokens before them. What is left
    at the end and fills no window is not counted; `windows` limits the measurement to the first ones.
    A tokenizer that begins texts with a special token does so once, at the beginning of the whole.
    Log-likelihoods are float32, their sum is float64. Raises `ModelError` when the text is shorter than
    one window, or a logit is not finite.
    """
    import torch

    from paser.models.packing import device_of

    step = context if stride is None else stride
    if context < 2 or not 1 <= step <= context:
        raise ModelError(
            f"windows of {context} tokens cannot begin {step} tokens apart",
            remedy="choose a context of at least 2 and a stride of 1 up to the context",
        )
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.long)
    starts = list(range(0, len(ids) - context + 1, step))[:windows]
    if not starts:
        raise ModelError(
            f"the text has {len(ids)} tokens, fewer than one window of {context}",
            remedy="choose a smaller context or a longer text",
        )
    device = device_of(model.get_input_embeddings())
    size = max(1, BATCH_TOKENS // context)
    total, counted = 0.0, 0
    with progress("perplexity", len(starts), "windows") as advance, torch.inference_mode():
        for first in range(0, len(starts), size):
            batch = starts[first : first + size]
            found = _losses(model, torch.stack([ids[start : start + context] for start in batch]).to(device))
            for start, losses in zip(batch, found, strict=True):
                scored = losses if start == 0 else losses[-step:]
                total += float(scored.sum(dtype=torch.float64))
                counted += len(scored)
            advance(len(batch))
    loss = total / counted
    if not math.isfinite(loss):
        raise ModelError(
            "the model gives logits that are not finite", remedy="measure in float32, or check its weights"
        )
    return Perplexity(
        math.exp(min(loss, 700.0)), loss, counted, len(starts),
        _protocol(tokenizer, ids, context, step, len(starts), counted),
    )  # fmt: skip


def _losses(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each token but the first of each window, float32, (windows, context - 1)."""
    import torch

    from paser.models.passes import project

    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    states, wanted = hidden.reshape(-1, hidden.shape[-1]), ids[:, 1:].reshape(-1)
    losses = [
        torch.nn.functional.cross_entropy(
            project(model, states[at : at + CHUNK]).float(), wanted[at : at + CHUNK], reduction="none"
        )
        for at in range(0, len(states), CHUNK)
    ]
    return torch.cat(losses).reshape(len(ids), -1)


def _protocol(
    tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, context: int, step: int, windows: int, counted: int
) -> str:
    bos = tokenizer.bos_token_id is not None and int(ids[0]) == tokenizer.bos_token_id
    return (
        f"whole text tokenised once by the model's own tokenizer ({len(ids):,} tokens, "
        f"{'one' if bos else 'no'} bos), lines joined as in the file; first {windows:,} windows of "
        f"{context:,} tokens, stride {step:,}; {counted:,} tokens scored in float32"
    )
