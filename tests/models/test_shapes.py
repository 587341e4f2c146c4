"""Models whose layers differ: what is saved comes back, wherever it was made, and nonsense is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paser.errors import ModelError
from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm
from paser.models.packing import packs
from paser.models.passes import FusedPass
from paser.models.sparsity import measure
from paser.pruning.coupled import Block, take
from tests import tiny

IDS = torch.arange(5, 45)[None]


def uneven(llama: Path, folder: Path) -> Any:
    """A model with one key-value group less and a bias in block 0, and fewer channels in block 1; saved."""
    model: Any = load_causal_lm(llama, dtype=torch.float32)
    first, second = (Block(number, layer) for number, layer in enumerate(model.model.layers))
    first.keep_groups([1])
    first.attention.o_proj.bias = torch.nn.Parameter(torch.linspace(-1, 1, 32))
    second.keep_channels(range(40))
    save_causal_lm(model, load_tokenizer(llama), folder)
    return model


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def test_an_uneven_model_comes_back_with_the_same_logits(llama: Path, tmp_path: Path) -> None:
    model = uneven(llama, tmp_path / "m")
    again = load_causal_lm(tmp_path / "m", dtype=torch.float32)
    assert torch.equal(logits(again), logits(model))
    save_causal_lm(again, load_tokenizer(llama), tmp_path / "second")
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "m" / name).read_bytes()


def test_a_folder_that_says_nothing_of_its_widths_loads_too(llama: Path, tmp_path: Path) -> None:
    model = uneven(llama, tmp_path / "m")
    edit_config(tmp_path / "m", lambda config: config.pop("paser"))
    assert torch.equal(logits(load_causal_lm(tmp_path / "m", dtype=torch.float32)), logits(model))


def test_the_folder_says_how_to_load_it_and_plain_transformers_refuses_it(
    llama: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    uneven(llama, tmp_path / "m")
    assert "load_causal_lm" in (tmp_path / "m" / "README.md").read_text()
    block = json.loads((tmp_path / "m" / "config.json").read_text())["paser"]
    assert block["layout"] == "uneven"
    assert block["shapes"]["model.layers.1.mlp.up_proj.weight"] == [40, 32]
    with pytest.raises(RuntimeError):
        AutoModelForCausalLM.from_pretrained(tmp_path / "m")


def test_widths_that_are_even_load_in_plain_transformers(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = load_causal_lm(llama, dtype=torch.float32)
    for number, layer in enumerate(model.model.layers):
        Block(number, layer).keep_groups([number])
        Block(number, layer).keep_channels(range(number, 50 + number))
    save_causal_lm(model, load_tokenizer(llama), tmp_path / "m")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.equal(logits(plain), logits(model))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert "paser" not in config
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)
    assert (config["intermediate_size"], config["head_dim"]) == (50, 8)
    assert not (tmp_path / "m" / "README.md").exists()


def test_generation_with_a_cache_takes_the_likeliest_token_each_time(llama: Path, tmp_path: Path) -> None:
    uneven(llama, tmp_path / "m")
    model: Any = load_causal_lm(tmp_path / "m", dtype=torch.float32)
    ids = IDS
    found = model.generate(IDS, max_new_tokens=8, do_sample=False, use_cache=True, eos_token_id=None)
    with torch.no_grad():
        for _ in range(8):
            following = model(ids, use_cache=False).logits[0, -1].argmax()
            ids = torch.cat([ids, following.view(1, 1)], dim=1)
    assert torch.equal(found, ids)


def test_uneven_models_are_scored_packed_and_spread_over_devices(llama: Path, tmp_path: Path) -> None:
    uneven(llama, tmp_path / "m")
    dense, pruned = (
        load_causal_lm(llama, dtype=torch.float32),
        load_causal_lm(tmp_path / "m", dtype=torch.float32),
    )
    assert packs(pruned, 256)
    samples = tiny.calibration(llama, 5)
    expected = FusedPass(dense, {"pruned": pruned}, 1.0, 256)(samples)
    spread = load_causal_lm(tmp_path / "m", dtype=torch.float32, max_memory={"cpu": 60_000})
    found = FusedPass(dense, {"pruned": spread}, 1.0, 256)(samples)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    for index, sample in enumerate(samples):
        ids = torch.tensor([sample.prompt_ids + sample.response_ids])
        with torch.no_grad():
            lines: Any = pruned
            log_p = lines(ids).logits[0].log_softmax(dim=-1)
        start = len(sample.prompt_ids)
        loss = -log_p[range(start - 1, sample.tokens - 1), ids[0, start:]].mean()
        assert expected["loss_pruned"][index] == pytest.approx(float(loss), abs=1e-4)


def test_layers_of_an_uneven_model_are_measured_in_their_own_shapes(llama: Path, tmp_path: Path) -> None:
    uneven(llama, tmp_path / "m")
    shapes = {layer.name: layer.shape for layer in measure(tmp_path / "m").layers}
    assert len(shapes) == 14
    assert shapes["model.layers.0.self_attn.q_proj"] == (16, 32)
    assert shapes["model.layers.1.mlp.down_proj"] == (32, 40)


def test_a_gguf_or_plain_folder_is_not_touched(llama: Path) -> None:
    from paser.models.shapes import fitted_class

    assert fitted_class(llama) is None


def cut(name: str, rows: int | None = None, columns: int | None = None) -> Callable[[dict[str, Any]], None]:
    def edit(weights: dict[str, Any]) -> None:
        weights[name] = weights[name][:rows, :columns].contiguous()

    return edit


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda weights: weights.pop(name)


ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.1.mlp"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (cut(f"{ATTENTION}.q_proj.weight", 12), r"layers\.0\.self_attn.*12 rows.*whole heads of 8"),
        (cut(f"{ATTENTION}.q_proj.weight", 24), r"layers\.0\.self_attn.*3 query heads.*2 key-value heads"),
        (cut(f"{ATTENTION}.k_proj.weight", 8), r"k_proj and v_proj have 1 and 2 heads"),
        (cut(f"{ATTENTION}.o_proj.weight", None, 16), r"q_proj gives 32 values, o_proj takes 16"),
        (cut(f"{MLP}.up_proj.weight", 40), r"layers\.1\.mlp do not fit together.*'up_proj': 40"),
        (cut("model.embed_tokens.weight", 300), r"embed_tokens\.weight has the shape \[300, 32\].*means"),
        (drop(f"{MLP}.up_proj.weight"), r"lacks 1 tensors.*layers\.1\.mlp\.up_proj\.weight"),
    ],
)
def test_layers_that_do_not_fit_are_named(
    llama: Path, tmp_path: Path, edit: Callable[..., Any], message: str
) -> None:
    save_causal_lm(load_causal_lm(llama, dtype=torch.float32), load_tokenizer(llama), tmp_path / "m")
    edit_weights(tmp_path / "m", edit)
    with pytest.raises(ModelError, match=message) as caught:
        load_causal_lm(tmp_path / "m", dtype=torch.float32)
    assert "remedy" in str(caught.value)


def make_neox(folder: Path, *, fits: bool) -> Any:
    """A GPT-NeoX with a narrower feed-forward layer, whose second half is as narrow if it `fits`; saved."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=120, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    model: Any = GPTNeoXForCausalLM(config).eval()
    mlp = model.gpt_neox.layers[1].mlp
    take(mlp.dense_h_to_4h, rows=range(48))
    if fits:
        take(mlp.dense_4h_to_h, columns=range(48))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("fits", [True, False])
