"""Samples, their identity, and the column schema of every table that leaves a stage.

A row is identified by its text alone, so that the same sample has the same id on every machine, in
every pool and in every proof.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paser.errors import PaserError

if TYPE_CHECKING:
    import pyarrow as pa

ROW_ID_VERSION = "r1"
_SEPARATOR = "\x1f"


@dataclass(frozen=True)
class Occurrence:
    """One place where a text was found: source name, position in it, licence there."""

    source: str
    source_row: str
    license: str


@dataclass(frozen=True)
class Sample:
    """One instruction sample.

    `instruction` and `input` are the prompt, `output` the response. `label` is the capability its
    source declares, for checking and reporting; nothing selects by it.
    """

    source: str
    source_row: str
    license: str
    instruction: str
    input: str
    output: str
    label: str | None = None
    benchmark: str | None = None
    occurrences: tuple[Occurrence, ...] = field(default=())

    @property
    def row_id(self) -> str:
        return row_id(self.instruction, self.input, self.output)

    @property
    def prompt(self) -> str:
        """Instruction, a blank line and the input (when there is one)."""
        return prompt_text(self.instruction, self.input)


def prompt_text(instruction: str, input: str | None) -> str:
    """Instruction, a blank line and the input (when there is one)."""
    return f"{instruction}\n\n{input}" if input else instruction


def normalise(text: str) -> str:
    """NFC, Unix line ends, no field separators, no surrounding white space."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    return text.replace(_SEPARATOR, "").strip()


def row_id(instruction: str, input: str, output: str) -> str:
    """Versioned SHA-256 of the normalised text: `r1-` and 64 hexadecimal digits."""
    text = _SEPARATOR.join(normalise(part) for part in (instruction, input, output))
    return f"{ROW_ID_VERSION}-{hashlib.sha256(text.encode('utf-8')).hexdigest()}"


def draw_key(purpose: str, seed: int, row_id: str) -> str:
    """Sorting key of a row in a random draw: the same on every machine and in every pool.

    `purpose` keeps draws of one seed independent: rows held out must not be the first to be drawn again
    for the control, or the control would miss what the held-out set took.
    """
    return hashlib.sha256(f"{purpose}:{seed}:{row_id}".encode()).hexdigest()


def _occurrences() -> pa.DataType:
    import pyarrow as pa

    return pa.list_(
        pa.struct([("source", pa.string()), ("source_row", pa.string()), ("license", pa.string())])
    )


def schema(table: str) -> pa.Schema:
    """The column schema of one of the product's tables.

    Tables: `pool` (also holdout and calibration), `quarantine`, `clusters`, `scores`, `decisions`,
    `evaluation`, `tasks` (values of task items), `rows` (the audit's register of every row and its role),
    `texts` (digests and sketches of their texts, by which they are found again).
    """
    import pyarrow as pa

    text, number, count = pa.string(), pa.float64(), pa.int64()
    origin = [("row_id", text), ("source", text), ("source_row", text), ("license", text)]
    body = [("instruction", text), ("input", text), ("output", text), ("label", text)]
    pool = [*origin, *body, ("benchmark", text), ("tokens", count), ("occurrences", _occurrences())]
    columns: dict[str, list[tuple[str, pa.DataType]]] = {
        "pool": pool,
        "quarantine": [
            *origin, *body, ("benchmark", text),
            ("reason", text), ("detail", text), ("duplicate_of", text),
        ],
        "clusters": [("row_id", text), ("split", text), ("cluster", count)],
        "scores": [
            ("row_id", text), ("jsd", number), ("kl", number), ("reverse_kl", number),
            ("loss_original", number), ("loss_pruned", number), ("recoverability", number),
            ("prompt_tokens", count), ("response_tokens", count), ("status", text),
        ],
        "decisions": [
            ("row_id", text), ("cluster", count), ("jsd", number), ("ies", number),
            ("rank", count), ("decision", text), ("reason", text), ("detail", text),
        ],
        "evaluation": [
            ("row_id", text), ("split", text), ("capability", text), ("cluster", count),
            ("model", text), ("loss", number), ("jsd", number),
            ("response_tokens", count), ("status", text),
        ],
        "tasks": [
            ("task", text), ("metric", text), ("model", text), ("item", text), ("value", number),
        ],
        "rows": [
            *origin, ("label", text), ("benchmark", text), ("role", text), ("cluster", count),
            ("reason", text), ("detail", text), ("duplicate_of", text), ("occurrences", _occurrences()),
        ],
        "texts": [
            ("row_id", text), ("prompt", pa.binary(16)), ("response", pa.binary(16)),
            ("prompt_sketch", pa.binary(32)), ("response_sketch", pa.binary(32)),
        ],
    }  # fmt: skip
    if table not in columns:
        raise PaserError(f"unknown table {table!r}", remedy=f"one of {', '.join(columns)}")
    return pa.schema(columns[table])


def sample_to_row(sample: Sample, **extra: Any) -> dict[str, Any]:
    """A sample as a row of the `pool` or `quarantine` table; `extra` adds that table's columns."""
    return {
        "row_id": sample.row_id,
        "source": sample.source,
        "source_row": sample.source_row,
        "license": sample.license,
        "instruction": sample.instruction,
        "input": sample.input,
        "output": sample.output,
        "label": sample.label,
        "benchmark": sample.benchmark,
        "occurrences": [
            {"source": o.source, "source_row": o.source_row, "license": o.license} for o in sample.occurrences
        ],
        **extra,
    }


def row_to_sample(row: dict[str, Any]) -> Sample:
    """The inverse of `sample_to_row`."""
    return Sample(
        source=row["source"],
        source_row=row["source_row"],
        license=row["license"],
        instruction=row["instruction"],
        input=row["input"] or "",
        output=row["output"],
        label=row.get("label"),
        benchmark=row.get("benchmark"),
        occurrences=tuple(Occurrence(**o) for o in row.get("occurrences") or ()),
    )
