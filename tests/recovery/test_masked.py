"""A masked adapter trains what it merges, and never touches a zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paser.recovery.lora import add_adapter
from paser.recovery.masked import masked_linear
from paser.settings import RecoverSettings

SETTINGS = RecoverSettings(dropout=0.0)


def load(path: Path, dtype: str = "float32") -> Any:
    import torch

    from paser.models.loading import load_causal_lm

    return load_causal_lm(path, dtype=getattr(torch, dtype))


def randomised(adapted: Any) -> Any:
    """Gives B values, which start at zero, so that the adapter does something."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return adapted


def masks(model: Any) -> dict[str, Any]:
    """Which weights of the adapted layers are not zero, by layer."""
    return {
        name: module.weight.detach() != 0
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in SETTINGS.targets
    }


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(5, 45)[None]).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_merged_model_is_the_trained_one_to_the_bit(sparse_llama: Path, dtype: str) -> None:
    import torch

    adapted = randomised(add_adapter(load(sparse_llama, dtype), SETTINGS))
    trained = logits(adapted)
    merged = adapted.merge_and_unload()
    assert not torch.equal(trained, logits(load(sparse_llama, dtype)))
    assert torch.equal(trained, logits(merged))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merging_keeps_every_zero_and_changes_the_rest(sparse_llama: Path, dtype: str) -> None:
    before = load(sparse_llama, dtype)
    kept = masks(before)
    merged = randomised(add_adapter(load(sparse_llama, dtype), SETTINGS)).merge_and_unload()
    assert len(kept) == 14
    for name, mask in kept.items():
        after = merged.get_submodule(name).weight
        assert not after[~mask].any()
        assert (after[mask] != before.get_submodule(name).weight[mask]).float().mean() > 0.9


def test_an_adapter_without_masks_would_fill_the_zeros(sparse_llama: Path) -> None:
    kept = masks(load(sparse_llama))
    plain = SETTINGS.model_copy(update={"zeros": "merged"})
    adapted = randomised(add_adapter(load(sparse_llama), plain))
    merged = adapted.merge_and_unload()
    assert all(bool(merged.get_submodule(name).weight[~mask].any()) for name, mask in kept.items())


def test_gradients_are_those_of_the_masked_sum(sparse_llama: Path) -> None:
    import torch

    adapted = randomised(add_adapter(load(sparse_llama), SETTINGS)).train()
    layer = adapted.get_base_model().model.layers[0].self_attn.q_proj
    x = torch.randn(2, 7, 32, requires_grad=True)
    weights = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    found = torch.autograd.grad(layer(x).pow(2).sum(), (x, *weights))

    lower, upper = (w.detach().clone().requires_grad_() for w in weights)
    base = layer.get_base_layer().weight
    dense = base + (upper @ lower) * layer.scaling["default"] * (base != 0)
    expected = torch.autograd.grad((x @ dense.t()).pow(2).sum(), (x, lower, upper))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_dropout_is_on_in_training_and_off_in_evaluation(sparse_llama: Path) -> None:
    import torch

    settings = RecoverSettings(dropout=0.5)
    adapted = randomised(add_adapter(load(sparse_llama), settings))
    layer = adapted.get_base_model().model.layers[0].mlp.up_proj
    x = torch.randn(1, 5, 32)
    adapted.train()
    assert not torch.equal(layer(x), layer(x))
    adapted.eval()
    assert torch.equal(layer(x), layer(x))


def test_dropout_leaves_the_expected_update_unchanged(sparse_llama: Path) -> None:
    import torch

    torch.manual_seed(0)
    adapted = randomised(add_adapter(load(sparse_llama), RecoverSettings(dropout=0.2)))
    layer = adapted.get_base_model().model.layers[0].mlp.up_proj
    x = torch.randn(1, 5, 32)
    with torch.no_grad():
        exact = layer.eval()(x)
        mean = torch.stack([layer.train()(x) for _ in range(4000)]).mean(dim=0)
    assert float((mean - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_dense_layers_get_the_plain_adapter(llama: Path, sparse_llama: Path) -> None:
    def masked(path: Path) -> int:
        adapted = add_adapter(load(path), SETTINGS)
        return sum(isinstance(module, masked_linear()) for module in adapted.modules())

    assert masked(llama) == 0
    assert masked(sparse_llama) == 14
