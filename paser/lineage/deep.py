"""The selection made again: do the recorded decisions follow from the recorded scores and settings?

Digests show that nothing was altered since a stage wrote it; only this shows that what it wrote is what
the method says. It runs the selector on the project's tables with the settings of the record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import read_json, read_jsonl, read_rows
from paser.lineage.chain import Record
from paser.records import draw_key

if TYPE_CHECKING:
    from paser.selectors.derive import Derived

Row = dict[str, Any]
# What the last digit of an efficiency may differ by between two versions of a numerical library.
CLOSE = 1e-9
CONTAMINATION = "data/contamination.json"


@dataclass(frozen=True)
class Followed:
    """One thing that was derived again. `problem` says where it departs from what is recorded."""

    name: str
    detail: str
    problem: str | None


def derive_again(record: Record, locate: Callable[[str], Path]) -> Derived:
    """The selection from the tables below `locate`, with seed and settings of the record of `select`."""
    from paser.selectors.derive import derive, read_inputs
    from paser.settings import parse_settings

    params = record["params"]
    content = {
        "seed": record["seed"],
        "select": {"selector": "paser", **params["select"]},  # older records name no selector
        "pool": {"near_duplicate": params["pool.near_duplicate"]},
    }
    return derive(read_inputs(locate), parse_settings(content, "the record of select"))


def follows(record: Record, entry: Path, locate: Callable[[str], Path]) -> list[Followed]:
    """Decisions, budget and contamination from the tables, selection from the decisions, control from the
    seed.

    `entry` holds decisions, selection and budget as they are to be proved; `locate` gives the place of
    everything they are derived from.
    """
    found = derive_again(record, locate)
    recorded = read_rows(entry / "decisions.parquet", "decisions")
    selected = read_jsonl(entry / "selected.jsonl")
    made = [
        dict(zip(batch, cells, strict=True))
        for batch in found.decisions()
        for cells in zip(*(_values(column) for column in batch.values()), strict=True)
    ]
    return [
        Followed(
            "decisions follow from scores, clusters and settings",
            f"{len(made)} decisions made again",
            first_difference(made, recorded, "decisions.parquet"),
        ),
        Followed(
            "selection follows from the decisions",
            f"{len(selected)} rows in training order",
            first_difference(selected_from(recorded, found, int(record["seed"])), selected, "selected.jsonl"),
        ),
        Followed(
            "control follows from the seed",
            f"{len(found.control.positions)} rows",
            first_difference(list(found.random()), read_jsonl(locate("data/control.jsonl")), "control.jsonl"),
        ),
        Followed(
            "budget follows from scores and settings",
            f"{found.report['rows']} rows, {found.report['tokens']} tokens",
            _report_difference(found.report, read_json(entry / "budget.json"), "budget.json"),
        ),
        Followed(
            "contamination follows from pool and evaluation",
            f"{len(found.overlaps)} rows of the pool overlap",
            _report_difference(
                found.contamination(), read_json(locate(CONTAMINATION)), Path(CONTAMINATION).name
            ),
        ),
    ]


def selected_from(decisions: Iterable[Row], found: Derived, seed: int) -> list[Row]:
    """The rows of `selected.jsonl` that these decisions, not the derived ones, make of the pool."""
    accepted = {row["row_id"]: row["cluster"] for row in decisions if row["decision"] == "accepted"}
    position = {row_id: place for place, row_id in enumerate(found.pool.row_ids)}
    order = sorted(accepted, key=lambda row_id: draw_key("order", seed, row_id))
    places = [position[row_id] for row_id in order]
    tokens = found.pool.tokens
    return [
        row | {"cluster": accepted[row["row_id"]], "tokens": int(tokens[place])}
        for row, place in zip(found.table.take(places).to_pylist(), places, strict=True)
    ]


def first_difference(made: list[Row], recorded: list[Row], name: str) -> str | None:
    """Where two tables part: row, column and both values; None if nowhere."""
    if len(made) != len(recorded):
        return f"{name} has {len(recorded)} rows, {len(made)} follow"
    for number, (mine, theirs) in enumerate(zip(made, recorded, strict=True), 1):
        differing = [key for key in mine if not _same(mine[key], theirs.get(key))]
        if differing:
            key = differing[0]
            return (
                f"{name}, row {number} ({theirs.get('row_id')}): {key} is {_short(theirs.get(key))}, "
                f"{_short(mine[key])} follows"
            )
    return None


def _report_difference(made: Any, recorded: Any, name: str, path: str = "") -> str | None:
    if isinstance(made, Mapping) and isinstance(recorded, Mapping):
        for key in sorted({*map(str, made), *map(str, recorded)}):
            where = f"{path}.{key}" if path else key
            if problem := _report_difference(made.get(key), recorded.get(key), name, where):
                return problem
        return None
    if isinstance(made, list | tuple) and isinstance(recorded, list) and len(made) == len(recorded):
        for number, (mine, theirs) in enumerate(zip(made, recorded, strict=True)):
            if problem := _report_difference(mine, theirs, name, f"{path}[{number}]"):
                return problem
        return None
    if _same(made, recorded):
        return None
    return f"{name}: {path} is {_short(recorded)}, {_short(made)} follows"


def _same(made: Any, recorded: Any) -> bool:
    if isinstance(made, float) and isinstance(recorded, float):
        return math.isclose(made, recorded, rel_tol=CLOSE, abs_tol=1e-15) or (made != made != recorded)
    return bool(made == recorded)


def _values(column: Any) -> list[Any]:
    import pyarrow as pa

    if isinstance(column, pa.Array):
        return list(column.to_pylist())
    return list(column.tolist() if hasattr(column, "tolist") else column)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
