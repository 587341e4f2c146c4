"""The damage profile: what pruning did to each capability, for one scheme or several side by side.

Damage is measured twice: as the divergence between both models' distributions, and as the increase of the
loss on the reference answers. The first sees every change, the second only what the answers show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paser.evaluation.gap import ORIGINAL, Measured, interval

if TYPE_CHECKING:
    from rich.console import RenderableType

OVERALL = "mean of capabilities"


def damage_profile(
    capabilities: Sequence[Measured], schemes: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    """Damage of each scheme by capability, the capabilities ranked by their mean JSD over the schemes.

    `jsd`: mean Jensen-Shannon divergence to the original, 0 (unharmed) .. ln 2, in nats. `loss_increase`:
    mean loss minus the original's, nats a token; negative where pruning happened to help. `rank` is 1 for the
    capability with the highest JSD in that scheme. Intervals: 95 % percentile bootstrap over the rows of a
    capability, the same resamples for every scheme; overall over the mean of capabilities.
    """
    import numpy as np

    entries: list[dict[str, Any]] = []
    drawn: dict[str, list[tuple[Any, Any]]] = {scheme: [] for scheme in schemes}
    for number, capability in enumerate(capabilities):
        rng = np.random.default_rng([seed, number])
        draws = rng.integers(0, capability.rows, size=(resamples, capability.rows))
        found = {}
        for scheme in schemes:
            increase = capability.loss[scheme] - capability.loss[ORIGINAL]
            jsd = capability.jsd[scheme]
            resampled = jsd[draws].mean(axis=1), increase[draws].mean(axis=1)
            drawn[scheme].append(resampled)
            found[scheme] = {
                "jsd": interval(float(jsd.mean()), resampled[0]),
                "loss_increase": interval(float(increase.mean()), resampled[1]),
            }
        entries.append({"name": capability.name, "rows": capability.rows, "schemes": found})
    for scheme in schemes:
        order = sorted(entries, key=lambda entry: -entry["schemes"][scheme]["jsd"]["value"])
        for rank, entry in enumerate(order, 1):
            entry["schemes"][scheme]["rank"] = rank
    overall = {
        scheme: {
            key: interval(
                float(np.mean([entry["schemes"][scheme][key]["value"] for entry in entries])),
                np.mean([pair[place] for pair in drawn[scheme]], axis=0),
            )
            for place, key in enumerate(("jsd", "loss_increase"))
        }
        for scheme in schemes
    }

    def severity(entry: Mapping[str, Any]) -> float:
        return -sum(float(entry["schemes"][scheme]["jsd"]["value"]) for scheme in schemes)

    return {"schemes": list(schemes), "overall": overall, "capabilities": sorted(entries, key=severity)}


COLUMNS = (
    "scheme", "capability", "rank", "rows", "jsd", "jsd_low", "jsd_high",
    "loss_increase", "loss_increase_low", "loss_increase_high",
)  # fmt: skip


def long_rows(profile: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a scheme and capability with the columns `COLUMNS`, in order of damage, the mean last."""
    rows = []
    for scheme in profile["schemes"]:
        entries = sorted(profile["capabilities"], key=lambda entry: entry["schemes"][scheme]["rank"])
        for entry in entries:
            found = entry["schemes"][scheme]
            rows.append(_row(scheme, entry["name"], found["rank"], entry["rows"], found))
        every = sum(entry["rows"] for entry in entries)
        rows.append(_row(scheme, OVERALL, None, every, profile["overall"][scheme]))
    return rows


def _row(scheme: str, name: str, rank: int | None, rows: int, found: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {}
    for key in ("jsd", "loss_increase"):
        for end, part in (("", "value"), ("_low", "low"), ("_high", "high")):
            numbers[f"{key}{end}"] = round(float(found[key][part]), 6)
    return {"scheme": scheme, "capability": name, "rank": rank, "rows": rows, **numbers}


def damage_table(profile: Mapping[str, Any]) -> RenderableType:
    """The profile for the terminal: capabilities from the most to the least damaged, scheme by scheme."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Damage by {profile['capability_kind']} (95 % interval)", title_justify="left")
    table.add_column("pruned model")
    table.add_column("", justify="right")
    table.add_column("capability")
    for name in ("rows", "JSD to the original", "increase in loss"):
        table.add_column(name, justify="right")
    shown = None
    for row in long_rows(profile):
        if row["scheme"] != shown and shown is not None:
            table.add_section()
        values = [
            f"{row[key]:.3f} [{row[f'{key}_low']:.3f}, {row[f'{key}_high']:.3f}]"
            for key in ("jsd", "loss_increase")
        ]
        style = "bold" if row["capability"] == OVERALL else ""
        table.add_row(
            Text(row["scheme"] if row["scheme"] != shown else ""),
            str(row["rank"] or ""),
            Text(row["capability"]),
            f"{row['rows']:,}",
            *values,
            style=style,
        )
        shown = row["scheme"]
    notes = [
        "JSD: 0 unharmed to 0.693; increase in loss: nats a token, below 0 where pruning happened to help"
    ]
    return Group(table, Text("\n".join([*notes, *profile["notes"]])))
