"""A pool of tiny rows with everything that a selector may ask for, and the passes of a plain loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paser.models.tokens import Encoded, SampleEncoder
from paser.records import Sample
from paser.selectors.protocol import ScoredPool
from paser.selectors.resources import Models, Resources, opener
from paser.settings import RecoverSettings
from tests import tiny
from tests.selectors.scored import texts

ROWS = 24


@dataclass(frozen=True)
class Ground:
    """A scored pool of real rows, the resources, and the rows as the models read them."""

    pool: ScoredPool
    resources: Resources
    samples: list[Sample]
    encoded: list[Encoded]

    @property
    def models(self) -> Models:
        assert self.resources.models is not None
        return self.resources.models


@pytest.fixture(scope="session")
def ground(llama: Path, sparse_llama: Path) -> Ground:
    import torch

    from paser.models.loading import load_tokenizer

    samples = [
        Sample("tiny", str(i), "MIT", row["instruction"], row["input"], row["output"], row["label"])
        for i, row in enumerate(tiny.rows(ROWS + 4, seed=3))
    ]
    encoder = SampleEncoder(load_tokenizer(llama))

    rows, targets = samples[:ROWS], samples[ROWS:]
    encoded = [encoder.encode(sample, 200) for sample in rows]
    rng = np.random.default_rng(5)
    jsd = rng.random(ROWS) * 0.5
    pool = ScoredPool(
        row_ids=[sample.row_id for sample in rows],
        texts=texts([f"{sample.prompt}\n{sample.output}" for sample in rows]),
        clusters=np.arange(ROWS) % 3,
        status=np.full(ROWS, "ok", dtype=object),
        divergences={"jsd": jsd, "delta_loss": jsd * 2},
        prompt_tokens=np.array([len(e.prompt_ids) for e in encoded]),
        response_tokens=np.array([len(e.response_ids) for e in encoded]),
    )
    models = Models(
        pruned=opener(sparse_llama, torch.float32),
        small=opener(llama, torch.float32),
        samples=lambda positions: [rows[i] for i in positions],
        targets=targets,
        recover=RecoverSettings(rank=2, batch_size=2, micro_batch_size=2, targets=("q_proj", "down_proj")),
        max_tokens=200,
    )
    loss = []
    for model in (opener(path, torch.float32)().model for path in (llama, sparse_llama)):
        with torch.no_grad():
            loss += [float(plain_loss(model, row)) for row in encoded]
    resources = Resources(
        embeddings=rng.normal(size=(ROWS, 5)).astype(np.float32),
        loss_original=np.array(loss[:ROWS]),
        loss_pruned=np.array(loss[ROWS:]),
        models=models,
    )
    return Ground(pool, resources, rows, encoded)


def plain_logits(model: Any, row: Encoded) -> Any:
    """Logits that predict the response tokens of one row, shape (tokens, vocabulary)."""
    import torch

    whole = torch.tensor([[*row.prompt_ids, *row.response_ids]])
    return model(input_ids=whole).logits[0, len(row.prompt_ids) - 1 : -1].float()


def plain_loss(model: Any, row: Encoded) -> Any:
    """Mean negative log-likelihood of a row's response tokens."""
    logs = plain_logits(model, row).log_softmax(-1)
    return -sum(logs[t, token] for t, token in enumerate(row.response_ids)) / len(row.response_ids)


def best(pool: ScoredPool, values: Sequence[float], count: int) -> set[int]:
    """Positions of the highest values, ties by row id."""
    order = sorted(range(len(pool)), key=lambda i: (-values[i], pool.row_ids[i]))
    return set(order[:count])
