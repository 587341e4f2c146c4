"""Perplexity: equal to a slow loop over tokens, in any stride, and clear about what it cannot measure."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import pytest

from paser.errors import ModelError, SourceError
from paser.evaluation.perplexity import corpus_text, perplexity

TEXT = "The otter lives near the river. " * 12 + "Compute 4 plus 9.\n\n" * 10


@pytest.fixture(scope="module")
def loaded(llama: Path) -> tuple[Any, Any]:
    import torch

    from paser.models.loading import load_causal_lm, load_tokenizer

    return load_causal_lm(llama, dtype=torch.float32), load_tokenizer(llama)


def slow(model: Any, ids: list[int], context: int, stride: int) -> tuple[float, int]:
    """Sum and count of negative log-likelihoods, one forward pass a window, one softmax a token."""
    import torch

    total, counted = 0.0, 0
    start = 0
    while start + context <= len(ids):
        window = ids[start : start + context]
        with torch.no_grad():
            logits = model(torch.tensor([window])).logits[0].double()
        first = 1 if start == 0 else context - stride
        for position in range(max(first, 1), context):
            total -= float(torch.log_softmax(logits[position - 1], dim=0)[window[position]])
            counted += 1
        start += stride
    return total, counted


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 4), (48, 48), (48, 47), (40, 1)])
def test_it_is_the_mean_over_a_slow_loop(loaded: tuple[Any, Any], context: int, stride: int) -> None:
    model, tokenizer = loaded
    ids = tokenizer(TEXT)["input_ids"]
    total, counted = slow(model, ids, context, stride)
    found = perplexity(model, tokenizer, TEXT, context=context, stride=stride)
    assert found.tokens == counted
    assert found.loss == pytest.approx(total / counted, rel=1e-5)
    assert found.value == pytest.approx(math.exp(total / counted), rel=1e-4)


def test_without_a_stride_windows_do_not_overlap(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    assert perplexity(model, tokenizer, TEXT, context=24) == perplexity(
        model, tokenizer, TEXT, context=24, stride=24
    )


def test_a_limit_takes_the_first_windows_and_the_protocol_says_so(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = tokenizer(TEXT)["input_ids"]
    total, counted = slow(model, ids[:60], 30, 30)
    found = perplexity(model, tokenizer, TEXT, context=30, windows=2)
    assert found.loss == pytest.approx(total / counted, rel=1e-5)
    assert found.protocol == (
        f"whole text tokenised once by the model's own tokenizer ({len(ids):,} tokens, no bos), lines "
        "joined as in the file; first 2 windows of 30 tokens, stride 30; 58 tokens scored in float32"
    )


def test_batches_change_nothing(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from paser.evaluation import perplexity as module

    model, tokenizer = loaded
    expected = perplexity(model, tokenizer, TEXT, context=16)
    monkeypatch.setattr(module, "BATCH_TOKENS", 16)
    monkeypatch.setattr(module, "CHUNK", 7)
    alone = perplexity(model, tokenizer, TEXT, context=16)
    assert alone.loss == pytest.approx(expected.loss, rel=1e-6)
    assert alone.tokens == expected.tokens


@pytest.mark.parametrize(("context", "stride", "message"), [
    (1, None, "windows of 1 tokens"),
    (16, 0, "0 tokens apart"),
    (16, 17, "17 tokens apart"),
    (500, None, "fewer than one window of 500"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused(
    loaded: tuple[Any, Any], context: int, stride: int | None, message: str
) -> None:
    model, tokenizer = loaded
    with pytest.raises(ModelError, match=message):
        perplexity(model, tokenizer, TEXT, context=context, stride=stride)


def test_logits_that_are_not_finite_are_refused(llama: Path) -> None:
    import torch

    from paser.models.loading import load_causal_lm, load_tokenizer

    model = load_causal_lm(llama, dtype=torch.float32)
    with torch.no_grad():
        model.get_parameter("model.norm.weight").fill_(math.nan)
    with pytest.raises(ModelError, match="not finite"):
        perplexity(model, load_tokenizer(llama), TEXT, context=16)


def test_text_files_plain_and_packed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert corpus_text(tmp_path / "a.txt") == corpus_text(tmp_path / "a.txt.gz") == TEXT
    with pytest.raises(SourceError, match="does not exist"):
        corpus_text(tmp_path / "b.txt")
    (tmp_path / "c.txt.gz").write_bytes(b"plain")
    with pytest.raises(SourceError, match="no UTF-8 text"):
        corpus_text(tmp_path / "c.txt.gz")


@pytest.mark.parametrize("context", [16, 47, 500])
def test_rolling_is_lm_evals_own_number(loaded: tuple[Any, Any], context: int) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="the extra `tasks` is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    assert lm_eval
    model, tokenizer = loaded
    harness = HFLM(pretrained=model, tokenizer=tokenizer, max_length=context)
    (theirs,) = harness.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (TEXT,), 0)], True)
    ours = perplexity(model, tokenizer, TEXT, context=context, rolling=True)
    assert ours.tokens == len(tokenizer(TEXT)["input_ids"])
    assert ours.loss * ours.tokens == pytest.approx(-theirs, rel=1e-5)
    assert "one eos before it" in ours.protocol
    assert sum(a * b for a, b in zip(ours.window_losses, ours.window_tokens, strict=True)) == pytest.approx(
        -theirs
    )


def test_a_rolling_measurement_has_no_stride(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(ModelError, match="no stride"):
        perplexity(*loaded, TEXT, context=16, stride=4, rolling=True)


@pytest.mark.parametrize(("column", "joined"), [("text", "\n\n"), ("sentence", " ")])
def test_parquet_files_are_joined_as_the_literature_does(tmp_path: Path, column: str, joined: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [1, 2], column: ["a b", "c"]}), tmp_path / "a.parquet")
    assert corpus_text(tmp_path / "a.parquet") == f"a b{joined}c"
    pq.write_table(pa.table({"id": [1, 2]}), tmp_path / "b.parquet")
    with pytest.raises(SourceError, match="no column text or sentence, only id"):
        corpus_text(tmp_path / "b.parquet")
