"""Sparsity is measured on saved files, not in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paser.errors import ModelError
from paser.models.sparsity import measure, same_zeros


@pytest.fixture
def edited(llama: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny model after `edit(name, weight)` on each linear layer."""
    import torch

    from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm

    def make(name: str, edit: Callable[[str, Any], None]) -> Path:
        model = load_causal_lm(llama, dtype=torch.float32)
        with torch.no_grad():
            for layer, module in model.named_modules():
                if isinstance(module, torch.nn.Linear) and layer != "lm_head":
                    edit(layer, module.weight)
        save_causal_lm(model, load_tokenizer(llama), tmp_path / name)
        return tmp_path / name

    return make


def zero_columns(every: int, first: int = 0) -> Callable[[str, Any], None]:
    def edit(_: str, weight: Any) -> None:
        weight[:, first::every] = 0

    return edit


def test_share_of_zeros_is_exact_and_leaves_out_the_vocabulary(edited: Callable[..., Path]) -> None:
    quarter = edited("quarter", zero_columns(4))
    sparsity = measure(quarter)
    assert len(sparsity.layers) == 14
    assert (sparsity.overall, sparsity.lowest, sparsity.highest) == (0.25, 0.25, 0.25)
    assert not any("lm_head" in layer.name or "embed" in layer.name for layer in sparsity.layers)


def test_one_sparser_layer_shows_as_the_highest(edited: Callable[..., Path]) -> None:
    def edit(layer: str, weight: Any) -> None:
        weight[:, ::2] = 0
        if layer == "model.layers.1.mlp.up_proj":
            weight[:, 1::4] = 0

    sparsity = measure(edited("uneven", edit))
    assert sparsity.lowest == 0.5
    assert [layer.name for layer in sparsity.layers if layer.share == 0.75] == ["model.layers.1.mlp.up_proj"]
    assert sparsity.highest == 0.75


def test_patterns(llama: Path, edited: Callable[..., Path]) -> None:
    def four_of_eight(_: str, weight: Any) -> None:
        weight.view(weight.shape[0], -1, 8)[:, :, :4] = 0

    def no_blocks(_: str, weight: Any) -> None:
        weight[:, : weight.shape[1] // 2] = 0

    assert measure(llama).pattern == "dense"
    assert measure(edited("2-4", zero_columns(2))).pattern == "2:4"
    assert measure(edited("4-8", four_of_eight)).pattern == "4:8"
    assert measure(edited("half", no_blocks)).pattern == "unstructured"


def test_a_revived_zero_names_its_layer(edited: Callable[..., Path]) -> None:
    before = edited("before", zero_columns(2))

    def revive(layer: str, weight: Any) -> None:
        weight[:, ::2] = 0
        if layer == "model.layers.0.self_attn.k_proj":
            weight[3, 4] = 1e-6

    assert same_zeros(before, before) == []
    assert same_zeros(before, edited("after", revive)) == ["model.layers.0.self_attn.k_proj"]


def test_more_zeros_than_before_are_no_loss(edited: Callable[..., Path]) -> None:
    assert same_zeros(edited("before", zero_columns(4)), edited("after", zero_columns(2))) == []


def test_a_dense_layer_has_nothing_to_keep(llama: Path, edited: Callable[..., Path]) -> None:
    def one_zero(_: str, weight: Any) -> None:
        weight[0, 0] = 0

    assert same_zeros(edited("nearly-dense", one_zero), llama) == []


def test_a_folder_without_weights_is_an_error_that_names_it(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    with pytest.raises(ModelError, match="no safetensors"):
        measure(tmp_path)
