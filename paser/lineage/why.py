"""Why one row went into a model, or did not: its role, scores, rank, and the rows it clashed with."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.errors import PaserError
from paser.lineage.entry import OF_POOL, STOPPED_BY, Entry, Row, string_array
from paser.lineage.provenance import held_out, load_provenance
from paser.lineage.query import Text, row_beginning
from paser.lineage.sketch import DIGEST_BYTES
from paser.lineage.trace import entry_of, ranked_by
from paser.pool.licences import strictest

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

# What `paser.method.concepts.Clash` says of itself in a decision's detail.
_QUOTED = r"'(?:[^'\\]|\\.)*'|" + r'"(?:[^"\\]|\\.)*"'
_CLASH = re.compile(
    rf"(?P<first>{_QUOTED}) \(from (?P<first_row>\S+)\) and (?P<second>{_QUOTED}) "
    r"\(from (?P<second_row>\S+)\) are both known but were never together; "
    r"(?P<joined>\d+) of (?P<known>\d+) known pairs are joined"
)


def why(model: Path, entry: Path | None, row: str | Text) -> list[Row]:
    """What is known of a row in a model: a dictionary for each role it has, none where it was not read.

    `row` is a row id, its beginning (which must be of one row), or a text. Keys: `row_id, role, decision,
    reason, detail, clash, cluster, cluster_name, jsd, recoverability, loss_original, loss_pruned, ies, rank,
    tokens, position, label, benchmark, license, occurrences, duplicate_of, ranked_by`. `position` counts from
    1 in training order; `jsd` is in nats, 0 to ln 2; `recoverability`, -1/2 to 2, is None where the entry has
    none; `ranked_by` is what `ies` is called: `IES`, or another order of the rows of a cluster; `license` is
    the strictest of the occurrences. `clash` names two concepts, the rows that brought them in, and how many
    of the row's `known` pairs of concepts were `joined`. For a control, `trained` means drawn at random, and
    the decisions of the recovered model do not count.
    """
    provenance = load_provenance(model)
    source = entry_of(model, entry, provenance)
    names = {item["cluster"]: item["name"] for item in source.clusters()["clusters"]}
    called = ranked_by(source.root)
    lines = _matching(source, row)
    asked = {line["row_id"] for line in lines}
    positions = {row_id: n for n, row_id in enumerate(provenance["row_ids"], 1) if row_id in asked}
    found = []
    for line in lines:
        position = positions.get(line["row_id"]) if line["role"] in OF_POOL else None
        if provenance["role"] == "control" and line["role"] in OF_POOL:
            drawn = position is not None
            line |= {"role": "trained" if drawn else "rejected", "reason": "random" if drawn else "not_drawn"}
            if line["row_id"] in held_out(provenance):
                line |= {"role": STOPPED_BY, "reason": "random"}
        if (line["role"] == "trained") != (position is not None):
            raise PaserError(
                f"row {line['row_id']} is {line['role']} in {source.root}, but the model's provenance "
                f"{'names' if position else 'does not name'} it",
                remedy="`paser audit verify` says what was altered",
            )
        decision = _decision(source, line, provenance["role"])
        licenses = [place["license"] for place in line["occurrences"]]
        found.append(
            {
                **{key: line[key] for key in ("row_id", "role", "reason", "cluster", "label", "benchmark")},
                **decision,
                "detail": decision["detail"] or line["detail"] or "",
                "clash": parse_clash(decision["detail"]),
                "cluster_name": names.get(line["cluster"]),
                "position": position,
                "license": strictest(licenses),
                "occurrences": line["occurrences"],
                "duplicate_of": line["duplicate_of"],
                "ranked_by": called,
            }
        )
    return found


def parse_clash(detail: str) -> dict[str, Any] | None:
    """The clash that a decision's detail tells of, or None: `first, second, first_row, second_row, joined,
    known`."""
    found = _CLASH.search(detail)
    if found is None:
        return None
    parts: dict[str, Any] = found.groupdict()
    for key in ("first", "second"):
        parts[key] = ast.literal_eval(parts[key])
    return {**parts, "joined": int(parts["joined"]), "known": int(parts["known"])}


def _matching(entry: Entry, row: str | Text) -> list[Row]:
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = entry.register()
    if isinstance(row, str):
        found = rows.filter(pc.starts_with(rows["row_id"], row_beginning(row)))
        if len(ids := pc.unique(found["row_id"])) > 1:
            raise PaserError(f"{len(ids)} rows begin with {row!r}", remedy="give more of the row id")
    elif row.row_id is not None:
        found = rows.filter(pc.is_in(rows["row_id"], value_set=string_array([row.row_id])))
    else:
        texts = entry.table("texts", "row_id", "prompt", "response")
        wanted = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(DIGEST_BYTES), 1, [None, pa.py_buffer(row.digest or b"")]
        )
        hits = pc.or_(*(pc.is_in(texts[part], value_set=wanted) for part in ("prompt", "response")))
        ids = string_array(texts["row_id"].filter(hits).to_pylist())
        found = rows.filter(pc.is_in(rows["row_id"], value_set=ids))
    lines: list[Row] = found.to_pylist()
    return lines


def _decision(entry: Entry, line: Row, role: str) -> Row:
    """Decision, scores and rank of a row of the pool; empty for any other."""
    measured = ("jsd", "recoverability", "loss_original", "loss_pruned")
    found: Row = dict.fromkeys(("decision", "ies", "rank", *measured, "tokens"))
    found["detail"] = ""
    if line["role"] not in OF_POOL:
        return found
    columns = ("row_id", "jsd", "loss_original", "loss_pruned", "prompt_tokens", "response_tokens")
    score = _one(entry.table("scores", *columns, optional=("recoverability",)), line["row_id"])
    found |= {key: _finite(score.get(key)) for key in measured}
    if score:
        found["tokens"] = score["prompt_tokens"] + score["response_tokens"]
    if role == "recovered":
        decided = _one(entry.table("decisions"), line["row_id"])
        found |= {"decision": decided.get("decision"), "detail": decided.get("detail") or ""}
        found |= {"ies": _finite(decided.get("ies")), "rank": decided.get("rank")}
    return found


def _one(table: pa.Table, row_id: str) -> Row:
    import pyarrow.compute as pc

    found: list[Row] = table.filter(pc.is_in(table["row_id"], value_set=string_array([row_id]))).to_pylist()
    return found[0] if found else {}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


_WORDS = {
    "trained": "the model was trained on it",
    "rejected": "it was in the pool and was left out",
    STOPPED_BY: "it was selected and held out of training, to say when to stop",
    "held_out": "it was held out: models are evaluated on it, none is trained on it",
    "calibrated": "it calibrated the pruning",
    "quarantined": "it was left out before the pool was made",
}


def render(rows: list[Row], console: Console) -> None:
    """One block a finding: the answer, then every fact that has a value."""
    from rich.markup import escape
    from rich.table import Table

    for row in rows:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")

        def line(name: str, value: object, table: Table = table) -> None:
            if value is not None and value != "":
                text = f"{value:.4f}" if isinstance(value, float) else str(value)
                shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
                table.add_row(f"[bold]{name}[/]", escape(shown))

        line("row", row["row_id"])
        line("role", f"{row['role']}: {_WORDS[row['role']]}")
        line("reason", row["reason"])
        line("detail", row["detail"])
        if row["cluster"] is not None:
            line("cluster", f"{row['cluster']} {row['cluster_name'] or ''}".strip())
        for key, name in (
            ("rank", "rank"), ("position", "training position"), ("jsd", "JSD"),
            ("recoverability", "recoverability"), ("ies", row["ranked_by"]),
            ("loss_original", "loss, original"), ("loss_pruned", "loss, pruned"), ("tokens", "tokens"),
            ("label", "label"), ("benchmark", "benchmark"), ("duplicate_of", "stands for it"),
            ("license", "licence (strictest)"),
        ):  # fmt: skip
            line(name, row[key])
        if clash := row["clash"]:
            for side in ("first", "second"):
                line("clash", f"{clash[side]} (from {clash[f'{side}_row']})")
        for place in row["occurrences"]:
            line("found in", f"{place['source']} {place['source_row']} ({place['license']})")
        console.print(table)
        console.print()
