"""Structured models from pruning to recovery: scored, trained, saved in their own shapes, loaded again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paser.cache import Cache
from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm
from paser.models.passes import FusedPass
from paser.models.shapes import other_shapes, saved_shapes
from paser.models.workload import ModelSet
from paser.pruning.protocol import prune, schemes
from paser.settings import PruneSettings, Settings
from paser.stages.run import run_stage
from tests import tiny

Make = Callable[..., Path]
STRUCTURED = [name for name, scheme in schemes().items() if scheme.kind != "unstructured"]
IDS = torch.arange(5, 45)[None]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PASER_CACHE_DIR", raising=False)


@pytest.mark.parametrize("scheme", STRUCTURED)
def test_prune_score_recover_and_load_again(scheme: str, llama: Path, project: Make, tmp_path: Path) -> None:
    root = project(rows=4)
    pruned, recovered = root / "data/models/pruned", root / "data/models/recovered"
    shutil.rmtree(pruned)
    settings = PruneSettings(scheme=scheme, sparsity=0.5)
    model = load_causal_lm(llama, dtype=torch.float32)
    result = prune(model, tiny.calibration(llama), settings, 17)
    save_causal_lm(result.model, load_tokenizer(llama), pruned)

    wanted = Settings.model_validate({"model": {"precision": "float32"}, "runtime": {"threads": 1}})
    models = ModelSet.load({"original": llama, "pruned": pruned}, wanted, Cache(tmp_path / "cache"))
    fused = FusedPass(models.reference, models.others, 1.0, 256)
    assert fused.packed
    scores = fused(tiny.calibration(llama, 3))
    assert set(scores["status"]) == {"ok"}
    assert np.all(scores["jsd_pruned"] > 0)

    record = run_stage("recover", root)
    assert other_shapes(pruned, recovered) == []
    assert len(saved_shapes(pruned)) > 10
    assert record["facts"]["masked_layers"] == 0
    before, after = (
        json.loads((folder / "config.json").read_text()).get("paser") for folder in (pruned, recovered)
    )
    assert before == after
    again: Any = load_causal_lm(recovered, dtype=torch.float32)
    save_causal_lm(again, load_tokenizer(recovered), tmp_path / "copy")
    copy: Any = load_causal_lm(tmp_path / "copy", dtype=torch.float32)
    unrecovered: Any = load_causal_lm(pruned, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, copy(IDS).logits)
        assert not torch.equal(again(IDS).logits, unrecovered(IDS).logits)
