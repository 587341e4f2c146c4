"""The fused pass against the plain formula, one sample at a time with the whole vocabulary."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from paser.errors import ModelError
from paser.models.loading import load_causal_lm, load_tokenizer
from paser.models.passes import GROUP, FusedPass, project
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
        log_ratio = np.log(p) - np.log(q)
        assert found["kl_pruned"][i] == pytest.approx((p * log_ratio).sum(-1).mean(), abs=2e-6)
        assert found["reverse_kl_pruned"][i] == pytest.approx(-(q * log_ratio).sum(-1).mean(), abs=2e-6)
        plain, other = (logits.softmax(-1) for logits in (first, second))
        wrong = other - torch.nn.functional.one_hot(target[:, 0], other.shape[-1])
        recoverable = (wrong * (other - plain)).sum(-1).mean().item()
        assert found["recoverability_pruned"][i] == pytest.approx(recoverable, abs=2e-6)
        assert found["loss"][i] == pytest.approx(loss[0], abs=1e-5)
        assert found["loss_pruned"][i] == pytest.approx(loss[1], abs=1e-5)
        assert found["response_tokens"][i] == len(sample.response_ids)
    assert set(found["status"]) == {"ok"}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def everyone(
    llama: Path, request: pytest.FixtureRequest
) -> tuple[FusedPass, list[Encoded], dict[str, np.ndarray]]:
    """Samples that fill several portions, scored together by models as wide as it takes for the shape of a
    product to change its rounding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    samples = encoded(llama, 160)
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(load_tokenizer(llama)), hidden_size=512, intermediate_size=1536,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        )  # fmt: skip
        models.append(LlamaForCausalLM(config).to(request.param).eval())
    fused = FusedPass(models[0], {"pruned": models[1]}, 1.0, 512)
    assert sum(len(s.response_ids) for s in samples) > GROUP
    return fused, samples, fused(samples)


@given(chosen=st.lists(st.integers(0, 159), min_size=1, max_size=12))
@example(chosen=[3])
@settings(max_examples=8, deadline=None)
def test_neighbours_do_not_change_a_bit_of_a_row(everyone: tuple, chosen: list[int]) -> None:
    fused, samples, expected = everyone
    found = fused([samples[i] for i in chosen])
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name][chosen], err_msg=name)


def test_a_response_of_one_token_keeps_its_bits(everyone: tuple) -> None:
    fused, samples, _ = everyone
    short = Encoded(samples[0].prompt_ids, samples[0].response_ids[:1])
    alone, together = fused([short]), fused([*samples[:30], short])
    for name, values in alone.items():
        np.testing.assert_array_equal(values, together[name][-1:], err_msg=name)


@pytest.mark.parametrize("batch_tokens", [128, 333, 4096])
def test_the_size_of_a_pass_changes_rounding_only(pair: tuple, llama: Path, batch_tokens: int) -> None:
    samples = encoded(llama, 12)
    found = FusedPass(pair[0], {"pruned": pair[1]}, 1.0, batch_tokens)(samples)
    expected = FusedPass(pair[0], {"pruned": pair[1]}, 1.0, 512)(samples)
    for name in ("loss", "jsd_pruned", "kl_pruned", "reverse_kl_pruned"):
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-4, atol=1e-7, err_msg=name)


def test_models_that_cannot_be_packed_are_scored_row_by_row(pair: tuple, llama: Path) -> None:
    samples = encoded(llama, 6)
    expected = FusedPass(pair[0], {"pruned": pair[1]}, 1.0, 512)(samples)
    eager = [load_causal_lm(llama, dtype=torch.float32), copy.deepcopy(pair[1])]
    for model in eager:
        model.set_attn_implementation("eager")
    fused = FusedPass(eager[0], {"pruned": eager[1]}, 1.0, 512)
    assert not fused.packed
    found = fused(samples)
    np.testing.assert_allclose(found["jsd_pruned"], expected["jsd_pruned"], rtol=2e-4, atol=1e-7)
    alone = fused(samples[2:3])
    assert all(np.array_equal(alone[name], found[name][2:3]) for name in found)


def test_a_sample_longer_than_a_pass_names_the_setting(pair: tuple, llama: Path) -> None:
    with pytest.raises(ModelError, match=r"does not fit a forward pass of 20[\s\S]*score.batch_tokens"):
        FusedPass(pair[0], {}, 1.0, 20)(encoded(llama, 2))


def test_a_model_compared_with_itself_shows_no_damage(pair: tuple, llama: Path) -> None:
    found = FusedPass(pair[0], {"same": pair[0]}, 1.0, 512)(encoded(llama, 3))
    for name in ("jsd_same", "kl_same", "reverse_kl_same"):
        np.testing.assert_array_equal(found[name], 0.0)
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
    assert all(math.isnan(found[name][0]) for name in ("loss", "jsd_pruned", "kl_pruned"))
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
