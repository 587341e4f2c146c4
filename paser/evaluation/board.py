"""One table of everything measured: a row for each capability, cluster, task and text, a column for each
model.

The same rows go to the terminal, to JSON and to CSV; all are made from `metrics.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paser.evaluation.gap import compared_models

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]
LOSS, JSD, PERPLEXITY = "loss", "JSD", "log perplexity"
SECTIONS = ("capability", "cluster", "task", "text")


def board(metrics: Mapping[str, Any]) -> list[Row]:
    """Rows with `section`, `name`, `metric`, `better` (lower or higher), `units` (rows, items or windows),
    `limit` (what was left out, or empty), `values` by model, `gap_closed` by compared model, `no_gap`.

    A value has `value` and, where known, `stderr`. Loss and JSD: nats a response token.
    """
    models = metrics["models"]
    rows = []
    for section, entries in (
        ("capability", metrics.get("capabilities", [])),
        ("cluster", metrics.get("clusters", [])),
    ):
        for entry in entries:
            for metric, key in ((LOSS, "gap_closed"), (JSD, "fidelity_gap")):
                if not entry[metric.lower()]:
                    continue
                averaged = key == "fidelity_gap" or entry.get("averaged", True)
                rows.append(
                    {
                        "section": section,
                        "name": entry["name"] + (f" ({entry['title']})" if entry.get("title") else ""),
                        "metric": metric,
                        "better": "lower",
                        "units": entry["rows"],
                        "limit": "",
                        "values": {
                            m: {"value": entry[metric.lower()][m]}
                            for m in models
                            if m in entry[metric.lower()]
                        },
                        "gap_closed": entry.get(key, {}) if averaged else {},
                        "no_gap": None if averaged else f"no gap: {entry['why_not_averaged']}",
                    }
                )
    for section, key in (("task", "tasks"), ("text", "perplexity")):
        for entry in metrics.get(key, {}).get("metrics", []):
            values = entry["value"]
            errors = entry.get("stderr", {})
            rows.append(
                {
                    "section": section,
                    "name": entry["name"],
                    "metric": entry["metric"],
                    "better": "higher" if entry["higher_is_better"] else "lower",
                    "units": entry["units"],
                    "limit": entry.get("limit", ""),
                    "values": {
                        m: {"value": values[m]["value"]} | ({"stderr": errors[m]} if m in errors else {})
                        for m in models
                    },
                    "gap_closed": entry["gap_closed"],
                    "no_gap": entry["no_gap"],
                }
            )
    return rows


def board_csv(rows: Sequence[Row], models: Sequence[str]) -> str:
    """The rows as CSV: `MODEL`, `MODEL stderr` and, for a compared model, `MODEL gap closed` with `low`,
    `high`."""
    import csv
    import io

    head = ["section", "name", "metric", "better", "units", "limit", "no_gap"]  # after `row`, which is unique
    columns = ["row", *head]
    for m in models:
        columns += [m, f"{m} stderr"]
    for m in compared_models(models):
        columns += [f"{m} gap closed", f"{m} gap closed low", f"{m} gap closed high"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        line: Row = {"row": f"{row['name']}, {row['metric']}", **{key: row[key] or "" for key in head}}
        for m, found in row["values"].items():
            line[m] = _digits(found["value"])
            line[f"{m} stderr"] = _digits(found.get("stderr"))
        for m, gap in row["gap_closed"].items():
            if gap:
                line |= {
                    f"{m} gap closed": _digits(gap["value"]),
                    f"{m} gap closed low": _digits(gap["low"]),
                    f"{m} gap closed high": _digits(gap["high"]),
                }
        writer.writerow(line)
    return stream.getvalue()


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def headline(metrics: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Nested numbers for `dvc metrics`: the gaps over all capabilities, what was spent, and the value of each
    model in every row (section, name, metric, model).

    Clusters are left out: their names change with the pool, so that no two runs could be compared by them.
    """
    found: dict[str, Any] = {"gap closed": {}, "fidelity gap": {}}
    for name, entry in metrics["overall"].items():
        for shown, key in (("gap closed", "gap_closed"), ("fidelity gap", "fidelity_gap")):
            if entry.get(key):
                found[shown][name] = round(entry[key]["value"], 6)
    if budget := metrics.get("budget"):
        found["selected"] = {unit: budget[unit] for unit in ("rows", "tokens")}
    for row in rows:
        if row["section"] == "cluster":
            continue
        place = found.setdefault(row["section"], {}).setdefault(row["name"], {}).setdefault(row["metric"], {})
        for m, value in row["values"].items():
            place[m] = round(value["value"], 6)
    return found


def board_table(rows: Sequence[Row], models: Sequence[str]) -> Table:
    """The rows for the terminal. After a value its standard error; gap closed in brackets, where there is
    one."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Everything measured", title_justify="left")
    for name in ("", "name", "metric"):
        table.add_column(name)
    table.add_column("units", justify="right")
    for m in models:
        table.add_column(m, justify="right")
    shown = None
    for row in rows:
        if shown is not None and row["section"] != shown:
            table.add_section()
        arrow = "↑" if row["better"] == "higher" else "↓"
        limit = f" {row['limit']}" if row["limit"] else ""
        table.add_row(
            row["section"] if row["section"] != shown else "",
            Text(row["name"]),
            f"{row['metric']} {arrow}",
            f"{row['units']:,}{limit}",
            *(Text(_cell(row, m)) for m in models),
        )
        shown = row["section"]
    return table


def _cell(row: Row, model: str) -> str:
    found = row["values"].get(model)
    if found is None:
        return "-"
    text = f"{found['value']:.3f}"
    if "stderr" in found:
        text += f" ± {found['stderr']:.3f}"
    gap = row["gap_closed"].get(model)
    if gap:
        text += f" [{gap['value']:.2f}]"
    elif row["no_gap"] and model in row["gap_closed"]:
        text += " [no gap]"
    return text
