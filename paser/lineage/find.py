"""Which models of the catalogue contain a row, a text, a near copy, a source or a licence; in which role."""

from __future__ import annotations

import difflib
import json
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from paser.errors import PaserError
from paser.lineage.catalogue import Catalogue, Model, models
from paser.lineage.entry import ROLES, Row
from paser.lineage.query import Text, read_text, row_range
from paser.pool.licences import strictest
from paser.records import ROW_ID_VERSION

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

Kind = Literal["row", "text", "near", "source", "license"]
SIMILARITY = 0.75


@dataclass(frozen=True)
class Hit:
    """A text that answers a question: its number in the catalogue, by what, and how similar (0 to 1)."""

    text: int
    match: str
    similarity: float


def guess(query: str, catalogue: Catalogue) -> Kind:
    """What a query without a flag means: a row id, a known source, a known licence, else a text."""
    if query.startswith(f"{ROW_ID_VERSION}-"):
        return "row"
    with catalogue.reading() as connection:
        found = connection.execute("SELECT DISTINCT kind FROM share WHERE name = ?", (query,)).fetchall()
    kinds = {kind for (kind,) in found}
    return "source" if "source" in kinds else "license" if "license" in kinds else "text"


def find(catalogue: Catalogue, query: str, kind: Kind, similarity: float = SIMILARITY) -> list[Row]:
    """Every place in every model that answers, in the order in which the models came.

    For `row`, `text` and `near`: `{model, merkle_root, row_id, match, similarity, role, cluster, reason,
    license, occurrences}`; `match` says what of the row agrees (`row`, `prompt`, `response`), `similarity` is
    1 or, for `near`, an estimate (standard error at most 0.06) of at least the given one; `license` is the
    strictest of the occurrences. For `source` and `license`: `{model, merkle_root, name, roles}` with rows by
    role and, for a licence, `counts_as`: the rows for which it is the strictest.
    """
    with catalogue.reading() as connection:
        if kind in ("source", "license"):
            return _by_name(connection, query, kind)
        return list(_places(connection, hits(connection, query, kind, similarity)))


def hits(connection: sqlite3.Connection, query: str, kind: Kind, similarity: float = SIMILARITY) -> list[Hit]:
    """The texts of the catalogue that a query means."""
    if kind == "row":
        found = connection.execute("SELECT id FROM text WHERE row BETWEEN ? AND ?", row_range(query))
        return [Hit(number, "row", 1.0) for (number,) in found]
    text = read_text(query)
    if kind == "near":
        return _near(connection, text, query, similarity)
    if text.row_id is not None:
        found = connection.execute("SELECT id FROM text WHERE row BETWEEN ? AND ?", row_range(text.row_id))
        return [Hit(number, "row", 1.0) for (number,) in found]
    return [
        Hit(number, part, 1.0)
        for part in ("prompt", "response")
        for (number,) in connection.execute(f"SELECT id FROM text WHERE {part} = ?", (text.digest,))
    ]


def _near(connection: sqlite3.Connection, text: Text, query: str, similarity: float) -> list[Hit]:
    """A whole row must be near in prompt and response, any other text in one of them."""
    import numpy as np

    from paser.lineage.query import plain
    from paser.lineage.sketch import SKETCH_BYTES, sketches
    from paser.lineage.sketch import similarity as estimate
    from paser.records import normalise

    if not 0.0 < similarity <= 1.0:
        raise PaserError(f"--similarity is {similarity}", remedy="give a number above 0, at most 1")
    whole = text.row_id is not None
    asked = sketches([text.prompt or "", text.response or ""] if whole else [normalise(plain(query))] * 2)
    found: list[Hit] = []
    for chunk in connection.execute("SELECT texts, prompts, responses FROM sketch ORDER BY id"):
        numbers = np.frombuffer(chunk[0], np.int64)
        values: list[np.ndarray] = [
            estimate(sketch, np.frombuffer(packed, np.uint8).reshape(-1, SKETCH_BYTES))
            for sketch, packed in zip(asked, chunk[1:], strict=True)
        ]
        best = np.minimum(*values) if whole else np.maximum(*values)
        for place in np.flatnonzero(best >= similarity).tolist():
            part = "row" if whole else "prompt" if values[0][place] >= values[1][place] else "response"
            found.append(Hit(int(numbers[place]), part, round(float(best[place]), 3)))
    return sorted(found, key=lambda hit: (-hit.similarity, hit.text))


