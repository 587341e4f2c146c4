"""An auditor's questions, asked as commands, of a model with 100,000 trained rows among 1,000 such models.

The rows are real texts joined by halves (`benchmarks.selection`), the weights random bytes, decisions and
scores drawn. The other models of the catalogue have the first one's rows in other roles and are written into
its index in one transaction; one of them is also taken in by `sync`, which must write the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.data import ROOT
from benchmarks.measure import measured
from benchmarks.selection import write_project as write_scored
from paser.artifacts import (
    files_below,
    read_columns,
    read_json,
    sha256_file,
    staged,
    write_batches,
    write_json,
    write_jsonl,
)
from paser.cache import Cache
from paser.errors import PaserError
from paser.lineage.entry import ROLES, Entry
from paser.progress import progress, say
from paser.records import schema

TRAINED, POOL, HELD, CALIBRATED = 100_000, 125_000, 2_000, 64
MODELS = 1_000
SHARDS, SHARD_BYTES = 4, 1 << 30
PIECE = 4 << 20
RUNS = 5
TARGET_SECONDS = 1.0
VERSION = 3
TEXT = ("instruction", "input", "output")
REASONS = ("selected", "conflict")
_ROLE = "(sample * 7 + ?1) / 3 % 2"


def run(pool: int = POOL, trained: int = TRAINED, count: int = MODELS) -> dict[str, Any]:
    project = Cache.of(ROOT).entry("bench", f"audit-{VERSION}-{pool}-{trained}")
    if not project.exists():
        say(f"writing a model with {trained:,} trained rows")
        measured("benchmarks.audit:write", folder=str(project), pool=pool, trained=trained)
    stage = measured("benchmarks.audit:stage", folder=str(project))
    shutil.rmtree(project / ".paser", ignore_errors=True)
    first = measured("benchmarks.audit:take_in", folder=str(project))
    say(f"writing a catalogue of {count:,} models")
    built = measured("benchmarks.audit:multiply", folder=str(project), count=count)
    measured("benchmarks.audit:as_sync_writes", folder=str(project))
    found = {
        "rows": {"pool": pool, "trained": trained},
        "models": count,
        "stage_seconds": stage["seconds"],
        "stage_gb": stage["peak_gb"],
        "sync_seconds": first["seconds"],
        "entry_bytes": {p.name: p.stat().st_size for p in files_below(project / "data/audit")},
        "build_seconds": built["seconds"],
        "index_gb": (project / ".paser/catalogue/catalogue.sqlite").stat().st_size / 1e9,
        "commands": [asked(name, words, project) for name, words in questions(project).items()],
        "verify": measured("benchmarks.audit:verified", folder=str(project))["result"],
    }
    shutil.rmtree(project / ".paser")
    return found


def questions(project: Path) -> dict[str, list[str]]:
    """The commands, by what they are called in the table."""
    decisions = read_columns(project / "data/decisions.parquet", ("row_id", "decision")).to_pydict()
    kinds: dict[str, str] = {}
    for row_id, decision in zip(decisions["row_id"], decisions["decision"], strict=True):
        kinds.setdefault(decision, row_id)
    # A long text: short ones are near so many of these joined rows that printing them is what takes time.
    rows = read_columns(project / "data/pool.parquet", TEXT).slice(0, 1_000).to_pylist()
    row = max(rows, key=lambda found: len(found["output"]))
    model = "data/models/recovered"
    return {
        "process alone (`paser version`)": ["version"],
        "`audit trace MODEL`": ["audit", "trace", model],
        "`audit trace MODEL --json` (every row)": ["audit", "trace", model, "--json"],
        "`audit why MODEL ROW`, trained": ["audit", "why", model, kinds["accepted"]],
        "`audit why MODEL ROW`, rejected": ["audit", "why", model, kinds["rejected"][:15]],
        "`audit why MODEL TEXT --text`": ["audit", "why", model, row["output"], "--text"],
        "`audit find ROW --row`": ["audit", "find", kinds["accepted"], "--row"],
        "`audit find TEXT --text`": ["audit", "find", row["output"], "--text"],
        "`audit find TEXT --near`": ["audit", "find", row["output"], "--near"],
        "`audit find SOURCE --source`": ["audit", "find", "joined", "--source"],
        "`audit impact --row ROW`": ["audit", "impact", "--row", kinds["accepted"]],
        "`catalogue list`": ["catalogue", "list"],
    }


def asked(name: str, words: list[str], project: Path) -> dict[str, Any]:
    """Seconds of some runs of one command, each a process of its own: by the clock, and of processor time."""
    seconds, processor = [], []
    for _ in range(RUNS):
        before, start = _processor_seconds(), time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "paser", *words], cwd=project, stdout=subprocess.DEVNULL, check=True
        )
        seconds.append(time.perf_counter() - start)
        processor.append(_processor_seconds() - before)
    return {
        "name": name,
        "median": statistics.median(seconds),
        "slowest": max(seconds),
        "processor": statistics.median(processor),
    }


def _processor_seconds() -> float:
    """User and system time of all processes that this one started and that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def stage(folder: str) -> dict[str, Any]:
    """Stage `audit`, as DVC runs it: hashing inputs before and after included."""
    from paser.stages.run import run_stage

    start = time.perf_counter()
    run_stage("audit", Path(folder))
    return {"seconds": time.perf_counter() - start}


