"""Which data went into a recovered model: rows, scores, settings and the chain of stages behind it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import read_json, sha256_file
from paser.errors import PaserError
from paser.lineage.chain import flat
from paser.lineage.entry import (
    OF_POOL,
    ROWS,
    Entry,
    Row,
    chain_summary,
    cluster_shares,
    describes,
    find_entry,
    settings_of,
    shares,
    string_array,
)
from paser.lineage.provenance import PROVENANCE, STAGE_OF_ROLE, load_provenance

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

SHOWN_ROWS = 10
_SHOWN = ("row_id", "source", "source_row", "license", "label", "cluster", "tokens")
_OF_REGISTER = ("row_id", "source", "source_row", "license", "label", "benchmark", "cluster", "reason")
INSTRUCTION_LENGTH = 80
ID_LENGTH = 15  # of `r1-` and 64 digits, in the table


@dataclass(frozen=True)
class Trace:
    """Everything `paser audit trace` tells about a model.

    `by_source`, `by_license`, `by_label`: `{name, rows, tokens}`; `by_cluster` also has the JSD (nats,
    0 to ln 2) of its rows. `selected` are the rows themselves in training order: `row_id`, `source`,
    `source_row`, `license`, `label`, `cluster`, `tokens`, `jsd`, `ies`, `rank`, `reason` and the beginning
    of the `instruction` (None for a control, whose texts the entry does not hold; its `reason` is
    `random`). `ranked_by` is what `ies` is called: `IES`, or another order of the rows of a cluster.
    `settings` are by stage; `chain` lists the stages with the digests of what each read and wrote.
    """

    model: str
    role: str
    merkle_root: str
    rows: int
    tokens: int
    by_source: list[Row]
    by_license: list[Row]
    by_label: list[Row]
    by_cluster: list[Row]
    benchmarks: list[str]
    settings: dict[str, Any]
    chain: list[Row]
    seed: int
    entry: str
    selected: list[Row]
    ranked_by: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def trace(model: Path, entry: Path | None = None, most: int | None = None) -> Trace:
    """Traces a model folder through an audit entry: the given one, or that of its project.

    `most` limits the rows in `selected`, none the counts. Raises `PaserError` where the model has no
    provenance, no entry is found, or the entry is of another model. Nothing is hashed but
    `provenance.json`: `verify` is the one that proves.
    """
    provenance = load_provenance(model)
    source = entry_of(model, entry, provenance)
    rows = _rows_of(source, provenance)
    return Trace(
        model=str(model),
        role=provenance["role"],
        merkle_root=provenance["merkle_root"],
        rows=provenance["rows"],
        tokens=provenance["tokens"],
        by_source=shares(rows, "source"),
        by_license=shares(rows, "license"),
        by_label=shares(rows, "label"),
        by_cluster=cluster_shares(rows, source.clusters()),
        benchmarks=sorted(name for name in rows["benchmark"].unique().to_pylist() if name),
        settings=settings_of(source.records()),
        chain=chain_summary(source.records()),
        seed=provenance["seed"],
        entry=str(source.root),
        selected=_selected(source, provenance["role"], rows.slice(0, most)),
        ranked_by=ranked_by(source.root),
    )


def ranked_by(entry: Path) -> str:
    """How to call what the rows of a cluster were ranked by, the column `ies` of the decisions."""
    order = read_json(entry / "budget.json").get("order", "efficiency")  # older selections do not say it
    return "IES" if order == "efficiency" else str(order)


def entry_of(model: Path, entry: Path | None, provenance: Row) -> Entry:
    """The audit entry of a model, which must tell of the very `provenance.json` in its folder."""
    found = entry or find_entry(model)
    if found is None:
        raise PaserError(
            f"no audit entry found for {model}",
            remedy="`dvc repro audit` or `dvc checkout data/audit` in its project, or give the entry's "
            "folder with --entry",
        )
    if provenance["role"] not in STAGE_OF_ROLE:
        raise PaserError(
            f"{model / PROVENANCE}: unknown role {provenance['role']!r}",
            remedy="it was altered: restore it with `dvc checkout`",
        )
    source = Entry(found)
    source.content()
    if not describes(source.records(), sha256_file(model / PROVENANCE), provenance["role"]):
        raise PaserError(
            f"the audit entry {found} is not of {model}: no stage recorded there wrote this "
            f"{PROVENANCE} (Merkle root {provenance['merkle_root']})",
            remedy="give its entry with --entry, or `dvc repro audit`; `paser audit verify` says what "
            "differs",
        )
    return source


def _rows_of(entry: Entry, provenance: Row) -> pa.Table:
    """The rows the model was trained on, in training order: origin, cluster, and JSD and tokens as scored."""
    import pyarrow.compute as pc

    trained = string_array(provenance["row_ids"])
    known = entry.register(*_OF_REGISTER, "role")
    known = known.filter(pc.is_in(known["role"], value_set=string_array(OF_POOL)))
    places = _places(trained, known, entry.root / ROWS)
    scores = entry.table("scores", "row_id", "jsd", "prompt_tokens", "response_tokens")
    # Both are in the order of the pool, unless somebody altered one; finding each row again takes longer.
    together = scores["row_id"].equals(known["row_id"])
    scored = scores.take(places if together else _places(trained, scores, entry.root / "scores.parquet"))
    tokens = pc.add(scored["prompt_tokens"], scored["response_tokens"])
    rows = known.select(_OF_REGISTER).take(places)
    return rows.append_column("tokens", tokens).append_column("jsd", scored["jsd"])


def _places(trained: pa.Array, table: pa.Table, path: Path) -> pa.Array:
    """Where the model's rows stand in a table of its entry."""
    import pyarrow.compute as pc

    places = pc.index_in(trained, value_set=table["row_id"].combine_chunks())
    if places.null_count:
        row_id = trained[pc.index(places.is_null(), True).as_py()].as_py()
        raise PaserError(
            f"row {row_id} of the model's {PROVENANCE} is not in {path}",
            remedy="`paser audit verify` says what was altered",
        )
    return places


