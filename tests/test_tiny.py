"""The tiny models are what the other tests take them for."""

from __future__ import annotations

from pathlib import Path

import torch

from paser.models.loading import load_causal_lm, load_tokenizer
from tests import tiny


def test_rows_are_distinct_and_labelled() -> None:
    made = tiny.rows(90)
    assert len({row["instruction"] + row["input"] for row in made}) == 90
    assert {row["label"] for row in made} == {"sums", "animals", "recipes"}


def test_sparse_model_differs_and_has_zeros(llama: Path, sparse_llama: Path) -> None:
    dense = load_causal_lm(llama, dtype=torch.float32)
    sparse = load_causal_lm(sparse_llama, dtype=torch.float32)
    ids = torch.tensor([load_tokenizer(llama).encode("Compute 2 plus 2")])
    assert not torch.allclose(dense(ids).logits, sparse(ids).logits)
    weight = sparse.model.layers[0].mlp.up_proj.weight
    assert 0.45 < (weight == 0).float().mean() < 0.55
