"""Files that are either complete or absent, and their digests.

Everything is written beside its target and renamed at the end; nothing half-written is ever left
under its final name. Names beside a target say which process of which host they belong to, so that
runs at the same time leave each other's alone.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.errors import PaserError, StageError
from paser.records import schema

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_CHUNK = 1 << 20
# Kinds of names beside a target, all of which git and DVC ignore: what is to replace it, and what stood in
# its place until then.
_PARTIAL, _EARLIER = "partial", "partial-earlier"
# Files that run code of their author when they are loaded.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
NOT_READ = "pickles beside the weights are not read"


def mask_pickle(names: Iterable[str]) -> str | None:
    """The first name that says the file has masks: without it, the weights would pass as the pruned ones."""
    return next((name for name in names if "mask" in name.lower()), None)


def masks_are_pickled(file: str, command: str) -> tuple[str, str]:
    """Problem and remedy for masks in a pickle beside the weights; `command` converts them."""
    return (
        f"{file} is a pickle of masks; it is not read, and the weights beside it would pass as pruned",
        f"`{command}` applies them without running anything in it; if they are no pruning masks, take "
        "the file out of the folder",
    )


def sha256_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def files_below(path: Path) -> list[Path]:
    """All files of a directory in a fixed order (or the file itself); of a Python package, those outside
    `__pycache__`, which Python writes when it likes.

    Raises `PaserError` for a link to a folder: nothing would notice a change behind it.
    """
    if path.is_file():
        return [path]
    package = (path / "__init__.py").is_file()
    found = []
    for inside in path.rglob("*"):
        if package and "__pycache__" in inside.relative_to(path).parts:
            continue
        if inside.is_file():
            found.append(inside)
        elif inside.is_symlink() and inside.is_dir():
            raise PaserError(
                f"{inside} is a link to a folder, and a change behind it would not be noticed",
                remedy="put the folder itself there",
            )
    return sorted(found, key=lambda p: p.relative_to(path).as_posix())


def file_digests(path: Path) -> dict[str, str]:
    """SHA-256 of each file of a directory, by its POSIX path inside."""
    return {p.relative_to(path).as_posix(): sha256_file(p) for p in files_below(path)}


def tree_digest(digests: dict[str, str]) -> str:
    """One digest for a directory: SHA-256 over its sorted `digest  path` lines.

    Raises `PaserError` for a path with a line break, which could pass for two files.
    """
    if broken := sorted(name for name in digests if "\n" in name):
        raise PaserError(
            f"the file name {broken[0]!r} has a line break, so two lists of files could have one digest",
            remedy="rename the file",
        )
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return sha256_bytes(lines.encode("utf-8"))


def sha256_path(path: Path) -> str:
    """Digest of a file's bytes, or of a directory's names and bytes."""
    if not path.exists():
        raise PaserError(f"{path} does not exist", remedy="run the stage that writes it")
    return sha256_file(path) if path.is_file() else tree_digest(file_digests(path))


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON-able value; raises on anything that has no stable form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256_bytes(text.encode("utf-8"))


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk into an error that names the file and the remedy.

    safetensors and torch raise errors of their own kind when a write fails; those count when they say
    so, or when next to nothing is free.
    """
    try:
        yield
    except PaserError:
        raise
    except Exception as error:
        if not _disk_is_full(error, path):
            raise
        raise PaserError(
            f"no space left on the disk while writing {path}",
            remedy="free some space (`paser cache prune` empties PASER's own cache) and run "
            "the same command again; finished shards are kept",
        ) from error


def _disk_is_full(error: Exception, path: Path) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    text = str(error)
    if "No space left on device" in text or "os error 28" in text:
        return True
    if "PytorchStreamWriter" not in text and "inline_container" not in text:
        return False
    folder = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(folder).free < _CHUNK


def beside(target: Path, kind: str = _PARTIAL) -> Path:
    """Where this process keeps what is to be `target`; each process of each host has a name of its own."""
    return target.with_name(f"{target.name}.{kind}-{socket.gethostname()}-{os.getpid()}")


def abandoned(target: Path, kind: str = _PARTIAL) -> list[Path]:
    """What is left `beside` a target by a process that is gone, or by this one earlier.

    Whether a process of another host still runs cannot be told here, so what belongs to one is no leftover.
    """
    import psutil

    prefix = f"{target.name}.{kind}-"
    found = []
    for path in sorted(target.parent.glob(f"{glob.escape(prefix)}*")):
        host, _, process = path.name.removeprefix(prefix).rpartition("-")
        if not process.isdecimal() or host not in ("", socket.gethostname()):
            continue
        if int(process) == os.getpid() or not psutil.pid_exists(int(process)):
            found.append(path)
    return found


