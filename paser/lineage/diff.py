"""Two selections or models: which rows came in, which went out, why, and which settings differ."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import read_columns, read_json
from paser.errors import PaserError
from paser.lineage.catalogue import Catalogue
from paser.lineage.chain import flat
from paser.lineage.entry import ENTRY, Row, settings_of
from paser.lineage.provenance import load_provenance
from paser.lineage.query import locate
from paser.lineage.trace import entry_of

if TYPE_CHECKING:
    from rich.console import Console

NOT_READ = "not read"
DECISIONS = "decisions.parquet"
_SHOWN = 20


@dataclass(frozen=True)
class Side:
    """One of the two: its trained or accepted rows, and where each known row stood.

    `place` maps row ids to `(role, cluster, reason)`; `settings` are dotted keys with their stage in front.
    """

    name: str
    chosen: frozenset[str]
    place: dict[str, tuple[str, int | None, str | None]]
    clusters: dict[int, str]
    settings: dict[str, Any]


def read_side(name: str, catalogue: Catalogue) -> Side:
    """A model's folder, an audit entry, a model of the catalogue, or a folder that `paser select` wrote."""
    folder = Path(name)
    if (folder / DECISIONS).exists() and not (folder / ENTRY).exists():
        return _selection(folder)
    model, entry = locate(name, None, catalogue)
    provenance = load_provenance(model)
    source = entry_of(model, entry, provenance)
    rows = source.register("row_id", "role", "cluster", "reason")
    place: dict[str, tuple[str, int | None, str | None]] = {}
    for row_id, *found in zip(*(rows[c].to_pylist() for c in rows.column_names), strict=True):
        # A quarantined copy says less than the row that stands for it, which comes first.
        place.setdefault(row_id, (found[0], found[1], found[2]))
    return Side(
        name,
        frozenset(provenance["row_ids"]),
        place,
        _names(source.clusters()),
        flat(settings_of(source.records())),
    )


def _selection(folder: Path) -> Side:
    rows = read_columns(folder / DECISIONS, ("row_id", "decision", "cluster", "reason"))
    lines = list(zip(*(rows[c].to_pylist() for c in rows.column_names), strict=True))
    names = _names(read_json(folder / "clusters.json")) if (folder / "clusters.json").exists() else {}
    return Side(
        str(folder),
        frozenset(row_id for row_id, decision, *_ in lines if decision == "accepted"),
        {r: ("trained" if d == "accepted" else "rejected", c, reason) for r, d, c, reason in lines},
        names,
        {},
    )


def _names(clusters: dict[str, Any]) -> dict[int, str]:
    return {item["cluster"]: item["name"] for item in clusters["clusters"]}


def diff(a: Side, b: Side) -> Row:
    """`{a, b, same, added, removed, by_cluster, by_reason, settings}`.

    `added` are rows of `b` that are not in `a`, each `{row_id, cluster, cluster_name, before, after}`: where
    it stood on each side, as `role: reason`. `cluster` is that of the side that chose it. `by_reason` counts
    rows by `(before, after)`, `by_cluster` by the cluster's name. `settings` lists `{key, a, b}`.
    """
    if not a.place or not b.place:
        empty = a.name if not a.place else b.name
        raise PaserError(f"{empty} has no rows", remedy="`dvc repro audit` writes its entry")
    added = [_moved(row_id, a, b, b) for row_id in sorted(b.chosen - a.chosen)]
    removed = [_moved(row_id, a, b, a) for row_id in sorted(a.chosen - b.chosen)]
    clusters: dict[str, Counter[str]] = {}
    for side, rows in (("added", added), ("removed", removed)):
        for row in rows:
            clusters.setdefault(row["cluster_name"], Counter())[side] += 1
    reasons = Counter((row["before"], row["after"]) for row in (*added, *removed))
    keys = sorted({*a.settings, *b.settings}) if a.settings and b.settings else []
    return {
        "a": a.name,
        "b": b.name,
        "same": len(a.chosen & b.chosen),
        "added": added,
        "removed": removed,
        "by_cluster": [
            {"cluster": name, "added": clusters[name]["added"], "removed": clusters[name]["removed"]}
            for name in sorted(clusters)
        ],
        "by_reason": [
            {"before": before, "after": after, "rows": count}
            for (before, after), count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        ],
        "settings": [
            {"key": key, "a": a.settings.get(key), "b": b.settings.get(key)}
            for key in keys
            if a.settings.get(key) != b.settings.get(key)
        ],
    }


def differs(found: Row) -> bool:
    return bool(found["added"] or found["removed"] or found["settings"])


def _moved(row_id: str, a: Side, b: Side, chosen_by: Side) -> Row:
    cluster = chosen_by.place[row_id][1] if row_id in chosen_by.place else None
    return {
        "row_id": row_id,
        "cluster": cluster,
        "cluster_name": "(none)" if cluster is None else chosen_by.clusters.get(cluster, str(cluster)),
        "before": _standing(row_id, a),
        "after": _standing(row_id, b),
    }


def _standing(row_id: str, side: Side) -> str:
    if row_id not in side.place:
        return NOT_READ
    role, _, reason = side.place[row_id]
    role = "trained" if row_id in side.chosen else role
    return f"{role}: {reason}" if reason else role


def render(found: Row, console: Console) -> None:
    """Counts, then by cluster, by reason, settings, and the first rows of each side."""
    from rich.markup import escape
    from rich.table import Table

    console.print(
        f"[bold]{len(found['added']):,}[/] rows in, [bold]{len(found['removed']):,}[/] rows out, "
        f"{found['same']:,} in both",
        highlight=False,
    )

    def table(title: str, columns: tuple[str, ...], lines: list[tuple[Any, ...]]) -> None:
        if not lines:
            return
        made = Table(title=title, title_justify="left")
        for name in columns:
            made.add_column(name, overflow="fold")
        for line in lines:
            made.add_row(*(escape(str(value)) for value in line))
        console.print(made)

    table("By cluster", ("cluster", "in", "out"), [tuple(r.values()) for r in found["by_cluster"]])
    table("By reason", ("in A", "in B", "rows"), [tuple(r.values()) for r in found["by_reason"]])
    table("Settings", ("key", "A", "B"), [tuple(r.values()) for r in found["settings"]])
    for side, title in (("added", "Rows in"), ("removed", "Rows out")):
        rows = found[side][:_SHOWN]
        more = f": the first {_SHOWN} of {len(found[side]):,}" if len(found[side]) > _SHOWN else ""
        table(
            f"{title}{more}",
            ("row", "cluster", "in A", "in B"),
            [(r["row_id"][:15], r["cluster_name"], r["before"], r["after"]) for r in rows],
        )
