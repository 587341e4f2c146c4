"""The audit entry: one folder that says everything about one recovered model, without the data itself.

It holds the records of all stages, the decisions, the selected rows, and `entry.json`, which follows
from the other files: whoever holds the entry can derive it again and compare.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import (
    file_digests,
    json_text,
    read_columns,
    read_json,
    read_jsonl,
    sha256_path,
    write_batches,
    write_json,
)
from paser.errors import PaserError, StageError
from paser.lineage.chain import Record, artefacts, chain_order, digest_of
from paser.lineage.provenance import PROVENANCE, STAGE_OF_ROLE, held_out, load_provenance
from paser.lineage.sketch import DIGEST_BYTES, SKETCH_BYTES, sketches, text_digest
from paser.records import prompt_text, schema

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

ENTRY_VERSION = 2
ENTRY = "entry.json"
RECORDS = "records"
# Follows from `entry.json`, which therefore does not know it.
CARD = "model-card.md"
# Where `paser export` puts the entry inside a model's folder; README.md is the card there, before the model's
# own README.md.
EXPORTED, README = "audit", "README.md"
OWN_README = "\n## How to load it\n\n"
ROWS = "rows.parquet"
TEXTS = "texts.parquet"
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
REGISTER = {"pool": POOL, "holdout": HOLDOUT, "calibration": CALIBRATION, "quarantine": QUARANTINE}
_READ = ("row_id", "source", "source_row", "license", "label", "benchmark")
_REGISTERED = {
    **dict.fromkeys(REGISTER, (*_READ, "occurrences")),
    "quarantine": (*_READ, "reason", "detail", "duplicate_of"),
}
_BATCH = 1 << 16
_SHAPE = {"files": dict, "merkle_root": str, "model": dict, "summary": dict}
_OF_RECORD = {
    "inputs": list, "outputs": list, "params": dict, "code": str, "versions": dict, "facts": dict,
}  # fmt: skip
# Selected, but held out to stop training by (`recover.early_stopping`): it chose weights and trained none.
STOPPED_BY = "stopped_by"
# The catalogue numbers them, so new ones come last.
ROLES = ("trained", "rejected", "held_out", "calibrated", "quarantined", STOPPED_BY)
# Roles of the rows of the pool.
OF_POOL = ("trained", "rejected", STOPPED_BY)
ORIGIN = ("source", "source_row", "license")

Row = dict[str, Any]


def register(
    *,
    pool: pa.Table,
    holdout: pa.Table,
    calibration: pa.Table,
    quarantine: pa.Table,
    decisions: pa.Table,
    clusters: pa.Table,
    stopped_by: Sequence[str] = (),
) -> pa.Table:
    """Table `rows`: every row that was read, with its role, cluster, reason and occurrences; no texts.

    The order is that of the tables: pool, holdout, calibration, quarantine. `detail` and `duplicate_of` are
    those of quarantined rows; the detail of a decision stands in `decisions`. `stopped_by` are ids of
    accepted rows that nothing was trained on.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    places = pc.index_in(pool["row_id"], value_set=decisions["row_id"].combine_chunks()).combine_chunks()
    if places.null_count:
        row_id = pool["row_id"][pc.index(places.is_null(), True).as_py()].as_py()
        raise PaserError(
            f"data/decisions.parquet: row {row_id} of the pool has no decision",
            remedy="`dvc repro select` decides every row",
        )
    accepted = pc.equal(decisions["decision"].take(places), "accepted")
    accepted_as = pc.if_else(
        pc.is_in(pool["row_id"], value_set=string_array(stopped_by)), STOPPED_BY, "trained"
    )
    held = clusters.filter(pc.equal(clusters["split"], "holdout"))
    held_places = pc.index_in(holdout["row_id"], value_set=held["row_id"].combine_chunks())
    return pa.concat_tables(
        [
            _registered(
                pool,
                pc.if_else(accepted, accepted_as, "rejected"),
                cluster=decisions["cluster"].take(places),
                reason=decisions["reason"].take(places),
            ),
            _registered(holdout, "held_out", cluster=held["cluster"].take(held_places)),
            _registered(calibration, "calibrated"),
            _registered(
                quarantine,
                "quarantined",
                **{name: quarantine[name] for name in ("reason", "detail", "duplicate_of")},
            ),
        ]
    )


