"""What cannot be pruned is refused, with the layer, the number or the key that is to blame."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from paser.errors import SettingsError, StageError
from paser.models.tokens import Encoded
from paser.pruning.layers import linear_layers
from paser.pruning.protocol import prune
from paser.settings import PruneSettings, parse_settings

FEW = [Encoded((3, 4), (5, 6)), Encoded((), ())]
ENOUGH = [Encoded(tuple(range(3, 60)), tuple(range(60, 110)))] * 3


def load(path: Path) -> Any:
    import torch

    from paser.models.loading import load_causal_lm

    return load_causal_lm(path, dtype=torch.float32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scheme": "magic"}, "prune.scheme: 'magic' is no pruning scheme; one of wanda, sparsegpt"),
        ({"sparsity": 1.0}, r"prune\.sparsity is 1\.0"),
        ({"sparsity": -0.1}, r"prune\.sparsity is -0\.1"),
        ({"options": {"alpha": 1.0}}, r"options\.alpha is 1\.0, but wanda has no such.*belongs to gblm"),
        ({"scheme": "gblm", "options": {"alpha": -1.0}}, r"options\.alpha is -1\.0: input should be greater"),
        ({"scheme": "gblm", "options": {"alhpa": 1.0}}, r"its options: alpha"),
        ({"scheme": "sparsegpt", "options": {"block_size": 12}}, r"block_size is 12.*multiple of 8"),
        ({"scheme": "random", "options": {"ratios": "some"}}, r"options\.ratios is 'some'"),
        ({"options": [1]}, r"prune\.options is \[1\]"),
        ({"external": 3}, r"prune\.external is 3"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as found:
        parse_settings({"prune": given}, "my.yaml")
    assert "params.yaml" in str(found.value)


def test_options_may_be_left_empty() -> None:
    assert parse_settings({"prune": {"options": None}}, "my.yaml").prune == PruneSettings()


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("wanda", "calibration has 4 tokens in 1 samples; at least 16 are needed, so that the norm"),
        ("gblm", "calibration has 4 tokens in 1 samples; at least 16 are needed, so that norm and gradient"),
        ("sparsegpt", r"has 4 tokens.*at least 64 are needed, because layer .*down_proj has 64 inputs"),
    ],
)
def test_a_calibration_too_small_says_how_small_and_why(llama: Path, scheme: str, message: str) -> None:
    with pytest.raises(StageError, match=message):
        prune(load(llama), FEW, PruneSettings(scheme=scheme), 17)
    with pytest.raises(StageError, match="no calibration sample"):
        prune(load(llama), [Encoded((), ())], PruneSettings(scheme=scheme), 17)


@pytest.mark.parametrize("scheme", ["wanda", "sparsegpt", "gblm"])
def test_activations_that_are_not_finite_name_the_first_layer(llama: Path, scheme: str) -> None:
    import torch

    model = load(llama)
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] = math.inf
    with pytest.raises(StageError, match=r"enter layer model\.layers\.1\.mlp\.down_proj are not finite"):
        prune(model, ENOUGH, PruneSettings(scheme=scheme), 17)


@pytest.mark.parametrize("scheme", ["wanda", "sparsegpt", "magnitude", "random", "gblm"])
def test_a_pattern_that_does_not_divide_names_the_layer(scheme: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    odd = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=120, hidden_size=32, intermediate_size=66, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2,
        )
    )  # fmt: skip
    with pytest.raises(StageError, match=r"4:8 does not fit layer .*down_proj: 66 inputs are no multiple"):
        prune(odd, ENOUGH, PruneSettings(scheme=scheme, pattern="4:8"), 17)


def test_a_scheme_without_patterns_names_those_that_have_them(llama: Path) -> None:
    with pytest.raises(StageError, match=r"global-magnitude places no N:M pattern[\s\S]*wanda, sparsegpt"):
        prune(load(llama), ENOUGH, PruneSettings(scheme="global-magnitude", pattern="2:4"), 17)


def test_layerwise_ratios_and_a_pattern_contradict_each_other(llama: Path) -> None:
    settings = PruneSettings(scheme="random", pattern="2:4", options={"ratios": "layerwise"})
    with pytest.raises(StageError, match="fixes every layer's share"):
        prune(load(llama), ENOUGH, settings, 17)


@pytest.mark.parametrize("scheme", ["wanda", "sparsegpt", "magnitude", "global-magnitude", "random", "gblm"])
def test_an_architecture_without_linear_layers_is_refused(scheme: str) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=120, n_embd=32, n_layer=1, n_head=4, n_positions=64))
    with pytest.raises(
        StageError, match=r"GPT2LMHeadModel keeps most of its weights outside of linear layers, as \S+mlp"
    ):
        prune(model, ENOUGH, PruneSettings(scheme=scheme), 17)


def test_fused_experts_are_refused_rather_than_half_pruned() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=120, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        )
    )  # fmt: skip
    with pytest.raises(StageError, match=r"MixtralForCausalLM keeps most of its weights outside.*experts"):
        linear_layers(model)


def test_a_covariance_that_cannot_be_inverted_is_no_silent_fallback(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def singular(*_: Any, **__: Any) -> Any:
        raise torch.linalg.LinAlgError("not positive definite")

    monkeypatch.setattr(torch.linalg, "cholesky", singular)
    with pytest.raises(StageError, match="Failed to invert hessian"):
        prune(load(llama), ENOUGH, PruneSettings(scheme="sparsegpt"), 17)


@pytest.mark.parametrize("scheme", ["wanda", "sparsegpt", "gblm"])
def test_a_vocabulary_projection_of_another_name_is_left_alone(scheme: str, tmp_path: Path) -> None:
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=120, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    model = load(tmp_path)
    before = model.get_output_embeddings().weight.detach().clone()
    prune(model, ENOUGH, PruneSettings(scheme=scheme), 17)
    assert torch.equal(model.get_output_embeddings().weight, before)
    assert all(float((layer.weight == 0).float().mean()) > 0.49 for layer in linear_layers(model).values())
