"""What a pruned model has really lost, measured on saved files, against what the settings ask for.

Zeros for unstructured schemes; for structured and depth pruning the share of the pruned blocks'
parameters that is gone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paser.errors import ModelError, StageError
from paser.models.sparsity import Sparsity
from paser.pruning.protocol import Kind
from paser.settings import PruneSettings

# Largest accepted distance between the share asked for and the one measured.
TOLERANCE: dict[Kind, float] = {"unstructured": 0.01, "structured": 0.02, "sliced": 0.02}
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


@dataclass(frozen=True)
class Removed:
    """Parameters of all blocks and of those that were pruned, before, and how many are gone from them."""

    blocks: int
    pruned_blocks: int
    parameters: int
    gone: int
    total_before: int
    total_after: int

    @property
    def share(self) -> float:
        """Share of the pruned blocks' parameters that is gone, 0 .. 1."""
        return self.gone / self.parameters

    def as_json(self) -> dict[str, Any]:
        """Counts, and the share rounded to six digits."""
        return {
            "share": round(self.share, 6),
            "blocks": self.blocks,
            "pruned_blocks": self.pruned_blocks,
            "parameters": self.total_after,
            "parameters_before": self.total_before,
        }


def block_parameters(directory: Path) -> dict[int | None, int]:
    """Parameters of each block of a saved model by its number; None for what lies outside the blocks."""
    from safetensors import safe_open

    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise ModelError(f"{directory} holds no safetensors file", remedy="save the model there first")
    counts: dict[int | None, int] = {None: 0}
    for path in paths:
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118
                found = _BLOCK.search(name)
                number = int(found[1]) if found else None
                counts[number] = counts.get(number, 0) + math.prod(stream.get_slice(name).get_shape())
    return counts


def removed(original: Path, pruned: Path, blocks: Sequence[int] | None = None) -> Removed:
    """Compares two saved models block by block.

    `blocks` are the numbers of the original's blocks that were pruned; None means all of them. The others
    count as equal in both, so dropped blocks, which renumber the rest, are counted rightly.
    """
    before, after = block_parameters(original), block_parameters(pruned)
    inside = {number: count for number, count in before.items() if number is not None}
    if not inside:
        raise ModelError(f"{original} has no numbered blocks", remedy="expected a decoder of equal blocks")
    chosen = sorted(inside) if blocks is None else sorted(set(blocks))
    if missing := [number for number in chosen if number not in inside]:
        raise ModelError(
            f"{original} has no block {missing[0]}",
            remedy=f"its blocks are numbered {min(inside)} to {max(inside)}",
        )
    return Removed(
        blocks=len(inside),
        pruned_blocks=len(chosen),
        parameters=sum(inside[number] for number in chosen),
        gone=sum(inside.values()) - sum(count for number, count in after.items() if number is not None),
        total_before=sum(before.values()),
        total_after=sum(after.values()),
    )


def check_width(original: Path, pruned: Path, settings: PruneSettings) -> tuple[int, int]:
    """Widths of the residual stream, of the saved original and the saved sliced model.

    Raises `StageError` when the share of it that is gone is not near `prune.sparsity`.
    """
    before, after = _stream_width(original), _stream_width(pruned)
    if abs(1 - after / before - settings.sparsity) > TOLERANCE["sliced"]:
        raise StageError(
            f"prune.sparsity is {settings.sparsity:.1%}, but the saved model keeps {after} of {before} "
            "dimensions of the residual stream",
            remedy="lower prune.options.multiple, or choose another prune.sparsity",
        )
    return before, after


def _stream_width(directory: Path) -> int:
    from paser.models.shapes import skeleton

    table: Any = skeleton(directory).get_input_embeddings()
    return int(table.weight.shape[1])


def check_zeros(sparsity: Sparsity, settings: PruneSettings) -> None:
    """Raises `StageError` when the saved weights are not as sparse as, or not in the pattern, asked for."""
    if abs(sparsity.overall - settings.sparsity) > TOLERANCE["unstructured"]:
        raise StageError(
            f"prune.sparsity is {settings.sparsity:.1%}, but the saved weights have {sparsity.overall:.1%}",
            remedy="the model has layers that the scheme does not reach, or layers too narrow for this "
            "share; choose another prune.sparsity",
        )
    if settings.pattern == "unstructured":
        return
    broken = [layer.name for layer in sparsity.layers if settings.pattern not in layer.patterns]
    if broken:
        raise StageError(
            f"prune.pattern is {settings.pattern}, but {len(broken)} layers do not keep it, "
            f"{broken[0]} first",
            remedy="set prune.pattern: unstructured",
        )


def check_removed(found: Removed, kind: Kind, settings: PruneSettings) -> None:
    """Raises `StageError` when the share of parameters gone is not near `prune.sparsity`.

    Structured schemes have two points of room; depth pruning half a block, because blocks go whole.
    """
    room = 0.5 / found.pruned_blocks + 1e-9 if kind == "depth" else TOLERANCE[kind]
    if abs(found.share - settings.sparsity) > room:
        raise StageError(
            f"prune.sparsity is {settings.sparsity:.1%}, but {found.share:.1%} of the parameters of the "
            f"{found.pruned_blocks} pruned blocks are gone from the saved model (of {found.blocks} blocks)",
            remedy="the layers are too narrow for this share; choose another prune.sparsity",
        )
