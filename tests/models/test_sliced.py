"""The sliced architecture: it loads by itself, and tensors of different models are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paser.errors import ModelError
from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm
from paser.models.packing import packs
from paser.models.sliced import to_sliced, unit_norm
from paser.models.sparsity import measure
from paser.pruning.slicegpt import slicegpt
from paser.settings import PruneSettings
from tests import tiny
from tests.models.test_shapes import IDS, edit_weights, logits


@pytest.fixture(scope="module")
def sliced(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sliced") / "m"
    model = load_causal_lm(llama, dtype=torch.float32)
    settings = PruneSettings(scheme="slicegpt", sparsity=0.25)
    save_causal_lm(
        slicegpt(model, tiny.calibration(llama), settings, 17).model, load_tokenizer(llama), folder
    )
    return folder


def test_the_norm_counts_what_was_sliced_off_as_zero() -> None:
    norm = unit_norm()(8, 1e-6)
    hidden = torch.tensor([[3.0, -4.0, 12.0]])
    expected = hidden / (169 / 8 + 1e-6) ** 0.5
    torch.testing.assert_close(norm(hidden), expected)


def test_a_sliced_model_generates_with_a_cache_and_packs(sliced: Path) -> None:
    model: Any = load_causal_lm(sliced, dtype=torch.float32)
    assert packs(model, 256)
    ids = IDS
    found = model.generate(IDS, max_new_tokens=6, do_sample=False, eos_token_id=None)
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat([ids, model(ids).logits[0, -1].argmax().view(1, 1)], dim=1)
    assert torch.equal(found, ids)


def test_a_sliced_model_is_spread_measured_and_saved_again(sliced: Path, tmp_path: Path) -> None:
    plain = load_causal_lm(sliced, dtype=torch.float32)
    spread = load_causal_lm(sliced, dtype=torch.float32, max_memory={"cpu": 100_000})
    assert torch.equal(logits(spread), logits(plain))
    assert {layer.shape for layer in measure(sliced).layers if layer.name.endswith("q_proj")} == {(32, 24)}
    save_causal_lm(plain, load_tokenizer(sliced), tmp_path / "again")
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (sliced / name).read_bytes()
    assert "sliced" in (sliced / "README.md").read_text()


def test_tensors_that_do_not_follow_each_other_are_named(sliced: Path, tmp_path: Path) -> None:
    import shutil

    def narrow(weights: dict[str, Any]) -> None:
        name = "model.layers.0.mlp.gate_proj.weight"
        weights[name] = weights[name][:, :16].contiguous()

    for folder, edit, message in (
        ("narrow", narrow, r"attn_shortcut_Q gives 24 values, model\.layers\.0\.mlp has layers of 16"),
        ("missing", lambda w: w.pop("model.layers.1.mlp_shortcut_Q"), r"mlp_shortcut_Q; it is missing"),
    ):
        shutil.copytree(sliced, tmp_path / folder)
        edit_weights(tmp_path / folder, edit)
        with pytest.raises(ModelError, match=message):
            load_causal_lm(tmp_path / folder, dtype=torch.float32)


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    other = load_causal_lm(tiny.make_family(tmp_path / "gemma", "gemma"), dtype=torch.float32)
    with pytest.raises(ModelError, match=r"gemma cannot be rotated[\s\S]*llama"):
        to_sliced(other)
