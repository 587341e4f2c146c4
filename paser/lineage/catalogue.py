"""The catalogue: every model that was ever audited, so that one question can be asked of all of them.

An SQLite index (no texts) beside the entries themselves, outside `data/`, because `data/audit` is only
the entry of the last model. Append-only and safe under several writers (docs/decisions/0013-catalogue.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import disk_errors, files_below, read_json, sha256_file
from paser.errors import PaserError
from paser.lineage.entry import CARD, ENTRY, ROLES, Entry
from paser.lineage.provenance import PROVENANCE
from paser.pool.licences import strictest
from paser.progress import warn
from paser.records import ROW_ID_VERSION

if TYPE_CHECKING:
    import pyarrow as pa

VARIABLE = "PASER_CATALOGUE_DIR"
SCHEMA_VERSION = 1
BUSY_SECONDS = 60.0
LEAST_OF_ID = 6  # digits of a model's id or digest that are worth looking for
_SCHEMA = """
CREATE TABLE model (
    id INTEGER PRIMARY KEY, entry TEXT NOT NULL UNIQUE, merkle_root TEXT NOT NULL, model TEXT NOT NULL,
    provenance TEXT NOT NULL, control TEXT, rows INTEGER NOT NULL, tokens INTEGER NOT NULL,
    roles TEXT NOT NULL, commit_id TEXT, added TEXT NOT NULL);
