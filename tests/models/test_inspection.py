"""`paser models inspect` says what the files hold, also where the model is broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paser.errors import ModelError
from paser.models.inspection import inspect, inspect_uri, render
from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm
from paser.progress import console
from tests.models import foreign
from tests.models.test_foreign import DATA, changed


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
    assert any("fills zeros" in note for note in found.notes)
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
