"""SliceGPT: rotation alone changes nothing, principal components are kept, and so is what lies in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paser.errors import StageError
from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm
from paser.models.sliced import FAMILIES
from paser.models.tokens import Encoded
from paser.pruning.calibration import token_ids
from paser.pruning.slicegpt import kept_width, principal_components, slicegpt
from paser.settings import PruneSettings
from tests import tiny

IDS = torch.arange(5, 45)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def sliced(folder: Path, sparsity: float, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    model = load_causal_lm(folder, dtype=dtype)
    settings = PruneSettings(scheme="slicegpt", sparsity=sparsity, options=options)
    return slicegpt(model, tiny.calibration(folder), settings, 17)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_with_nothing_sliced_the_model_computes_what_it_did(family: str, tied: bool, tmp_path: Path) -> None:
    folder = tiny.make_family(tmp_path / family, family, tied=tied)
    expected = logits(load_causal_lm(folder, dtype=torch.float64))
    result = sliced(folder, 0.0, torch.float64)
    torch.testing.assert_close(logits(result.model), expected, atol=1e-5, rtol=1e-5)
    assert result.report.facts["untied"] is tied
    assert result.report.facts["width"] == 32


def test_as_many_tokens_are_needed_as_there_are_dimensions(llama: Path) -> None:
    settings = PruneSettings(scheme="slicegpt", sparsity=0.25, options={"multiple": 1})

    def run(tokens: int) -> Any:
        return slicegpt(
            load_causal_lm(llama, dtype=torch.float32), [Encoded(tuple(range(tokens)), ())], settings, 17
        )

    with pytest.raises(StageError, match=r"calibration has 31 tokens.*at least 32 are needed"):
        run(31)
    assert run(32).report.facts["width"] == 24


def test_components_are_orthogonal_and_ordered_by_variance() -> None:
    torch.manual_seed(0)
    rows = torch.randn(200, 6, dtype=torch.float64) * torch.tensor([1.0, 5.0, 2.0, 0.1, 3.0, 0.5])
    basis = principal_components(rows.T @ rows)
    torch.testing.assert_close(basis.T @ basis, torch.eye(6, dtype=torch.float64))
    variances = [float(((rows @ basis[:, k]) ** 2).sum()) for k in range(6)]
    assert variances == sorted(variances, reverse=True)
    assert all(float(basis[:, k][basis[:, k].abs().argmax()]) > 0 for k in range(6))


def test_the_first_basis_is_that_of_the_normalised_embeddings(llama: Path) -> None:
    model: Any = load_causal_lm(llama, dtype=torch.float64)
    table = model.model.embed_tokens.weight.detach().clone()
    covariance = torch.zeros(32, 32, dtype=torch.float64)
    for sample in tiny.calibration(llama):
        for token in token_ids(sample)[0].tolist():
            row = table[token] / (sum(float(x) ** 2 for x in table[token]) / 32 + 1e-6) ** 0.5
            covariance += torch.outer(row, row)
    values, vectors = torch.linalg.eigh(covariance)
    top = vectors[:, values.argsort(descending=True)[:24]]
    result = sliced(llama, 0.25, torch.float64)
    sliced_table = result.model.get_input_embeddings().weight.detach()
    expected = table @ top @ top.T @ table.T
    torch.testing.assert_close(sliced_table @ sliced_table.T, expected, atol=1e-8, rtol=1e-6)


def test_a_stream_that_fills_half_of_its_dimensions_loses_nothing_with_the_other_half(
    llama: Path, tmp_path: Path
) -> None:
    model: Any = load_causal_lm(llama, dtype=torch.float32)
    torch.manual_seed(5)
    basis = torch.linalg.qr(torch.randn(32, 16)).Q
    inside = basis @ basis.T
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ inside)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.copy_(inside @ layer.self_attn.o_proj.weight)
            layer.mlp.down_proj.weight.copy_(inside @ layer.mlp.down_proj.weight)
    save_causal_lm(model, load_tokenizer(llama), tmp_path / "m")
    result = sliced(tmp_path / "m", 0.5)
    assert result.report.facts["width"] == 16
    torch.testing.assert_close(logits(result.model), logits(model), atol=1e-4, rtol=1e-4)


def test_the_folder_loads_by_itself_with_the_same_logits(llama: Path, tmp_path: Path) -> None:
    result = sliced(llama, 0.25)
    save_causal_lm(result.model, load_tokenizer(llama), tmp_path / "m")
    again: Any = load_causal_lm(tmp_path / "m", dtype=torch.float32)
    assert torch.equal(logits(again), logits(result.model))
    assert again.lm_head.weight is not again.model.embed_tokens.weight
    assert again.lm_head.weight.shape[1] == 32


def test_the_head_may_be_sliced_too(llama: Path) -> None:
    result = sliced(llama, 0.25, slice_head=True)
    assert result.model.get_output_embeddings().weight.shape[1] == 24


def test_widths_are_multiples_and_a_share_that_gives_none_is_refused() -> None:
    assert kept_width(576, 0.25, 8) == 432
    assert kept_width(576, 0.3, 8) == 400
    with pytest.raises(StageError, match=r"leaves 0 of 32 dimensions in multiples of 32"):
        kept_width(32, 0.6, 32)