def tidy(target: Path) -> None:
    """Removes what dead processes left beside a target; one that died while it replaced the target had put
    the earlier content aside, which comes back."""
    for path in [*abandoned(target, _EARLIER), *abandoned(target)]:
        with contextlib.suppress(FileNotFoundError):  # another run tidies as well
            if path.name.startswith(f"{target.name}.{_EARLIER}-") and not os.path.lexists(target):
                os.rename(path, target)
            else:
                remove(path)


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yields a path beside `target`; renamed to `target` on success, removed on any error before that."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        tidy(target)
        partial = beside(target)
        try:
            yield partial
        except BaseException:
            remove(partial)
            raise
        replace(partial, target)


def replace(partial: Path, target: Path) -> None:
    """Puts `partial` in the place of `target`, whatever stood there.

    What stood there is removed last. Until then, interrupted at any point, old and new are both on disk,
    and `tidy` brings the old back where `target` is missing.
    """
    earlier = beside(target, _EARLIER)
    if target.is_dir() or partial.is_dir():
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, earlier)
    try:
        os.replace(partial, target)
    except BaseException:
        if os.path.lexists(earlier) and not os.path.lexists(target):
            os.rename(earlier, target)
        raise
    remove(earlier)


def json_text(value: Any) -> str:
    """The one way JSON files are written: sorted keys, two-space indent, no NaN, a final newline."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes `json_text(value)`."""
    with staged(path) as partial:
        partial.write_text(json_text(value), encoding="utf-8")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PaserError(f"{path} does not exist", remedy="run the stage that writes it") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PaserError(f"{path} is not JSON: {error}", remedy="restore or rebuild it") from error


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with staged(path) as partial, partial.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, sort_keys=True, allow_nan=False))
            stream.write("\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream if line.strip()]


def write_table(path: Path, table: str, rows: list[dict[str, Any]]) -> None:
    """A parquet file with exactly the columns of `records.schema(table)`; same rows, same bytes."""
    import pyarrow.parquet as pq

    columns = columns_of(table, rows)
    with staged(path) as partial:
        pq.write_table(columns, partial, compression="zstd")


def columns_of(table: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as columns, exactly those of `records.schema(table)`."""
    import pyarrow as pa

    columns = schema(table)
    unknown = {key for row in rows for key in row} - set(columns.names)
    if unknown:
        raise PaserError(f"columns {sorted(unknown)} are not in table {table!r}")
    return pa.Table.from_pylist(rows, schema=columns)


def write_batches(path: Path, table: str, batches: Iterable[dict[str, Any]]) -> None:
    """Like `write_table`, from columns (arrays or lists by name) that come in batches, for tables larger
    than memory; same batches, same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = schema(table)
    with staged(path) as partial, pq.ParquetWriter(partial, columns, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(pa.RecordBatch.from_pydict(batch, schema=columns))


def read_rows(path: Path, table: str) -> list[dict[str, Any]]:
    """The rows of a parquet file, with its columns checked against `records.schema(table)`."""
    rows: list[dict[str, Any]] = read_columns(path, schema(table).names).to_pylist()
    return rows


def read_columns(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    """These columns of a parquet file, without the others; an `optional` one may be missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        raise PaserError(f"{path} does not exist", remedy="run the stage that writes it")
    try:
        # Not `read_table`, which imports pyarrow's datasets and with them pandas: half a second.
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            missing = [name for name in required if name not in there]
            if missing:
                raise PaserError(f"{path} has no column {missing[0]!r}", remedy="rebuild it with `dvc repro`")
            return file.read(columns=[*required, *(name for name in optional if name in there)])
    except pa.ArrowInvalid as error:
        raise PaserError(f"{path} is not a parquet file: {error}", remedy="rebuild it") from error


def write_array(path: Path, array: np.ndarray) -> None:
    """A `.npy` file without pickled objects."""
    import numpy as np

    with staged(path) as partial, partial.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def read_array(path: Path) -> np.ndarray:
    """A `.npy` file, memory-mapped and read-only; never unpickles."""
    import numpy as np

    if not path.exists():
        raise PaserError(f"{path} does not exist", remedy="run the stage that writes it")
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise PaserError(f"{path} is not a plain array: {error}", remedy="rebuild it") from error
    return array


def read_embeddings(path: Path, rows: int) -> np.ndarray:
    """The embeddings of a pool of so many rows, shape (rows, e), as `read_array` reads them."""
    embeddings = read_array(path)
    if len(embeddings) != rows:
        raise StageError(
            f"{path} has {len(embeddings)} rows, the pool {rows}",
            remedy="`dvc repro` makes them from the same pool",
        )
    return embeddings
