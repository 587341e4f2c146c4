"""Selectors that look at a model early in training: EL2N, GraNd and the variance of gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from paser.models.passes import project
from paser.models.tokens import Encoded
from paser.selectors.filling import Scored, by_id
from paser.selectors.protocol import ScoredPool
from paser.selectors.reading import encoded, read
from paser.selectors.resources import Meter, Models
from paser.selectors.training import (
    RunOptions,
    Tuned,
    adapted,
    autocast,
    epochs,
    row_gradients,
    warm_up_rows,
)

if TYPE_CHECKING:
    import torch

_BLOCK = 32


class RepeatedOptions(RunOptions):
    """`runs`: short runs of one epoch, of other rows and another initial adapter each, that scores are
    averaged over."""

    runs: Annotated[int, Field(ge=3, le=100)] = 3


class VarianceOptions(RunOptions):
    """`checkpoints`: after so many epochs of one short run gradients are taken."""

    checkpoints: Annotated[int, Field(ge=3, le=100)] = 3


def el2n(pool: ScoredPool, models: Models, options: RepeatedOptions, seed: int, meter: Meter) -> Scored:
    """EL2N (Paul et al. 2021, arXiv 2107.07075) for language models (Marion et al. 2023, arXiv 2309.04564):
    the L2 norm of predicted distribution minus one-hot token, mean of tokens and runs, 0 .. sqrt 2.
    """
    import numpy as np

    rows = by_id(pool)
    total = np.zeros(len(rows))
    for run in range(options.runs):
        tuned, samples = _early(pool, models, options, seed, run, meter)
        total += read(tuned.inner, samples, meter).error
    return Scored.at(rows, total / options.runs, pool, {"runs": options.runs})


def grand(pool: ScoredPool, models: Models, options: RepeatedOptions, seed: int, meter: Meter) -> Scored:
    """GraNd (Paul et al. 2021): the norm of the gradient of a row's mean loss, mean over runs; 0 .., with
    respect to the LoRA parameters."""
    import numpy as np

    rows = by_id(pool)
    total = np.zeros(len(rows))
    for run in range(options.runs):
        tuned, samples = _early(pool, models, options, seed, run, meter)
        total += [float(gradient.norm()) for gradient in row_gradients(tuned, samples, meter)]
    return Scored.at(rows, total / options.runs, pool, {"runs": options.runs})


def gradient_variance(
    pool: ScoredPool, models: Models, options: VarianceOptions, seed: int, meter: Meter
) -> Scored:
    """Variance of gradients (Agarwal et al. 2022, arXiv 2008.11600): the standard deviation over checkpoints
    of the gradient of the true tokens' mean logit with respect to the input embeddings, mean of its entries,
    standardised inside each cluster, which stand for the paper's classes. Any sign; higher is harder.
    """
    import numpy as np
    import torch

    rows = by_id(pool)
    language = models.pruned()
    tuned = adapted(language, models.recover, seed)
    warm = warm_up_rows(pool, models, language, options.share, "variance-of-gradients", seed)
    kept = [tuned.weights() for _ in epochs(tuned, warm, options.checkpoints, meter)]
    samples = encoded(models, language.encoder, rows)
    raw = np.zeros(len(rows))
    for begin in range(0, len(rows), _BLOCK):
        block = samples[begin : begin + _BLOCK]
        gradients: list[list[torch.Tensor]] = [[] for _ in block]
        for weights in kept:
            tuned.load(weights)
            for found, sample in zip(gradients, block, strict=True):
                found.append(input_gradient(tuned, sample, meter))
        raw[begin : begin + len(block)] = [
            float(torch.stack(found).var(dim=0, correction=0).sqrt().mean()) for found in gradients
        ]
    standard = raw.copy()
    for k in np.unique(pool.clusters[rows]):
        inside = pool.clusters[rows] == k
        spread = raw[inside].std()
        standard[inside] = (raw[inside] - raw[inside].mean()) / (spread if spread > 0 else 1.0)
    return Scored.at(rows, standard, pool, {"checkpoints": options.checkpoints})


def input_gradient(tuned: Tuned, sample: Encoded, meter: Meter) -> torch.Tensor:
    """Gradient of the mean logit of the response tokens by the input embeddings: (tokens, width), float32."""
    import torch

    ids = torch.tensor([[*sample.prompt_ids, *sample.response_ids]], device=tuned.inner.device)
    inputs = tuned.inner.get_input_embeddings()(ids).detach().requires_grad_()
    with autocast(tuned):
        states = tuned.inner.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0]
        logits = project(tuned.inner, states[len(sample.prompt_ids) - 1 : -1]).float()
    chosen = logits.gather(1, torch.tensor(sample.response_ids, device=logits.device)[:, None])
    (gradient,) = torch.autograd.grad(chosen.mean(), inputs)
    meter.forward_tokens += sample.tokens
    meter.backward_tokens += sample.tokens
    flat: torch.Tensor = gradient[0].float().cpu()
    return flat


def _early(
    pool: ScoredPool, models: Models, options: RepeatedOptions, seed: int, run: int, meter: Meter
) -> tuple[Tuned, list[Encoded]]:
    """A model after one epoch of the short run number `run`, and the usable rows by id."""
    language = models.pruned()
    tuned = adapted(language, models.recover, seed + run)
    warm = warm_up_rows(pool, models, language, options.share, "early", seed + run)
    for _ in epochs(tuned, warm, 1, meter):
        pass
    return tuned, encoded(models, language.encoder, by_id(pool))
