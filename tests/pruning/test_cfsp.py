"""CFSP: the formulas of both of its steps, and that attention is left alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from paser.models.loading import load_causal_lm
from paser.pruning.cfsp import cfsp, channel_scores, kept_shares
from paser.settings import PruneSettings
from tests import tiny


def test_shares_follow_the_sigmoid_of_the_angle_and_keep_the_mean() -> None:
    distances = [0.05, 0.1, 0.3]
    weights = [1 / (1 + math.exp(-13.1 * (d - 0.15))) for d in distances]
    expected = [0.5 * w / (sum(weights) / 3) for w in weights]
    assert max(expected) < 1
    assert kept_shares(distances, 0.5, 13.1) == pytest.approx(expected)
    assert sum(kept_shares(distances, 0.5, 13.1)) == pytest.approx(1.5)


def test_no_block_keeps_more_than_all() -> None:
    shares = kept_shares([0.05, 0.1, 0.4], 0.9, 50.0)
    assert max(shares) == pytest.approx(1.0)
    assert sum(shares) / 3 == pytest.approx(0.9)
    assert shares[0] < shares[1] < shares[2]


def test_a_channels_score_is_its_relative_weight_times_its_activation() -> None:
    torch.manual_seed(3)
    gate, up, down = torch.randn(5, 4), torch.randn(5, 4), torch.randn(4, 5)
    norms = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    expected = []
    for j in range(5):
        total = 0.0
        for i in range(4):
            total += abs(down[i, j]) * norms[j] / sum(abs(down[i, k]) * norms[k] for k in range(5))
            total += abs(up[j, i]) / sum(abs(up[k, i]) for k in range(5))
            total += abs(gate[j, i]) / sum(abs(gate[k, i]) for k in range(5))
        expected.append(float(norms[j] * total / 4))
    assert channel_scores(gate, up, down, norms).tolist() == pytest.approx(expected, rel=1e-5)


def test_blocks_that_turn_more_keep_more_and_attention_keeps_its_bits(tmp_path: Path) -> None:
    folder = tiny.make_family(tmp_path / "m", "llama", layers=4)
    before: Any = load_causal_lm(folder, dtype=torch.float32)
    model: Any = load_causal_lm(folder, dtype=torch.float32)
    facts = cfsp(
        model, tiny.calibration(folder), PruneSettings(scheme="cfsp", sparsity=0.25), 17
    ).report.facts
    by_angle = sorted(zip(facts["angular_distance"], facts["kept_channels"], strict=True))
    assert [kept for _, kept in by_angle] == sorted(facts["kept_channels"])
    assert len(set(facts["kept_channels"])) > 1
    for ours, theirs in zip(model.model.layers, before.model.layers, strict=True):
        assert torch.equal(ours.self_attn.q_proj.weight, theirs.self_attn.q_proj.weight)


def test_widths_may_be_multiples(llama: Path) -> None:
    model = load_causal_lm(llama, dtype=torch.float32)
    settings = PruneSettings(scheme="cfsp", sparsity=0.3, options={"multiple": 16})
    facts = cfsp(model, tiny.calibration(llama), settings, 17).report.facts
    assert all(kept % 16 == 0 for kept in facts["kept_channels"])
