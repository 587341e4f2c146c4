"""Depth pruning: the angle's formula, which blocks go, and a plain model that is left."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm
from paser.pruning.angles import angular_distance
from paser.pruning.calibration import token_ids
from paser.pruning.depth import depth
from paser.settings import PruneSettings
from tests import tiny

IDS = torch.arange(5, 45)[None]


@pytest.fixture(scope="module")
def five_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_family(tmp_path_factory.mktemp("deep") / "m", "qwen2", layers=5)


def slow_angle(before: list[float], after: list[float]) -> float:
    dot = sum(a * b for a, b in zip(before, after, strict=True))
    norms = math.sqrt(sum(a * a for a in before)) * math.sqrt(sum(b * b for b in after))
    return math.acos(dot / norms) / math.pi


def test_angles_of_known_vectors() -> None:
    before = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    after = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 0.0]])
    assert angular_distance(before, after).tolist() == pytest.approx([0.0, 0.5, 1.0, 0.5])


def test_the_consecutive_blocks_with_the_smallest_angle_go(five_blocks: Path) -> None:
    samples = tiny.calibration(five_blocks, 4)
    model: Any = load_causal_lm(five_blocks, dtype=torch.float32)
    expected = []
    for first in range(4):
        angles = []
        for sample in samples:
            with torch.no_grad():
                states = model(token_ids(sample), output_hidden_states=True).hidden_states
            entering = [state[0, -1].double().tolist() for state in states[:5]]
            if first + 2 < 5:
                angles.append(slow_angle(entering[first], entering[first + 2]))
        expected += [sum(angles) / len(angles)] if angles else []
    settings = PruneSettings(scheme="depth", sparsity=0.4, options={"tokens": "last"})
    facts = depth(model, samples, settings, 17).report.facts
    assert facts["angular_distance"][:3] == pytest.approx(expected, abs=1e-5)
    best = expected.index(min(expected))
    assert facts["dropped_blocks"] == [best, best + 1]


def test_what_is_left_is_a_plain_model_of_the_blocks_in_between(five_blocks: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    before: Any = load_causal_lm(five_blocks, dtype=torch.float32)
    model: Any = load_causal_lm(five_blocks, dtype=torch.float32)
    settings = PruneSettings(scheme="depth", sparsity=0.4)
    dropped = depth(model, tiny.calibration(five_blocks), settings, 17).report.facts["dropped_blocks"]
    save_causal_lm(model, load_tokenizer(five_blocks), tmp_path / "m")
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    kept = [number for number in range(5) if number not in dropped]
    assert len(plain.model.layers) == 3
    for layer, number in zip(plain.model.layers, kept, strict=True):
        for ours, theirs in zip(layer.parameters(), before.model.layers[number].parameters(), strict=True):
            assert torch.equal(ours, theirs)
    with torch.no_grad():
        assert torch.equal(plain(IDS).logits, model(IDS).logits)
        found = model.generate(IDS, max_new_tokens=5, do_sample=False, eos_token_id=None)
        ids = IDS
        for _ in range(5):
            ids = torch.cat([ids, plain(ids).logits[0, -1].argmax().view(1, 1)], dim=1)
    assert torch.equal(found, ids)
