"""The flow `sweep`: a grid of pruning schemes, selector policies, budgets and seeds, a workspace each cell.

Cells are ordered so that what changes the earliest stage changes least often, and all share the project's
DVC cache: what two cells have in common is computed by the first and restored by the second.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from flows import workspace
from flows.errors import FlowError
from flows.project import find_project
from flows.recover import DONE, recover
from paser.artifacts import fingerprint, staged
from paser.errors import PaserError

Cell = dict[str, Any]


@flow(name="sweep", result_serializer="json", persist_result=True)
def sweep(
    schemes: list[str | dict[str, Any]] | None = None,
    policies: list[str | dict[str, Any]] | None = None,
    budgets: list[str | int] | None = None,
    seeds: list[int] | None = None,
    overrides: dict[str, Any] | None = None,
    targets: list[str] | None = None,
    gpu_deployment: str | None = None,
    project: str | None = None,
    retry_seconds: float = 30.0,
) -> State[dict[str, Any]]:
    """Runs every cell of the grid, one after the other, and compares them in a table and a CSV file.

    Args:
        schemes: values of `prune.scheme`, or mappings of several keys such as
            `{"prune.scheme": "wanda", "prune.sparsity": 0.6}`. What is left out keeps the project's value.
        policies: values of `select.policy`, or mappings likewise.
        budgets: values of `select.budget`.
        seeds: values of `seed`.
        overrides: keys that all cells share.
        targets: stages to run with all they depend on; all stages by default.
        gpu_deployment: deployment that runs the GPU stages on another machine.
        project: folder of the project; by default `PASER_PROJECT`, or the clone this is installed from.
        retry_seconds: pause before the first retry of a stage.
    """
    log = get_run_logger()
    try:
        home = find_project(project)
        grid = cells(schemes, policies, budgets, seeds, overrides)
        text = (home / "params.yaml").read_text(encoding="utf-8")
        for cell in grid:
            workspace.override(text, cell)
    except PaserError as error:
        return Failed(message=str(error))
    lines: list[dict[str, Any]] = []
    for number, cell in enumerate(grid, start=1):
        log.info("cell %d of %d: %s", number, len(grid), label(cell))
        state: State[Any] = recover.with_options(flow_run_name=label(cell))(
            targets=targets,
            overrides=cell,
            gpu_deployment=gpu_deployment,
            project=str(home),
            retry_seconds=retry_seconds,
            return_state=True,
        )
        lines.append(compare(cell, state))
    path = home / ".paser" / "sweeps" / f"{fingerprint(grid)[:12]}.csv"
    write_csv(path, lines)
    create_table_artifact(lines, key="comparison", description=f"Cells of the sweep; also in {path}")
    failed = [line["cell"] for line in lines if line["state"] != "Completed"]
    if failed:
        return Failed(message=f"{len(failed)} of {len(grid)} cells failed: {'; '.join(failed)}; see {path}")
    return Completed(message=f"{len(grid)} cells, compared in {path}", data={"table": str(path)})


def cells(
    schemes: list[str | dict[str, Any]] | None,
    policies: list[str | dict[str, Any]] | None,
    budgets: list[str | int] | None,
    seeds: list[int] | None,
    shared: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """The overrides of each cell; neighbours share as many early stages as can be."""
    axes = [
        _axis("seed", seeds),
        _axis("prune.scheme", schemes),
        _axis("select.policy", policies),
        _axis("select.budget", budgets),
    ]
    grid = [dict(shared or {}) | {k: v for part in parts for k, v in part.items()}
            for parts in itertools.product(*axes)]  # fmt: skip
    if not any(grid):
        raise FlowError(
            "the grid has one cell and no changes",
            remedy="give at least one of schemes, policies, budgets and seeds",
        )
    return grid


def label(cell: Cell) -> str:
    return ", ".join(f"{key}={value}" for key, value in cell.items())


def compare(cell: Cell, state: State[Any]) -> dict[str, Any]:
    """One line of the comparison: how the cell ended, what it computed, and what recovery gave back."""
    line: dict[str, Any] = {"cell": label(cell), **cell, "state": state.name, "message": ""}
    if not state.is_completed():
        return {**line, "message": (state.message or "").splitlines()[0] if state.message else ""}
    found: dict[str, Any] = state.result()
    counts = {word: sum(name == word for name in found["stages"].values()) for word in DONE}
    line |= {"computed": counts["Completed"], "restored": counts["Restored"], "cached": counts["Cached"]}
    place = Path(found["project"])
    if "select" in found["stages"]:
        budget = _read(place / "data/budget.json")
        line |= {"rows": budget.get("rows"), "tokens": budget.get("tokens")}
    if "evaluate" in found["stages"]:
        overall = _read(place / "data/metrics.json").get("overall", {})
        for model in ("recovered", "control"):
            for measure in ("fidelity_gap", "gap_closed"):
                point = (overall.get(model) or {}).get(measure) or {}
                line[f"{measure}_{model}"] = point.get("value")
    return line


def write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for line in lines for key in line))
    with staged(path) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def _axis(key: str, values: list[Any] | None) -> list[dict[str, Any]]:
    if not values:
        return [{}]
    return [dict(value) if isinstance(value, dict) else {key: value} for value in values]


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
