"""What every kind of checkpoint promises once it is loaded: each test runs for every row of the table in
docs/pruning.md, new ones included.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from paser.artifacts import file_digests
from paser.models.conversion import convert
from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm
from tests import tiny
from tests.models import foreign
from tests.models.test_foreign import DATA
from tests.models.test_shapes import edit_weights


@dataclass(frozen=True)
class Made:
    """A checkpoint: its folder, the type to load it in, and the logits that its own tool gives, if known."""

    folder: Path
    dtype: torch.dtype = torch.float32
    expected: torch.Tensor | None = None


def _logits(folder: Path) -> torch.Tensor:
    return foreign.logits(load_causal_lm(folder, dtype=torch.float32))


def plain(dense: Path, work: Path) -> Made:
    return Made(dense)


def other_name(dense: Path, work: Path) -> Made:
    shutil.copytree(dense, work / "m")
    (work / "m/model.safetensors").rename(work / "m/pruned.safetensors")
    return Made(work / "m", expected=_logits(dense))


def shards(dense: Path, work: Path) -> Made:
    load_causal_lm(dense, dtype=torch.float32).save_pretrained(work / "m", max_shard_size="60KB")
    return Made(foreign.with_tokenizer(dense, work / "m"), expected=_logits(dense))


def uneven(dense: Path, work: Path) -> Made:
    model = foreign.uneven(dense)
    save_causal_lm(model, load_tokenizer(dense), work / "m")
    return Made(work / "m", torch.float16, foreign.logits(model))


def dropped_blocks(dense: Path, work: Path) -> Made:
    model: Any = load_causal_lm(dense, dtype=torch.float32)
    del model.model.layers[1]
    model.config.use_cache = False
    shutil.copytree(dense, work / "m")

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "layers.1." in name]:
            del tensors[name]

    edit_weights(work / "m", drop)
    return Made(work / "m", expected=foreign.logits(model))


def zeros(dense: Path, work: Path) -> Made:
    return Made(tiny.make_sparse(dense, work / "m"))


def masks(dense: Path, work: Path) -> Made:
    return Made(work / "m", expected=foreign.masked(dense, work / "m"))


def masks_apart(dense: Path, work: Path) -> Made:
    expected = foreign.masked(dense, work / "m")
    tensors = load_file(work / "m/model.safetensors")
    apart = {n.removesuffix("_mask"): tensors.pop(n) for n in list(tensors) if n.endswith("_mask")}
    save_file({n.removesuffix("_orig"): t for n, t in tensors.items()}, work / "m/model.safetensors")
    save_file(apart, work / "m/masks.safetensors")
    return Made(work / "m", expected=expected)


def pickled_masks(dense: Path, work: Path) -> Made:
    expected = foreign.masked(dense, work / "theirs")
    tensors = load_file(work / "theirs/model.safetensors")
    apart = {n: tensors.pop(n) for n in list(tensors) if n.endswith("_mask")}
    save_file({n.removesuffix("_orig"): t for n, t in tensors.items()}, work / "theirs/model.safetensors")
    torch.save(apart, work / "theirs/masks.pt")
    convert(work / "theirs/masks.pt", work / "m")
    return Made(work / "m", expected=expected)


def bitmask(dense: Path, work: Path) -> Made:
    return Made(DATA / "sparse-bitmask", torch.bfloat16)


def bitmask_24(dense: Path, work: Path) -> Made:
    return Made(DATA / "sparse-24-bitmask", torch.bfloat16)


def quantised(dense: Path, work: Path) -> Made:
    foreign.packed(dense, work / "m")
    return Made(work / "m", torch.bfloat16)


def adapter(dense: Path, work: Path) -> Made:
    return Made(work / "lora", expected=foreign.adapter(dense, work / "lora"))


def gguf(dense: Path, work: Path) -> Made:
    (work / "m").mkdir()
    return Made(work / "m", expected=foreign.gguf(dense, work / "m/model.gguf"))


def llm_pruner(dense: Path, work: Path) -> Made:
    expected = foreign.llm_pruner(dense, work / "pytorch_model.bin")
    convert(work / "pytorch_model.bin", work / "m")
    return Made(work / "m", torch.float16, expected)


def slicegpt(dense: Path, work: Path) -> Made:
    model = foreign.rotated(dense)
    torch.save(model.state_dict(), work / "model_0.25.pt")
    convert(work / "model_0.25.pt", work / "m", dense)
    return Made(work / "m", expected=foreign.logits(model))


def state_dict(dense: Path, work: Path) -> Made:
    torch.save(load_causal_lm(dense, dtype=torch.float32).state_dict(), work / "pytorch_model.bin")
    convert(work / "pytorch_model.bin", work / "m", dense)
    return Made(work / "m", expected=_logits(dense))


MAKERS: tuple[Callable[[Path, Path], Made], ...] = (
    plain, other_name, shards, uneven, dropped_blocks, zeros, masks, masks_apart, pickled_masks, bitmask,
    bitmask_24, quantised, adapter, gguf, llm_pruner, slicegpt, state_dict,
)  # fmt: skip
# Where the embedding and the vocabulary projection live in different bases.
UNTIED = ("slicegpt",)


@dataclass(frozen=True)
class Loaded:
    name: str
    made: Made
    model: Any
    tokenizer: Any

    def again(self) -> Any:
        return load_causal_lm(self.made.folder, dtype=self.made.dtype)


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: str(make.__name__))
def loaded(
    request: pytest.FixtureRequest, llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Loaded]:
    work = tmp_path_factory.mktemp(request.param.__name__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PASER_CACHE_DIR", str(work / "cache"))
        made = request.param(llama, work)
        model = load_causal_lm(made.folder, dtype=made.dtype)
        yield Loaded(request.param.__name__, made, model, load_tokenizer(llama))


def test_it_computes_what_its_own_tool_computes(loaded: Loaded) -> None:
    found = foreign.logits(loaded.model)
    assert bool(torch.isfinite(found).all())
    if loaded.made.expected is not None:
        torch.testing.assert_close(found, loaded.made.expected, atol=1e-6, rtol=1e-5)


def test_loading_it_again_gives_the_same_bytes(loaded: Loaded) -> None:
    second = loaded.again().state_dict()
    assert second.keys() == loaded.model.state_dict().keys()
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(second[name], tensor), name


def test_saved_and_loaded_it_gives_equal_logits_and_files(loaded: Loaded, tmp_path: Path) -> None:
    save_causal_lm(loaded.model, loaded.tokenizer, tmp_path / "one")
    again = load_causal_lm(tmp_path / "one", dtype=loaded.made.dtype)
    assert torch.equal(foreign.logits(again), foreign.logits(loaded.model))
    save_causal_lm(again, loaded.tokenizer, tmp_path / "two")
    assert file_digests(tmp_path / "one") == file_digests(tmp_path / "two")


def test_it_generates_the_likeliest_tokens(loaded: Loaded) -> None:
    ids = foreign.IDS
    found = loaded.model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False, eos_token_id=None)
    with torch.no_grad():
        first = loaded.model(ids).logits[0, -1].argmax()
    assert found.shape == (1, ids.shape[1] + 3)
    assert int(found[0, ids.shape[1]]) == int(first)


def test_embeddings_are_tied_where_the_original_ties_them(loaded: Loaded) -> None:
    model = loaded.model
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == bool(model.config.tie_word_embeddings) == (loaded.name not in UNTIED)
