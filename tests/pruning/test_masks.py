"""Masks against slow loops on small matrices, ties included."""

from __future__ import annotations

from typing import Any

import pytest

from paser.pruning import masks
from paser.settings import PruneSettings


def scores() -> Any:
    import torch

    found = torch.rand(6, 16, generator=torch.Generator().manual_seed(3))
    found[2] = 0.5  # a row of ties
    return found


def slow(values: list[float], count: int) -> list[bool]:
    """Which stay when the `count` lowest go, the first ones of equals before the later ones."""
    gone = sorted(range(len(values)), key=lambda i: (values[i], i))[:count]
    return [i not in gone for i in range(len(values))]


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.77])
def test_by_row(sparsity: float) -> None:
    given = scores()
    expected = [slow(row, int(16 * sparsity)) for row in given.tolist()]
    assert masks.by_row(given, sparsity).tolist() == expected


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.77])
def test_by_layer(sparsity: float) -> None:
    given = scores()
    expected = slow(given.flatten().tolist(), int(96 * sparsity))
    assert masks.by_layer(given, sparsity).flatten().tolist() == expected


@pytest.mark.parametrize(("pattern", "kept", "block"), [("2:4", 2, 4), ("4:8", 4, 8)])
def test_by_pattern(pattern: str, kept: int, block: int) -> None:
    given = scores()
    expected = [
        [stays for at in range(0, 16, block) for stays in slow(row[at : at + block], block - kept)]
        for row in given.tolist()
    ]
    assert masks.by_pattern(given, kept, block).tolist() == expected
    assert masks.kept(given, PruneSettings(pattern=pattern), rows=True).tolist() == expected


def test_rows_or_the_whole_layer() -> None:
    import torch

    given, half = scores(), PruneSettings(sparsity=0.5)
    assert torch.equal(masks.kept(given, half, rows=True), masks.by_row(given, 0.5))
    assert torch.equal(masks.kept(given, half, rows=False), masks.by_layer(given, 0.5))


def test_apply_writes_zeros_and_touches_nothing_else() -> None:
    import torch

    layer = torch.nn.Linear(16, 6)
    before, stays = layer.weight.detach().clone(), masks.by_row(scores(), 0.5)
    masks.apply(layer, stays)
    assert torch.equal(layer.weight[stays], before[stays])
    assert not layer.weight[~stays].any()
