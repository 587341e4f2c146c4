"""Which models of the catalogue contain a row, a text, a near copy, a source or a licence; in which role."""

from __future__ import annotations

import difflib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass
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


@dataclass(frozen=True)
class Found:
    """What answers a question: `models` counts all of it, `matches` lists some, `more` are not listed.

    `models`: `{model, merkle_root, roles}`, rows by role, in the order in which the models came. `matches`,
    for `row`, `text` and `near`: `{model, merkle_root, row_id, match, similarity, role, cluster, reason,
    license, occurrences}`, the most similar of each model first; `match` says what of the row agrees (`row`,
    `prompt`, `response`), `similarity` is 1 or, for `near`, an estimate (standard error at most 0.06) of at
    least the given one; `license` is the strictest of the occurrences. For `source` and `license`, one a
    model: `{model, merkle_root, name, roles}` and, for a licence, `counts_as`: the rows for which it is the
    strictest.
    """

    matches: list[Row]
    models: list[Row]
    more: int


def guess(query: str, catalogue: Catalogue) -> Kind:
    """What a query without a flag means: a row id, a known source, a known licence, else a text."""
    if query.lower().startswith(f"{ROW_ID_VERSION}-"):
        return "row"
    with catalogue.reading() as connection:
        found = connection.execute("SELECT DISTINCT kind FROM share WHERE name = ?", (query,)).fetchall()
    kinds = {kind for (kind,) in found}
    return "source" if "source" in kinds else "license" if "license" in kinds else "text"


def find(
    catalogue: Catalogue,
    query: str,
    kind: Kind,
    similarity: float = SIMILARITY,
    limit: int | None = None,
) -> Found:
    """Every place in every model that answers; at most `limit` of them are listed, all are counted.

    Memory holds the listed ones only: a short text may be near a million rows in each of a thousand models.
    """
    with catalogue.reading() as connection:
        if kind in ("source", "license"):
            named = _by_name(connection, query, kind)
            keys = ("model", "merkle_root", "roles")
            return Found(named, [{key: row[key] for key in keys} for row in named], 0)
        return _places(connection, hits(connection, query, kind, similarity), limit)


def hits(
    connection: sqlite3.Connection, query: str, kind: Kind, similarity: float = SIMILARITY
) -> Iterator[Hit]:
    """The texts of the catalogue that a query means, each once."""
    if kind == "row":
        yield from _rows_between(connection, query)
        return
    text = read_text(query)
    if kind == "near":
        yield from _near(connection, text, query, similarity)
    elif text.row_id is not None:
        yield from _rows_between(connection, text.row_id)
    else:
        for number, prompt in connection.execute(
            "SELECT id, prompt = ?1 FROM text WHERE prompt = ?1 OR response = ?1 ORDER BY 2 DESC, 1",
            (text.digest,),
        ):
            yield Hit(number, "prompt" if prompt else "response", 1.0)


def _rows_between(connection: sqlite3.Connection, row: str) -> Iterator[Hit]:
    for (number,) in connection.execute("SELECT id FROM text WHERE row BETWEEN ? AND ?", row_range(row)):
        yield Hit(number, "row", 1.0)


def _near(connection: sqlite3.Connection, text: Text, query: str, similarity: float) -> Iterator[Hit]:
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
    for chunk in connection.execute("SELECT texts, prompts, responses FROM sketch ORDER BY id"):
        numbers = np.frombuffer(chunk[0], np.int64)
        values: list[np.ndarray] = [
            estimate(sketch, np.frombuffer(packed, np.uint8).reshape(-1, SKETCH_BYTES))
            for sketch, packed in zip(asked, chunk[1:], strict=True)
        ]
        best = np.minimum(*values) if whole else np.maximum(*values)
        for place in np.flatnonzero(best >= similarity).tolist():
            part = "row" if whole else "prompt" if values[0][place] >= values[1][place] else "response"
            yield Hit(int(numbers[place]), part, round(float(best[place]), 3))


def _places(connection: sqlite3.Connection, found: Iterator[Hit], limit: int | None) -> Found:
    """Where some texts stand: one seek a model, sample and text. The hits themselves wait in SQLite."""
    connection.execute("CREATE TEMP TABLE raw (text INTEGER, match TEXT, similarity REAL)")
    connection.executemany("INSERT INTO raw VALUES (?, ?, ?)", map(astuple, found))
    # Ids in the order of similarity: the join below then gives each model's most similar rows first.
    connection.execute(
        "CREATE TEMP TABLE hit (id INTEGER PRIMARY KEY, text INTEGER, match TEXT, similarity REAL)"
    )
    connection.execute("INSERT INTO hit SELECT NULL, * FROM raw ORDER BY similarity DESC, rowid")
    known = {model.number: model for model in models(connection)}
    counts: dict[int, Counter[str]] = {}
    matches: list[Row] = []
    for model, row, match, similarity, role, cluster, reason, places in connection.execute(
        "SELECT m.id, t.row, h.match, h.similarity, x.role, x.cluster, r.name, s.places FROM model m "
        "CROSS JOIN hit h CROSS JOIN text t ON t.id = h.text CROSS JOIN sample s ON s.text = h.text "
        "CROSS JOIN member x ON x.model = m.id AND x.sample = s.id LEFT JOIN reason r ON r.id = x.reason "
        "ORDER BY m.id, h.id"
    ):
        counts.setdefault(model, Counter())[ROLES[role]] += 1
        if limit is not None and len(matches) >= limit:
            continue
        occurrences = [
            dict(zip(("source", "source_row", "license"), p, strict=True)) for p in json.loads(places)
        ]
        matches.append(
            {
                "model": known[model].id,
                "merkle_root": known[model].merkle_root,
                "row_id": f"{ROW_ID_VERSION}-{row.hex()}",
                "match": match,
                "similarity": similarity,
                "role": ROLES[role],
                "cluster": cluster,
                "reason": reason,
                "license": strictest(place["license"] for place in occurrences),
                "occurrences": occurrences,
            }
        )
    return Found(
        matches,
        [
            {
                "model": known[model].id,
                "merkle_root": known[model].merkle_root,
                "roles": {role: count[role] for role in ROLES if count[role]},
            }
            for model, count in counts.items()
        ],
        sum(count.total() for count in counts.values()) - len(matches),
    )


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


def render(found: Found, kind: Kind, query: str, console: Console) -> None:
    """A table of the listed places, how many more there are, and a last line with the sums."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{kind}: {query[:80]}"), title_justify="left")
    table.add_column("model", no_wrap=True)
    if kind in ("source", "license"):
        for role in ROLES:
            table.add_column(role.replace("_", " "), justify="right")
        for row in found.matches:
            table.add_row(row["model"][:12], *(f"{row['roles'].get(role, 0):,}" for role in ROLES))
    else:
        for name in ("role", "row", "match", "cluster", "reason", "licence", "found in"):
            table.add_column(name, overflow="fold")
        for row in found.matches:
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
    if found.matches:
        console.print(table)
    if found.more:
        console.print(f"and {found.more:,} more; --limit N lists N", highlight=False)
    trained = sum("trained" in model["roles"] for model in found.models)
    console.print(
        f"models that contain it: {len(found.models):,}, trained on it: {trained:,}", highlight=False
    )
