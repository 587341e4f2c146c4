"""What goes together when blocks get narrower: the model computes what it would with zeros in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paser.errors import StageError
from paser.models.loading import load_causal_lm
from paser.pruning.coupled import FAMILIES, blocks_of, cheapest
from paser.pruning.protocol import prune, schemes
from paser.settings import PruneSettings
from tests import tiny

IDS = torch.arange(5, 45)[None]
STRUCTURED = [name for name, scheme in schemes().items() if scheme.kind != "unstructured"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_removed_unit_is_one_whose_output_is_zero(family: str, tmp_path: Path) -> None:
    folder = tiny.make_family(tmp_path / family, family)
    zeroed: Any = load_causal_lm(folder, dtype=torch.float32)
    removed: Any = load_causal_lm(folder, dtype=torch.float32)
    with torch.no_grad():
        blocks = blocks_of(zeroed, "test")
        width = blocks[1].group_width
        blocks[1].attention.o_proj.weight[:, :width] = 0
        blocks[2].mlp.down_proj.weight[:, 5::2] = 0
    narrow = blocks_of(removed, "test")
    sizes = narrow[1].parameters, narrow[2].parameters
    expected = sizes[0] - narrow[1].group_size, sizes[1] - 30 * narrow[2].channel_size
    narrow[1].keep_groups([1])
    narrow[2].keep_channels([*range(5), *range(6, 64, 2)])
    assert (narrow[1].groups, narrow[2].channels) == (1, 34)
    assert (narrow[1].parameters, narrow[2].parameters) == expected
    torch.testing.assert_close(logits(removed), logits(zeroed), atol=1e-5, rtol=1e-5)


def test_the_cheapest_units_go_until_the_budget_is_met() -> None:
    scores = {(0, 0): 0.1, (0, 1): 0.2, (1, 0): 0.3, (1, 1): 0.05, (1, 2): 0.4}
    assert cheapest(scores, {0: 10, 1: 3}, 16, {0: 1, 1: 2}) == {0: [0], 1: [0, 1]}
    assert cheapest(scores, {0: 10, 1: 3}, 3, {0: 1, 1: 2}) == {0: [], 1: [1]}
    assert cheapest(scores, {0: 10, 1: 3}, 100, {0: 1, 1: 2}) == {0: [0], 1: [0, 1]}


@pytest.mark.parametrize("scheme", STRUCTURED)
def test_an_unknown_architecture_is_refused_with_what_is_supported(scheme: str, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=600, n_embd=32, n_layer=2, n_head=4))
    samples = tiny.calibration(tiny.make_llama(tmp_path / "m"))
    with pytest.raises(StageError, match=rf"{scheme} does not know .* gpt2 .*llama, mistral"):
        prune(model, samples, PruneSettings(scheme=scheme, sparsity=0.5), 17)


@pytest.mark.parametrize("scheme", STRUCTURED)
def test_too_little_calibration_is_refused_with_the_number(scheme: str, llama: Path) -> None:
    from paser.models.tokens import Encoded

    model = load_causal_lm(llama, dtype=torch.float32)
    few = [Encoded((5, 6, 7), (8, 9))]
    with pytest.raises(StageError, match=r"calibration has 5 tokens in 1 samples; at least"):
        prune(model, few, PruneSettings(scheme=scheme, sparsity=0.5), 17)


@pytest.mark.parametrize("scheme", STRUCTURED)
def test_activations_that_are_not_finite_are_refused(scheme: str, llama: Path) -> None:
    model: Any = load_causal_lm(llama, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[3] = torch.inf
    with pytest.raises(StageError, match="not finite"):
        prune(model, tiny.calibration(llama), PruneSettings(scheme=scheme, sparsity=0.5), 17)


@pytest.mark.parametrize("scheme", ["llm-pruner", "flap", "cfsp", "depth", "slicegpt"])
def test_a_share_out_of_reach_names_what_is_possible(scheme: str, llama: Path) -> None:
    model = load_causal_lm(llama, dtype=torch.float32)
    with pytest.raises(StageError, match=r"prune.sparsity is 99\.0%[\s\S]*remedy"):
        prune(model, tiny.calibration(llama), PruneSettings(scheme=scheme, sparsity=0.99), 17)