def _registered(rows: pa.Table, role: Any, **known: Any) -> pa.Table:
    """Rows of one table as rows of the register; columns that are not `known` are null."""
    import pyarrow as pa

    columns = {name: rows[name] for name in ("row_id", *ORIGIN, "label", "benchmark")}
    columns |= known
    columns["role"] = pa.array([role] * rows.num_rows, pa.string()) if isinstance(role, str) else role
    columns["occurrences"] = _occurrences(rows)
    wanted = schema("rows")
    return pa.table(
        [columns[f.name] if f.name in columns else pa.nulls(rows.num_rows, f.type) for f in wanted],
        names=wanted.names,
    ).cast(wanted)


def _occurrences(rows: pa.Table) -> pa.ChunkedArray:
    """Where each text was found; a row without a list was found where it says itself."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = schema("rows").field("occurrences").type
    parts = [rows[name].combine_chunks().cast(pa.string()) for name in ORIGIN]
    own = pa.ListArray.from_arrays(
        pa.array(np.arange(rows.num_rows + 1, dtype=np.int32)),
        pa.StructArray.from_arrays(parts, fields=list(kind.value_type)),
    )
    if "occurrences" not in rows.column_names:
        return pa.chunked_array([own], kind)
    listed = rows["occurrences"].combine_chunks()
    there = pc.greater(pc.fill_null(pc.list_value_length(listed), 0), 0)
    if pc.all(there).as_py() or not rows.num_rows:
        return pa.chunked_array([listed], kind)
    return pa.chunked_array([pc.if_else(there, listed, own)], kind)


def text_batches(paths: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    """Table `texts` in batches: digest and sketch of prompt and response of each distinct row id, in the
    order of the tables (`{table: path}`)."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    seen: set[str] = set()
    for path in paths.values():
        for batch in pq.ParquetFile(path).iter_batches(columns=["row_id", "instruction", "input", "output"]):
            prompts, responses, row_ids = [], [], []
            for row_id, instruction, more, output in zip(
                *(column.to_pylist() for column in batch.columns), strict=True
            ):
                if row_id not in seen:
                    seen.add(row_id)
                    row_ids.append(row_id)
                    prompts.append(prompt_text(instruction, more))
                    responses.append(output)
            if not row_ids:
                continue
            digests = [b"".join(map(text_digest, texts)) for texts in (prompts, responses)]
            found = [np.ascontiguousarray(sketches(texts)) for texts in (prompts, responses)]

            def fixed(content: Any, size: int, count: int = len(row_ids)) -> pa.Array:
                return pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(size), count, [None, pa.py_buffer(content)]
                )

            yield {
                "row_id": row_ids,
                "prompt": fixed(digests[0], DIGEST_BYTES),
                "response": fixed(digests[1], DIGEST_BYTES),
                "prompt_sketch": fixed(found[0], SKETCH_BYTES),
                "response_sketch": fixed(found[1], SKETCH_BYTES),
            }


def string_array(values: Sequence[str]) -> pa.Array:
    """Strings as a column, made from their bytes.

    Whatever turns a Python value into one of arrow's imports pandas, which takes a third of a second; so the
    questions of the command line take their values this way.
    """
    import numpy as np
    import pyarrow as pa

    encoded = [value.encode("utf-8") for value in values]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int32)
    np.cumsum([len(value) for value in encoded], out=offsets[1:])
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def _numbers(column: pa.Array) -> np.ndarray:
    """Numbers without nulls; `to_numpy` would import pandas too."""
    import numpy as np

    return np.from_dlpack(column)


