"""Checkpoints that others pruned load with the weights their own tools give, and bad ones are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from paser.cache import Cache
from paser.errors import ModelError, SourceError
from paser.models.foreign import open_folder
from paser.models.loading import load_causal_lm, load_config, load_tokenizer, model_directory
from paser.models.sparsity import measure
from paser.sources.catalog import source_from_uri
from paser.sources.fetching import fetch_one
from tests.models import foreign

DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASER_CACHE_DIR", str(tmp_path / "cache"))


def test_masks_beside_the_weights_are_applied(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = foreign.masked(llama, tmp_path / "masked")
    model = load_causal_lm(tmp_path / "masked", dtype=torch.float32)
    assert torch.equal(foreign.logits(model), expected)
    assert "14 masks applied" in capsys.readouterr().err
    (copy,) = (tmp_path / "cache/models").iterdir()
    assert measure(copy).overall == pytest.approx(0.5, abs=0.01)


def test_masks_in_a_file_of_their_own(llama: Path, tmp_path: Path) -> None:
    expected = foreign.masked(llama, tmp_path / "masked")
    weights = tmp_path / "masked/model.safetensors"
    tensors = load_file(weights)
    masks = {name: tensors.pop(name).bool() for name in list(tensors) if name.endswith("_mask")}
    save_file({name.removesuffix("_orig"): value for name, value in tensors.items()}, weights)
    save_file(masks, weights.with_name("masks.safetensors"))
    model = load_causal_lm(tmp_path / "masked", dtype=torch.float32)
    assert torch.equal(foreign.logits(model), expected)


def test_a_mask_that_fits_no_weight_is_refused(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "m")
    save_file({"model.layers.9.mlp.up_proj.weight_mask": torch.ones(2, 2)}, tmp_path / "m/masks.safetensors")
    with pytest.raises(ModelError, match=r"up_proj\.weight_mask' has no"):
        load_causal_lm(tmp_path / "m", dtype=torch.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({f"{name}_mask": torch.full((64, 32), 0.5)}, tmp_path / "m/masks.safetensors")
    with pytest.raises(ModelError, match="values other than 0 and 1"):
        load_causal_lm(tmp_path / "m", dtype=torch.float32)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.uint8])
def test_a_file_of_masks_may_use_the_names_of_the_weights(
    llama: Path, tmp_path: Path, kind: torch.dtype
) -> None:
    expected = foreign.masked(llama, tmp_path / "masked")
    weights = tmp_path / "masked/model.safetensors"
    tensors = load_file(weights)
    masks = {name: tensors.pop(name).to(kind) for name in list(tensors) if name.endswith("_mask")}
    save_file({name.removesuffix("_orig"): value for name, value in tensors.items()}, weights)
    named = {name.removesuffix("_mask"): value for name, value in masks.items()}
    save_file(named, weights.with_name("mask.safetensors"))
    assert torch.equal(foreign.logits(load_causal_lm(tmp_path / "masked", dtype=torch.float32)), expected)


def test_a_second_file_that_is_no_mask_is_told_how_masks_look(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "m")
    shutil.copyfile(llama / "model.safetensors", tmp_path / "m/mask.safetensors")
    with pytest.raises(ModelError, match=r"two sets of weights[\s\S]*of 0 and 1[\s\S]*X_mask"):
        load_causal_lm(tmp_path / "m", dtype=torch.float32)


def test_one_file_of_weights_may_have_any_name(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "m")
    (tmp_path / "m/model.safetensors").rename(tmp_path / "m/pruned.safetensors")
    model = load_causal_lm(tmp_path / "m", dtype=torch.float32)
    assert torch.equal(foreign.logits(model), foreign.logits(load_causal_lm(llama, dtype=torch.float32)))
    (tmp_path / "m/pruned.safetensors").rename(tmp_path / "m/model-00001-of-00002.safetensors")
    with pytest.raises(ModelError, match=r"no model\.safetensors\.index\.json, but shards: model-00001"):
        load_causal_lm(tmp_path / "m", dtype=torch.float32)


def test_masks_in_a_pickle_are_never_dropped_without_a_word(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from paser.models.inspection import inspect_uri

    shutil.copytree(llama, tmp_path / "m")
    torch.save({}, tmp_path / "m/optimizer.pt")
    assert inspect_uri(str(tmp_path / "m")).notes == (
        "pickles beside the weights are not read: optimizer.pt",
    )
    load_causal_lm(tmp_path / "m", dtype=torch.float32)
    assert capsys.readouterr().err.count("warning:") == 2
    torch.save({}, tmp_path / "m/sparsity_masks.pt")
    with pytest.raises(SourceError, match=r"sparsity_masks\.pt is a pickle of masks"):
        inspect_uri(str(tmp_path / "m"))
    with pytest.raises(ModelError, match=r"sparsity_masks\.pt is a pickle of masks"):
        load_causal_lm(tmp_path / "m", dtype=torch.float32)


@pytest.mark.parametrize("form", ["sparse-bitmask", "sparse-24-bitmask"])
def test_the_sparse_formats_of_compressed_tensors_give_every_weight_back(form: str) -> None:
    expected = load_file(DATA / f"{form}-dense.safetensors")
    opened = open_folder(DATA / form)
    assert f"decompressed from {form}" in opened.translated
    assert set(opened.weights.tensors) == set(expected)
    for name, value in expected.items():
        assert torch.equal(opened.weights.read(name), value), name
    model = load_causal_lm(DATA / form, dtype=torch.bfloat16)
    assert torch.equal(model.get_parameter("model.layers.0.mlp.up_proj.weight"), expected[_UP])


_UP = "model.layers.0.mlp.up_proj.weight"


def test_quantised_weights_become_dense_bfloat16_as_the_library_has_them(
    sparse_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    foreign.packed(sparse_llama, tmp_path / "packed")
    model = load_causal_lm(tmp_path / "packed", dtype=torch.bfloat16)
    assert "dequantised from pack-quantized to bfloat16" in capsys.readouterr().err
    dequantised: Any = CompressedTensorsConfig(dequantize=True)
    own = AutoModelForCausalLM.from_pretrained(
        tmp_path / "packed", quantization_config=dequantised, dtype=torch.bfloat16
    )
    for name, value in own.named_parameters():
        if name.endswith("weight"):
            assert torch.equal(model.get_parameter(name), value), name
    assert measure(next((tmp_path / "cache/models").iterdir())).overall == pytest.approx(0.5, abs=0.01)


def test_other_quantisation_is_refused_by_its_name(llama: Path, tmp_path: Path) -> None:
    folder = changed(llama, tmp_path / "m", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="quantised by 'gptq' cannot be read"):
        load_causal_lm(folder, dtype=torch.float32)


def test_an_adapter_is_merged_into_the_base_it_names(sparse_llama: Path, tmp_path: Path) -> None:
    expected = foreign.adapter(sparse_llama, tmp_path / "lora")
    model = load_causal_lm(tmp_path / "lora", dtype=torch.float32)
    torch.testing.assert_close(foreign.logits(model), expected)
    assert load_tokenizer(tmp_path / "lora").get_vocab() == load_tokenizer(sparse_llama).get_vocab()
    assert load_config(tmp_path / "lora").vocab_size == load_config(sparse_llama).vocab_size


def test_base_plus_adapter_is_one_model_whose_digest_covers_both(
    llama: Path, sparse_llama: Path, tmp_path: Path
) -> None:
    expected = foreign.adapter(sparse_llama, tmp_path / "lora")
    settings = json.loads((tmp_path / "lora/adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = "someone/model-on-the-hub"
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ModelError, match=r"someone/model-on-the-hub'[\s\S]*BASE\+ADAPTER"):
        load_causal_lm(tmp_path / "lora", dtype=torch.float32)
    cache = Cache(tmp_path / "cache")
    found = []
    for number, base in enumerate((sparse_llama, llama)):
        source = source_from_uri(f"{base}+{tmp_path / 'lora'}", "original", name="pair")
        found.append(fetch_one(source, None, cache, tmp_path / f"pair-{number}"))
    assert found[0].resolved != found[1].resolved
    model = load_causal_lm(model_directory(tmp_path / "pair-0"), dtype=torch.float32)
    torch.testing.assert_close(foreign.logits(model), expected)


def test_an_adapter_for_another_model_is_refused(llama: Path, tmp_path: Path) -> None:
    foreign.adapter(llama, tmp_path / "lora")
    folder = tmp_path / "lora"
    tensors = load_file(folder / "adapter_model.safetensors")
    first = next(name for name in tensors if "lora_A" in name)
    save_file(tensors | {first: torch.zeros(4, 99)}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"has shape \(\d+, 99\), the base model \(\d+, 32\)"):
        load_causal_lm(folder, dtype=torch.float32)
    save_file(
        tensors | {"base_model.model.extra.lora_E": torch.zeros(1)}, folder / "adapter_model.safetensors"
    )
    with pytest.raises(ModelError, match=r"extra\.lora_E"):
        load_causal_lm(folder, dtype=torch.float32)


# Bad input


def changed(source: Path, folder: Path, **values: Any) -> Path:
    """A copy of a model with other values in config.json."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | values
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_code_of_the_checkpoint_is_never_run(llama: Path, tmp_path: Path) -> None:
    folder = changed(llama, tmp_path / "m", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    mark = tmp_path / "ran"
    (folder / "modeling_own.py").write_text(f"open({str(mark)!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(
        ModelError, match=r"modeling_own\.Own, trust_remote_code\), which is never run[\s\S]*llama"
    ):
        load_causal_lm(folder, dtype=torch.float32)
    with pytest.raises(ModelError, match=r"modeling_own\.Own"):
        load_config(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", r"config\.json is not JSON"),
        ("[1, 2]", r"config\.json is not a JSON object"),
        ('{"hidden_size": 32}', "names no architecture: model_type is None"),
        ('{"model_type": "nonsense"}', "config.json"),
    ],
)
def test_a_configuration_that_is_none_is_refused(
    llama: Path, tmp_path: Path, text: str, message: str
) -> None:
    shutil.copytree(llama, tmp_path / "m")
    (tmp_path / "m/config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=message) as caught:
        load_causal_lm(tmp_path / "m", dtype=torch.float32)
    with pytest.raises(ModelError) as of_config:
        load_config(tmp_path / "m")
    assert caught.value.remedy
    assert of_config.value.remedy


def test_two_kinds_of_weights_are_refused(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "m")
    (tmp_path / "m/model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"two kinds of weights: model\.safetensors and model\.gguf"):
        load_causal_lm(tmp_path / "m", dtype=torch.float32)
    (tmp_path / "m/model.gguf").unlink()
    save_file({"other": torch.zeros(1)}, tmp_path / "m/consolidated.safetensors")
    with pytest.raises(ModelError, match=r"two sets of weights: model\.safetensors and consolidated"):
        load_causal_lm(tmp_path / "m", dtype=torch.float32)


def test_a_whole_model_beside_an_adapter_is_refused(llama: Path, tmp_path: Path) -> None:
    foreign.adapter(llama, tmp_path / "lora")
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(llama / name, tmp_path / "lora" / name)
    with pytest.raises(ModelError, match="both a whole model and an adapter"):
        load_causal_lm(tmp_path / "lora", dtype=torch.float32)


def test_a_shard_that_the_index_names_and_is_not_there(llama: Path, tmp_path: Path) -> None:
    model = load_causal_lm(llama, dtype=torch.float32)
    model.save_pretrained(tmp_path / "m", max_shard_size="60KB")
    shards = sorted((tmp_path / "m").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(
        foreign.logits(load_causal_lm(tmp_path / "m", dtype=torch.float32)), foreign.logits(model)
    )
    shards[-1].unlink()
    with pytest.raises(
        ModelError, match=rf"names {shards[-1].name}, which is not there \(1 of {len(shards)}"
    ):
        load_causal_lm(tmp_path / "m", dtype=torch.float32)


def test_a_pickle_given_as_pruned_names_the_command_that_converts_it(llama: Path, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "model.bin")
    source = source_from_uri(str(tmp_path / "model.bin"), "original", name="pruned")
    with pytest.raises(SourceError, match="paser models convert"):
        fetch_one(source, None, Cache(tmp_path / "cache"), tmp_path / "out")


def test_a_plain_folder_is_not_copied(llama: Path, tmp_path: Path) -> None:
    load_causal_lm(llama, dtype=torch.float32)
    assert not (tmp_path / "cache").exists()