def _selected(entry: Entry, role: str, rows: pa.Table) -> list[Row]:
    """The rows themselves, with what was decided on them and how their instruction begins."""
    import pyarrow.compute as pc

    decisions = entry.table("decisions", "row_id", "ies", "rank")
    # Few rows are looked for, as a rule, among very many.
    decisions = decisions.filter(pc.is_in(decisions["row_id"], value_set=rows["row_id"].combine_chunks()))
    decided = decisions.take(pc.index_in(rows["row_id"], value_set=decisions["row_id"].combine_chunks()))
    texts: list[str | None] = [None] * rows.num_rows
    if role == "recovered":
        texts = [_beginning(row["instruction"]) for row in entry.first_trained(rows.num_rows)]
        if len(texts) < rows.num_rows:
            raise PaserError(
                f"{entry.root}/selected.jsonl holds {len(texts)} rows, the model was trained on more",
                remedy="`paser audit verify` says what was altered",
            )
    found = []
    for row, ies, rank, text in zip(
        rows.to_pylist(), decided["ies"].to_pylist(), decided["rank"].to_pylist(), texts, strict=True
    ):
        reason = row["reason"] if role == "recovered" else "random"
        scores = {"jsd": _finite(row["jsd"]), "ies": _finite(ies), "rank": rank}
        found.append({**{key: row[key] for key in _SHOWN}, "reason": reason, **scores, "instruction": text})
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _beginning(text: str) -> str:
    line = " ".join(text[: 4 * INSTRUCTION_LENGTH].split())
    return line if len(line) <= INSTRUCTION_LENGTH else f"{line[: INSTRUCTION_LENGTH - 1].rstrip()}…"


