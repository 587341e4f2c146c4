"""The concept filter on real rows: how much it refuses depends on the granularity of concepts."""

from __future__ import annotations

import gzip
import json
import os
from itertools import islice
from pathlib import Path

import pytest

from paser.method.concepts import ConceptGraph, key_phrases

DATA = os.environ.get("PASER_BENCH_DATA")
pytestmark = [
    pytest.mark.bench_data,
    pytest.mark.skipif(not DATA, reason="PASER_BENCH_DATA is not set: benchmark data not at hand"),
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    with gzip.open(Path(str(DATA)) / "pool-large.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in islice(stream, 4000)]
    return [f"{row['instruction']}\n\n{row['input']}\n{row['output']}" for row in rows]


def accepted(texts: list[str], limit: int, words: int, strictness: float) -> float:
    graph, taken = ConceptGraph(), 0
    for number, text in enumerate(texts):
        concepts = key_phrases(text, limit, words)
        if graph.clash(concepts, strictness) is None:
            graph.add(concepts, str(number))
            taken += 1
    return taken / len(texts)


def test_phrases_leave_most_rows_and_single_words_hardly_any(texts: list[str]) -> None:
    phrases, single = accepted(texts, 8, 3, 1.0), accepted(texts, 8, 1, 1.0)
    assert 0.5 < phrases < 0.95
    assert single < phrases / 2
    assert phrases < accepted(texts, 8, 3, 0.5) < accepted(texts, 8, 3, 0.0) == 1.0
