"""Counting what is gone from saved files, also when blocks were dropped and the rest renumbered."""

from __future__ import annotations

from pathlib import Path

import pytest

from paser.errors import ModelError, StageError
from paser.pruning.achieved import check_removed, removed
from paser.settings import PruneSettings


def save(folder: Path, widths: list[int], names: str = "model.layers") -> Path:
    """Blocks with one matrix of `width` x 10 each, and an embedding."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    tensors = {f"{names}.{i}.mlp.weight": torch.ones(width, 10) for i, width in enumerate(widths)}
    save_file({**tensors, "model.embed_tokens.weight": torch.ones(7, 10)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("names", ["model.layers", "transformer.h", "layers"])
def test_the_share_is_of_the_pruned_blocks_alone(tmp_path: Path, names: str) -> None:
    original = save(tmp_path / "a", [8, 8, 8, 8], names)
    pruned = save(tmp_path / "b", [8, 6, 6, 8], names)
    found = removed(original, pruned, [1, 2])
    assert found.share == 0.25
    assert found.as_json() == {
        "share": 0.25, "blocks": 4, "pruned_blocks": 2, "parameters": 350, "parameters_before": 390,
    }  # fmt: skip
    assert removed(original, pruned).share == 0.125


def test_dropped_blocks_count_although_the_rest_is_renumbered(tmp_path: Path) -> None:
    found = removed(save(tmp_path / "a", [8, 4, 8, 8]), save(tmp_path / "b", [8, 8, 8]))
    assert found.share == pytest.approx(4 / 28)


def test_a_missed_share_names_both_numbers(tmp_path: Path) -> None:
    found = removed(save(tmp_path / "a", [100] * 4), save(tmp_path / "b", [75] * 4))
    check_removed(found, "structured", PruneSettings(sparsity=0.265))
    with pytest.raises(StageError, match=r"28\.0%, but 25\.0% of the parameters of the 4 pruned blocks"):
        check_removed(found, "structured", PruneSettings(sparsity=0.28))
    check_removed(found, "depth", PruneSettings(sparsity=0.37))
    with pytest.raises(StageError, match=r"38\.0%, but 25\.0%"):
        check_removed(found, "depth", PruneSettings(sparsity=0.38))


def test_a_block_that_is_not_there_is_named(tmp_path: Path) -> None:
    original = save(tmp_path / "a", [8, 8])
    with pytest.raises(ModelError, match=r"no block 2[\s\S]*numbered 0 to 1"):
        removed(original, original, [0, 2])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no safetensors"):
        removed(original, tmp_path / "empty")
