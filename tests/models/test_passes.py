"""The fused pass against the plain formula, one sample at a time with the whole vocabulary."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from paser.errors import ModelError
from paser.models.loading import load_causal_lm, load_tokenizer
from paser.models.passes import FusedPass, project
from paser.models.tokens import Encoded, SampleEncoder
from paser.records import Sample
from tests import tiny


def encoded(path: Path, count: int = 9, limit: int = 400) -> list[Encoded]:
    encoder = SampleEncoder(load_tokenizer(path))
    return [
        encoder.encode(Sample("t", str(i), "MIT", r["instruction"], r["input"], r["output"]), limit)
        for i, r in enumerate(tiny.rows(count))
    ]


@pytest.fixture(scope="module")
def pair(llama: Path, sparse_llama: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    return load_causal_lm(llama, dtype=torch.float32), load_causal_lm(sparse_llama, dtype=torch.float32)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_agrees_with_the_naive_way(pair: tuple, llama: Path, temperature: float) -> None:
    dense, sparse = pair
    samples = encoded(llama)
    found = FusedPass(dense, {"pruned": sparse}, temperature, 512)(samples)
    for i, sample in enumerate(samples):
        ids = torch.tensor([sample.prompt_ids + sample.response_ids])
        where = slice(len(sample.prompt_ids) - 1, ids.shape[1] - 1)
        with torch.no_grad():
            first, second = (m(ids).logits[0, where].double() for m in (dense, sparse))
        target = torch.tensor(sample.response_ids)[:, None]
        loss = [-logits.log_softmax(-1).gather(-1, target).mean().item() for logits in (first, second)]
        p, q = ((logits / temperature).softmax(-1).numpy() for logits in (first, second))
        assert found["jsd_pruned"][i] == pytest.approx((jensenshannon(p, q, axis=1) ** 2).mean(), abs=2e-6)
        assert found["loss"][i] == pytest.approx(loss[0], abs=1e-5)
        assert found["loss_pruned"][i] == pytest.approx(loss[1], abs=1e-5)
        assert found["response_tokens"][i] == len(sample.response_ids)
    assert set(found["status"]) == {"ok"}


def test_padding_and_neighbours_do_not_change_a_row(pair: tuple, llama: Path) -> None:
    dense, sparse = pair
    samples = encoded(llama, 12)
    together = FusedPass(dense, {"pruned": sparse}, 1.0, 4096)(samples)
    alone = FusedPass(dense, {"pruned": sparse}, 1.0, 16)(samples)
    np.testing.assert_allclose(together["jsd_pruned"], alone["jsd_pruned"], rtol=2e-4, atol=1e-7)


def test_a_model_compared_with_itself_shows_no_damage(pair: tuple, llama: Path) -> None:
    found = FusedPass(pair[0], {"same": pair[0]}, 1.0, 512)(encoded(llama, 3))
    assert np.abs(found["jsd_same"]).max() < 1e-6
    np.testing.assert_array_equal(found["loss"], found["loss_same"])


def test_a_row_with_infinite_logits_is_marked_and_spares_the_others(pair: tuple, llama: Path) -> None:
    samples = encoded(llama, 6)
    broken = load_causal_lm(llama, dtype=torch.float32)
    unwanted = samples[2].response_ids[1]
    others = [s for s in samples if unwanted not in s.prompt_ids + s.response_ids]
    assert others
    assert samples[2] not in others
    with torch.no_grad():
        weight = broken.get_input_embeddings().weight
        broken.lm_head.weight = torch.nn.Parameter(weight.clone())
        weight[unwanted] = float("nan")
    found = FusedPass(pair[0], {"pruned": broken}, 1.0, 4096)([samples[2], *others])
    assert found["status"].tolist() == ["nonfinite"] + ["ok"] * len(others)
    assert math.isnan(found["jsd_pruned"][0])
    assert np.isfinite(found["jsd_pruned"][1:]).all()


def test_cut_rows_are_flagged_and_rows_without_response_are_not_scored(pair: tuple, llama: Path) -> None:
    full = encoded(llama, 1)[0]
    short, none = encoded(llama, 1, full.tokens - 3)[0], encoded(llama, 1, len(full.prompt_ids))[0]
    found = FusedPass(pair[0], {"pruned": pair[1]}, 1.0, 512)([full, short, none])
    assert found["status"].tolist() == ["ok", "cut", "no_response"]
    assert found["response_tokens"][1] == found["response_tokens"][0] - 3
    assert math.isnan(found["loss"][2])


def test_a_model_without_vocabulary_projection_is_refused(pair: tuple) -> None:
    with pytest.raises(ModelError, match="no vocabulary projection"):
        project(_headless(pair[0]), torch.zeros(1, 32))


def _headless(model: torch.nn.Module) -> torch.nn.Module:
    return model.model
