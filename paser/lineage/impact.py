"""What withdrawing rows means: which models are to be retrained, pruned or evaluated again, what DVC runs.

The role of a row decides. A model that was trained on a withdrawn row holds it in its weights; one that
only rejected it does not, but would have decided the other rows against another pool.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paser.errors import PaserError
from paser.lineage.catalogue import Catalogue, models
from paser.lineage.entry import ROLES, STOPPED_BY, Row
from paser.lineage.find import hits
from paser.records import ROW_ID_VERSION
from paser.stages.graph import STAGES

if TYPE_CHECKING:
    from rich.console import Console

# Role -> what becomes of a model with such a row, the worst first, and the table that changes.
CONSEQUENCES: dict[str, tuple[str, str]] = {
    "trained": ("retrain", "data/pool.parquet"),
    STOPPED_BY: ("retrain", "data/pool.parquet"),
    "calibrated": ("prune again", "data/calibration.parquet"),
    "held_out": ("evaluate again", "data/holdout.parquet"),
    "rejected": ("decisions may change", "data/pool.parquet"),
}
STAYS, NOTHING = "stays through another source", "nothing"
_LEFT_OUT_FOR = ("near_duplicate", "near_heldout", "in_calibration")
Place = tuple[str, str, str]


@dataclass(frozen=True)
class Withdrawal:
    """One line of `withdrawn.csv` without reason and date."""

    kind: str
    value: str


def impact(catalogue: Catalogue, withdrawals: Sequence[Withdrawal]) -> list[Row]:
    """What these withdrawals, together, mean for each model that read any of the rows.

    `[{model, merkle_root, verdict, actions, stages, rows, staying, near_copies}]`: `verdict` is the worst of
    `actions` (`retrain`, `prune again`, `evaluate again`, `decisions may change`, or `stays through another
    source`, `nothing`); `stages` what `dvc repro` may run; `rows` those that leave, by role; `staying` those
    whose text also stands in a source that is not withdrawn, and so stays in the pool; `near_copies` rows
    that were left out for resembling one that leaves, and would come in for it.
    """
    with catalogue.reading() as connection:
        found = _samples(connection, withdrawals)
        connection.execute(
            "CREATE TEMP TABLE gone (sample INTEGER PRIMARY KEY, text INTEGER, leaves INTEGER)"
        )
        connection.executemany("INSERT INTO gone VALUES (?, ?, ?)", found)
        leaving: dict[int, Counter[str]] = {}
        staying: dict[int, Counter[str]] = {}
        for model, role, leaves, count in connection.execute(
            "SELECT m.id, x.role, g.leaves, count(*) FROM model m CROSS JOIN gone g "
            "CROSS JOIN member x ON x.model = m.id AND x.sample = g.sample GROUP BY 1, 2, 3"
        ):
            (leaving if leaves else staying).setdefault(model, Counter())[ROLES[role]] += count
        return [
            {
                "model": model.id,
                "merkle_root": model.merkle_root,
                **_consequences(leaving.get(model.number, Counter()), staying.get(model.number, Counter())),
                "near_copies": _near_copies(connection, model.number),
            }
            for model in models(connection)
            if model.number in leaving or model.number in staying
        ]


def untouched(catalogue: Catalogue, withdrawals: Sequence[Withdrawal]) -> list[Withdrawal]:
    """Those that concern no row that any model of the catalogue read."""
    with catalogue.reading() as connection:
        return [item for item in withdrawals if not _samples(connection, [item])]


def _samples(
    connection: sqlite3.Connection, withdrawals: Sequence[Withdrawal]
) -> list[tuple[int, int, bool]]:
    """Samples that are touched: number, text, and whether no place of it remains."""
    texts: set[int] = set()
    rules: list[Callable[[Place], bool]] = []
    patterns: list[str] = []
    for item in withdrawals:
        if item.kind == "text" or (item.kind == "row" and ":" not in item.value):
            texts |= {hit.text for hit in hits(connection, _row_id(item.value), "row")}
        else:
            pattern, rule = _rule(item)
            patterns.append(pattern)
            rules.append(rule)
    touched: dict[int, tuple[int, str]] = {}
    for text in texts:
        for number, places in connection.execute("SELECT id, places FROM sample WHERE text = ?", (text,)):
            touched[number] = (text, places)
    for pattern in patterns:
        for number, text, places in connection.execute(
            "SELECT id, text, places FROM sample WHERE instr(places, ?)", (pattern,)
        ):
            touched[number] = (text, places)
    found = []
    for number, (text, places) in sorted(touched.items()):
        left = [p for p in map(tuple, json.loads(places)) if not any(rule(p) for rule in rules)]
        if text in texts or len(left) < len(json.loads(places)):
            found.append((number, text, text in texts or not left))
    return found


def _rule(item: Withdrawal) -> tuple[str, Callable[[Place], bool]]:
    """How a place's JSON reads where it may be meant, and whether it is."""
    if item.kind == "source":
        return f"[{_json(item.value)},", lambda place: place[0] == item.value
    if item.kind == "license":
        return f",{_json(item.value)}]", lambda place: place[2] == item.value
    if item.kind == "row":
        # Both parts may hold colons; what follows the last one ends the place.
        return (
            f"{_json(item.value.rpartition(':')[2])[1:]},",
            lambda place: f"{place[0]}:{place[1]}" == item.value,
        )
    raise PaserError(f"unknown kind {item.kind!r}", remedy="row, source, license or text")


