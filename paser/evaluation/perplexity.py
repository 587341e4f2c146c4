"""Perplexity of a text under a causal language model, with every choice of the protocol spelled out.

By default the protocol of the pruning literature (GPTQ, SparseGPT, Wanda): the text is tokenised once as a
whole and cut into windows of the model's context, which do not overlap; each token but a window's
first is predicted from those before it in its window.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    `window_losses`: the mean over the scored tokens of each window; `window_tokens`: how many those are.
    """

    value: float
    loss: float
    tokens: int
    windows: int
    protocol: str
    window_losses: tuple[float, ...] = field(default=(), repr=False)
    window_tokens: tuple[int, ...] = field(default=(), repr=False)

    def as_json(self) -> dict[str, Any]:
        return {"perplexity": self.value, "loss": self.loss, "tokens": self.tokens, "windows": self.windows,
                "protocol": self.protocol}  # fmt: skip


# Columns of the Hub's text data sets, and what their rows are joined with (the convention of GPTQ's authors).
_COLUMNS = {"text": "\n\n", "sentence": " "}


def corpus_text(path: Path) -> str:
    """A text file, or one packed with gzip, as it stands: its lines stay joined by their line ends.

    Of a Parquet file, as the Hub has them, the rows of the column `text` (WikiText; joined by empty lines) or
    `sentence` (PTB; joined by spaces).
    """
    try:
        if path.suffix == ".parquet":
            return _column_text(path)
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist", remedy="name a text file") from error
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise SourceError(f"{path} is no UTF-8 text: {error}", remedy="name a text file") from error


def _column_text(path: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            column = next((name for name in _COLUMNS if name in names), None)
            if column is None:
                raise SourceError(
                    f"{path} has no column {' or '.join(_COLUMNS)}, only {', '.join(names)}",
                    remedy="write its text into a text file",
                )
            return _COLUMNS[column].join(text or "" for text in file.read([column])[column].to_pylist())
    except pa.ArrowInvalid as error:
        raise SourceError(f"{path} is not a parquet file: {error}", remedy="fetch it again") from error


@dataclass(frozen=True)
class _Window:
    """Token positions `start` up to `stop`, of which the last `scored` count."""

    start: int
    stop: int
    scored: int


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    context: int,
    stride: int | None = None,
    windows: int | None = None,
    rolling: bool = False,
) -> Perplexity:
    """Perplexity of `text` in windows of `context` tokens that begin `stride` tokens apart.

    Without `stride` the windows do not overlap. With a smaller one each window after the first counts only
    its last `stride` tokens, which then see at least `context - stride` tokens before them. What is left
    at the end and fills no window is not counted; `windows` limits the measurement to the first ones.
    A tokenizer that begins texts with a special token does so once, at the beginning of the whole.

    `rolling` is lm-eval's `loglikelihood_rolling` instead: a bos (else eos) token before the text, every
    token counted once, from at most `context` tokens before it; the last window reaches back to be full.

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
    if rolling and stride is not None:
        raise ModelError("a rolling perplexity has no stride", remedy="leave the stride out")
    tokens = list(tokenizer(text, verbose=False)["input_ids"])
    if rolling:
        tokens = _with_prefix(tokenizer, tokens)
        plan = _rolling(len(tokens), context)
    else:
        last = range(0, len(tokens) - context + 1, step)
        plan = [_Window(at, at + context, min(step if at else context, context - 1)) for at in last]
    plan = plan[:windows]
    if not plan:
        raise ModelError(
            f"the text has {len(tokens)} tokens, fewer than one window of {context}",
            remedy="choose a smaller context or a longer text",
        )
    ids = torch.tensor(tokens, dtype=torch.long)
    device = device_of(model.get_input_embeddings())
    size = max(1, BATCH_TOKENS // context)
    sums: list[float] = []
    with progress("perplexity", len(plan), "windows") as advance, torch.inference_mode():
        for first in range(0, len(plan), size):
            batch = plan[first : first + size]
            found = _losses(model, torch.stack([ids[w.start : w.stop] for w in batch]).to(device))
            for window, losses in zip(batch, found, strict=True):
                sums.append(float(losses[-window.scored :].sum(dtype=torch.float64)))
            advance(len(batch))
    counts = [window.scored for window in plan]
    loss = math.fsum(sums) / sum(counts)
    if not math.isfinite(loss):
        raise ModelError(
            "the model gives logits that are not finite", remedy="measure in float32, or check its weights"
        )
    return Perplexity(
        math.exp(min(loss, 700.0)), loss, sum(counts), len(plan),
        _protocol(tokenizer, tokens, context, None if rolling else step, len(plan), sum(counts)),
        tuple(total / count for total, count in zip(sums, counts, strict=True)), tuple(counts),
    )  # fmt: skip


def _with_prefix(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> list[int]:
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if prefix is None:
        raise ModelError(
            "a rolling perplexity needs a bos or eos token, and the tokenizer has neither",
            remedy="measure in windows",
        )
    return tokens if tokens[:1] == [prefix] else [int(prefix), *tokens]


def _rolling(length: int, context: int) -> list[_Window]:
    """Windows of `context` inputs over a prefix and `length - 1` tokens, each token scored once."""
    plan = []
    for done in range(0, length - 1, context):
        end = min(done + context, length - 1)
        plan.append(_Window(max(end - context, 0), end + 1, end - done))
    return plan


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
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[int],
    context: int,
    step: int | None,
    windows: int,
    counted: int,
) -> str:
    bos = tokenizer.bos_token_id is not None and tokens[0] == tokenizer.bos_token_id
    if step is None:
        return (
            f"lm-eval's rolling log-likelihood: whole text tokenised once by the model's own tokenizer, one "
            f"{'bos' if bos else 'eos'} before it; first {windows:,} windows of {context:,} tokens, every "
            f"token scored once; {counted:,} tokens scored in float32"
        )
    return (
        f"whole text tokenised once by the model's own tokenizer ({len(tokens):,} tokens, "
        f"{'one' if bos else 'no'} bos), lines joined as in the file; first {windows:,} windows of "
        f"{context:,} tokens, stride {step:,}; {counted:,} tokens scored in float32"
    )