def test_a_family_with_other_names_loads_if_its_widths_fit(tmp_path: Path, fits: bool) -> None:
    model = make_neox(tmp_path, fits=fits)
    if fits:
        assert torch.equal(logits(load_causal_lm(tmp_path, dtype=torch.float32)), logits(model))
    else:
        with pytest.raises(ModelError, match=r"do not fit together: mat1 and mat2[\s\S]*remedy"):
            load_causal_lm(tmp_path, dtype=torch.float32)


def test_a_tensor_without_a_place_in_an_uneven_model_is_named(llama: Path, tmp_path: Path) -> None:
    uneven(llama, tmp_path / "m")
    edit_weights(tmp_path / "m", lambda weights: weights.update({"model.layers.0.extra": torch.ones(2)}))
    with pytest.raises(ModelError, match=r"no place for, model\.layers\.0\.extra first"):
        load_causal_lm(tmp_path / "m", dtype=torch.float32)


def test_an_unknown_layout_is_refused(llama: Path, tmp_path: Path) -> None:
    uneven(llama, tmp_path / "m")
    edit_config(tmp_path / "m", lambda config: config["paser"].update(layout="folded"))
    with pytest.raises(ModelError, match=r"layout is 'folded'"):
        load_causal_lm(tmp_path / "m", dtype=torch.float32)


def test_every_second_query_head_may_be_gone(llama: Path, tmp_path: Path) -> None:
    model: Any = load_causal_lm(llama, dtype=torch.float32)
    attention = model.model.layers[0].self_attn
    rows = [*range(8), *range(16, 24)]
    take(attention.q_proj, rows=rows)
    take(attention.o_proj, columns=rows)
    attention.num_key_value_groups = 1
    save_causal_lm(model, load_tokenizer(llama), tmp_path / "m")
    assert torch.equal(logits(load_causal_lm(tmp_path / "m", dtype=torch.float32)), logits(model))
