"""One fused pass of several models over the same samples: divergence, losses and token counts.

Only response positions reach the vocabulary projection, in chunks, so that memory does not grow with
the vocabulary times the length of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paser.errors import ModelError
from paser.method.divergence import jsd_from_log_probabilities
from paser.models.shards import Arrays, batches
from paser.models.tokens import Encoded

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CHUNK = 256
OK, CUT, NONFINITE, NO_RESPONSE = "ok", "cut", "nonfinite", "no_response"


@dataclass(frozen=True)
class FusedPass:
    """Compares `others` with `reference` on encoded samples.

    `temperature` is tau of the divergence; losses are always at temperature 1. `batch_tokens` bounds
    the padded tokens of one forward pass.
    """

    reference: PreTrainedModel
    others: Mapping[str, PreTrainedModel]
    temperature: float
    batch_tokens: int

    def __call__(self, samples: Sequence[Encoded]) -> Arrays:
        """Arrays of length `len(samples)`, in their order.

        `loss` (reference) and `loss_NAME`: mean negative log-likelihood of the response tokens, nats;
        `jsd_NAME`: mean JSD to the reference, 0 .. ln 2; `prompt_tokens`, `response_tokens`; `status`:
        ok, cut (shortened at the end), nonfinite (a logit was NaN or infinite) or no_response (the
        prompt alone fills the limit). Values of the last two are NaN.
        """
        import numpy as np

        size = len(samples)
        result: Arrays = {name: np.full(size, np.nan) for name in self._value_names()}
        result["prompt_tokens"] = np.array([len(s.prompt_ids) for s in samples], dtype=np.int64)
        result["response_tokens"] = np.array([len(s.response_ids) for s in samples], dtype=np.int64)
        status = [CUT if s.cut else OK for s in samples]
        usable = [i for i, s in enumerate(samples) if s.prompt_ids and s.response_ids]
        for group in batches([samples[i].tokens for i in usable], self.batch_tokens):
            members = [usable[p] for p in group]
            values = self._batch([samples[i] for i in members])
            for name, row_values in values.items():
                for i, value in zip(members, row_values, strict=True):
                    result[name][i] = value
        for i, sample in enumerate(samples):
            if not sample.prompt_ids or not sample.response_ids:
                status[i] = NO_RESPONSE
            elif not all(np.isfinite(result[name][i]) for name in self._value_names()):
                status[i] = NONFINITE
                for name in self._value_names():
                    result[name][i] = np.nan
        result["status"] = np.array(status, dtype="U11")
        return result

    def _value_names(self) -> list[str]:
        names = ["loss"]
        for name in self.others:
            names += [f"loss_{name}", f"jsd_{name}"]
        return names

    def _batch(self, samples: Sequence[Encoded]) -> dict[str, list[float]]:
        import torch

        device = self.reference.device
        longest = max(s.tokens for s in samples)
        ids = torch.zeros(len(samples), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        rows: list[int] = []
        positions: list[int] = []
        targets: list[int] = []
        for i, sample in enumerate(samples):
            tokens = sample.prompt_ids + sample.response_ids
            ids[i, : len(tokens)] = torch.tensor(tokens)
            mask[i, : len(tokens)] = 1
            start = len(sample.prompt_ids)
            rows += [i] * len(sample.response_ids)
            positions += range(start - 1, len(tokens) - 1)
            targets += sample.response_ids
        ids, mask = ids.to(device), mask.to(device)
        where = torch.tensor(rows, device=device), torch.tensor(positions, device=device)
        target = torch.tensor(targets, device=device)
        with torch.inference_mode():
            hidden = {name: _hidden(model, ids, mask)[where] for name, model in self._models().items()}
            per_token = self._tokens(hidden, target)
        counts = torch.bincount(where[0], minlength=len(samples)).double().cpu()
        means: dict[str, list[float]] = {}
        for name, values in per_token.items():
            total = torch.zeros(len(samples), dtype=torch.float64)
            total.index_add_(0, where[0].cpu(), values.double().cpu())
            means[name] = (total / counts).tolist()
        return means

    def _models(self) -> dict[str, PreTrainedModel]:
        return {"": self.reference, **self.others}

    def _tokens(self, hidden: Mapping[str, torch.Tensor], target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Per response token, in chunks: loss of every model and JSD of the others."""
        import torch

        parts: dict[str, list[torch.Tensor]] = {name: [] for name in self._value_names()}
        models = self._models()
        for begin in range(0, len(target), CHUNK):
            chunk = slice(begin, begin + CHUNK)
            base: torch.Tensor | None = None
            for name, model in models.items():
                logits = project(model, hidden[name][chunk]).float()
                log_p = logits.log_softmax(-1)
                loss = -log_p.gather(-1, target[chunk, None]).squeeze(-1)
                parts[f"loss_{name}" if name else "loss"].append(loss)
                if self.temperature != 1.0:
                    log_p = (logits / self.temperature).log_softmax(-1)
                if base is None:
                    base = log_p
                else:
                    parts[f"jsd_{name}"].append(jsd_from_log_probabilities(base, log_p))
        return {name: torch.cat(values) for name, values in parts.items()}


def _hidden(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Last hidden states, shape (rows, length, width), without the vocabulary projection."""
    output: torch.Tensor = model.base_model(
        input_ids=ids, attention_mask=mask, use_cache=False
    ).last_hidden_state
    return output


def project(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of hidden states, with the scaling that some families apply after the projection."""
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(
            f"{type(model).__name__} has no vocabulary projection", remedy="use a causal language model"
        )
    logits: torch.Tensor = head(hidden)
    config = model.config
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = (logits / cap).tanh() * cap
    return logits


def context_length(model: PreTrainedModel) -> int | None:
    """Longest sequence that the model was built for, in tokens; None when it does not say."""
    found = getattr(model.config, "max_position_embeddings", None)
    return int(found) if found else None