def render(found: Trace, console: Console | None = None, *, all_rows: bool = False) -> None:
    """Prints a trace as tables, the rows last: the first 10 of them, or all."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    head = Table.grid(padding=(0, 2))
    head.add_column(no_wrap=True)
    head.add_column(overflow="fold")
    for name, value in (
        ("model", f"{found.model} ({found.role})"),
        ("Merkle root", found.merkle_root),
        ("trained on", f"{found.rows:,} rows, {found.tokens:,} tokens"),
        ("benchmark items", ", ".join(found.benchmarks) or "none"),
        ("seed", str(found.seed)),
        ("audit entry", found.entry),
    ):
        head.add_row(f"[bold]{name}[/]", _plain(value))
    console.print(head)
    for title, group in (
        ("source", found.by_source),
        ("licence", found.by_license),
        ("label", found.by_label),
    ):
        table = Table(title=f"Rows by {title}", title_justify="left")
        table.add_column(title, overflow="fold")
        table.add_column("rows", justify="right")
        table.add_column("tokens", justify="right")
        for row in group:
            table.add_row(_plain(row["name"]), f"{row['rows']:,}", f"{row['tokens']:,}")
        console.print(table)
    table = Table(
        title="Rows by cluster, and the divergence (JSD) they were scored with", title_justify="left"
    )
    table.add_column("cluster", overflow="fold")
    for name in ("rows", "tokens", "mean JSD", "lowest", "highest"):
        table.add_column(name, justify="right")
    for row in found.by_cluster:
        numbers = (row["jsd_mean"], row["jsd_min"], row["jsd_max"])
        shown = ("-" if number is None else f"{number:.4f}" for number in numbers)
        name = _plain(f"{row['cluster']} {row['name']}")
        table.add_row(name, f"{row['rows']:,}", f"{row['tokens']:,}", *shown)
    console.print(table)
    table = Table(title="Settings that decided each stage", title_justify="left")
    table.add_column("stage")
    table.add_column("settings", overflow="fold")
    for stage, params in found.settings.items():
        table.add_row(stage, _plain(", ".join(f"{k}={v}" for k, v in flat(params).items())) or "-")
    console.print(table)
    table = Table(title="Chain: what each stage read and wrote", title_justify="left")
    for name in ("stage", "", "path", "SHA-256"):
        table.add_column(name, overflow="fold")
    for link in found.chain:
        stage = link["stage"]
        for side, verb in (("inputs", "read"), ("outputs", "wrote")):
            for path, digest in link[side].items():
                table.add_row(stage, verb, _plain(path), f"{digest[:16]}…")
                stage = ""
        table.add_section()
    console.print(table)
    _render_rows(found, console, len(found.selected) if all_rows else SHOWN_ROWS)


def _render_rows(found: Trace, console: Console, most: int) -> None:
    from rich import box
    from rich.table import Table

    shown = found.selected[:most]
    title = "Rows, in training order"
    if len(shown) < found.rows:
        title += f": the first {len(shown)} of {found.rows:,}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", justify="right")
    table.add_column("row, where it comes from, how it begins", overflow="fold", ratio=1)
    for name in ("licence", "label"):
        table.add_column(name, overflow="fold")
    for name in ("cluster", "tokens", "JSD", found.ranked_by, "rank"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for number, row in enumerate(shown, 1):
        origin = f"{_plain(row['source'])} {_plain(row['source_row'])}"
        origin = f"[bold]{_plain(row['row_id'][:ID_LENGTH])}[/] {origin}"
        table.add_row(
            str(number),
            origin if row["instruction"] is None else f"{origin}\n[dim]{_plain(row['instruction'])}[/]",
            _plain(row["license"]),
            _plain(row["label"] or "-"),
            "-" if row["cluster"] is None else str(row["cluster"]),
            f"{row['tokens']:,}",
            *("-" if row[key] is None else f"{row[key]:.4f}" for key in ("jsd", "ies")),
            "-" if row["rank"] is None else f"{row['rank']:,}",
            _plain(row["reason"] or "-"),
        )
    console.print(table)
    if len(shown) < found.rows:
        console.print("--rows shows all rows, --json gives their whole row ids", highlight=False)


def _plain(text: str) -> str:
    """Text of the data made safe for a terminal: no markup of rich, no control sequences."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