def _places(connection: sqlite3.Connection, found: list[Hit]) -> list[Row]:
    """Where some texts stand: one seek a model, sample and text."""
    known = {model.number: model for model in models(connection)}
    by_text: dict[int, Hit] = {}
    for hit in found:
        by_text.setdefault(hit.text, hit)
    connection.execute("CREATE TEMP TABLE hit (text INTEGER PRIMARY KEY)")
    connection.executemany("INSERT INTO hit VALUES (?)", [(text,) for text in by_text])
    lines = connection.execute(
        "SELECT m.id, t.id, t.row, x.role, x.cluster, r.name, s.places FROM model m CROSS JOIN hit h "
        "CROSS JOIN text t ON t.id = h.text CROSS JOIN sample s ON s.text = h.text "
        "CROSS JOIN member x ON x.model = m.id AND x.sample = s.id LEFT JOIN reason r ON r.id = x.reason"
    )
    rows = []
    for model, text, row, role, cluster, reason, places in lines:
        occurrences = [
            dict(zip(("source", "source_row", "license"), p, strict=True)) for p in json.loads(places)
        ]
        rows.append(
            {
                "model": known[model].id,
                "merkle_root": known[model].merkle_root,
                "row_id": f"{ROW_ID_VERSION}-{row.hex()}",
                "match": by_text[text].match,
                "similarity": by_text[text].similarity,
                "role": ROLES[role],
                "cluster": cluster,
                "reason": reason,
                "license": strictest(place["license"] for place in occurrences),
                "occurrences": occurrences,
                "_order": (model, -by_text[text].similarity, role),
            }
        )
    rows.sort(key=lambda line: line["_order"])
    for line in rows:
        del line["_order"]
    return rows


def _by_name(connection: sqlite3.Connection, name: str, kind: str) -> list[Row]:
    known: dict[int, Model] = {model.number: model for model in models(connection)}
    found: dict[int, Row] = {}
    for model, part, role, count in connection.execute(
        "SELECT model, kind, role, rows FROM share WHERE name = ? AND kind IN (?, ?) ORDER BY model, role",
        (name, kind, "counts_as" if kind == "license" else kind),
    ):
        row = found.setdefault(
            model,
            {
                "model": known[model].id,
                "merkle_root": known[model].merkle_root,
                "name": name,
                "roles": {},
                **({"counts_as": {}} if kind == "license" else {}),
            },
        )
        row["roles" if part == kind else "counts_as"][ROLES[role]] = count
    return list(found.values())


def known_names(catalogue: Catalogue, kind: str, name: str) -> list[str]:
    """Names of sources or licences of the catalogue that are spelled much like `name`."""
    with catalogue.reading() as connection:
        names = [n for (n,) in connection.execute("SELECT DISTINCT name FROM share WHERE kind = ?", (kind,))]
    folded = {n.casefold(): n for n in names}
    return [folded[n] for n in difflib.get_close_matches(name.casefold(), folded, cutoff=0.5)]


def render(rows: list[Row], kind: Kind, query: str, console: Console, most: int = 50) -> None:
    """A table of the places, the first 50 of them, and a last line with the sums."""
    from rich.markup import escape
    from rich.table import Table

    models_found = {row["model"] for row in rows}
    table = Table(title=escape(f"{kind}: {query[:80]}"), title_justify="left")
    table.add_column("model", no_wrap=True)
    if kind in ("source", "license"):
        for role in ROLES:
            table.add_column(role.replace("_", " "), justify="right")
        for row in rows[:most]:
            table.add_row(row["model"][:12], *(f"{row['roles'].get(role, 0):,}" for role in ROLES))
    else:
        for name in ("role", "row", "match", "cluster", "reason", "licence", "found in"):
            table.add_column(name, overflow="fold")
        for row in rows[:most]:
            places = [f"{o['source']} {o['source_row']}" for o in row["occurrences"]]
            match = row["match"] if row["similarity"] == 1.0 else f"{row['match']} ~{row['similarity']:.2f}"
            table.add_row(
                row["model"][:12],
                row["role"].replace("_", " "),
                row["row_id"][:15],
                match,
                "-" if row["cluster"] is None else str(row["cluster"]),
                row["reason"] or "-",
                escape(row["license"]),
                escape(", ".join(places)),
            )
    if rows:
        console.print(table)
    trained = {r["model"] for r in rows if r.get("role") == "trained" or r.get("roles", {}).get("trained")}
    shown = f"; the first {most} lines are shown, --json gives all" if len(rows) > most else ""
    console.print(
        f"models that contain it: {len(models_found)}, trained on it: {len(trained)}{shown}", highlight=False
    )
