"""What loads, what is refused, and that both ends of a round trip agree."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
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
from paser.models.passes import FusedPass
from paser.models.precision import memory_shares
from paser.models.tokens import SampleEncoder
from paser.models.workload import ModelSet
from paser.records import Sample
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


@pytest.mark.parametrize("share", [10.0, 0.9, 0.5, 0.1])
def test_a_model_spread_over_memory_and_disk_gives_the_same_bits(
    llama: Path, sparse_llama: Path, share: float
) -> None:
    plain = [load_causal_lm(path, dtype=torch.float32) for path in (llama, sparse_llama)]
    room = int(share * sum(w.numel() * w.element_size() for w in plain[0].parameters()))
    spread = [
        load_causal_lm(path, dtype=torch.float32, max_memory={"cpu": room}) for path in (llama, sparse_llama)
    ]
    on_disk = any(weight.device.type == "meta" for weight in spread[0].parameters())
    assert on_disk == (share < 1)
    encoder = SampleEncoder(load_tokenizer(llama))
    samples = [
        encoder.encode(Sample("t", str(i), "MIT", r["instruction"], r["input"], r["output"]), 100)
        for i, r in enumerate(tiny.rows(5))
    ]
    expected = FusedPass(plain[0], {"pruned": plain[1]}, 1.0, 256)(samples)
    found = FusedPass(spread[0], {"pruned": spread[1]}, 1.0, 256)(samples)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_device_map_auto_gives_each_model_its_share_of_the_memory(llama: Path, tmp_path: Path) -> None:
    assert memory_shares("cpu", 1)["cpu"] > 1.5 * memory_shares("cpu", 2)["cpu"] > 0
    settings = Settings.model_validate({"runtime": {"device_map": "auto", "device": "cpu"}})
    models = ModelSet.load({"original": llama, "pruned": llama}, settings, Cache(tmp_path))
    assert models.devices() == ["cpu"]


def test_a_gguf_file_is_not_spread_over_devices(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"model\.gguf[\s\S]*runtime\.device_map: none"):
        load_causal_lm(tmp_path, dtype=torch.float32, max_memory={"cpu": 1000})


def test_a_sample_is_cut_at_a_shorter_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = tiny.make_llama(tmp_path / "short", context=40)
    models = ModelSet.load({"original": short}, Settings(), Cache(tmp_path / "cache"))
    assert models.limit(256) == 40
    assert "context of 40 tokens" in capsys.readouterr().err
