"""Rows packed into passes of one shape: which rows stand together changes no bit of any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paser.models.loading import load_causal_lm
from paser.models.packing import hidden_alone, hidden_packed, pack, packs, row_attention

CAPACITY = 64


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(300, 2000))
def test_every_row_is_packed_once_and_every_pack_fits(lengths: list[int], capacity: int) -> None:
    groups = pack(lengths, capacity)
    assert sorted(p for g in groups for p in g) == list(range(len(lengths)))
    assert all(0 < sum(lengths[p] for p in g) <= capacity for g in groups)
    best = -(-sum(lengths) // capacity)
    assert len(groups) <= 1.5 * best + 1


def test_a_row_longer_than_a_pass_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 65 tokens does not fit 64"):
        pack([3, 65], 64)


@given(st.data())
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_beside_any_others(
    llama: Path, dtype: torch.dtype, data: st.DataObject
) -> None:
    model = _model(llama, dtype)
    row = data.draw(st.lists(st.integers(0, 299), min_size=1, max_size=20))
    others = st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=11), max_size=2)
    states = []
    with torch.inference_mode(), row_attention(model):
        for _ in range(2):
            before, after = data.draw(others), data.draw(others)
            begin = sum(map(len, before))
            packed = hidden_packed(model, [*before, row, *after], CAPACITY)
            states.append(packed[begin : begin + len(row)])
    assert torch.equal(*states)
    if dtype == torch.float32:
        torch.testing.assert_close(states[0], hidden_alone(model, row), rtol=1e-4, atol=1e-5)


_LOADED: dict[tuple[Path, torch.dtype], Any] = {}


def _model(path: Path, dtype: torch.dtype) -> Any:
    if (path, dtype) not in _LOADED:
        _LOADED[path, dtype] = load_causal_lm(path, dtype=dtype).requires_grad_(False)
    return _LOADED[path, dtype]


def _tiny(name: str, **changes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**sizes, **changes})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    "name", ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "gpt2", "gpt_neox", "opt"]
)
def test_common_architectures_are_packed(name: str) -> None:
    changes = {"gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4}, "gemma": {"head_dim": 8}}
    special = {"phi3": {"pad_token_id": 0}, "opt": {"word_embed_proj_dim": 32, "ffn_dim": 64}}
    assert packs(_tiny(name, **changes.get(name, {}), **special.get(name, {})), CAPACITY)


def test_a_model_with_a_state_along_the_sequence_is_not_packed() -> None:
    recurrent = _tiny("lfm2", full_attn_idxs=[1], block_multiple_of=8)
    assert not packs(recurrent, CAPACITY)


def test_a_model_that_counts_positions_itself_is_not_packed() -> None:
    assert not packs(_tiny("bloom", n_layer=2, n_head=4), CAPACITY)


def test_a_window_shorter_than_a_pass_is_not_packed() -> None:
    assert packs(_tiny("mistral", sliding_window=CAPACITY), CAPACITY)
    assert not packs(_tiny("mistral", sliding_window=CAPACITY - 1), CAPACITY)


def test_the_models_attention_is_as_before_afterwards(llama: Path) -> None:
    model = load_causal_lm(llama, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    mask = torch.tensor([[0, 1, 1, 1]])
    before = model(ids, attention_mask=mask).logits
    assert packs(model, CAPACITY)
    assert torch.equal(model(ids, attention_mask=mask).logits, before)
