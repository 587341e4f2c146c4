"""LLM-Pruner: the formula of its importance, what it removes, and which blocks it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paser.errors import StageError
from paser.models.loading import load_causal_lm
from paser.pruning.calibration import token_ids
from paser.pruning.coupled import blocks_of
from paser.pruning.llm_pruner import importance, llm_pruner, pruned_range
from paser.settings import LlmPrunerOptions, PruneSettings
from tests import tiny


@pytest.fixture(scope="module")
def three_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_family(tmp_path_factory.mktemp("llama") / "m", "llama")


def settings(**values: Any) -> PruneSettings:
    return PruneSettings(scheme="llm-pruner", **values)


def slow_products(model: Any, samples: list[Any]) -> dict[str, list[list[float]]]:
    """|w dL/dw| of every weight, with the loss written out."""
    loss = torch.zeros(())
    for sample in samples:
        ids = token_ids(sample)
        log_p = model(ids).logits[0].log_softmax(dim=-1)
        picked = [log_p[place - 1, int(ids[0, place])] for place in range(1, sample.tokens)]
        loss = loss - sum(picked) / len(picked) / len(samples)
    loss.backward()
    return {
        name: (module.weight * module.weight.grad).abs().tolist()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


def test_importance_is_the_sum_of_weight_times_gradient(three_blocks: Path) -> None:
    samples = tiny.calibration(three_blocks, 3)
    model = load_causal_lm(three_blocks, dtype=torch.float32)
    blocks = blocks_of(model, "test")[1:]
    groups, channels = importance(model, blocks, samples)
    products = slow_products(load_causal_lm(three_blocks, dtype=torch.float32), samples)
    for number in (1, 2):
        at = f"model.layers.{number}"
        for group in range(2):
            total = 0.0
            for row in range(16 * group, 16 * group + 16):
                total += sum(products[f"{at}.self_attn.q_proj"][row])
                total += sum(line[row] for line in products[f"{at}.self_attn.o_proj"])
            for row in range(8 * group, 8 * group + 8):
                total += sum(products[f"{at}.self_attn.k_proj"][row])
                total += sum(products[f"{at}.self_attn.v_proj"][row])
            assert groups[number, group] == pytest.approx(total, rel=1e-3)
        for channel in range(64):
            total = sum(products[f"{at}.mlp.gate_proj"][channel])
            total += sum(products[f"{at}.mlp.up_proj"][channel])
            total += sum(line[channel] for line in products[f"{at}.mlp.down_proj"])
            assert float(channels[number][channel]) == pytest.approx(total, rel=1e-3)
    assert set(groups) == {(1, 0), (1, 1), (2, 0), (2, 1)}
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


def test_the_least_important_go_and_the_report_says_how_it_splits(three_blocks: Path) -> None:
    samples = tiny.calibration(three_blocks, 6)
    before: Any = load_causal_lm(three_blocks, dtype=torch.float32)
    model: Any = load_causal_lm(three_blocks, dtype=torch.float32)
    wanted = settings(sparsity=0.3, options={"spare_first": 1})
    report = llm_pruner(model, samples, wanted, 17).report
    groups, channels = importance(before, blocks_of(before, "test")[1:], samples)
    worst = min(groups, key=lambda unit: groups[unit])
    assert report.facts["blocks"] == [1, 2]
    assert report.facts["groups_removed"] == 1
    kept_groups = [2, 2, 2]
    kept_groups[worst[0]] = 1
    assert report.facts["kept_groups"] == kept_groups
    split = report.facts["removed_from_attention"], report.facts["removed_from_feed_forward"]
    assert split == (0.25, pytest.approx(0.328125))
    for number in (1, 2):
        lowest = channels[number].argsort(stable=True)[: 64 - report.facts["kept_channels"][number]]
        kept = [c for c in range(64) if c not in set(lowest.tolist())]
        expected = before.model.layers[number].mlp.gate_proj.weight[kept]
        assert torch.equal(model.model.layers[number].mlp.gate_proj.weight, expected)


def test_spared_blocks_embeddings_and_norms_keep_their_bits(three_blocks: Path) -> None:
    before = dict(load_causal_lm(three_blocks, dtype=torch.float32).named_parameters())
    model = load_causal_lm(three_blocks, dtype=torch.float32)
    llm_pruner(model, tiny.calibration(three_blocks), settings(sparsity=0.3, options={"spare_last": 1}), 17)
    for name, weight in model.named_parameters():
        if "layers.2" in name or "norm" in name or "embed" in name:
            assert torch.equal(weight, before[name]), name
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_ends_of_a_model_are_spared_as_in_the_paper() -> None:
    assert pruned_range(32, LlmPrunerOptions()) == list(range(4, 30))
    assert pruned_range(30, LlmPrunerOptions()) == list(range(4, 28))
    assert pruned_range(30, LlmPrunerOptions(spare_first=0, spare_last=29)) == [0]
    with pytest.raises(StageError, match=r"spare 20 and 10 blocks of a model that has 30"):
        pruned_range(30, LlmPrunerOptions(spare_first=20, spare_last=10))


def test_more_groups_go_where_the_channels_are_not_enough(tmp_path: Path) -> None:
    """Two channels a block are most of a sixteenth of it: a share that attention can bear is reached."""
    folder = tiny.make_llama(tmp_path / "m", inner=2, blocks=8, heads=8)
    model = load_causal_lm(folder, dtype=torch.float32)
    before = sum(block.parameters for block in blocks_of(model, "test"))
    wanted = settings(sparsity=0.55, options={"spare_first": 0, "spare_last": 0})
    report = llm_pruner(model, tiny.calibration(folder, 3), wanted, 17).report
    after = sum(block.parameters for block in blocks_of(model, "test"))
    assert 1 - after / before == pytest.approx(0.55, abs=0.02)
    assert report.facts["groups_removed"] == 19
    assert min(report.facts["kept_channels"]) >= 1
    with pytest.raises(StageError, match=r"at most (\d\d\.\d)%[\s\S]*at most 0\.72"):
        llm_pruner(load_causal_lm(folder, dtype=torch.float32), tiny.calibration(folder, 3),
                   settings(sparsity=0.8, options={"spare_first": 0, "spare_last": 0}), 17)  # fmt: skip
