"""A grid computes what its cells share once, and compares them in one table."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from flows.errors import FlowError
from flows.sweep import cells, sweep
from paser.artifacts import read_json


def test_cells_change_the_earliest_stage_least_often() -> None:
    grid = cells(["wanda", {"prune.scheme": "wanda", "prune.sparsity": 0.6}], None, ["10%", "20%"], [1, 2])
    assert len(grid) == 8
    assert [cell["seed"] for cell in grid] == [1] * 4 + [2] * 4
    assert [cell.get("prune.sparsity") for cell in grid[:4]] == [None, None, 0.6, 0.6]
    assert [cell["select.budget"] for cell in grid[:2]] == ["10%", "20%"]
    with pytest.raises(FlowError, match="at least one of schemes"):
        cells(None, None, None, None)


@pytest.mark.usefixtures("server")
def test_what_cells_share_is_computed_once(done: Path) -> None:
    state = sweep(
        policies=["damage", "uniform"],
        budgets=["30%"],
        targets=["select"],
        project=str(done),
        return_state=True,
    )
    assert state.is_completed(), state.message
    lines = list(csv.DictReader(Path(state.result()["table"]).read_text(encoding="utf-8").splitlines()))
    assert [line["select.policy"] for line in lines] == ["damage", "uniform"]
    assert [line["computed"] for line in lines] == ["1", "1"]
    assert [line["restored"] for line in lines] == ["6", "6"]
    assert len({line["tokens"] for line in lines}) == 2
    budgets = [read_json(path / "data/budget.json") for path in (done / ".paser/workspaces").iterdir()]
    assert {budget["policy"] for budget in budgets} == {"damage", "uniform"}


@pytest.mark.usefixtures("server")
def test_a_wrong_cell_is_refused_before_any_runs(done: Path) -> None:
    state = sweep(policies=["damage", "most"], project=str(done), return_state=True)
    assert state.is_failed()
    assert "select.policy" in (state.message or "")
    assert not (done / ".paser/workspaces").exists()