def take_in(folder: str) -> dict[str, Any]:
    from paser.lineage.catalogue import Catalogue, sync

    project = Path(folder)
    start = time.perf_counter()
    sync(project, Catalogue.of(project))
    return {"seconds": time.perf_counter() - start}


def verified(folder: str) -> dict[str, Any]:
    """`verify` from the disk, against reading the same files and doing nothing with them; by turns, the
    fastest of three each. `both`: SHA-256 and MD5 of them, which a project with a `dvc.lock` needs."""
    from paser.lineage.hashing import Hasher
    from paser.lineage.verify import passed, verify

    data = Path(folder) / "data"
    files = [path for path in files_below(data) if not path.is_symlink()]
    seconds: dict[str, list[float]] = {"read": [], "verify": [], "both": [], "in_memory": []}
    ways = {
        "read": lambda: [read_whole(path) for path in files],
        "both": lambda: Hasher(md5=True).warm(files),
        "verify": lambda: verify(data / "models/recovered"),
        "in_memory": lambda: verify(data / "models/recovered"),
    }
    for _ in range(3):
        for name, way in ways.items():
            if name != "in_memory":
                forget(files)
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    checks = verify(data / "models/recovered")
    return {
        "bytes": sum(path.stat().st_size for path in files),
        **{name: min(each) for name, each in seconds.items()},
        "checks": len(checks),
        "failed": [check.name for check in checks if not check.ok],
        "passed": passed(checks),
    }


def read_whole(path: Path) -> None:
    """Reads a file past the system's cache where the file system can do that (O_DIRECT)."""
    buffer = mmap.mmap(-1, PIECE)  # page-aligned, as O_DIRECT wants it
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
    try:
        while os.readv(handle, [buffer]) == PIECE:
            pass
    finally:
        os.close(handle)


def forget(files: list[Path]) -> None:
    """Drops what the system keeps of these files in memory, so that the next reading is from the disk."""
    os.sync()
    for path in files:
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def multiply(folder: str, count: int) -> dict[str, Any]:
    """Models like the first, of which about half of the rows of the pool have the other role."""
    import numpy as np

    start = time.perf_counter()
    index = Path(folder) / ".paser/catalogue/catalogue.sqlite"
    with contextlib.closing(sqlite3.connect(index, isolation_level=None)) as connection:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -500000"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TEMP TABLE first AS SELECT * FROM member WHERE model = 1")
        (roles,) = connection.execute("SELECT roles FROM model WHERE id = 1").fetchone()
        shared = connection.execute("SELECT DISTINCT kind, name FROM share WHERE model = 1").fetchall()
        pooled = np.array(connection.execute("SELECT sample FROM first WHERE role < 2").fetchall())
        reasons = [
            connection.execute("SELECT id FROM reason WHERE name = ?", (name,)).fetchone()[0]
            for name in REASONS
        ]
        with progress("write", count - 1, "models") as advance:
            for number in range(2, count + 1):
                counts = {**json.loads(roles), **_counts(pooled, number)}
                digests = [hashlib.sha256(f"{number} {n}".encode()).hexdigest() for n in range(4)]
                connection.execute(
                    "INSERT INTO model SELECT ?, ?, ?, ?, ?, control, ?, tokens, ?, commit_id, added "
                    "FROM model WHERE id = 1",
                    (number, *digests, counts["trained"], json.dumps(counts)),
                )
                connection.execute(
                    "INSERT INTO member SELECT ?1, sample, "
                    f"CASE WHEN role < 2 THEN {_ROLE} ELSE role END, cluster, "
                    f"CASE WHEN role < 2 THEN CASE {_ROLE} WHEN 0 THEN ?2 ELSE ?3 END ELSE reason END, twin "
                    "FROM first",
                    (number, *reasons),
                )
                connection.executemany(
                    "INSERT INTO share VALUES (?, ?, ?, ?, ?)",
                    [
                        (number, kind, name, place, counts[role])
                        for kind, name in shared
                        for place, role in enumerate(ROLES)
                        if counts.get(role)
                    ],
                )
                advance()
        connection.execute("COMMIT")
    return {"seconds": time.perf_counter() - start}


