"""The audit entry: one folder that says everything about one recovered model, without the data itself.

It holds the records of all stages, the decisions, the selected rows, and `entry.json`, which follows
from the other files: whoever holds the entry can derive it again and compare.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paser.artifacts import (
    file_digests,
    json_text,
    read_json,
    read_jsonl,
    read_rows,
    sha256_path,
    write_json,
    write_table,
)
from paser.errors import PaserError, StageError
from paser.lineage.chain import Record, artefacts, chain_order, digest_of
from paser.lineage.provenance import PROVENANCE, STAGE_OF_ROLE, load_provenance

ENTRY_VERSION = 1
ENTRY = "entry.json"
RECORDS = "records"
ROWS = "rows.parquet"
MODEL = "data/models/recovered"
# Name inside the entry -> path in the project.
COPIES: dict[str, str] = {
    "decisions.parquet": "data/decisions.parquet",
    "scores.parquet": "data/scores.parquet",
    "selected.jsonl": "data/selected.jsonl",
    "budget.json": "data/budget.json",
    "clusters.json": "data/clusters.json",
    "metrics.json": "data/metrics.json",
}
# Tables that go into the register of rows, or name its clusters.
POOL, HOLDOUT, CALIBRATION = "data/pool.parquet", "data/holdout.parquet", "data/calibration.parquet"
QUARANTINE, CLUSTERS = "data/quarantine.parquet", "data/clusters.parquet"
TABLES = (POOL, HOLDOUT, CALIBRATION, QUARANTINE, CLUSTERS)
ROLES = ("trained", "rejected", "held_out", "calibrated", "quarantined")

Row = dict[str, Any]


def register(
    *,
    pool: list[Row],
    holdout: list[Row],
    calibration: list[Row],
    quarantine: list[Row],
    decisions: list[Row],
    clusters: list[Row],
) -> list[Row]:
    """Table `rows`: every row that was read, with its role, cluster, reason and occurrences; no texts.

    The order is that of the tables: pool, holdout, calibration, quarantine.
    """
    decided = {row["row_id"]: row for row in decisions}
    cluster_of = {(row["split"], row["row_id"]): row["cluster"] for row in clusters}
    rows = []
    for row in pool:
        decision = decided.get(row["row_id"])
        if decision is None:
            raise PaserError(
                f"data/decisions.parquet: row {row['row_id']} of the pool has no decision",
                remedy="`dvc repro select` decides every row",
            )
        role = "trained" if decision["decision"] == "accepted" else "rejected"
        rows.append(_registered(row, role, decision["cluster"], decision["reason"]))
    for row in holdout:
        rows.append(_registered(row, "held_out", cluster_of.get(("holdout", row["row_id"])), None))
    for row in calibration:
        rows.append(_registered(row, "calibrated", None, None))
    for row in quarantine:
        rows.append(_registered(row, "quarantined", None, row["reason"]))
    return rows


def _registered(row: Row, role: str, cluster: int | None, reason: str | None) -> Row:
    origin = {key: row[key] for key in ("source", "source_row", "license")}
    return {
        "row_id": row["row_id"],
        **origin,
        "label": row["label"],
        "benchmark": row["benchmark"],
        "role": role,
        "cluster": cluster,
        "reason": reason,
        "occurrences": row.get("occurrences") or [origin],
    }


def shares(rows: Iterable[Row], key: Callable[[Row], Any]) -> list[Row]:
    """Rows and tokens by `key(row)`, most tokens first: `[{name, rows, tokens}]`."""
    counts: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for row in rows:
        name = key(row)
        name = "(none)" if name is None else str(name)
        counts[name] += 1
        tokens[name] += int(row["tokens"])
    return [
        {"name": name, "rows": counts[name], "tokens": tokens[name]}
        for name in sorted(counts, key=lambda n: (-tokens[n], n))
    ]


def cluster_shares(rows: Iterable[Row], scores: Iterable[Row], clusters: Mapping[str, Any]) -> list[Row]:
    """By cluster: rows, tokens and the divergence (JSD in nats, 0 to ln 2) through which they came.

    `rows` need `row_id`, `cluster` and `tokens`; non-finite scores are left out of the range.
    """
    names = {item["cluster"]: item["name"] for item in clusters["clusters"]}
    jsd = {row["row_id"]: row["jsd"] for row in scores}
    grouped: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["cluster"]].append(row)
    result = []
    for cluster in sorted(grouped):
        values = [jsd.get(row["row_id"]) for row in grouped[cluster]]
        finite = sorted(value for value in values if value is not None and math.isfinite(value))
        result.append(
            {
                "cluster": cluster,
                "name": names.get(cluster, str(cluster)),
                "rows": len(grouped[cluster]),
                "tokens": sum(int(row["tokens"]) for row in grouped[cluster]),
                "jsd_mean": math.fsum(finite) / len(finite) if finite else None,
                "jsd_min": finite[0] if finite else None,
                "jsd_max": finite[-1] if finite else None,
            }
        )
    return result


def chain_summary(records: Mapping[str, Record]) -> list[Row]:
    """Stage by stage: digests of what it read and wrote, of its code, and its seed and versions."""
    return [
        {
            "stage": stage,
            "inputs": {a.path: a.sha256 for a in artefacts(records[stage], "inputs")},
            "outputs": {a.path: a.sha256 for a in artefacts(records[stage], "outputs")},
            "code": records[stage]["code"],
            "seed": records[stage]["seed"],
            "versions": records[stage]["versions"],
        }
        for stage in chain_order(records)
    ]


def settings_of(records: Mapping[str, Record]) -> dict[str, Any]:
    """The settings that decided each stage's output, by stage."""
    return {stage: records[stage]["params"] for stage in chain_order(records)}


