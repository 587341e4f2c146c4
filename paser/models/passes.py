"""One fused pass of several models over the same samples: divergences, losses and token counts.

Every computation has a fixed shape and sees one row or one token apart (see `packing`), so a sample's
values are the same bits whichever samples are scored with it. Only response positions reach the vocabulary
projection, in chunks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from paser.errors import ModelError
from paser.method.divergence import Divergences
from paser.models.packing import device_of, hidden_alone, hidden_packed, pack, packs, row_attention
from paser.models.shards import Arrays
from paser.models.tokens import Encoded
from paser.models.tokenwise import Compare, comparing

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

# Positions in one vocabulary projection, and about how many are collected before they are projected.
CHUNK = 256
GROUP = 8 * CHUNK
OK, CUT, NONFINITE, NO_RESPONSE = "ok", "cut", "nonfinite", "no_response"


@dataclass(frozen=True)
class FusedPass:
    """Compares `others` with `reference` on encoded samples.

    `temperature` is tau of the divergences; losses are always at temperature 1. `batch_tokens` is the
    number of tokens in every forward pass; each sample must fit.
    """

    reference: PreTrainedModel
    others: Mapping[str, PreTrainedModel]
    temperature: float
    batch_tokens: int

    def __call__(self, samples: Sequence[Encoded]) -> Arrays:
        """Arrays of length `len(samples)`, in their order.

        `loss` (reference) and `loss_NAME`: mean negative log-likelihood of the response tokens, nats;
        `recoverability_NAME` (-1/2 .. 2), `jsd_NAME` (0 .. ln 2), `kl_NAME` = KL(reference || NAME) and
        `reverse_kl_NAME` (0 ..): means over the response tokens; `prompt_tokens`, `response_tokens`;
        `status`: ok, cut (shortened at the end), nonfinite (a logit was NaN or infinite) or no_response
        (the prompt alone fills the limit). Values of the last two are NaN.
        """
        import numpy as np

        done = list(self.groups(samples))
        order = np.argsort([p for positions, _ in done for p in positions], kind="stable")
        names = [*self._value_names(), "prompt_tokens", "response_tokens", "status"]
        if not done:
            return {name: np.zeros(0) for name in names}
        return {name: np.concatenate([arrays[name] for _, arrays in done])[order] for name in names}

    def groups(self, samples: Sequence[Encoded]) -> Iterator[tuple[list[int], Arrays]]:
        """Positions in `samples` and their arrays, in portions of some seconds of work each."""
        lengths = [s.tokens if s.prompt_ids and s.response_ids else 0 for s in samples]
        if without := [i for i, length in enumerate(lengths) if not length]:
            yield without, self._arrays([samples[i] for i in without], None)
        usable = [i for i, length in enumerate(lengths) if length]
        if longest := max((lengths[i] for i in usable if lengths[i] > self.batch_tokens), default=0):
            raise ModelError(
                f"a sample of {longest} tokens does not fit a forward pass of {self.batch_tokens}",
                remedy="raise score.batch_tokens",
            )
        if not usable:
            return
        if self.packed:
            plan = pack([lengths[i] for i in usable], self.batch_tokens)
        else:
            plan = [[p] for p in range(len(usable))]
        with comparing(device_of(head_of(self.reference)), self.temperature) as compare:
            portion: list[list[int]] = []
            positions = 0
            for number, members in enumerate(plan, start=1):
                portion.append([usable[p] for p in members])
                positions += sum(len(samples[i].response_ids) for i in portion[-1])
                if positions >= GROUP or number == len(plan):
                    order = [i for batch in portion for i in batch]
                    values = self._values([[samples[i] for i in batch] for batch in portion], compare)
                    yield order, self._arrays([samples[i] for i in order], values)
                    portion, positions = [], 0

    @cached_property
    def packed(self) -> bool:
        """Whether rows share forward passes; otherwise each has its own, of its own length."""
        return all(packs(model, self.batch_tokens) for model in self._models().values())

    def _models(self) -> dict[str, PreTrainedModel]:
        return {"": self.reference, **self.others}

    def _value_names(self) -> list[str]:
        names = ["loss"]
        for name in self.others:
            names += [f"{value}_{name}" for value in ("loss", "recoverability", *Divergences._fields)]
        return names

    def _arrays(self, samples: Sequence[Encoded], values: np.ndarray | None) -> Arrays:
        """`values`: means, shape (names, samples), or None where there is no response to score."""
        import numpy as np

        if values is None:
            status = np.full(len(samples), NO_RESPONSE, dtype="U11")
            values = np.full((len(self._value_names()), len(samples)), np.nan)
        else:
            finite = np.isfinite(values).all(axis=0)
            cut = np.array([s.cut for s in samples])
            status = np.where(finite, np.where(cut, CUT, OK), NONFINITE).astype("U11")
            values = np.where(finite, values, np.nan)
        return {
            **dict(zip(self._value_names(), values, strict=True)),
            "prompt_tokens": np.array([len(s.prompt_ids) for s in samples], dtype=np.int64),
            "response_tokens": np.array([len(s.response_ids) for s in samples], dtype=np.int64),
            "status": status,
        }

    def _values(self, batches: Sequence[Sequence[Encoded]], compare: Compare) -> np.ndarray:
        """Means over the response tokens, float64, shape (names, samples)."""
        import numpy as np
        import torch

        samples = [sample for batch in batches for sample in batch]
        counts = np.array([len(s.response_ids) for s in samples])
        targets = torch.tensor([token for s in samples for token in s.response_ids])
        with torch.inference_mode():
            hidden = {name: self._hidden(model, batches) for name, model in self._models().items()}
            found = []
            for begin in range(0, len(targets), CHUNK):
                part = slice(begin, begin + CHUNK)
                size = len(targets[part])
                logits = [
                    project(model, _filled(hidden[name][part])) for name, model in self._models().items()
                ]
                found.append(compare(logits, _filled(targets[part]), size))
            tokens = torch.cat(found, dim=1).numpy()
        row = np.repeat(np.arange(len(samples)), counts)
        sums = [np.bincount(row, weights=line, minlength=len(samples)) for line in tokens]
        means: np.ndarray = np.stack(sums) / counts
        return means

    def _hidden(self, model: PreTrainedModel, batches: Sequence[Sequence[Encoded]]) -> torch.Tensor:
        """Hidden states from which the response tokens are predicted, shape (response tokens, width)."""
        import torch

        parts = []
        with row_attention(model) if self.packed else contextlib.nullcontext():
            for batch in batches:
                rows = [s.prompt_ids + s.response_ids for s in batch]
                if self.packed:
                    states = hidden_packed(model, rows, self.batch_tokens)
                else:
                    states = hidden_alone(model, rows[0])
                begin = 0
                where: list[int] = []
                for sample in batch:
                    first = begin + len(sample.prompt_ids) - 1
                    where += range(first, first + len(sample.response_ids))
                    begin += sample.tokens
                parts.append(states[torch.tensor(where, device=states.device)])
        return torch.cat(parts)


def _filled(part: torch.Tensor) -> torch.Tensor:
    """`part` with zeros behind it, so that its first axis is `CHUNK` long."""
    if len(part) == CHUNK:
        return part
    full = part.new_zeros(CHUNK, *part.shape[1:])
    full[: len(part)] = part
    return full


def head_of(model: PreTrainedModel) -> torch.nn.Module:
    """The model's vocabulary projection; raises ModelError where it has none."""
    head: torch.nn.Module | None = model.get_output_embeddings()
    if head is None:
        raise ModelError(
            f"{type(model).__name__} has no vocabulary projection", remedy="use a causal language model"
        )
    return head


def project(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of hidden states, with the scaling that some families apply after the projection."""
    head = head_of(model)
    logits: torch.Tensor = head(hidden.to(device_of(head)))
    config = model.config
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = (logits / cap).tanh() * cap
    return logits


def context_length(config: PretrainedConfig) -> int | None:
    """Longest sequence that a model was built for, in tokens; None when it does not say."""
    found = getattr(config, "max_position_embeddings", None)
    return int(found) if found else None
