"""The result as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


def with_interval(value: Mapping[str, Any] | None) -> str:
    """`0.42 [0.31, 0.55]`, with a star where it is above 1."""
    if value is None:
        return "-"
    star = "*" if value.get("above_one") else ""
    return f"{value['value']:.2f}{star} [{value['low']:.2f}, {value['high']:.2f}]"


def result_tables(metrics: Mapping[str, Any]) -> RenderableType:
    """Loss, divergence, fidelity gap and gap closed by capability, overall last."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    models = metrics["models"]
    compared = [m for m in models if m not in ("original", "pruned")]
    losses = Table(
        title=f"Held-out loss and divergence by {metrics['capability_kind']}", title_justify="left"
    )
    gaps = Table(title="What recovery gave back (95 % interval)", title_justify="left")
    losses.add_column("capability")
    losses.add_column("rows", justify="right")
    for model in models:
        losses.add_column(f"loss\n{model}", justify="right")
    for model in models[1:]:
        losses.add_column(f"JSD\n{model}", justify="right")
    gaps.add_column("capability")
    for model in compared:
        gaps.add_column(f"fidelity gap\n{model}", justify="right")
    for model in compared:
        gaps.add_column(f"gap closed\n{model}", justify="right")
    entries = metrics["capabilities"]
    for entry in entries:
        losses.add_row(
            Text(entry["name"]),
            str(entry["rows"]),
            *(f"{entry['loss'][m]:.3f}" for m in models),
            *(f"{entry['jsd'][m]:.4f}" for m in models[1:]),
        )
        gaps.add_row(
            Text(entry["name"] if entry["averaged"] else f"({entry['name']})"),
            *(with_interval(entry["fidelity_gap"][m]) for m in compared),
            *(with_interval(entry["gap_closed"][m] if entry["averaged"] else None) for m in compared),
        )
    overall = metrics["overall"]
    losses.add_section()
    losses.add_row(
        "mean of capabilities",
        str(sum(e["rows"] for e in entries)),
        *(f"{overall[m]['loss']:.3f}" for m in models),
        *(f"{overall[m]['jsd']:.4f}" for m in models[1:]),
    )
    gaps.add_section()
    gaps.add_row(
        "ratio of means",
        *(with_interval(overall[m]["fidelity_gap"]) for m in compared),
        *(with_interval(overall[m]["gap_closed"]) for m in compared),
    )
    listed = [f"{e['name']}: {e['why_not_averaged']}" for e in entries if not e["averaged"]]
    notes = [f"not averaged in gap closed: {'; '.join(listed)}"] if listed else []
    if any(
        overall[m]["gap_closed"] and entry["gap_closed"][m] and entry["gap_closed"][m]["above_one"]
        for entry in entries
        if entry["averaged"]
        for m in compared
    ):
        notes += ["* above 1: training taught a format that the original model never had"]
    notes += [f"budget: {metrics['budget']['rows']} rows, {metrics['budget']['tokens']:,} training tokens"]
    notes += [f"{metrics['seeds']} seed: one run, not a claim about the method", *metrics["notes"]]
    return Group(losses, gaps, Text("\n".join(notes)))