def pool_sources(records: Mapping[str, Record]) -> list[str]:
    """Names of the sources of the pool: the folders that stage `pool` read below `data/sources/pool`."""
    files = next(
        (a.files for a in artefacts(records["pool"], "inputs") if a.path == "data/sources/pool"), None
    )
    return sorted({name.split("/")[0] for name in files or {} if "/" in name})


def not_drawn(records: Mapping[str, Record]) -> dict[str, int]:
    """Usable rows that `max_rows` or `pool.share` left out, by source of the pool or of calibration."""
    counts: dict[str, int] = records["pool"]["facts"].get("not_drawn_by_source", {})
    return dict(sorted(counts.items()))


def _benchmarks(rows: list[Row]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {role: set() for role in ROLES}
    for row in rows:
        if row["benchmark"]:
            found[row["role"]].add(row["benchmark"])
    return {role: sorted(names) for role, names in found.items()}


def compose(
    *,
    records: Mapping[str, Record],
    provenance: Mapping[str, Any],
    selected: list[Row],
    rows: list[Row],
    scores: list[Row],
    clusters: Mapping[str, Any],
    files: Mapping[str, str],
) -> dict[str, Any]:
    """The content of `entry.json`, from the content of the other files of the entry."""
    roles = Counter(row["role"] for row in rows)
    return {
        "version": ENTRY_VERSION,
        "model": {"path": MODEL, "sha256": digest_of(records, MODEL)},
        "merkle_root": provenance["merkle_root"],
        "summary": {
            "rows": len(selected),
            "tokens": sum(int(row["tokens"]) for row in selected),
            "roles": {role: roles[role] for role in ROLES},
            "by_source": shares(selected, lambda row: row["source"]),
            "by_license": shares(selected, lambda row: row["license"]),
            "by_label": shares(selected, lambda row: row["label"]),
            "by_cluster": cluster_shares(selected, scores, clusters),
            "benchmarks": _benchmarks(rows),
            "pool_sources": pool_sources(records),
            "not_drawn": not_drawn(records),
            "settings": settings_of(records),
            "chain": chain_summary(records),
        },
        "files": dict(files),
    }


@dataclass(frozen=True)
class Entry:
    """An audit entry on disk; each part is read when it is asked for."""

    root: Path

    def content(self) -> dict[str, Any]:
        """`entry.json`; an entry of another version or shape is an error."""
        path = self.root / ENTRY
        if not path.exists():
            raise PaserError(
                f"{self.root} is not an audit entry: it has no {ENTRY}",
                remedy="`dvc repro audit` writes data/audit; `dvc checkout` restores it",
            )
        content = read_json(path)
        if not isinstance(content, dict) or content.get("version") != ENTRY_VERSION:
            raise PaserError(
                f"{path} is not an audit entry of version {ENTRY_VERSION}",
                remedy="it was altered, or another version of PASER wrote it",
            )
        entry: dict[str, Any] = content
        return entry

    def records(self) -> dict[str, Record]:
        found = sorted((self.root / RECORDS).glob("*.json"))
        return {path.stem: read_json(path) for path in found}

    def provenance(self) -> dict[str, Any]:
        return load_provenance(self.root)

    def selected(self) -> list[Row]:
        path = self.root / "selected.jsonl"
        try:
            return read_jsonl(path)
        except (ValueError, OSError) as error:
            raise PaserError(f"{path} cannot be read: {error}", remedy="restore it") from error

    def rows(self) -> list[Row]:
        return read_rows(self.root / ROWS, "rows")

    def decisions(self) -> list[Row]:
        return read_rows(self.root / "decisions.parquet", "decisions")

    def scores(self) -> list[Row]:
        return read_rows(self.root / "scores.parquet", "scores")

    def clusters(self) -> dict[str, Any]:
        clusters: dict[str, Any] = read_json(self.root / "clusters.json")
        return clusters

    def files(self) -> dict[str, str]:
        """Digests of every file of the entry but `entry.json`, from their bytes."""
        digests = file_digests(self.root)
        digests.pop(ENTRY, None)
        return digests

    def derived_text(self, files: Mapping[str, str]) -> str:
        """What `entry.json` must say, given the digests of the files beside it."""
        return json_text(
            compose(
                records=self.records(),
                provenance=self.provenance(),
                selected=self.selected(),
                rows=self.rows(),
                scores=self.scores(),
                clusters=self.clusters(),
                files=files,
            )
        )


def find_entry(model: Path) -> Path | None:
    """The audit entry of the project in which a model lies: `data/audit` of the nearest folder above."""
    for parent in model.resolve().parents:
        candidate = parent / "data" / "audit"
        if (candidate / ENTRY).exists():
            return candidate
    return None


def describes(records: Mapping[str, Record], provenance_sha256: str, role: str) -> bool:
    """Whether the records tell of the model with this `provenance.json`."""
    record = records.get(STAGE_OF_ROLE[role])
    return record is not None and any(
        (output.files or {}).get(PROVENANCE) == provenance_sha256 for output in artefacts(record, "outputs")
    )


def write_entry(target: Path, project: Path, records: Mapping[str, Path]) -> dict[str, Any]:
    """Builds the entry of `data/models/recovered` in the new folder `target`; returns `entry.json`.

    `records` maps stage names to their record files. Refuses to describe a model, or data, that is not
    what the stages recorded.
    """
    entry = Entry(target)
    (target / RECORDS).mkdir(parents=True)
    for stage in sorted(records):
        shutil.copyfile(records[stage], target / RECORDS / f"{stage}.json")
    for name, path in COPIES.items():
        shutil.copyfile(project / path, target / name)
    shutil.copyfile(project / MODEL / PROVENANCE, target / PROVENANCE)
    content = entry.records()
    _refuse_foreign(project, content)
    rows = register(
        pool=read_rows(project / POOL, "pool"),
        holdout=read_rows(project / HOLDOUT, "pool"),
        calibration=read_rows(project / CALIBRATION, "pool"),
        quarantine=read_rows(project / QUARANTINE, "quarantine"),
        decisions=entry.decisions(),
        clusters=read_rows(project / CLUSTERS, "clusters"),
    )
    write_table(target / ROWS, "rows", rows)
    composed = compose(
        records=content,
        provenance=entry.provenance(),
        selected=entry.selected(),
        rows=rows,
        scores=entry.scores(),
        clusters=entry.clusters(),
        files=entry.files(),
    )
    write_json(target / ENTRY, composed)
    return composed


def _refuse_foreign(project: Path, records: Mapping[str, Record]) -> None:
    for path in (MODEL, *COPIES.values(), *TABLES):
        recorded = digest_of(records, path)
        found = sha256_path(project / path)
        if recorded != found:
            raise StageError(
                f"{path} is not what its stage wrote: recorded {recorded}, found {found}",
                remedy="`dvc checkout` restores it, or `dvc repro --force` on the stage that writes it",
            )
