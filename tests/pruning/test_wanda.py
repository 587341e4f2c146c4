"""Wanda on a two-layer model: the zeros asked for, where the rule puts them, and no traces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paser.errors import StageError
from paser.models.tokens import Encoded
from paser.pruning.protocol import scheme, schemes
from paser.pruning.wanda import wanda
from paser.settings import PruneSettings


@pytest.fixture(scope="module")
def calibration() -> list[Encoded]:
    return [Encoded(tuple(range(3, 20 + i)), tuple(range(40, 60 + 3 * i))) for i in range(6)]


def load(path: Path) -> Any:
    import torch

    from paser.models.loading import load_causal_lm

    return load_causal_lm(path, dtype=torch.float32)


def linear(model: Any) -> dict[str, Any]:
    import torch

    return {
        name: module.weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


def pruned(path: Path, calibration: list[Encoded], **settings: Any) -> Any:
    model = load(path)
    wanda(model, calibration, PruneSettings(**settings), 17)
    return model


def test_each_layer_has_the_share_of_zeros_asked_for(llama: Path, calibration: list[Encoded]) -> None:
    for weight in linear(pruned(llama, calibration, sparsity=0.25)).values():
        assert float((weight == 0).float().mean()) == 0.25


def test_the_rest_of_the_weights_is_untouched(llama: Path, calibration: list[Encoded]) -> None:
    import torch

    before, model = load(llama), pruned(llama, calibration)
    for name, weight in linear(model).items():
        kept = weight != 0
        assert torch.equal(weight[kept], before.get_submodule(name).weight[kept])
    assert torch.equal(model.lm_head.weight, before.lm_head.weight)
    assert torch.equal(model.model.norm.weight, before.model.norm.weight)


def test_the_first_layer_loses_the_smallest_weight_times_input_norm(
    llama: Path, calibration: list[Encoded]
) -> None:
    import torch

    before, inputs = load(llama), []
    query = before.model.layers[0].self_attn.q_proj
    query.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    for sample in calibration:
        with torch.no_grad():
            before(torch.tensor([sample.prompt_ids + sample.response_ids]))
    norms = torch.cat([x.flatten(0, 1) for x in inputs]).pow(2).sum(dim=0).sqrt()
    scores = query.weight.abs() * norms
    lowest = scores.argsort(dim=1)[:, : scores.shape[1] // 2]
    expected = torch.ones_like(scores, dtype=torch.bool).scatter(1, lowest, False)
    found = pruned(llama, calibration).model.layers[0].self_attn.q_proj.weight != 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_patterns_hold_in_the_saved_model(
    llama: Path, calibration: list[Encoded], tmp_path: Path, pattern: str
) -> None:
    from paser.models.loading import load_tokenizer, save_causal_lm
    from paser.models.sparsity import measure

    save_causal_lm(pruned(llama, calibration, pattern=pattern), load_tokenizer(llama), tmp_path / "m")
    assert measure(tmp_path / "m").pattern == pattern
    assert sorted(p.suffix for p in (tmp_path / "m").glob("*recipe*")) == []


def test_two_runs_give_the_same_weights(llama: Path, calibration: list[Encoded]) -> None:
    import torch

    first, second = linear(pruned(llama, calibration)), linear(pruned(llama, calibration))
    assert all(torch.equal(first[name], second[name]) for name in first)


PROGRAM = """
import os, sys
from pathlib import Path
import torch
import paser.progress
paser.progress.LINE_SECONDS = 0.0
from paser.models.loading import load_causal_lm
from paser.models.tokens import Encoded
from paser.pruning.wanda import wanda
from paser.settings import PruneSettings
before = dict(os.environ)
model = load_causal_lm(Path(sys.argv[1]), dtype=torch.float32)
wanda(model, [Encoded((3, 4, 5), (6, 7, 8))] * 3, PruneSettings(), 17)
assert dict(os.environ) == before, "the environment changed"
"""


def test_a_fresh_process_prints_progress_only_and_leaves_no_file(llama: Path, tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROGRAM, str(llama)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr
    assert all(line.startswith("  wanda: ") for line in done.stderr.splitlines())
    assert list(tmp_path.iterdir()) == []


def test_a_pattern_that_does_not_fit_names_the_layer(calibration: list[Encoded]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    odd = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100, hidden_size=32, intermediate_size=66, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2,
        )
    )  # fmt: skip
    with pytest.raises(StageError, match=r"down_proj: 66 inputs are no multiple of 4"):
        wanda(odd, calibration, PruneSettings(pattern="2:4"), 17)


def test_no_calibration_sample_is_a_clear_error(llama: Path) -> None:
    with pytest.raises(StageError, match="no calibration sample"):
        wanda(load(llama), [], PruneSettings(), 17)


def test_schemes_by_name() -> None:
    assert scheme("wanda") == schemes()["wanda"]
    with pytest.raises(StageError, match=r"'magic'.*\n.*wanda"):
        scheme("magic")
