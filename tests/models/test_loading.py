"""What loads, what is refused, and that both ends of a round trip agree."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from paser.cache import Cache
from paser.errors import ModelError
from paser.models.loading import (
    load_causal_lm,
    load_tokenizer,
    model_directory,
    save_causal_lm,
    vocabulary_mismatch,
)
from paser.models.workload import ModelSet
from paser.settings import Settings
from tests import tiny


def test_round_trip_keeps_logits(llama: Path, tmp_path: Path) -> None:
    model = load_causal_lm(llama, dtype=torch.bfloat16)
    save_causal_lm(model, load_tokenizer(llama), tmp_path / "copy")
    again = load_causal_lm(tmp_path / "copy", dtype=torch.bfloat16)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert not list((tmp_path / "copy").glob("*.bin"))


def test_a_pickle_checkpoint_is_refused_with_the_reason(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(llama, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle[\s\S]*safetensors"):
        load_causal_lm(folder, dtype=torch.float32)


def test_missing_and_ambiguous_folders_are_named(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        model_directory(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="holds no model"):
        model_directory(tmp_path)
    shutil.copytree(llama, tmp_path / "one")
    assert model_directory(tmp_path) == tmp_path / "one"
    shutil.copytree(llama, tmp_path / "two")
    with pytest.raises(ModelError, match="holds 2 models"):
        model_directory(tmp_path)


def test_a_folder_without_weights_is_refused(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelError, match="holds no weights"):
        load_causal_lm(tmp_path / "m", dtype=torch.float32)


def test_truncated_weights_are_a_clear_error(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_causal_lm(tmp_path / "m", dtype=torch.float32)


def test_different_vocabularies_are_refused(llama: Path, tmp_path: Path) -> None:
    other = tiny.make_llama(tmp_path / "other", tokenizer=tiny.make_tokenizer(extra=("<|extra|>",)))
    assert vocabulary_mismatch(load_tokenizer(llama), load_tokenizer(llama)) is None
    with pytest.raises(ModelError, match="different vocabularies"):
        ModelSet.load({"original": llama, "pruned": other}, Settings(), Cache(tmp_path / "cache"))


def test_a_sample_is_cut_at_a_shorter_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = tiny.make_llama(tmp_path / "short", context=40)
    models = ModelSet.load({"original": short}, Settings(), Cache(tmp_path / "cache"))
    assert models.limit(256) == 40
    assert "context of 40 tokens" in capsys.readouterr().err
