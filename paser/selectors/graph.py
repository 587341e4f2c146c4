"""The concept graph of a finished selection, rebuilt from what the selection wrote, for networkx users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paser.artifacts import read_columns, read_json, read_jsonl, staged
from paser.errors import PaserError
from paser.method.concepts import ConceptGraph, key_phrases
from paser.method.selection import acceptance_step
from paser.selectors.tables import row_text

Row = Mapping[str, Any]


def read_graph(folder: Path) -> ConceptGraph:
    """From `selected.jsonl`, `decisions.parquet` and `budget.json` of a folder."""
    report = read_json(folder / "budget.json")
    if "concepts" not in report:
        raise PaserError(
            f"{folder / 'budget.json'} does not say how concepts were found", remedy="select again"
        )
    columns = read_columns(
        folder / "decisions.parquet", ("row_id", "cluster", "rank", "decision", "reason", "detail")
    )
    accepted = columns.filter([word == "accepted" for word in columns["decision"].to_pylist()]).to_pylist()
    return rebuilt(read_jsonl(folder / "selected.jsonl"), accepted, report)


def rebuilt(selected: Sequence[Row], accepted: Sequence[Row], report: Row) -> ConceptGraph:
    """The graph of a run: its accepted rows in the order in which they were accepted.

    `selected`: rows of `selected.jsonl`; `accepted`: their rows in `decisions.parquet`; `report`:
    `budget.json`.
    """
    visited = {entry["cluster"]: entry["visited"] for entry in report["clusters"]}
    texts = {row["row_id"]: row_text(row["instruction"], row["input"], row["output"]) for row in selected}
    limits = report["concepts"]["phrases"], report["concepts"]["words"]
    graph = ConceptGraph()
    for row in sorted(
        accepted,
        key=lambda row: (acceptance_step(row["reason"], row["detail"]), visited[row["cluster"]], row["rank"]),
    ):
        if row["row_id"] not in texts:
            raise PaserError(
                f"row {row['row_id']} is accepted in decisions.parquet and missing in selected.jsonl",
                remedy="restore both from the same selection",
            )
        graph.add(key_phrases(texts[row["row_id"]], *limits), row["row_id"])
    return graph


def write_graphml(path: Path, graph: ConceptGraph) -> None:
    """GraphML: nodes with `introduced_by` and `samples`, edges with `samples`."""
    import networkx

    with staged(path) as partial:
        networkx.write_graphml(graph.to_networkx(), partial)
