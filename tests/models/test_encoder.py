"""Prompts embedded together are embedded as if each were alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paser.cache import Cache
from paser.models import encoder as encoders
from paser.models.encoder import PromptEmbedder, embed, load_encoder
from paser.settings import Settings
from tests import tiny


def prompts(count: int) -> list[str]:
    return [f"{row['instruction']}\n\n{row['input']}".strip() for row in tiny.rows(count)]


def embedded(path: Path, texts: list[str], batch_tokens: int = 128) -> np.ndarray:
    portions = list(embed(load_encoder(path), texts, batch_tokens))
    order = np.argsort([p for positions, _ in portions for p in positions])
    return np.concatenate([vectors for _, vectors in portions])[order]


def encoded(encoder: Any, texts: list[str]) -> np.ndarray:
    return np.asarray(encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False))


def test_embeddings_are_those_of_the_encoder(encoder: Path) -> None:
    texts = [*prompts(40), "", "long " * 200]
    found = embedded(encoder, texts)
    np.testing.assert_allclose(found, encoded(load_encoder(encoder), texts), rtol=0, atol=1e-6)
    assert found.dtype == np.float32
    assert len(list(embed(load_encoder(encoder), texts, 128))) < len(texts)


def test_neighbours_do_not_change_a_bit_of_an_embedding(encoder: Path) -> None:
    texts = prompts(60)
    everyone = embedded(encoder, texts)
    some = [41, 3, 3, 59, 17]
    np.testing.assert_array_equal(embedded(encoder, [texts[i] for i in some]), everyone[some])
    np.testing.assert_array_equal(embedded(encoder, [texts[7]]), everyone[7:8])


def test_an_encoder_without_a_transformer_is_asked_text_by_text(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding

    words = tiny.make_tokenizer().backend_tokenizer
    model = SentenceTransformer(modules=[StaticEmbedding(words, embedding_dim=12)], device="cpu")
    texts = prompts(5)
    portions = list(embed(model, texts, 64))
    assert [positions for positions, _ in portions] == [[i] for i in range(5)]
    found = np.concatenate([vectors for _, vectors in portions])
    np.testing.assert_allclose(found, encoded(model, texts), rtol=0, atol=1e-6)


def test_a_grown_table_embeds_what_is_new_and_gives_the_same_bytes(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {
            **row,
            "input": "word " * 100 * (i == 7),
            "row_id": f"r1-{hashlib.sha256(str(i).encode()).hexdigest()}",
        }
        | {"source": "t", "source_row": str(i), "license": "MIT"}
        for i, row in enumerate(tiny.rows(101))
    ]
    asked: list[int] = []
    whole = encoders.embed

    def counted(encoder: Any, texts: Any, batch_tokens: int) -> Any:
        asked.append(len(texts))
        return whole(encoder, texts, batch_tokens)

    monkeypatch.setattr(encoders, "embed", counted)
    kept, anew = (
        PromptEmbedder.load(encoder, "digest", Settings(), Cache(tmp_path / name))
        for name in ("kept", "anew")
    )
    kept(rows[:100])
    grown, cut = kept(rows)
    assert cut == 1
    assert asked == [100, 1]
    np.testing.assert_array_equal(grown, anew(rows)[0])