def _counts(pooled: Any, number: int) -> dict[str, int]:
    rejected = int(((pooled * 7 + number) // 3 % 2).sum())
    return {"trained": len(pooled) - rejected, "rejected": rejected}


def as_sync_writes(folder: str) -> None:
    """Writes an entry with the second model's roles, and compares what stands in the index, row by row.

    The catalogue itself would not take it in: its other files do not say the same.
    """
    from paser.lineage.catalogue import Catalogue, _connect, _insert

    audit = Path(folder) / "data/audit"
    written = Path(folder) / ".paser/catalogue/catalogue.sqlite"
    with tempfile.TemporaryDirectory() as scratch:
        kept = Catalogue(Path(scratch) / "catalogue")
        kept.add(audit)
        altered = Path(shutil.copytree(audit, Path(scratch) / "audit"))
        with kept.reading() as connection:
            samples = dict(
                connection.execute(
                    "SELECT lower(hex(t.row)), s.id FROM sample s JOIN text t ON t.id = s.text"
                )
            )
        _other_roles(altered, samples)
        with contextlib.closing(_connect(kept.index)) as connection:
            _insert(connection, Entry(altered), sha256_file(altered / "entry.json"), None, None)
            connection.execute("ATTACH ? AS written", (str(written),))
            for table, columns in (
                ("member", "sample, role, cluster, reason, twin"),
                ("share", "kind, name, role, rows"),
                ("model", "rows, roles"),
            ):
                key = "id" if table == "model" else "model"
                mine, theirs = (
                    f"SELECT {columns} FROM {place}.{table} WHERE {key} = 2" for place in ("main", "written")
                )
                for one, other in ((mine, theirs), (theirs, mine)):
                    if row := connection.execute(f"{one} EXCEPT {other} LIMIT 1").fetchone():
                        raise PaserError(f"the catalogue is not what sync writes: table {table}, row {row}")


def _other_roles(audit: Path, samples: dict[str, int]) -> None:
    """Gives the rows of an entry the roles that `multiply` gives those of model 2."""
    import numpy as np
    import pyarrow as pa

    path = audit / "rows.parquet"
    rows = read_columns(path, schema("rows").names)
    ids = [row_id.partition("-")[2] for row_id in rows["row_id"].to_pylist()]
    number = np.array([samples[digits] for digits in ids])
    rejected = (number * 7 + 2) // 3 % 2 == 1
    roles, reasons = rows["role"].to_pylist(), rows["reason"].to_pylist()
    for place in np.flatnonzero(np.isin(roles, ROLES[:2])).tolist():
        roles[place], reasons[place] = ROLES[int(rejected[place])], REASONS[int(rejected[place])]
    for name, values in (("role", roles), ("reason", reasons)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, pa.string()))
    write_batches(path, "rows", (dict(zip(rows.column_names, batch.columns, strict=True))
                                 for batch in rows.to_batches()))  # fmt: skip
    content = read_json(audit / "entry.json")
    counts = {role: roles.count(role) for role in content["summary"]["roles"]}
    content["files"]["rows.parquet"] = sha256_file(path)
    content["summary"] |= {"roles": counts, "rows": counts["trained"]}
    write_json(audit / "entry.json", content)


def write(folder: str, pool: int, trained: int) -> None:
    """A project up to the records of `evaluate`."""
    with staged(Path(folder)) as project:
        write_scored(str(project), pool + HELD + CALIBRATED)
        _tables(project / "data", pool, trained)
        _model(project)
        _records(project)


def _tables(data: Path, pool: int, trained: int) -> None:
    """The first rows as the pool, the next as held-out and calibration rows; no row is quarantined."""
    import numpy as np
    import pyarrow.parquet as pq

    draw = np.random.default_rng(17)
    tables = {name: pq.read_table(data / f"{name}.parquet") for name in ("pool", "clusters", "scores")}
    rows = tables["pool"]
    parts = {
        "pool": rows.slice(0, pool),
        "holdout": rows.slice(pool, HELD),
        "calibration": rows.slice(pool + HELD),
        "scores": tables["scores"].slice(0, pool),
    }
    split = ["pool"] * pool + ["holdout"] * HELD
    clusters = tables["clusters"].slice(0, pool + HELD).set_column(1, "split", [split])
    for name, table in {**parts, "clusters": clusters}.items():
        pq.write_table(table, data / f"{name}.parquet", compression="zstd")
    pq.write_table(schema("quarantine").empty_table(), data / "quarantine.parquet")
    accepted = np.zeros(pool, dtype=bool)
    accepted[draw.choice(pool, size=trained, replace=False)] = True
    write_batches(data / "decisions.parquet", "decisions", _decisions(parts, clusters, accepted))
    order = draw.permutation(np.flatnonzero(accepted))
    write_jsonl(data / "selected.jsonl", _selected(parts["pool"], clusters, parts["scores"], order))


def _decisions(parts: dict[str, Any], clusters: Any, accepted: Any) -> Iterator[dict[str, Any]]:
    import numpy as np

    ids, count = parts["pool"]["row_id"].to_pylist(), len(accepted)
    detail = "'{a}' (from {a}) and 'other' (from {b}) are both known but were never together; 2 of 5 known"
    yield {
        "row_id": ids,
        "cluster": clusters["cluster"].slice(0, count).combine_chunks(),
        "jsd": parts["scores"]["jsd"].combine_chunks(),
        "ies": parts["scores"]["jsd"].combine_chunks(),
        "rank": np.arange(1, count + 1),
        "decision": np.where(accepted, "accepted", "rejected").astype(object),
        "reason": np.where(accepted, *REASONS).astype(object),
        "detail": [
            "" if taken else f"{detail.format(a=ids[i - 1], b=ids[i - 2])} pairs are joined"
            for i, taken in enumerate(accepted)
        ],
    }


def _selected(rows: Any, clusters: Any, scores: Any, order: Any) -> Iterator[dict[str, Any]]:
    kept = ("row_id", *TEXT, "source", "source_row", "license", "label")
    columns = {name: rows[name].to_pylist() for name in kept}
    cluster = clusters["cluster"].to_pylist()
    tokens = [a + b for a, b in zip(*(scores[f"{p}_tokens"].to_pylist() for p in ("prompt", "response")),
                                    strict=True)]  # fmt: skip
    for i in order.tolist():
        yield {**{name: columns[name][i] for name in kept}, "cluster": cluster[i], "tokens": tokens[i]}


def _model(project: Path) -> None:
    """Random weights, and the proof beside them."""
    import numpy as np

    from paser.artifacts import read_jsonl
    from paser.lineage.provenance import write_provenance

    folder = project / "data/models/recovered"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(5)
    for number in range(1, SHARDS + 1):
        with (folder / f"model-{number:05}-of-{SHARDS:05}.safetensors").open("wb") as stream:
            for _ in range(SHARD_BYTES // PIECE):
                stream.write(draw.bytes(PIECE))
    for before in ("original", "pruned"):
        write_json(folder.with_name(before) / "config.json", {"name": before})
    selected = read_jsonl(project / "data/selected.jsonl")
    digest = sha256_file(project / "data/selected.jsonl")
    write_provenance(
        folder,
        role="recovered",
        rows=selected,
        settings={},
        inputs={"data/selected.jsonl": digest},
        seed=17,
        facts={},
    )


def _records(project: Path) -> None:
    """The records of the stages before `audit`, of those of their files that exist here."""
    import paser
    from paser.lineage.record import describe
    from paser.settings import load_settings
    from paser.stages.graph import STAGES

    shutil.copyfile(ROOT / "params.yaml", project / "params.yaml")
    settings = load_settings(project / "params.yaml").model_dump(mode="json")
    write_json(project / "data/budget.json", {"clusters": []})
    write_json(project / "data/metrics.json", {"overall": {}, "capabilities": [], "interval": "none"})
    for name, spec in STAGES.items():
        if name in ("audit", "report"):
            continue
        there = {
            side: [describe(project, path).as_json() for path in paths if (project / path).exists()]
            for side, paths in (("inputs", spec.inputs), ("outputs", spec.outputs))
        }
        write_json(
            project / spec.record,
            {
                "version": 1, "stage": name, **there, "code": "0" * 64, "seed": 17, "facts": {},
                "params": {key: _setting(settings, key) for key in spec.params},
                "versions": {"paser": paser.__version__},
            },
        )  # fmt: skip


def _setting(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = settings[part]
    return settings


def render(result: dict[str, Any]) -> str:
    rows, verify = result["rows"], result["verify"]
    lines = [
        f"| {command['name']} | {command['median']:.2f} | {command['slowest']:.2f} "
        f"| {command['processor']:.2f} |"
        for command in result["commands"]
    ]
    asked_for = [c for c in result["commands"] if c["name"].split(",")[0] in _TARGETED]
    met = "met" if all(c["median"] < TARGET_SECONDS for c in asked_for) else "missed"
    sizes = sorted(result["entry_bytes"].items(), key=lambda item: -item[1])
    listed = ", ".join(f"`{name}` {size / 1e6:.1f}" for name, size in sizes if size >= 1e5)
    texts = result["entry_bytes"]["selected.jsonl"]
    rest = (sum(result["entry_bytes"].values()) - texts) / 1e6
    rate = {name: verify["bytes"] / verify[name] / 1e6 for name in ("read", "verify", "both", "in_memory")}
    verdict = "all passed" if verify["passed"] else f"failed: {', '.join(verify['failed'])}"
    return f"""## Audit

A model trained on {rows["trained"]:,} of {rows["pool"]:,} rows of a pool, in a catalogue of {result["models"]:,} models with as
many rows each; every command is a process of its own, run {RUNS} times. Processor time is user and system time
together, and depends less on what else the machine does. Target for `trace`, `why` and `find --row`: under
{TARGET_SECONDS:.0f} s: {met} by the medians.

| command | median s | slowest s | median s of processor time |
|---|--:|--:|--:|
{chr(10).join(lines)}

Stage `audit` takes {result["stage_seconds"]:.1f} s and {result["stage_gb"]:.1f} GB, hashing its inputs twice included; taking the entry into the
catalogue the first time {result["sync_seconds"]:.1f} s. The entry's own tables are {rest:.0f} MB, beside {texts / 1e6:.0f} MB of the texts of
selected rows (MB: {listed}). The index of all models is {result["index_gb"]:.2f} GB; the other {result["models"] - 1:,} models were
written into it in {result["build_seconds"]:.0f} s, and what `sync` writes of one of them is the same.

`verify` makes {verify["checks"]} checks ({verdict}) over {verify["bytes"] / 1e9:.1f} GB, {SHARDS} files of weights among them, in
{verify["verify"]:.1f} s from the disk, **{rate["verify"]:.0f} MB/s**; one process that only reads these files past the system's cache gets {rate["read"]:.0f} MB/s.
From memory `verify` takes {verify["in_memory"]:.1f} s, {rate["in_memory"]:.0f} MB/s. Where there is a `dvc.lock`, MD5 is needed beside SHA-256: both
of all files, from the disk, {rate["both"]:.0f} MB/s.
"""  # noqa: E501


_TARGETED = ("`audit trace MODEL`", "`audit why MODEL ROW`", "`audit find ROW --row`")