def shares(rows: pa.Table, key: str) -> list[Row]:
    """Rows and tokens by column `key`, most tokens first: `[{name, rows, tokens}]`."""
    import numpy as np

    names = rows[key].combine_chunks().dictionary_encode(null_encoding="encode")
    known, codes = names.dictionary.to_pylist(), _numbers(names.indices)
    counts = np.bincount(codes, minlength=len(known)).tolist()
    weights = _numbers(rows["tokens"].combine_chunks())
    tokens = np.bincount(codes, weights=weights, minlength=len(known)).tolist()
    found = [
        {"name": "(none)" if name is None else str(name), "rows": count, "tokens": int(total)}
        for name, count, total in zip(known, counts, tokens, strict=True)
    ]
    return sorted(found, key=lambda row: (-row["tokens"], row["name"]))


def cluster_shares(rows: pa.Table, clusters: Mapping[str, Any]) -> list[Row]:
    """By cluster: rows, tokens and the divergence (JSD in nats, 0 to ln 2) through which they came.

    `rows` has columns `cluster`, `tokens` and `jsd`; non-finite scores are left out of the range.
    """
    import numpy as np
    import pyarrow.compute as pc

    names = {item["cluster"]: item["name"] for item in clusters["clusters"]}
    numbers, tokens = (_numbers(rows[name].combine_chunks()) for name in ("cluster", "tokens"))
    scored = rows.filter(pc.is_valid(rows["jsd"]))
    numbers_scored, scores = (_numbers(scored[name].combine_chunks()) for name in ("cluster", "jsd"))
    result = []
    for cluster in np.unique(numbers).tolist():
        part = numbers == cluster
        finite = scores[(numbers_scored == cluster) & np.isfinite(scores)].tolist()
        result.append(
            {
                "cluster": cluster,
                "name": names.get(cluster, str(cluster)),
                "rows": int(part.sum()),
                "tokens": int(tokens[part].sum()),
                "jsd_mean": math.fsum(finite) / len(finite) if finite else None,
                "jsd_min": min(finite) if finite else None,
                "jsd_max": max(finite) if finite else None,
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


def _benchmarks(rows: pa.Table) -> dict[str, list[str]]:
    import pyarrow.compute as pc

    items = rows.filter(pc.fill_null(pc.greater(pc.utf8_length(rows["benchmark"]), 0), False))
    return {
        role: sorted(pc.unique(items.filter(pc.equal(items["role"], role))["benchmark"]).to_pylist())
        for role in _roles_of(rows)
    }


def compose(
    *,
    records: Mapping[str, Record],
    provenance: Mapping[str, Any],
    selected: list[Row],
    rows: pa.Table,
    scores: pa.Table,
    clusters: Mapping[str, Any],
    files: Mapping[str, str],
) -> dict[str, Any]:
    """The content of `entry.json`, from the content of the other files of the entry."""
    import pyarrow.compute as pc

    chosen = chosen_columns(selected, scores)
    roles = {item["values"]: item["counts"] for item in pc.value_counts(rows["role"]).to_pylist()}
    return {
        "version": ENTRY_VERSION,
        "model": {"path": MODEL, "sha256": digest_of(records, MODEL)},
        "merkle_root": provenance["merkle_root"],
        "summary": {
            "rows": len(selected),
            "tokens": sum(int(row["tokens"]) for row in selected),
            "roles": {role: roles.get(role, 0) for role in _roles_of(rows)},
            "by_source": shares(chosen, "source"),
            "by_license": shares(chosen, "license"),
            "by_label": shares(chosen, "label"),
            "by_cluster": cluster_shares(chosen, clusters),
            "benchmarks": _benchmarks(rows),
            "pool_sources": pool_sources(records),
            "not_drawn": not_drawn(records),
            "settings": settings_of(records),
            "chain": chain_summary(records),
        },
        "files": dict(files),
    }


def _roles_of(rows: pa.Table) -> list[str]:
    """The roles that a summary names: all but one that few runs have."""
    import pyarrow.compute as pc

    stopped = pc.any(pc.equal(rows["role"], STOPPED_BY)).as_py()
    return [role for role in ROLES if stopped or role != STOPPED_BY]


def chosen_columns(selected: list[Row], scores: pa.Table) -> pa.Table:
    """Source, licence, label, cluster, tokens and JSD of the rows of `selected.jsonl`, in their order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text, count = pa.string(), pa.int64()
    kinds = {
        "row_id": text,
        "source": text,
        "license": text,
        "label": text,
        "cluster": count,
        "tokens": count,
    }
    columns = {name: pa.array([row[name] for row in selected], kind) for name, kind in kinds.items()}
    places = pc.index_in(columns["row_id"], value_set=scores["row_id"].combine_chunks())
    return pa.table({**columns, "jsd": scores["jsd"].take(places)})


def _shaped(content: Any, kinds: Mapping[str, type], path: Path) -> dict[str, Any]:
    """`content` of a file, where it is a mapping with these keys, each of its kind."""
    if not isinstance(content, dict):
        raise PaserError(f"{path} is not a JSON object", remedy="it was altered: `dvc checkout` restores it")
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind):
            raise PaserError(
                f"{path}: {key!r} is {repr(content.get(key))[:80]}",
                remedy="it was altered: `dvc checkout` restores it",
            )
    return content


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
        return _shaped(content, _SHAPE, path)

    def records(self) -> dict[str, Record]:
        """The records of the stages; one of another shape is an error."""
        found = sorted((self.root / RECORDS).glob("*.json"))
        return {path.stem: _shaped(read_json(path), _OF_RECORD, path) for path in found}

    def provenance(self) -> dict[str, Any]:
        return load_provenance(self.root)

    def selected(self) -> list[Row]:
        path = self.root / "selected.jsonl"
        try:
            return read_jsonl(path)
        except (ValueError, OSError) as error:
            raise PaserError(f"{path} cannot be read: {error}", remedy="restore it") from error

    def trained(self) -> list[Row]:
        """The rows of `selected.jsonl` that the model was trained on."""
        aside = set(held_out(self.provenance()))
        return [row for row in self.selected() if row["row_id"] not in aside]

    def first_trained(self, most: int) -> list[Row]:
        """The first rows of `selected.jsonl` that were trained on, as many as there are up to `most`."""
        aside = set(held_out(self.provenance()))
        path = self.root / "selected.jsonl"
        try:
            with path.open(encoding="utf-8") as stream:
                rows = (json.loads(line) for line in filter(str.strip, stream))
                return list(islice((row for row in rows if row["row_id"] not in aside), most))
        except (ValueError, OSError) as error:
            raise PaserError(f"{path} cannot be read: {error}", remedy="restore it") from error

    def register(self, *columns: str) -> pa.Table:
        """Columns of the register of rows, all by default."""
        return read_columns(self.root / ROWS, columns or schema("rows").names)

    def table(self, name: str, *columns: str, optional: Sequence[str] = ()) -> pa.Table:
        """Columns of `decisions`, `scores` or `texts`, all by default; an `optional` one may be missing."""
        return read_columns(self.root / f"{name}.parquet", columns or schema(name).names, optional)

    def clusters(self) -> dict[str, Any]:
        clusters: dict[str, Any] = read_json(self.root / "clusters.json")
        return clusters

    def files(self) -> dict[str, str]:
        """Digests of every file of the entry but `entry.json` and the card, from their bytes."""
        return {name: digest for name, digest in file_digests(self.root).items() if name not in (ENTRY, CARD)}

    def derived_text(self, files: Mapping[str, str], selected: list[Row]) -> str:
        """What `entry.json` must say, given the digests of the files beside it and the selected rows."""
        aside = set(held_out(self.provenance()))
        return json_text(
            compose(
                records=self.records(),
                provenance=self.provenance(),
                selected=[row for row in selected if row["row_id"] not in aside],
                rows=self.register("benchmark", "role"),
                scores=self.table("scores", "row_id", "jsd"),
                clusters=self.clusters(),
                files=files,
            )
        )


def find_entry(model: Path) -> Path | None:
    """The audit entry of a model: in its own folder, as `paser export` leaves it, else `data/audit` of the
    nearest folder above.

    For `data/models/recovered` and `control` it is that of their project, whatever lies inside them.
    """
    folder = model.resolve()
    audits = (parent / "data" / "audit" for parent in folder.parents)
    near = next((audit for audit in audits if (audit / ENTRY).exists()), None)
    if near is not None and folder.parent == near.parent / "models" and folder.name in STAGE_OF_ROLE:
        return near
    return model / EXPORTED if (model / EXPORTED / ENTRY).exists() else near


def is_export(model: Path, entry: Path | None) -> bool:
    """Whether a model's entry lies in its own folder, where `paser export` puts it."""
    return entry is not None and entry.resolve() == (model / EXPORTED).resolve()


def without_export(files: Mapping[str, str]) -> dict[str, str]:
    """`files` of an export without the entry and README.md, which are checked by themselves."""
    return {n: d for n, d in files.items() if n != README and not n.startswith(f"{EXPORTED}/")}


def describes(records: Mapping[str, Record], provenance_sha256: str, role: str) -> bool:
    """Whether the records tell of the model with this `provenance.json`."""
    record = records.get(STAGE_OF_ROLE[role])
    return record is not None and any(
        (output.files or {}).get(PROVENANCE) == provenance_sha256 for output in artefacts(record, "outputs")
    )


def write_entry(
    target: Path, project: Path, records: Mapping[str, Path], digests: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Builds the entry of `data/models/recovered` in the new folder `target`; returns `entry.json`.

    `records` maps stage names to their record files; `digests` are those of project paths that were just
    read. Refuses to describe a model, or data, that is not what the stages recorded.
    """
    entry = Entry(target)
    (target / RECORDS).mkdir(parents=True)
    for stage in sorted(records):
        shutil.copyfile(records[stage], target / RECORDS / f"{stage}.json")
    for name, path in COPIES.items():
        shutil.copyfile(project / path, target / name)
    shutil.copyfile(project / MODEL / PROVENANCE, target / PROVENANCE)
    content = entry.records()
    _refuse_foreign(project, content, digests or {})
    rows = register(
        **{name: read_columns(project / path, _REGISTERED[name]) for name, path in REGISTER.items()},
        decisions=entry.table("decisions", "row_id", "cluster", "decision", "reason"),
        clusters=read_columns(project / CLUSTERS, schema("clusters").names),
        stopped_by=held_out(entry.provenance()),
    )
    write_batches(target / ROWS, "rows", _column_batches(rows))
    write_batches(
        target / TEXTS, "texts", text_batches({name: project / path for name, path in REGISTER.items()})
    )
    composed = compose(
        records=content,
        provenance=entry.provenance(),
        selected=entry.trained(),
        rows=rows,
        scores=entry.table("scores", "row_id", "jsd"),
        clusters=entry.clusters(),
        files=entry.files(),
    )
    write_json(target / ENTRY, composed)
    from paser.lineage.documents.cards import model_card
    from paser.lineage.documents.facts import read_facts

    (target / CARD).write_text(model_card(read_facts(target)), encoding="utf-8")
    return composed


def _column_batches(rows: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in rows.combine_chunks().to_batches(max_chunksize=_BATCH):
        yield dict(zip(batch.schema.names, batch.columns, strict=True))


def _refuse_foreign(project: Path, records: Mapping[str, Record], digests: Mapping[str, str]) -> None:
    for path in (MODEL, *COPIES.values(), *TABLES):
        recorded = digest_of(records, path)
        found = digests.get(path) or sha256_path(project / path)
        if recorded != found:
            raise StageError(
                f"{path} is not what its stage wrote: recorded {recorded}, found {found}",
                remedy="`dvc checkout` restores it, or `dvc repro --force` on the stage that writes it",
            )
