"""What an auditor holds in hand: a row id or its beginning, a text, a whole row; and the model he means."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from paser.artifacts import sha256_file
from paser.errors import PaserError
from paser.lineage.catalogue import Catalogue
from paser.lineage.entry import ENTRY, Entry, describes, find_entry
from paser.lineage.provenance import PROVENANCE, STAGE_OF_ROLE
from paser.lineage.sketch import text_digest
from paser.records import ROW_ID_VERSION, normalise, prompt_text, row_id

LEAST_OF_ROW = len(ROW_ID_VERSION) + 5  # the version, a hyphen and four digits
_DIGITS = 64
_PROMPT, _RESPONSE = ("instruction", "prompt"), ("output", "response", "completion")


@dataclass(frozen=True)
class Text:
    """A text to look for: a whole row when it is one, else what stands alone as prompt or response.

    `row_id` is that of a whole row; `digest` that of a text that is none.
    """

    prompt: str | None
    response: str | None
    row_id: str | None
    digest: bytes | None


def read_text(given: str) -> Text:
    """`given`, or the content of a file where it is `@PATH`.

    A JSON object with `instruction` or `prompt`, perhaps `input`, and `output`, `response` or `completion` is
    a whole row (a line of an Alpaca file, or of `selected.jsonl`). Anything else is one text.
    """
    given = plain(given)
    row = _row(given)
    if row is not None:
        instruction, more, output = row
        identity = row_id(instruction, more, output)
        return Text(prompt_text(normalise(instruction), normalise(more)), normalise(output), identity, None)
    if not normalise(given):
        raise PaserError("the text is empty", remedy="give a text, or @PATH of a file with one")
    return Text(None, None, None, text_digest(given))


def plain(given: str) -> str:
    """`given`, or the content of the file where it is `@PATH`."""
    if not given.startswith("@"):
        return given
    path = Path(given[1:])
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PaserError(f"{path} cannot be read: {error}", remedy="give a UTF-8 text file") from error


def _row(text: str) -> tuple[str, str, str] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        content = json.loads(text)
    except ValueError:
        return None
    prompt = next((content[key] for key in _PROMPT if key in content), None)
    response = next((content[key] for key in _RESPONSE if key in content), None)
    more = content.get("input") or ""
    if not (isinstance(prompt, str) and isinstance(response, str) and isinstance(more, str)):
        return None
    return prompt, more, response


def row_beginning(row: str) -> str:
    """`row`, a row id or its beginning, as ids are written: in lower case."""
    row_range(row)
    return row.lower()


def row_range(row: str) -> tuple[bytes, bytes]:
    """The first and the last row key that begins like `row`, a row id or its beginning, in either case."""
    version, _, digits = row.lower().partition("-")
    try:
        first, last = (bytes.fromhex(digits.ljust(_DIGITS, fill)) for fill in "0f")
    except ValueError:
        first = b""
    if version != ROW_ID_VERSION or len(row) < LEAST_OF_ROW or len(first) != _DIGITS // 2:
        raise PaserError(
            f"{row!r} is not a row id or the beginning of one",
            remedy=f"a row id is {ROW_ID_VERSION}- and 64 hexadecimal digits; give at least 4 of them",
        )
    return first, last


def locate(model: str, entry: Path | None, catalogue: Catalogue) -> tuple[Path, Path | None]:
    """A model's folder and its audit entry.

    `model` is a folder of a model, an audit entry, or the beginning of a model's id, Merkle root or digest in
    the catalogue; then its entry, which holds a copy of `provenance.json`, stands for the model. The entry of
    a model that was copied away is taken from the catalogue where its project has another one. None where no
    entry is known.
    """
    folder = Path(model)
    if folder.is_dir():
        if (folder / ENTRY).exists():
            return folder, folder
        return folder, entry or _entry_of(folder, catalogue)
    found = catalogue.find(model)
    if len(found) > 1:
        raise PaserError(
            f"{len(found)} models of {catalogue.root} begin with {model!r}", remedy="give more of the id"
        )
    if not found:
        raise PaserError(
            f"{model} is neither a folder nor a model of {catalogue.root}",
            remedy="give a model's folder, or an id that `paser catalogue list` shows",
        )
    kept = catalogue.entry(found[0])
    if kept is None:
        raise PaserError(
            f"the entry of model {found[0].id} is no longer in {catalogue.root}",
            remedy="`paser catalogue rebuild` fetches it again",
        )
    return kept, kept


def _entry_of(folder: Path, catalogue: Catalogue) -> Path | None:
    near = find_entry(folder)
    if not (folder / PROVENANCE).exists():
        return near
    digest = sha256_file(folder / PROVENANCE)
    if near is not None:
        records = Entry(near).records()
        if any(describes(records, digest, role) for role in STAGE_OF_ROLE):
            return near
    known = catalogue.with_provenance(digest)
    return (catalogue.entry(known) if known else None) or near
