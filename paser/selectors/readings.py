"""Selectors that read the pool with the model as it is: IFD, Nuggets, and error against uncertainty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from paser.errors import PaserError
from paser.models.tokens import Encoded
from paser.selectors.filling import Scored, by_id
from paser.selectors.protocol import ScoredPool
from paser.selectors.random import drawn
from paser.selectors.reading import encoded, read
from paser.selectors.resources import LanguageModel, Meter, Models
from paser.settings import Group

if TYPE_CHECKING:
    import numpy as np


class NuggetsOptions(Group):
    """`anchors`: how many tasks the gain is measured on. `prefilter`: how the quarter of the pool that is
    scored at all comes about: drawn at random, or the rows with the most damage."""

    anchors: Annotated[int, Field(ge=1, le=16)] = 16
    prefilter: Literal["random", "damage"] = "random"


def ifd(
    pool: ScoredPool, models: Models, judge: LanguageModel, meter: Meter, perplexity: bool = False
) -> Scored:
    """Instruction-following difficulty by `judge`: loss(y | x) / loss(y) (Li et al. 2023, arXiv 2308.12032),
    above 0; with `perplexity`, the ratio of the perplexities, exp of the losses (Li et al. 2024, arXiv
    2402.00530).

    The response alone is read after the model's end-of-turn token. Rows of 1 or more, whose prompt does not
    help, are left out, as in the paper.
    """
    import numpy as np

    rows = by_id(pool)
    samples = encoded(models, judge.encoder, rows)
    alone = [Encoded((judge.encoder.end_of_turn,), sample.response_ids) for sample in samples]
    with_prompt = read(judge.model, samples, meter).loss
    without = read(judge.model, alone, meter).loss
    ratio = np.exp(with_prompt - without) if perplexity else with_prompt / np.maximum(without, 1e-12)
    helped = np.where(ratio < 1, ratio, np.nan)
    return Scored.at(rows, helped, pool, {"unhelpful_prompts": int((ratio >= 1).sum())})


def nuggets(pool: ScoredPool, models: Models, options: NuggetsOptions, seed: int, meter: Meter) -> Scored:
    """Golden score (Li et al. 2023, arXiv 2312.10302): the share of anchor tasks whose response becomes
    likelier when the row stands before the task as its one example: 0 .. 1, and up to half of one task's
    share more or less, by the mean gain, which parts equal scores.

    Anchors are drawn by `seed` outside the quarter that is scored, or from `models.targets` where there are
    any. Rows outside the quarter are NaN.
    """
    import numpy as np

    judge = models.pruned()
    everyone = drawn(pool, by_id(pool), "nuggets", seed)
    size = max(1, len(everyone) // 4)
    order = everyone
    if options.prefilter == "damage":
        order = everyone[np.argsort(-pool.damage[everyone], kind="stable")]
    quarter = order[:size]
    outside = everyone[~np.isin(everyone, quarter)]
    if models.targets:
        tasks = [judge.encoder.encode(s, models.max_tokens) for s in models.targets[: options.anchors]]
    else:
        tasks = encoded(models, judge.encoder, outside[: options.anchors])
    tasks = [task for task in tasks if task.response_ids]
    if not tasks:
        raise PaserError(
            f"nuggets has no task to measure a gain on: {len(outside)} rows are left outside those it scores",
            remedy="a pool of two rows or more, or targets with a response",
        )
    examples = encoded(models, judge.encoder, quarter)
    shots = [
        Encoded(example.prompt_ids + example.response_ids + task.prompt_ids, task.response_ids)
        for example in examples
        for task in tasks
    ]
    before = read(judge.model, tasks, meter).loss
    gain = before - read(judge.model, shots, meter).loss.reshape(len(quarter), len(tasks))
    # The mean gain, squeezed into half of one task's share, only parts equal scores.
    golden = (gain > 0).mean(axis=1) + np.arctan(gain.mean(axis=1)) / (np.pi * len(tasks))
    return Scored.at(quarter, golden, pool, {"scored": len(quarter), "anchors": len(tasks)})


def quadrants(pool: ScoredPool, models: Models, meter: Meter) -> Scored:
    """Sample triage of Q-Tuning (Wang et al. 2025, arXiv 2509.23873) on the plane of error (perplexity) and
    uncertainty (entropy of the predictions).

    Kept are confident errors (high error, low entropy) and unsure successes (low error, high entropy), with
    thresholds at the quantiles alpha and 1 - alpha of both, alpha bisected until the budget is met. That is
    the order of the smallest alpha that keeps a row, whose negative is the score (-1 .. 0).
    """

    rows = by_id(pool)
    judge = models.pruned()
    reading = read(judge.model, encoded(models, judge.encoder, rows), meter)
    return Scored.at(rows, -keeping_alpha(reading.loss, reading.entropy), pool)


def keeping_alpha(error: np.ndarray, uncertainty: np.ndarray) -> np.ndarray:
    """The smallest alpha (0 .. 1) at which the triage keeps each row. Shape (rows,)."""
    import numpy as np
    from scipy.stats import rankdata

    last = max(len(error) - 1, 1)
    error_place, unsure_place = (
        (rankdata(values, method="average") - 1) / last for values in (error, uncertainty)
    )
    misconception = np.maximum(1 - error_place, unsure_place)
    calibration = np.maximum(error_place, 1 - unsure_place)
    smallest: np.ndarray = np.minimum(misconception, calibration)
    return smallest
