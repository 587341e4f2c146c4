"""The default model: our numbers are those of lm-eval run by hand on the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paser.cache import Cache
from paser.evaluation.harness import local_task, run_task
from paser.evaluation.items import read_items
from paser.evaluation.perplexity import perplexity
from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm
from paser.sources.catalog import load_sources
from paser.sources.fetching import fetch_one

ROOT = Path(__file__).parent.parent.parent
SOURCES = {source.name: source for source in load_sources(ROOT / "data/sources.yaml")}
pytestmark = pytest.mark.slow
lm_eval = pytest.importorskip("lm_eval", reason="the extra `tasks` is not installed")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 in bfloat16, as stage `prune` saves it."""
    import torch

    folder = tmp_path_factory.mktemp("smollm2")
    source = next(source for source in SOURCES.values() if source.role == "original")
    fetch_one(source, None, Cache.of(ROOT), folder / "gguf")
    model = load_causal_lm(folder / "gguf", dtype=torch.bfloat16)
    save_causal_lm(model, load_tokenizer(folder / "gguf"), folder / "original")
    return folder / "original"


def by_hand(path: Path, dtype: str, **more: Any) -> Any:
    """lm-eval's own model class on the folder, as its command line makes it."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(path), dtype=dtype, device="cpu", **more)


def test_perplexity_is_lm_evals_within_half_a_percent(original: Path) -> None:
    import math

    import torch
    from lm_eval.api.instance import Instance

    text = (ROOT / "docs/method.md").read_text(encoding="utf-8")[:6000]
    harness = by_hand(original, "float32", max_length=512)
    (theirs,) = harness.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], True)
    model, tokenizer = load_causal_lm(original, dtype=torch.float32), load_tokenizer(original)
    ours = perplexity(model, tokenizer, text, context=512, rolling=True)
    assert ours.tokens == len(harness.tok_encode(text)) > 1024
    assert ours.value == pytest.approx(math.exp(-theirs / ours.tokens), rel=0.005)


@pytest.mark.parametrize(("name", "limit"), [("hellaswag-100", 12), ("truthfulqa-100", 12), ("gsm8k-100", 2)])
def test_tasks_are_lm_evals_own_numbers(original: Path, tmp_path: Path, name: str, limit: int) -> None:
    import torch

    fetch_one(SOURCES[name], None, Cache.of(ROOT), tmp_path / name)
    task = local_task(name, SOURCES[name].uri, read_items(tmp_path / name, SOURCES[name]))
    model, tokenizer = load_causal_lm(original, dtype=torch.bfloat16), load_tokenizer(original)
    (ours,) = run_task(model, tokenizer, task, limit=limit, batch_size=4)
    assert isinstance(task.config, dict)
    theirs = lm_eval.simple_evaluate(
        by_hand(original, "bfloat16", batch_size=4), tasks=[dict(task.config)], limit=limit
    )
    assert ours.items == limit
    for metric, found in ours.metrics.items():
        plain, _, rule = metric.partition(" (")
        key = rule.rstrip(")") or "none"
        assert found["value"] == theirs["results"][name][f"{plain},{key}"]
        assert found["stderr"] == theirs["results"][name][f"{plain}_stderr,{key}"]
    if ours.choices is not None:
        asked = [[pair[0] for pair in sample["filtered_resps"]] for sample in theirs["samples"][name]]
        assert [list(entry) for entry in ours.choices] == asked
