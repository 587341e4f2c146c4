"""Rows to train on, and a project that holds a pruned tiny model and a selection."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from paser.artifacts import write_jsonl, write_table
from paser.models.tokens import SampleEncoder
from paser.records import Sample
from paser.recovery.batches import TrainingRow
from paser.settings import RecoverSettings
from tests import tiny

FEW_TARGETS = ("q_proj", "down_proj")


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    return [
        Sample("tiny", str(i), "MIT", row["instruction"], row["input"], row["output"], row["label"])
        for i, row in enumerate(tiny.rows(10, seed=3))
    ]


@pytest.fixture(scope="session")
def training(samples: list[Sample], llama: Path) -> list[TrainingRow]:
    from paser.models.loading import load_tokenizer

    encoder = SampleEncoder(load_tokenizer(llama))
    return [TrainingRow(sample.row_id, encoder.encode(sample, 200)) for sample in samples]


@pytest.fixture
def settings() -> RecoverSettings:
    """10 rows in batches of 4: three optimiser steps an epoch, the last of them smaller."""
    return RecoverSettings(
        batch_size=4, micro_batch_size=2, epochs=2, learning_rate=5e-3, checkpoint_steps=2, dropout=0.1
    )


@pytest.fixture
def project(llama: Path, sparse_llama: Path, samples: list[Sample], tmp_path: Path) -> Callable[..., Path]:
    """Makes a project with both models, scores and both row files; keyword arguments are settings."""

    def make(rows: int = 6, **extra: Any) -> Path:
        shutil.copytree(sparse_llama, tmp_path / "data/models/pruned")
        shutil.copytree(llama, tmp_path / "data/models/original")
        content = [
            {
                "row_id": s.row_id, "instruction": s.instruction, "input": s.input, "output": s.output,
                "source": s.source, "source_row": s.source_row, "license": s.license, "label": s.label,
                "cluster": 0, "tokens": 40,
            }
            for s in samples[:rows]
        ]  # fmt: skip
        write_jsonl(tmp_path / "data/selected.jsonl", content)
        write_jsonl(tmp_path / "data/control.jsonl", content[::-1])
        scores = [
            {"row_id": s.row_id, "jsd": 0.05 * (i + 1), "loss_original": 1.0, "loss_pruned": 2.0,
             "prompt_tokens": 20, "response_tokens": 20, "status": "ok"}
            for i, s in enumerate(samples)
        ]  # fmt: skip
        write_table(tmp_path / "data/scores.parquet", "scores", scores)
        params: dict[str, Any] = {
            "model": {"precision": "float32"},
            "runtime": {"threads": 1},
            "recover": {"batch_size": 4, "micro_batch_size": 2, "checkpoint_steps": 1},
        }
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params | extra), encoding="utf-8")
        return tmp_path

    return make
