"""What the explorer reads of a project: its pool's tables, its clusters, and why a row was taken or left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paser.artifacts import read_columns, read_json
from paser.explore.rows import Rows
from paser.settings import Settings, load_settings

_READ = {
    "pool": (
        "row_id", "source", "source_row", "license", "instruction", "input", "output", "label", "benchmark",
        "tokens",
    ),
    "scores": ("row_id", "jsd", "loss_original", "loss_pruned", "status"),
    "decisions": ("row_id", "cluster", "ies", "rank", "decision", "reason", "detail"),
}  # fmt: skip


@dataclass(frozen=True)
class Project:
    """A project whose stage `select` has run. `clusters`: the most damaged first."""

    folder: Path
    settings: Settings
    rows: Rows
    clusters: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Project:
        """Raises PaserError where a table is missing, with the command that makes it."""
        data = folder / "data"
        tables = {name: read_columns(data / f"{name}.parquet", columns) for name, columns in _READ.items()}
        budget = read_json(data / "budget.json")["clusters"]
        clusters = sorted(budget, key=lambda c: (-c["cds"], c["cluster"]))
        return cls(folder, load_settings(folder / "params.yaml"), Rows(**tables), clusters)

    def name_of(self, cluster: int | None) -> str:
        return next((c["name"] for c in self.clusters if c["cluster"] == cluster), "")

    def why(self, row_id: str) -> list[dict[str, Any]]:
        """What `paser audit why` says of a row in the recovered model; empty before stage `audit` has run."""
        from paser.lineage.why import why

        model, entry = self.folder / "data/models/recovered", self.folder / "data/audit"
        if not (model / "provenance.json").exists() or not (entry / "entry.json").exists():
            return []
        return why(model, entry, row_id)
