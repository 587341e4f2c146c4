"""The chain of records: which stage wrote what another stage read, and whether it is the same bytes.

Works on the records alone, so it serves a project on disk and a copied audit entry alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from paser.artifacts import tree_digest
from paser.lineage.record import Artefact

Record = dict[str, Any]
ABSENT = "absent"


@dataclass(frozen=True)
class Link:
    """One input of a stage: the digest it read, and the digest its producer says it wrote.

    `producer` and `written` are None for a root of the chain (a source list, raw files), which no stage
    writes. `written` is `absent` when the producer's directory held no such path.
    `differing` names the files of a directory that are not the same; `files` are those of a root.
    """

    stage: str
    path: str
    read: str
    producer: str | None
    written: str | None
    differing: tuple[str, ...] = ()
    files: dict[str, str] | None = None

    @property
    def ok(self) -> bool:
        return self.producer is None or self.read == self.written


def artefacts(record: Record, side: Literal["inputs", "outputs"]) -> list[Artefact]:
    return [Artefact(**item) for item in record[side]]


def links(records: Mapping[str, Record]) -> list[Link]:
    """Every input of every record, joined to the output it came from; in the order of the chain."""
    written = {
        output.path: (stage, output)
        for stage in sorted(records)
        for output in artefacts(records[stage], "outputs")
    }
    return [
        _link(stage, artefact, written)
        for stage in chain_order(records)
        for artefact in artefacts(records[stage], "inputs")
    ]


def _link(stage: str, read: Artefact, written: Mapping[str, tuple[str, Artefact]]) -> Link:
    if read.path in written:
        producer, output = written[read.path]
        differing: tuple[str, ...] = ()
        if read.files is not None and output.files is not None:
            differing = tuple(sorted({n for n, _ in read.files.items() ^ output.files.items()}))
        return Link(stage, read.path, read.sha256, producer, output.sha256, differing)
    for path, (producer, output) in sorted(written.items()):
        if read.path.startswith(f"{path}/"):
            inside = read.path[len(path) + 1 :]
            return Link(stage, read.path, read.sha256, producer, _digest_inside(output, inside))
    return Link(stage, read.path, read.sha256, None, None, files=read.files)


def _digest_inside(output: Artefact, inside: str) -> str:
    """Digest of one file or folder inside a directory output."""
    files = output.files or {}
    if inside in files:
        return files[inside]
    below = {n[len(inside) + 1 :]: d for n, d in files.items() if n.startswith(f"{inside}/")}
    return tree_digest(below) if below else ABSENT


def chain_order(records: Mapping[str, Record]) -> list[str]:
    """Stages so that each comes after those it reads from; ties by name."""
    producers = {output["path"]: stage for stage in sorted(records) for output in records[stage]["outputs"]}

    def needs(stage: str) -> set[str]:
        paths = [item["path"] for item in records[stage]["inputs"]]
        return {
            producers[path]
            for path in producers
            for wanted in paths
            if wanted == path or wanted.startswith(f"{path}/")
        } - {stage}

    waiting = {stage: needs(stage) for stage in sorted(records)}
    order: list[str] = []
    while waiting:
        ready = [stage for stage, wanted in waiting.items() if wanted <= set(order)]
        # A cycle can only come from an altered record; the order then hardly matters.
        order.append((ready or list(waiting))[0])
        del waiting[order[-1]]
    return order


def inconsistent(record: Record) -> list[Artefact]:
    """Directories of a record whose digest does not follow from the files it lists."""
    return [
        artefact
        for side in ("inputs", "outputs")
        for artefact in artefacts(record, side)
        if artefact.files is not None and tree_digest(artefact.files) != artefact.sha256
    ]


def digest_of(records: Mapping[str, Record], path: str) -> str | None:
    """The recorded digest of a project path, whichever stage wrote it."""
    for stage in sorted(records):
        for output in records[stage]["outputs"]:
            if output["path"] == path:
                return str(output["sha256"])
    return None


def flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
