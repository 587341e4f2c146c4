"""FLAP: the formulas of its metric and bias, and that the bias makes good for what hardly fluctuates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paser.models.loading import load_causal_lm
from paser.pruning.calibration import token_ids
from paser.pruning.flap import Moments, compensate, flap, fluctuation, standardised
from paser.settings import PruneSettings
from tests import tiny

IDS = torch.arange(5, 45)[None]


def down_inputs(model: Any, samples: list[Any], number: int) -> list[list[float]]:
    """Everything that enters the down projection of a block, token by token."""
    seen: list[list[float]] = []
    layer = model.model.layers[number].mlp.down_proj
    handle = layer.register_forward_pre_hook(lambda _, args: seen.extend(args[0][0].tolist()))
    with torch.no_grad():
        for sample in samples:
            model(token_ids(sample))
    handle.remove()
    return seen


def slow_metric(weight: list[list[float]], inputs: list[list[float]]) -> list[float]:
    found = []
    for column in range(len(weight[0])):
        values = [row[column] for row in inputs]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        found.append(variance * sum(row[column] ** 2 for row in weight))
    return found


def test_the_metric_is_variance_times_squared_column_norm(llama: Path) -> None:
    model: Any = load_causal_lm(llama, dtype=torch.float32)
    samples = tiny.calibration(llama, 3)
    inputs = down_inputs(model, samples, 1)
    moments = Moments(*torch.zeros(2, 64, dtype=torch.float64))
    first = samples[0].tokens
    for part in (inputs[:first], inputs[first:]):
        moments.add(torch.tensor(part))
    weight = model.model.layers[1].mlp.down_proj.weight
    found = fluctuation(weight, moments.variance)
    assert found.tolist() == pytest.approx(slow_metric(weight.tolist(), inputs), rel=1e-6)


def test_standardising_makes_layers_comparable() -> None:
    metric = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    assert standardised(metric).tolist() == pytest.approx([-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5])
    torch.testing.assert_close(standardised(1000 * metric), standardised(metric))
    assert standardised(torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


def test_the_bias_is_what_the_removed_inputs_give_on_average() -> None:
    layer = torch.nn.Linear(4, 2)
    before, mean = layer.bias.clone(), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    compensate(layer, [1, 3], mean)
    weight = layer.weight.tolist()
    expected = [float(before[row]) + 2 * weight[row][1] + 4 * weight[row][3] for row in (0, 1)]
    assert layer.bias.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_channels_with_the_lowest_standardised_metric_go(llama: Path) -> None:
    before: Any = load_causal_lm(llama, dtype=torch.float32)
    model: Any = load_causal_lm(llama, dtype=torch.float32)
    samples = tiny.calibration(llama, 6)
    facts = flap(model, samples, PruneSettings(scheme="flap", sparsity=0.2), 17).report.facts
    assert facts["kept_groups"] == [2, 2]
    scores = []
    for number in (0, 1):
        metric = slow_metric(
            before.model.layers[number].mlp.down_proj.weight.tolist(), down_inputs(before, samples, number)
        )
        scores += [
            (float(value), number, channel)
            for channel, value in enumerate(standardised(torch.tensor(metric, dtype=torch.float64)))
        ]
    gone = sorted(scores)[: 128 - sum(facts["kept_channels"])]
    for number in (0, 1):
        lost = {channel for _, block, channel in gone if block == number}
        kept = [channel for channel in range(64) if channel not in lost]
        mlp = model.model.layers[number].mlp
        assert torch.equal(mlp.up_proj.weight, before.model.layers[number].mlp.up_proj.weight[kept])


def test_a_constant_channel_costs_nothing(llama: Path) -> None:
    """Channels whose input never changes have fluctuation 0: their mean in the bias replaces them exactly."""
    model: Any = load_causal_lm(llama, dtype=torch.float32)
    with torch.no_grad():
        for block in model.model.layers:
            for layer in (block.mlp.gate_proj, block.mlp.up_proj):
                layer.bias = torch.nn.Parameter(torch.ones(64))
                layer.weight[:32] = 0
        expected = model(IDS).logits
    share = 30 * 3 * 32 / sum(weight.numel() for weight in model.model.layers.parameters())
    settings = PruneSettings(scheme="flap", sparsity=share)
    facts = flap(model, tiny.calibration(llama), settings, 17).report.facts
    assert sum(facts["kept_channels"]) == pytest.approx(128 - 30, abs=1)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=0)
