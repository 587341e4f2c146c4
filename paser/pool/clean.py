"""Rows that cannot be used, each with its reason: withdrawn, empty, too long."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from paser.errors import SourceError
from paser.pool.policy import Policy
from paser.records import ROW_ID_VERSION, Sample, normalise

COLUMNS = ["kind", "value", "reason", "date"]
NO_POLICY = Policy()
KINDS = ("row", "source", "license", "text")
# What the digits of a row id, the id, and the place of a row look like; hexadecimal digits in any case.
_DIGITS = "[0-9a-fA-F]{64}"
ROW_ID = re.compile(f"(?i:{ROW_ID_VERSION})-{_DIGITS}")
_PLACE = re.compile(f"(?!{ROW_ID.pattern})[^:]+:.+")


@dataclass(frozen=True)
class Quarantined:
    """A row that was left out. `duplicate_of` is the id of the row that stands for it, if one does.

    `original_id` is the id of the row whose text was redacted here.
    """

    sample: Sample
    reason: str
    detail: str = ""
    duplicate_of: str | None = None
    original_id: str | None = None

    @property
    def row_id(self) -> str:
        return self.original_id or self.sample.row_id


@dataclass(frozen=True)
class Kept:
    """A usable row and its length in tokens, prompt with template and response."""

    sample: Sample
    tokens: int


@dataclass(frozen=True)
class Withdrawals:
    """What must not be used, by kind; each value has the reason that was given for it.

    `row`: a row id, or `SOURCE:PLACE` as in the columns `source` and `source_row`. `text`: a row id or
    its 64 digits, wherever the text is found. `source` and `license`: every row under that name.
    """

    reasons: dict[tuple[str, str], str]

    def reason(self, sample: Sample) -> str | None:
        """Why a row is withdrawn, or None. The sample must be normalised."""
        keys = withdrawn_by(sample.row_id, sample.source, sample.source_row, sample.license)
        found = next((key for key in keys if key in self.reasons), None)
        return f"{found[0]} {found[1]}: {self.reasons[found]}" if found else None

    def unmet(self, quarantine: Iterable[Quarantined]) -> list[str]:
        """What names none of the rows that were withdrawn, as kind and value, in the order of the file."""
        withdrawn = [row for row in quarantine if row.reason == "withdrawn"]
        met = {
            key
            for row in withdrawn
            for key in withdrawn_by(row.row_id, row.sample.source, row.sample.source_row, row.sample.license)
        }
        return [f"{kind} {value}" for kind, value in self.reasons if (kind, value) not in met]


def withdrawn_by(row_id: str, source: str, place: str, license: str) -> tuple[tuple[str, str], ...]:
    """The kinds and values of withdrawals that mean a row which was read at this place."""
    return (
        ("row", row_id),
        ("row", f"{source}:{place}"),
        ("text", row_id),
        ("source", source),
        ("license", license),
    )


def read_withdrawals(path: Path) -> Withdrawals:
    """Reads `withdrawn.csv` (kind, value, reason, date), checking every line; ids get lower case."""
    reasons: dict[tuple[str, str], str] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8", remedy="save it as UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, None)
    if header != COLUMNS:
        raise SourceError(
            f"{path}, line 1: the header is {header}", remedy=f"write `{','.join(COLUMNS)}` there"
        )
    end = reader.line_num
    for line in reader:
        where, end = f"{path}, line {end + 1}", reader.line_num
        if not line:
            continue
        if len(line) != len(COLUMNS):
            raise SourceError(f"{where}: {len(line)} fields: {line}", remedy=f"write {', '.join(COLUMNS)}")
        kind, value, reason, date = (part.strip() for part in line)
        if kind not in KINDS:
            raise SourceError(f"{where}: unknown kind {kind!r}", remedy=f"one of {', '.join(KINDS)}")
        if not value or not reason:
            raise SourceError(f"{where}: value or reason is empty", remedy="say what is withdrawn and why")
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", date):
            raise SourceError(f"{where}: date {date!r}", remedy="write it as YYYY-MM-DD")
        reasons[kind, checked(kind, value, where)] = reason
    return Withdrawals(reasons)


def checked(kind: str, value: str, where: str) -> str:
    """The value of a withdrawal in the form in which rows have it: ids whole and in lower case.

    Raises `SourceError` that begins with `where` for what no row or text can have.
    """
    if kind in ("row", "text") and ROW_ID.fullmatch(value):
        return value.lower()
    if kind == "text" and re.fullmatch(_DIGITS, value):
        return f"{ROW_ID_VERSION}-{value.lower()}"
    if kind == "row" and not _PLACE.fullmatch(value):
        raise SourceError(
            f"{where}: row {value!r} is neither a row id nor SOURCE:PLACE",
            remedy=f"write the whole id, {ROW_ID_VERSION}- and 64 hexadecimal digits, or the columns source "
            "and source_row with a colon between",
        )
    if kind == "text":
        raise SourceError(
            f"{where}: text {value!r} is no row id",
            remedy=f"write the whole id, {ROW_ID_VERSION}- and 64 hexadecimal digits, or these digits alone",
        )
    return value


def normalised(sample: Sample) -> Sample:
    """The sample with the text its row id is made from."""
    return replace(
        sample,
        instruction=normalise(sample.instruction),
        input=normalise(sample.input),
        output=normalise(sample.output),
    )


def check(
    sample: Sample,
    withdrawals: Withdrawals,
    count: Callable[[Sample], int],
    max_tokens: int,
    policy: Policy = NO_POLICY,
) -> Kept | Quarantined:
    """The row with its length, or the first reason against it. The sample must be normalised."""
    identity = sample.row_id
    for reason, detail in (
        ("withdrawn", withdrawals.reason(sample)),
        ("license", policy.against_license(sample.license)),
        ("pattern", policy.against_text(sample)),
    ):
        if detail:
            return Quarantined(policy.redacted(sample), reason, detail, original_id=identity)
    if not sample.prompt:
        return Quarantined(sample, "empty_prompt")
    if not sample.output:
        return Quarantined(sample, "empty_response")
    tokens = count(sample)
    if tokens > max_tokens:
        return Quarantined(sample, "too_long", f"{tokens} tokens")
    return Kept(sample, tokens)
