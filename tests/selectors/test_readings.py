"""Selectors that read the pool with a model, against loops written from the papers' formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from paser.errors import PaserError
from paser.models.tokens import Encoded
from paser.records import draw_key
from paser.selectors import readings
from paser.selectors.mining import instruction_mining
from paser.selectors.reading import read
from paser.selectors.registry import selector
from paser.selectors.resources import Meter
from tests.selectors.conftest import Ground, best, plain_logits, plain_loss
from tests.selectors.test_registry import embedded


def test_a_reading_is_that_of_each_row_alone(ground: Ground) -> None:
    import torch

    model = ground.models.pruned().model
    meter = Meter()
    found = read(model, ground.encoded, meter)
    for i, row in enumerate(ground.encoded):
        with torch.no_grad():
            shares = plain_logits(model, row).softmax(-1)
            loss = float(plain_loss(model, row))
        one_hot = torch.nn.functional.one_hot(torch.tensor(row.response_ids), shares.shape[1])
        assert found.loss[i] == pytest.approx(loss, rel=1e-4)
        assert found.entropy[i] == pytest.approx(float(-(shares * shares.log()).sum(-1).mean()), rel=1e-4)
        assert found.error[i] == pytest.approx(float((shares - one_hot).norm(dim=-1).mean()), rel=1e-4)
    assert meter.forward_tokens == int(ground.pool.tokens.sum())
    assert meter.backward_tokens == 0


@pytest.mark.parametrize("name", ["ifd", "ifd-small"])
def test_ifd_is_the_ratio_of_losses_and_with_a_small_model_of_perplexities(ground: Ground, name: str) -> None:
    import torch

    small = ground.models.small
    assert small is not None
    judge = (ground.models.pruned if name == "ifd" else small)()
    start = judge.encoder.end_of_turn
    with torch.no_grad():
        losses = [
            [float(plain_loss(judge.model, one)) for one in (row, Encoded((start,), row.response_ids))]
            for row in ground.encoded
        ]
    if name == "ifd":
        ratios = [with_prompt / without for with_prompt, without in losses]
    else:
        ratios = [math.exp(with_prompt) / math.exp(without) for with_prompt, without in losses]
    helpful = [ratio if ratio < 1 else -1.0 for ratio in ratios]
    count = min(6, sum(ratio < 1 for ratio in ratios))
    selection = selector(name, {}, ground.resources, 1)(ground.pool, count, "rows")
    assert count > 0
    assert set(selection.positions) == best(ground.pool, helpful, count)
    everything = selector(name, {}, ground.resources, 1)(ground.pool, 24, "rows")
    assert set(everything.positions) == {i for i, ratio in enumerate(ratios) if ratio < 1}
    assert everything.report["unhelpful_prompts"] == sum(ratio >= 1 for ratio in ratios)


def test_golden_score_is_the_share_of_tasks_that_the_example_helps(ground: Ground) -> None:
    meter = Meter()
    options = readings.NuggetsOptions(anchors=3, prefilter="damage")
    found = readings.nuggets(ground.pool, ground.models, options, 1, meter)
    judge = ground.models.pruned()
    tasks = [judge.encoder.encode(sample, 200) for sample in ground.models.targets[:3]]
    quarter = best(ground.pool, ground.pool.damage, 6)
    assert set(np.flatnonzero(~np.isnan(found.values))) == quarter
    for i in quarter:
        shown = ground.encoded[i].prompt_ids + ground.encoded[i].response_ids
        gains = [
            float(plain_loss(judge.model, task))
            - float(plain_loss(judge.model, Encoded(shown + task.prompt_ids, task.response_ids)))
            for task in tasks
        ]
        helped, tie = sum(gain > 0 for gain in gains), math.atan(sum(gains) / 3) / math.pi
        assert abs(tie) < 0.5
        assert found.values[i] == pytest.approx((helped + tie) / 3, rel=1e-4)
    read_tokens = sum(task.tokens for task in tasks) * (1 + len(quarter))
    assert meter.forward_tokens == read_tokens + 3 * sum(ground.encoded[i].tokens for i in quarter)


def test_nuggets_draws_its_quarter_and_its_anchors_apart_without_targets(ground: Ground) -> None:
    import torch

    resources = replace(ground.resources, models=replace(ground.models, targets=()))
    selection = selector("nuggets", {}, resources, 2)(ground.pool, 24, "rows")
    turns = sorted(range(24), key=lambda i: draw_key("nuggets", 2, ground.pool.row_ids[i]))
    assert set(selection.positions) == set(turns[:6])
    assert selection.report["anchors"] == 16
    assert selection.report["filtered"] == 18
    model = ground.models.pruned().model
    tasks = [ground.encoded[i] for i in turns[6:22]]
    for i in turns[:6]:
        shown = ground.encoded[i].prompt_ids + ground.encoded[i].response_ids
        with torch.no_grad():
            helped = [
                plain_loss(model, Encoded(shown + task.prompt_ids, task.response_ids))
                < plain_loss(model, task)
                for task in tasks
            ]
        assert selection.ies[i] == pytest.approx(sum(helped) / 16, abs=0.5 / 16)


def test_nuggets_without_a_task_says_so(ground: Ground) -> None:
    resources = replace(ground.resources, models=replace(ground.models, targets=()))
    with pytest.raises(PaserError, match=r"no task to measure a gain on: 0 rows are left"):
        selector("nuggets", {}, resources, 2)(ground.pool.part(np.array([0])), 1, "rows")


def test_quadrants_keep_what_the_bisected_thresholds_keep(ground: Ground) -> None:
    """Confident errors and unsure successes, between quantiles that are widened until there are enough."""
    model = ground.models.pruned().model
    found = read(model, ground.encoded, Meter())
    error, unsure = np.argsort(np.argsort(found.loss)) / 23, np.argsort(np.argsort(found.entropy)) / 23
    for alpha in np.linspace(0, 1, 200):
        kept = {
            i
            for i in range(24)
            if (error[i] >= 1 - alpha and unsure[i] <= alpha)
            or (error[i] <= alpha and unsure[i] >= 1 - alpha)
        }
        if len(kept) >= 5:
            break
    selection = selector("q-tuning", {}, ground.resources, 1)(ground.pool, len(kept), "rows")
    assert set(selection.positions) == kept


def test_instruction_mining_is_the_rule_without_its_reward(ground: Ground) -> None:
    rows, points = ground.pool, embedded(24).embeddings
    assert points is not None
    found = instruction_mining(rows, points).values
    for i in range(24):
        near = sorted(float(np.linalg.norm(points[i].astype(float) - points[j])) for j in range(24) if j != i)
        assert found[i] == pytest.approx(-(8.257e-5 * rows.response_tokens[i] - 0.9350 * near[5]), rel=1e-5)
