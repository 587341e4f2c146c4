"""The result as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from paser.evaluation.board import board, board_table
from paser.evaluation.gap import compared_models

if TYPE_CHECKING:
    from rich.console import RenderableType


def with_interval(value: Mapping[str, Any] | None, digits: int = 2) -> str:
    """`0.42 [0.31, 0.55]`, with a star where it is above 1."""
    if value is None:
        return "-"
    star = "*" if value.get("above_one") else ""
    shown = [f"{value[key]:.{digits}f}" for key in ("value", "low", "high")]
    return f"{shown[0]}{star} [{shown[1]}, {shown[2]}]"


def result_tables(metrics: Mapping[str, Any]) -> RenderableType:
    """Everything measured in one table, then what recovery gave back: fidelity gap and gap closed."""
    from rich.console import Group
    from rich.text import Text

    models = metrics["models"]
    lines = [row for row in board(metrics) if row["section"] != "cluster"]
    parts: list[RenderableType] = [board_table(lines, models)] if lines else []
    gaps = "original" in models and "pruned" in models and bool(compared_models(models))
    notes = _notes(metrics)
    if gaps:
        parts.append(_gaps(metrics))
        notes = [*_gap_notes(metrics), *notes]
    return Group(*parts, Text("\n".join(notes)))


def _gaps(metrics: Mapping[str, Any]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    compared = compared_models(metrics["models"])
    table = Table(title="What recovery gave back (95 % interval)", title_justify="left")
    table.add_column("")
    for model in compared:
        table.add_column(f"fidelity gap\n{model}", justify="right")
    for model in compared:
        table.add_column(f"gap closed\n{model}", justify="right")
    for entry in metrics.get("capabilities", []):
        table.add_row(
            Text(entry["name"] if entry["averaged"] else f"({entry['name']})"),
            *(with_interval(entry["fidelity_gap"][m]) for m in compared),
            *(with_interval(entry["gap_closed"][m] if entry["averaged"] else None) for m in compared),
        )
    if overall := metrics.get("overall"):
        table.add_section()
        table.add_row(
            "ratio of means",
            *(with_interval(overall[m]["fidelity_gap"]) for m in compared),
            *(with_interval(overall[m]["gap_closed"]) for m in compared),
        )
    for key in ("tasks", "perplexity"):
        part = metrics.get(key) or {"metrics": []}
        entries = [entry for entry in part["metrics"] if entry["primary"]]
        if entries:
            table.add_section()
        for entry in entries:
            table.add_row(
                Text(f"{entry['name']}, {entry['metric']}"),
                *(with_interval(entry["fidelity_gap"].get(m)) for m in compared),
                *("no gap" if entry["no_gap"] else with_interval(entry["gap_closed"][m]) for m in compared),
            )
        if len(entries) > 1:
            table.add_row(
                f"ratio of means, {key}",
                *("" for _ in compared),
                *(with_interval(part["overall"][m]) for m in compared),
            )
    return table


def _gap_notes(metrics: Mapping[str, Any]) -> list[str]:
    compared = compared_models(metrics["models"])
    entries = metrics.get("capabilities", [])
    listed = [f"{e['name']}: {e['why_not_averaged']}" for e in entries if not e["averaged"]]
    notes = [f"not averaged in gap closed: {'; '.join(listed)}"] if listed else []
    others = [
        entry for key in ("tasks", "perplexity") for entry in (metrics.get(key) or {}).get("metrics", [])
    ]
    notes += [f"{e['name']}, {e['metric']}: {e['no_gap']}" for e in others if e["no_gap"] and e["primary"]]
    points = [e["gap_closed"].get(m) for e in entries if e["averaged"] for m in compared]
    points += [e["gap_closed"].get(m) for e in others for m in compared]
    if any(point and point["above_one"] for point in points):
        notes += ["* above 1: training taught a format that the original model never had"]
    spreads = dict(metrics.get("spread") or {})
    for part in ("tasks", "perplexity"):
        spreads[f"gap_closed in {part}"] = (metrics.get(part) or {}).get("spread", {})
    for key, runs in spreads.items():
        notes += [
            f"{name}: {key.replace('_', ' ')} over {found['runs']} runs {found['mean']:.3f}, standard "
            f"deviation {found['sd']:.3f}, from {found['low']:.3f} to {found['high']:.3f}"
            for name, found in runs.items()
        ]
    return notes


def _notes(metrics: Mapping[str, Any]) -> list[str]:
    notes = []
    for key in ("tasks", "perplexity"):
        protocols: dict[str, list[str]] = {}
        for entry in (metrics.get(key) or {}).get("metrics", []):
            protocols.setdefault(entry["protocol"], [])
            if entry["name"] not in protocols[entry["protocol"]]:
                protocols[entry["protocol"]].append(entry["name"])
            if key == "perplexity":
                shown = ", ".join(f"{m} {value:.3f}" for m, value in entry["perplexity"].items())
                notes.append(f"perplexity of {entry['name']}: {shown}")
        notes += [f"{', '.join(names)}: {protocol}" for protocol, names in protocols.items()]
        found = (metrics.get(key) or {}).get("metrics", [])
        notes += list(dict.fromkeys(f"{e['name']}: {note}" for e in found for note in e.get("notes", [])))
    if budget := metrics.get("budget"):
        notes += [f"budget: {budget['rows']} rows, {budget['tokens']:,} training tokens"]
    if overlap := metrics.get("contamination"):
        notes += [
            f"{overlap['overlapping']} of {overlap['pool_rows']:,} pool rows overlap what is evaluated, "
            f"{overlap['selected']} of them selected"
        ]
    if "seeds" in metrics:
        notes += [f"{metrics['seeds']} seed: one run, not a claim about the method"]
    return [*notes, *metrics["notes"]]
