"""`paser models inspect` says what the files hold, also where the model is broken."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from paser.errors import ModelError
from paser.models.inspection import inspect, inspect_uri, render
from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm
from paser.progress import console
from tests import tiny
from tests.models import foreign
from tests.models.test_foreign import DATA, changed
from tests.models.test_shapes import cut, edit_weights


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASER_CACHE_DIR", str(tmp_path / "cache"))


def test_a_plain_sparse_model(sparse_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect_uri(str(sparse_llama))
    model = load_causal_lm(sparse_llama, dtype=torch.float32)
    unique = list(model.parameters())
    assert found.parameters == sum(p.numel() for p in unique)
    assert found.nonzero == sum(int(p.count_nonzero()) for p in unique)
    assert (found.format, found.architecture, found.blocks) == ("safetensors", "LlamaForCausalLM", 2)
    assert (found.tokens, found.embedding_rows, found.vocabulary_agrees) == (600, 600, True)
    assert found.tied
    assert found.plain is None
    assert found.keeps_pattern()[0]
    assert found.sparsity is not None
    assert found.sparsity.pattern == "unstructured"
    assert found.widths() == [{"block": n, "heads": 4, "kv_heads": 2, "mlp_width": 64} for n in (0, 1)]
    render(found, console())
    shown = capsys.readouterr().out
    assert "50.0%" in shown
    assert "0 to 1" in shown
    assert len(found.as_json()["layers"]) == 14
    json.dumps(found.as_json(), allow_nan=False)


def test_a_two_to_four_pattern_in_a_compressed_checkpoint() -> None:
    found = inspect(DATA / "sparse-24-bitmask")
    assert found.format == "compressed-tensors"
    assert found.sparsity is not None
    assert found.sparsity.pattern == "2:4"
    assert "does not load" not in str(found.unfit)
    assert found.plain is not None
    assert "sparse format" in found.plain
    assert found.vocabulary_agrees is None


def test_uneven_widths_and_heads(llama: Path, tmp_path: Path) -> None:
    save_causal_lm(foreign.uneven(llama), load_tokenizer(llama), tmp_path / "m")
    found = inspect(tmp_path / "m")
    assert set(found.uneven()) >= {"q_proj", "gate_proj", "down_proj"}
    assert found.widths()[0] == {"block": 0, "heads": 2, "kv_heads": 1, "mlp_width": 64}
    assert found.widths()[1] == {"block": 1, "heads": 4, "kv_heads": 2, "mlp_width": 40}
    assert found.plain is not None
    assert found.unfit is None


def test_nan_weights_are_counted_and_named(sparse_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(sparse_llama, tmp_path / "m")
    tensors = load_file(tmp_path / "m/model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][0, :3] = float("nan")
    save_file(tensors, tmp_path / "m/model.safetensors", metadata={"format": "pt"})
    found = inspect(tmp_path / "m")
    assert found.nonfinite == {name: 3}
    assert not found.keeps_pattern()[0]


def test_a_vocabulary_that_does_not_fit_the_embedding(llama: Path, tmp_path: Path) -> None:
    folder = changed(llama, tmp_path / "m", vocab_size=590)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:590].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = inspect(folder)
    assert (found.tokens, found.embedding_rows, found.vocabulary_agrees) == (600, 590, False)


def test_an_adapter_that_fills_the_zeros_of_its_base_is_said(sparse_llama: Path, tmp_path: Path) -> None:
    foreign.adapter(sparse_llama, tmp_path / "lora")
    found = inspect_uri(f"{sparse_llama}+{tmp_path / 'lora'}")
    assert found.format == "adapter on safetensors"
    keeps, why = found.keeps_pattern()
    assert not keeps
    assert "fills zeros of its base in 4 layers, model.layers.0.mlp.up_proj first" in why
    assert found.parameters == inspect(sparse_llama).parameters


def test_truncated_weights_are_named(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "m")
    weights = tmp_path / "m/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model\.safetensors is truncated or damaged"):
        inspect(tmp_path / "m")


def test_a_truncated_gguf_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x01")
    with pytest.raises(ModelError, match=r"model\.gguf is truncated or no GGUF"):
        inspect(tmp_path)


def test_zeros_that_only_a_later_layer_of_the_base_has_are_seen_too(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "base")
    edit_weights(
        tmp_path / "base", lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][:, ::2].zero_()
    )
    foreign.adapter(tmp_path / "base", tmp_path / "lora")
    assert "in 1 layers, model.layers.1.mlp.up_proj first" in inspect(tmp_path / "lora").keeps_pattern()[1]


# Verdicts


def _without(folder: Path, *parts: str) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if any(part in name for part in parts)]:
            del tensors[name]

    edit_weights(folder, edit)


def _in_part(number: int) -> Callable[[Path], None]:
    return lambda folder: _without(folder, f"layers.{number}.")


def _masked(folder: Path, *, lacking: str) -> None:
    save_file({"model.layers.1.mlp.up_proj.weight_mask": torch.ones(64, 32)}, folder / "masks.safetensors")
    _without(folder, lacking)


def _configured(**values: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")

    return write


def _strange(folder: Path) -> None:
    model: Any = foreign.uneven(folder)
    save_causal_lm(model, load_tokenizer(folder), folder)
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.0.extra": torch.ones(2)}))


def _gguf(**changes: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        foreign.gguf(folder, folder / "model.gguf", **changes)
        for name in ("model.safetensors", "config.json"):
            (folder / name).unlink()

    return make


FOLDERS: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "whole": (lambda folder: None, None),
    "first block": (_in_part(0), "looks like dropped blocks"),
    "last block": (_in_part(1), None),
    "a tensor": (lambda folder: _without(folder, "layers.1.mlp.up_proj"), "lacks 1 tensors"),
    "the embedding": (lambda folder: _without(folder, "embed_tokens"), "lacks 2 tensors"),
    "masks, a tensor": (lambda folder: _masked(folder, lacking="layers.0.mlp"), "lacks 3 tensors"),
    "torn heads": (
        lambda folder: edit_weights(folder, cut("model.layers.0.self_attn.q_proj.weight", 12)),
        "whole heads",
    ),
    "no causal model": (_configured(model_type="vit"), "none of the type 'vit'"),
    "unknown": (_configured(model_type="nonsense"), "none of the type 'nonsense'"),
    "a strange tensor": (_strange, "no place for"),
    "gguf": (_gguf(), None),
    "gguf of an unknown architecture": (_gguf(architecture="rwkv6"), "not supported"),
    "gguf, a tensor": (_gguf(lacking="blk.1.ffn_up.weight"), "lacks 1 tensors"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_verdict_is_what_loading_does(llama: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(llama, tmp_path / "m")
    make, problem = FOLDERS[name]
    make(tmp_path / "m")
    found = inspect(tmp_path / "m")
    if problem is None:
        assert found.unfit is None
        load_causal_lm(tmp_path / "m", dtype=torch.float32)
        return
    assert found.unfit is not None
    assert problem in found.unfit
    assert len(found.unfit.splitlines()) == 1
    assert found.plain is not None
    assert found.keeps_pattern() == (False, f"nothing can load it: {found.unfit}")
    with pytest.raises(ModelError, match=re.escape(problem)):
        load_causal_lm(tmp_path / "m", dtype=torch.float32)


@pytest.mark.parametrize("fits", [True, False])
def test_the_verdict_on_a_family_with_other_names(tmp_path: Path, fits: bool) -> None:
    from tests.models.test_shapes import make_neox

    make_neox(tmp_path, fits=fits)
    unfit = inspect(tmp_path).unfit
    assert (unfit is None) == fits
    assert fits or "do not fit together" in str(unfit)
    assert not fits or "48" in str(inspect(tmp_path).plain)


def test_an_adapter_on_a_base_with_a_tensor_too_few(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "base")
    foreign.adapter(tmp_path / "base", tmp_path / "lora")
    _without(tmp_path / "base", "layers.0.mlp.down_proj")
    assert "lacks 1 tensors" in str(inspect(tmp_path / "lora").unfit)
    with pytest.raises(ModelError, match="lacks 1 tensors"):
        load_causal_lm(tmp_path / "lora", dtype=torch.float32)


def test_dropped_blocks_load_by_what_the_weights_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.make_family(tmp_path / "m", "qwen3")
    _without(folder, "layers.2.")
    model: Any = load_causal_lm(folder, dtype=torch.float32)
    said = "config.json says 3 blocks, the weights have 2: it loads with 2"
    assert said in capsys.readouterr().err
    assert said in inspect(folder).notes
    assert len(model.model.layers) == model.config.num_hidden_layers == len(model.config.layer_types) == 2
    save_causal_lm(model, load_tokenizer(folder), tmp_path / "again")
    assert inspect(tmp_path / "again").plain is None
    again = load_causal_lm(tmp_path / "again", dtype=torch.float32)
    assert torch.equal(foreign.logits(again), foreign.logits(model))