def _json(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _row_id(value: str) -> str:
    value = value.lower()
    return value if value.startswith(f"{ROW_ID_VERSION}-") else f"{ROW_ID_VERSION}-{value}"


def _consequences(leaving: Counter[str], staying: Counter[str]) -> Row:
    roles = [role for role in CONSEQUENCES if leaving[role]]
    actions = [CONSEQUENCES[role][0] for role in roles]
    rest = STAYS if any(staying[role] for role in CONSEQUENCES) else NOTHING
    tables = {CONSEQUENCES[role][1] for role in roles}
    return {
        "verdict": actions[0] if actions else rest,
        "actions": actions,
        "stages": ["pool", *downstream(tables)],
        "rows": {role: leaving[role] for role in ROLES if leaving[role]},
        "staying": {role: staying[role] for role in ROLES if staying[role]},
    }


def downstream(paths: set[str]) -> list[str]:
    """The stages that read any of these files, or what such a stage writes, in their order."""
    changed, found = set(paths), []
    for stage in STAGES.values():
        reads = {path for path in changed for wanted in stage.inputs if wanted == path}
        if reads:
            found.append(stage.name)
            changed |= {*stage.outputs, stage.record}
    return found


def _near_copies(connection: sqlite3.Connection, model: int) -> int:
    """Quarantined rows of a model for which a leaving text stands, and which do not leave themselves."""
    marks = ", ".join("?" * len(_LEFT_OUT_FOR))
    (count,) = connection.execute(
        "SELECT count(*) FROM member x JOIN reason r ON r.id = x.reason WHERE x.model = ? "
        f"AND r.name IN ({marks}) AND x.twin IN (SELECT text FROM gone WHERE leaves) "
        "AND x.sample NOT IN (SELECT sample FROM gone WHERE leaves)",
        (model, *_LEFT_OUT_FOR),
    ).fetchone()
    return int(count)


def render(rows: list[Row], console: Console) -> None:
    """A table of models, the worst verdict first, and what it means in a line each."""
    from rich.table import Table

    order = list(dict.fromkeys([*(action for action, _ in CONSEQUENCES.values()), STAYS, NOTHING]))
    table = Table(title="What the withdrawal means", title_justify="left")
    table.add_column("model", no_wrap=True)
    table.add_column("verdict")
    for role in ROLES:
        table.add_column(role.replace("_", " "), justify="right")
    table.add_column("stays", justify="right")
    table.add_column("near copies", justify="right")
    for row in sorted(rows, key=lambda line: order.index(line["verdict"])):
        style = "bold red" if row["verdict"] == "retrain" else "yellow" if row["actions"] else "none"
        table.add_row(
            row["model"][:12],
            f"[{style}]{row['verdict']}[/]",
            *(f"{row['rows'].get(role, 0):,}" for role in ROLES),
            f"{sum(row['staying'].values()):,}",
            f"{row['near_copies']:,}",
        )
    if rows:
        console.print(table)
    counts = Counter(row["verdict"] for row in rows)
    listed = ", ".join(f"{verdict}: {counts[verdict]}" for verdict in order if counts[verdict])
    console.print(listed or "no model of the catalogue read any of these rows", highlight=False)
    if stages := {stage for row in rows for stage in row["stages"]}:
        console.print(f"`dvc repro` may run: {' '.join(s for s in STAGES if s in stages)}", highlight=False)
    if any(row["staying"] for row in rows):
        console.print(
            "rows that stay: their text also stands in a source that is not withdrawn; `--text` withdraws it "
            "wherever it is found",
            highlight=False,
        )
    if any(row["near_copies"] for row in rows):
        console.print(
            "near copies: rows that were left out for resembling one that leaves come in for it; "
            "`paser audit find --near` finds them",
            highlight=False,
        )