CREATE TABLE reason (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE text (id INTEGER PRIMARY KEY, row BLOB NOT NULL UNIQUE, prompt BLOB, response BLOB);
CREATE INDEX text_prompt ON text (prompt);
CREATE INDEX text_response ON text (response);
CREATE TABLE sample (
    id INTEGER PRIMARY KEY, text INTEGER NOT NULL REFERENCES text, places TEXT NOT NULL,
    UNIQUE (text, places));
CREATE TABLE member (
    model INTEGER NOT NULL REFERENCES model, sample INTEGER NOT NULL REFERENCES sample, role INTEGER NOT NULL,
    cluster INTEGER, reason INTEGER REFERENCES reason, twin INTEGER REFERENCES text,
    PRIMARY KEY (model, sample, role)) WITHOUT ROWID;
CREATE TABLE share (
    model INTEGER NOT NULL REFERENCES model, kind TEXT NOT NULL, name TEXT NOT NULL, role INTEGER NOT NULL,
    rows INTEGER NOT NULL, PRIMARY KEY (kind, name, model, role)) WITHOUT ROWID;
CREATE TABLE sketch (
    id INTEGER PRIMARY KEY, texts BLOB NOT NULL, prompts BLOB NOT NULL, responses BLOB NOT NULL);
CREATE TABLE origin (digest TEXT PRIMARY KEY, model INTEGER NOT NULL REFERENCES model) WITHOUT ROWID;
"""
_TABLES = ("model", "reason", "text", "sample", "member", "share", "sketch", "origin")


@dataclass(frozen=True)
class Model:
    """One model of the catalogue.

    `id`: SHA-256 of its `entry.json`. `model`: digest of its folder. `provenance`, `control`: SHA-256 of the
    `provenance.json` of the recovered model and of its control. `roles`: rows by role. `commit`: of the run
    that wrote the entry, where known. `added`: when it came into this catalogue, UTC.
    """

    number: int
    id: str
    merkle_root: str
    model: str
    provenance: str
    control: str | None
    rows: int
    tokens: int
    roles: dict[str, int]
    commit: str | None
    added: str

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "number"}


def row_key(row_id: str) -> bytes:
    """The 32 bytes of a row id, as the index keeps them."""
    version, _, digits = row_id.partition("-")
    try:
        key = bytes.fromhex(digits)
    except ValueError:
        key = b""
    if version != ROW_ID_VERSION or len(key) != 32:
        raise PaserError(
            f"{row_id!r} is not a row id", remedy=f"a row id is {ROW_ID_VERSION}- and 64 hexadecimal digits"
        )
    return key


@dataclass(frozen=True)
class Catalogue:
    """A catalogue folder; it is created by the first entry that is taken in."""

    root: Path

    @classmethod
    def of(cls, project: Path, override: Path | None = None) -> Catalogue:
        """`override`, or the folder named by `PASER_CATALOGUE_DIR`, or the project's `.paser/catalogue`."""
        named = os.environ.get(VARIABLE)
        return cls(override or (Path(named) if named else project / ".paser" / "catalogue"))

    @property
    def index(self) -> Path:
        return self.root / "catalogue.sqlite"

    def entry(self, model: Model) -> Path | None:
        """The entry's folder; None where somebody deleted it."""
        path = self._entry_path(model.id)
        return path if (path / ENTRY).exists() else None

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for questions; an empty catalogue answers them with nothing."""
        if self.index.exists():
            connection = _connect(self.index)
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:  # another process is just creating it
                _create(connection)
            elif version != SCHEMA_VERSION:
                connection.close()
                raise PaserError(
                    f"{self.index} has schema {version}, this PASER knows {SCHEMA_VERSION}",
                    remedy="use the version of PASER that wrote it, or move it away and run "
                    "`paser catalogue rebuild`",
                )
        else:
            connection = sqlite3.connect(":memory:", isolation_level=None)
            _create(connection)
        try:
            yield connection
        except sqlite3.DatabaseError as error:
            raise PaserError(
                f"{self.index} cannot be read: {error}",
                remedy="move it away and run `paser catalogue rebuild`",
            ) from error
        finally:
            connection.close()

    def models(self) -> list[Model]:
        """All models, in the order in which they came."""
        with self.reading() as connection:
            return models(connection)

    def find(self, name: str) -> list[Model]:
        """Models whose id, Merkle root or model digest begins with `name` (6 digits or more)."""
        if len(name) < LEAST_OF_ID:
            return []
        return [m for m in self.models() if any(d.startswith(name) for d in (m.id, m.merkle_root, m.model))]

    def with_provenance(self, sha256: str) -> Model | None:
        """The model, or the model of the control, with this `provenance.json`."""
        return next((m for m in self.models() if sha256 in (m.provenance, m.control)), None)

    def add(self, audit: Path, commit: str | None = None, origin: str | None = None) -> tuple[str, bool]:
        """Takes in the entry in folder `audit`; returns its id, and whether it was new.

        Every file is hashed against `entry.json` first, and `entry.json` must be what follows from the
        others. `origin` is DVC's digest of the folder, by which `rebuild` knows it again. Safe beside other
        processes that do the same. Raises `PaserError` for an entry that was altered or has lost its shape.
        """
        Entry(audit).content()
        identity = sha256_file(audit / ENTRY)
        stored = self._entry_path(identity)
        if self._known(identity, origin) and (stored / ENTRY).exists():
            return identity, False
        with _foreign(audit, self.index):
            self._store(audit, stored)
            self.root.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(_connect(self.index)) as connection:
                _create(connection)
                return identity, _insert(connection, Entry(stored), identity, commit, origin)

    def knows_origin(self, digest: str) -> bool:
        """Whether a folder with this DVC digest was taken in and its entry is still there."""
        with self.reading() as connection:
            found = connection.execute(
                "SELECT m.entry FROM origin o JOIN model m ON m.id = o.model WHERE o.digest = ?", (digest,)
            ).fetchone()
        return found is not None and (self._entry_path(found[0]) / ENTRY).exists()

    def _known(self, identity: str, origin: str | None) -> bool:
        if origin is not None and not self.knows_origin(origin):
            return False
        with self.reading() as connection:
            return (
                connection.execute("SELECT 1 FROM model WHERE entry = ?", (identity,)).fetchone() is not None
            )

    def _entry_path(self, identity: str) -> Path:
        return self.root / "entries" / identity

    def _store(self, audit: Path, target: Path) -> None:
        """Copies an entry; equal files of all entries are one file with several names.

        The model card stays behind, because it follows from the rest. What is written goes through a folder
        of its own, so that a second process can do the same at once.
        """
        files = {**Entry(audit).content()["files"], ENTRY: target.name}
        found = {path.relative_to(audit).as_posix() for path in files_below(audit)}
        if differing := sorted((found - {CARD}) ^ files.keys()):
            raise _altered(audit / differing[0])
        if (target / ENTRY).exists():
            return
        incoming = self.root / "incoming"
        with disk_errors(target):
            for folder in (incoming, target.parent):
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=incoming) as name:
                partial = Path(name) / "entry"
                for relative, digest in files.items():
                    kept = self._kept(audit / relative, digest, Path(name))
                    (partial / relative).parent.mkdir(parents=True, exist_ok=True)
                    try:
                        os.link(kept, partial / relative)
                    except OSError:
                        shutil.copyfile(kept, partial / relative)
                _refuse_underived(Entry(audit))
                try:
                    partial.rename(target)
                except OSError:
                    if not (target / ENTRY).exists():
                        raise

    def _kept(self, file: Path, digest: str, scratch: Path) -> Path:
        kept = self.root / "files" / digest[:2] / digest
        if not kept.exists():
            copy = scratch / digest
            shutil.copyfile(file, copy)
            if sha256_file(copy) != digest:
                raise _altered(file)
            copy.chmod(0o444)
            kept.parent.mkdir(parents=True, exist_ok=True)
            copy.replace(kept)
        elif sha256_file(file) != digest:
            raise _altered(file)
        return kept


_RESTORE = "`paser audit verify` says what was altered; `dvc checkout` restores data/audit"


def _altered(file: Path) -> PaserError:
    return PaserError(f"{file} is not what {ENTRY} says, so the entry is not taken in", remedy=_RESTORE)


def _refuse_underived(entry: Entry) -> None:
    """The digests of `entry.json` say nothing of its own words; those must follow from the other files."""
    path = entry.root / ENTRY
    if path.read_text(encoding="utf-8") != entry.derived_text(entry.content()["files"], entry.selected()):
        raise PaserError(
            f"{path} does not follow from the files beside it, so the entry is not taken in", remedy=_RESTORE
        )


@contextlib.contextmanager
def _foreign(audit: Path, index: Path) -> Iterator[None]:
    """Turns whatever an entry of another shape may lead to into an error that names it."""
    import pyarrow as pa

    try:
        yield
    except sqlite3.Error as error:
        raise PaserError(
            f"{audit} cannot be written to {index}: {error}",
            remedy="is the folder writable, and whole? `paser catalogue rebuild` fills a new one",
        ) from error
    except (LookupError, TypeError, AttributeError, ValueError, pa.ArrowException) as error:
        raise PaserError(
            f"{audit} has lost the shape of an audit entry: {type(error).__name__}: {error}", remedy=_RESTORE
        ) from error


def sync(project: Path, catalogue: Catalogue) -> tuple[str, bool] | None:
    """Takes in the project's `data/audit`: its id and whether it was new; None where there is none."""
    audit = project / "data" / "audit"
    if not (audit / ENTRY).exists():
        return None
    return catalogue.add(audit, _commit(project / "data" / "records" / "audit.run.json"))


def _commit(run: Path) -> str | None:
    """The commit of a run, where its record says one; it is a help, so a record that cannot be read is only
    warned of."""
    if not run.exists():
        return None
    try:
        content = read_json(run)
    except PaserError as error:
        warn(f"{error.problem}; the catalogue notes no commit")
        return None
    commit = content.get("commit") if isinstance(content, dict) else content
    if isinstance(content, dict) and isinstance(commit, str | None):
        return commit
    warn(f"{run}: the commit is {commit!r}, not a text; the catalogue notes no commit")
    return None


def models(connection: sqlite3.Connection) -> list[Model]:
    found = connection.execute(
        "SELECT id AS number, entry AS id, merkle_root, model, provenance, control, rows, tokens, roles, "
        'commit_id AS "commit", added FROM model ORDER BY model.id'
    )
    names = [name for name, *_ in found.description]
    lines = (dict(zip(names, line, strict=True)) for line in found)
    return [Model(**{**line, "roles": json.loads(line["roles"])}) for line in lines]


def _connect(path: Path) -> sqlite3.Connection:
    """A connection in WAL mode. Two processes that create the file at once wait for each other."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = NORMAL")
            return connection
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                connection.close()
                raise PaserError(
                    f"{path} cannot be opened: {error}", remedy="is another process stuck in it?"
                ) from error
            time.sleep(0.05)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise PaserError(
                f"{path} is not a catalogue: {error}",
                remedy="move it away and run `paser catalogue rebuild`",
            ) from error


def _create(connection: sqlite3.Connection) -> None:
    """The schema, where it is not there yet; nothing is ever changed or removed."""
    with _writing(connection):
        if connection.execute("PRAGMA user_version").fetchone()[0]:
            return
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        for table in _TABLES:
            for action in ("UPDATE", "DELETE"):
                connection.execute(
                    f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, 'the catalogue is append-only'); END"
                )
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


@contextlib.contextmanager
def _writing(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _insert(
    connection: sqlite3.Connection, entry: Entry, identity: str, commit: str | None, origin: str | None
) -> bool:
    """One model with all its rows, in one transaction; False where it was there."""
    content = entry.content()
    rows = entry.register(
        "row_id", "source", "license", "role", "cluster", "reason", "duplicate_of", "occurrences"
    )
    lines = [_line(row) for row in rows.to_pylist()]
    texts = entry.table("texts")
    connection.execute(
        "CREATE TEMP TABLE incoming (row BLOB, places TEXT, role INTEGER, cluster INTEGER, reason TEXT, "
        "twin BLOB)"
    )
    connection.executemany("INSERT INTO incoming VALUES (?, ?, ?, ?, ?, ?)", lines)
    with _writing(connection):
        there = connection.execute("SELECT id FROM model WHERE entry = ?", (identity,)).fetchone()
        number = there[0] if there else _insert_model(connection, entry, content, identity, commit)
        if origin is not None:
            connection.execute("INSERT OR IGNORE INTO origin VALUES (?, ?)", (origin, number))
        if there:
            return False
        _insert_texts(connection, texts)
        connection.execute(
            "INSERT OR IGNORE INTO reason (name) SELECT DISTINCT reason FROM incoming "
            "WHERE reason IS NOT NULL ORDER BY 1"
        )
        connection.execute(
            "INSERT OR IGNORE INTO sample (text, places) SELECT t.id, i.places FROM incoming i "
            "JOIN text t ON t.row = i.row ORDER BY i.rowid"
        )
        connection.execute(
            "INSERT OR IGNORE INTO member SELECT ?, s.id, i.role, i.cluster, r.id, w.id FROM incoming i "
            "JOIN text t ON t.row = i.row JOIN sample s ON s.text = t.id AND s.places = i.places "
            "LEFT JOIN reason r ON r.name = i.reason LEFT JOIN text w ON w.row = i.twin "
            "ORDER BY s.id, i.role",
            (number,),
        )
        connection.executemany(
            "INSERT INTO share VALUES (?, ?, ?, ?, ?)",
            [(number, kind, name, role, count) for (kind, name, role), count in _shares(lines).items()],
        )
    return True


def _insert_model(
    connection: sqlite3.Connection, entry: Entry, content: dict[str, Any], identity: str, commit: str | None
) -> int:
    outputs = [output for record in entry.records().values() for output in record["outputs"]]
    proofs = {output["path"]: (output.get("files") or {}).get(PROVENANCE) for output in outputs}
    done = connection.execute(
        "INSERT INTO model (entry, merkle_root, model, provenance, control, rows, tokens, roles, commit_id, "
        "added) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            identity,
            content["merkle_root"],
            content["model"]["sha256"],
            sha256_file(entry.root / PROVENANCE),
            proofs.get("data/models/control"),
            content["summary"]["rows"],
            content["summary"]["tokens"],
            json.dumps(content["summary"]["roles"]),
            commit,
            datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )
    return int(done.lastrowid or 0)


def _line(row: dict[str, Any]) -> tuple[Any, ...]:
    places = [[o["source"], o["source_row"], o["license"]] for o in row["occurrences"]]
    twin = row["duplicate_of"]
    return (
        row_key(row["row_id"]),
        json.dumps(places, ensure_ascii=False, separators=(",", ":")),
        ROLES.index(row["role"]),
        row["cluster"],
        row["reason"],
        None if twin is None else row_key(twin),
    )


def _shares(lines: list[tuple[Any, ...]]) -> Counter[tuple[str, str, int]]:
    """Rows by role under each source, licence and strictest licence (`source`, `license`, `counts_as`)."""
    counts: Counter[tuple[str, str, int]] = Counter()
    decided: dict[str, list[tuple[str, str]]] = {}
    for _, places, role, *_ in lines:
        for kind, name in _names(places, decided):
            counts[kind, name, role] += 1
    return counts


def _names(places: str, decided: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    found = json.loads(places)
    licenses = [license for _, _, license in found]
    key = "\0".join([f"{source}\1{license}" for source, _, license in found])
    if key not in decided:
        decided[key] = [
            *(("source", name) for name in {source for source, _, _ in found}),
            *(("license", name) for name in {*licenses}),
            ("counts_as", strictest(licenses)),
        ]
    return decided[key]


def _insert_texts(connection: sqlite3.Connection, texts: pa.Table) -> None:
    """New texts, and one packed array of their sketches for all of them."""
    import numpy as np

    keys = [row_key(row_id) for row_id in texts["row_id"].to_pylist()]
    before = connection.execute("SELECT coalesce(max(id), 0) FROM text").fetchone()[0]
    connection.executemany(
        "INSERT OR IGNORE INTO text (row, prompt, response) VALUES (?, ?, ?)",
        zip(keys, texts["prompt"].to_pylist(), texts["response"].to_pylist(), strict=True),
    )
    new = connection.execute("SELECT id, row FROM text WHERE id > ? ORDER BY id", (before,)).fetchall()
    if not new:
        return
    place = {key: number for number, key in enumerate(keys)}
    order = [place[row] for _, row in new]
    packed = []
    for column in ("prompt_sketch", "response_sketch"):
        values = texts[column].to_pylist()
        packed.append(b"".join([values[i] for i in order]))
    connection.execute(
        "INSERT INTO sketch (texts, prompts, responses) VALUES (?, ?, ?)",
        (np.array([number for number, _ in new], np.int64).tobytes(), *packed),
    )
