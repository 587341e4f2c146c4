"""Records a withdrawal in `data/withdrawn.csv`, which stage `pool` honours in every later run."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from paser.artifacts import read_columns
from paser.errors import PaserError
from paser.lineage.catalogue import Catalogue
from paser.lineage.entry import ORIGIN, REGISTER
from paser.lineage.find import hits
from paser.lineage.impact import Withdrawal, untouched
from paser.lineage.query import read_text
from paser.pool.clean import COLUMNS, ROW_ID, checked, read_withdrawals, withdrawn_by
from paser.records import ROW_ID_VERSION

FILE = "data/withdrawn.csv"


def resolve(catalogue: Catalogue, kind: str, value: str) -> list[Withdrawal]:
    """What a user's words mean as lines of `withdrawn.csv`.

    A row's beginning becomes its whole id, in lower case; `SOURCE:PLACE` stays. A text is the digest of a
    whole row: a row id, a JSON row, or every row of the catalogue whose prompt or response is this text.
    Raises `PaserError` for what nobody has ever read and what has no digest of its own.
    """
    value = value.strip()
    if not value:
        raise PaserError(f"--{kind} is empty", remedy="say what is withdrawn")
    if kind in ("source", "license"):
        return [Withdrawal(kind, value)]
    if kind == "row":
        if not value.lower().startswith(f"{ROW_ID_VERSION}-") and ":" in value:
            return [Withdrawal(kind, value)]
        return [Withdrawal(kind, _whole_id(catalogue, value))]
    if ROW_ID.fullmatch(value):
        return [Withdrawal("text", value.lower())]
    text = read_text(value)
    if text.row_id is not None:
        return [Withdrawal("text", text.row_id)]
    with catalogue.reading() as connection:
        keys = [
            connection.execute("SELECT row FROM text WHERE id = ?", (hit.text,)).fetchone()[0]
            for hit in hits(connection, value, "text")
        ]
    if not keys:
        raise PaserError(
            "no row of the catalogue has this text as its prompt or its response",
            remedy="give the whole row as JSON (instruction, input, output), or look with "
            "`paser audit find --near`",
        )
    return [Withdrawal("text", f"{ROW_ID_VERSION}-{key.hex()}") for key in dict.fromkeys(keys)]


def _whole_id(catalogue: Catalogue, value: str) -> str:
    if ROW_ID.fullmatch(value):
        return value.lower()
    with catalogue.reading() as connection:
        found = hits(connection, value, "row")
        keys = [
            connection.execute("SELECT row FROM text WHERE id = ?", (hit.text,)).fetchone()[0]
            for hit in found
        ]
    if len(keys) != 1:
        raise PaserError(
            f"{len(keys)} rows of the catalogue begin with {value!r}",
            remedy="give the whole row id" if not keys else "give more of the row id",
        )
    return f"{ROW_ID_VERSION}-{keys[0].hex()}"


def withdraw(path: Path, withdrawals: list[Withdrawal], reason: str, date: str) -> None:
    """Adds a line for each; the file is read whole first, and every line of it must be sound.

    `date` is YYYY-MM-DD. Raises `PaserError` for what is withdrawn already, for an empty reason, and for a
    row or text that is neither a whole row id nor, for a row, `SOURCE:PLACE`.
    """
    reason = " ".join(reason.split())
    if not reason:
        raise PaserError("--reason is empty", remedy="say why, for whoever reads the file in a year")
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", date):
        raise PaserError(f"--date is {date!r}", remedy="write it as YYYY-MM-DD")
    if not path.exists():
        raise PaserError(f"{path} does not exist", remedy=f"write a line `{','.join(COLUMNS)}` there")
    known = read_withdrawals(path).reasons
    withdrawals = [Withdrawal(w.kind, checked(w.kind, w.value, str(path))) for w in withdrawals]
    for item in withdrawals:
        if found := next((key for key in _names(item) if key in known), None):
            raise PaserError(
                f"{path}: {found[0]} {found[1]} is withdrawn already: {known[found]}",
                remedy="nothing is to do; `dvc repro` honours it",
            )
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([item.kind, item.value, reason, date] for item in withdrawals)
    begun = path.read_bytes()
    with path.open("ab") as stream:
        stream.write((b"" if begun.endswith(b"\n") else b"\n") + text.getvalue().encode("utf-8"))


def unmatched(project: Path, catalogue: Catalogue, withdrawals: Sequence[Withdrawal]) -> list[Withdrawal]:
    """Those that concern no row of the project's tables and none of any model of the catalogue."""
    rest = untouched(catalogue, withdrawals)
    asked = {(item.kind, item.value) for item in rest}
    met: set[tuple[str, str]] = set()
    for path in REGISTER.values() if rest else ():
        if (project / path).exists():
            table = read_columns(project / path, ("row_id", *ORIGIN), ("occurrences",))
            for batch in table.to_batches():
                for row in batch.to_pylist():
                    for at in (row, *(row.get("occurrences") or ())):
                        names = withdrawn_by(row["row_id"], at["source"], at["source_row"], at["license"])
                        met |= asked.intersection(names)
    return [item for item in rest if (item.kind, item.value) not in met]


def _names(item: Withdrawal) -> list[tuple[str, str]]:
    """The lines that already say the same."""
    if not ROW_ID.fullmatch(item.value):
        return [(item.kind, item.value)]
    return [("row", item.value), ("text", item.value)]
