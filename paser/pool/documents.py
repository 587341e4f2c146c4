"""JSON, JSON Lines, Parquet and YAML files as documents with their place in the file.

Everything malformed is a `SourceError` that names file, line and value.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paser.errors import SourceError

RECORD_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
_SHOWN = 80


@dataclass(frozen=True)
class Document:
    """A value and where it stood: `place` is a line number, or an index in brackets."""

    value: Any
    file: str
    place: str

    @property
    def where(self) -> str:
        return f"{self.file}, {'row' if self.place.startswith('[') else 'line'} {self.place}"

    @property
    def row(self) -> str:
        return f"{self.file}:{self.place}"


def shown(value: Any) -> str:
    """A value as it appears in an error: one line, cut."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        text = "a deeply nested value"
    text = " ".join(text.split())
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def require_characters(text: str, key: str, where: str) -> None:
    """Raises if a text holds half of a surrogate pair (JSON `"\\ud83d"`): it has no bytes, so no row id."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        around = text[max(error.start - 20, 0) : error.end + 20]
        raise SourceError(
            f"{where}: {key!r} holds {text[error.start]!a}, half of a surrogate pair: {shown(around)}",
            remedy="write the whole pair (an emoji was cut in two), or take it out of the row",
        ) from error


def is_records(path: Path) -> bool:
    return path.name.lower().endswith(RECORD_SUFFIXES)


def read_text(path: Path, name: str) -> str:
    """A file as UTF-8 text, unpacked if its name ends in `.gz`."""
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceError(
            f"{name} is not a whole gzip file: {error}", remedy="fetch or pack it again"
        ) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{name}, line {line}: byte {content[error.start]:#04x} is not UTF-8", remedy="save it as UTF-8"
        ) from error


def read_records(path: Path, name: str) -> Iterator[Document]:
    """The objects of a JSON list, JSON Lines or Parquet file, one by one."""
    if path.name.lower().endswith(".parquet"):
        yield from _parquet(path, name)
        return
    text = read_text(path, name)
    if not text.strip():
        raise SourceError(f"{name} is empty", remedy="remove the source, or name another file")
    if text.lstrip()[0] == "[":
        for index, value in enumerate(read_json_text(text, name)):
            yield Document(value, name, f"[{index}]")
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield Document(json.loads(line), name, str(number))
            except (ValueError, RecursionError) as error:
                raise SourceError(
                    f"{name}, line {number}: not JSON ({getattr(error, 'msg', error)}): {shown(line)}",
                    remedy="write one object per line, or one list of objects",
                ) from error


def read_json_text(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SourceError(
            f"{name}, line {error.lineno}: not JSON ({error.msg}): "
            f"{shown(text[max(error.pos - 20, 0) : error.pos + 20])}",
            remedy="correct the file at that line",
        ) from error
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{name} cannot be read as JSON: {error}", remedy="take such a value out of the file"
        ) from error


def read_yaml(path: Path, name: str) -> Any:
    """A YAML file in which every scalar stays the text it is written as (`1963`, `Yes`)."""
    try:
        return yaml.load(read_text(path, name), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise SourceError(
            f"{name}{line}: not YAML: {error}", remedy="correct the file at that line"
        ) from error
    except RecursionError as error:
        raise SourceError(
            f"{name} cannot be read as YAML: {error}", remedy="take such a value out of the file"
        ) from error


def _parquet(path: Path, name: str) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    broken = (pa.ArrowException, OSError, ValueError, ArithmeticError)
    try:
        table = pq.ParquetFile(path)
    except broken as error:
        raise SourceError(f"{name} is not a Parquet file: {error}", remedy="fetch it again") from error
    index = 0
    batches = table.iter_batches()
    while True:
        try:
            rows = next(batches).to_pylist()
        except StopIteration:
            return
        except broken as error:
            raise SourceError(
                f"{name}, row [{index}] or one after it: not to be read: {error}",
                remedy="fetch it again, or write it anew",
            ) from error
        for value in rows:
            yield Document(value, name, f"[{index}]")
            index += 1
