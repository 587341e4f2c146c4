"""The trainings of cells, and who judges them (paser/evaluation/paired.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.evidence import cells as cell_files
from benchmarks.evidence.cells import Cell
from benchmarks.evidence.world import DENSE, world
from paser.evaluation.paired import ACCURACY, CLOSED, FIDELITY, Judge

# In the order of the plan; the first two are primary.
METRICS = (FIDELITY, ACCURACY, CLOSED)
Row = dict[str, Any]


def judge_of(scheme: str) -> Judge:
    """Of trainings that began from the model of this scheme."""
    labels = [str(row["label"]) for row in world().held_out]
    return Judge(cell_files.untrained(scheme), cell_files.untrained(DENSE), labels)


def trained(cells: Sequence[Cell]) -> dict[int, Row]:
    """The trainings of these cells that are done, by seed."""
    return {cell.seed: found for cell in cells if (found := cell.training_if_done()) is not None}


def paired(ours: Sequence[Cell], theirs: Sequence[Cell]) -> tuple[list[Row], list[Row]]:
    """Trainings of the seeds that both have done."""
    a, b = trained(ours), trained(theirs)
    seeds = sorted(set(a) & set(b))
    return [a[s] for s in seeds], [b[s] for s in seeds]
