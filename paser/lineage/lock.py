"""`dvc.lock` beside the records: what DVC believes, against the bytes and against what the stages saw.

DVC takes the digest of a dependency after the command has run, and `dvc commit -f` takes any output for
the command's own. So its lock can vouch for bytes that no stage read or wrote; only the stages' records
tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paser.errors import PaserError
from paser.lineage.chain import Record, artefacts, flat
from paser.lineage.hashing import Digests, Hasher, dvc_folder_digest
from paser.settings import read_yaml, resolved

LOCK = "dvc.lock"
DATA = "data/"


@dataclass(frozen=True)
class Locked:
    """A path as `dvc.lock` has it; `nfiles` is None for a file."""

    path: str
    md5: str
    size: int
    nfiles: int | None


@dataclass(frozen=True)
class LockedStage:
    """A stage of `dvc.lock`; `params` are dotted keys of params.yaml with their values."""

    name: str
    command: str
    deps: tuple[Locked, ...]
    outs: tuple[Locked, ...]
    params: Mapping[str, Any]


def read_lock(path: Path) -> dict[str, LockedStage]:
    """The stages of a lock file; one that is no lock file raises `PaserError`."""
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
        if str(content["schema"]) != "2.0":
            raise ValueError(f"schema {content['schema']!r}")
        return {name: _stage(name, stage) for name, stage in content["stages"].items()}
    except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise PaserError(
            f"{path} is not a lock file of DVC: {error}", remedy="`git restore dvc.lock`"
        ) from error


def _stage(name: str, stage: Mapping[str, Any]) -> LockedStage:
    return LockedStage(
        name=name,
        command=stage["cmd"],
        deps=tuple(_locked(item) for item in stage.get("deps", [])),
        outs=tuple(_locked(item) for item in stage.get("outs", [])),
        params=dict(stage.get("params", {}).get("params.yaml", {})),
    )


def _locked(item: Mapping[str, Any]) -> Locked:
    if item.get("hash") != "md5":
        raise ValueError(f"{item['path']} has hash {item.get('hash')!r}")
    return Locked(str(item["path"]), str(item["md5"]), int(item["size"]), item.get("nfiles"))


def as_dvc_sees(path: Path, relative: str, hasher: Hasher) -> Locked | None:
    """What `dvc.lock` would say of the bytes that lie there; None where there is nothing."""
    if not path.exists():
        return None
    if path.is_dir():
        files: dict[str, Digests] = hasher.folder(path)
        digest = dvc_folder_digest({name: found.md5 for name, found in files.items()})
        return Locked(relative, digest, sum(found.size for found in files.values()), len(files))
    found = hasher.file(path)
    return Locked(relative, found.md5, found.size, None)


def against_bytes(stage: LockedStage, project: Path, hasher: Hasher, code: bool) -> list[str]:
    """Where the lock and the disk differ, in sentences; code files only if `code` is set."""
    found = []
    if stage.command != f"paser stage {stage.name}":
        found.append(f"stage {stage.name} has the command {stage.command!r}")
    for side, items in (("input", stage.deps), ("output", stage.outs)):
        for locked in items:
            if not (code or locked.path.startswith(DATA)):
                continue
            there = as_dvc_sees(project / locked.path, locked.path, hasher)
            where = f"{side} {locked.path} of stage {stage.name}"
            if there is None:
                found.append(f"{where} is missing (locked {locked.md5})")
            elif there.md5 != locked.md5:
                found.append(f"{where}: locked MD5 {locked.md5}, the bytes have {there.md5}")
            elif there != locked:
                found.append(f"{where}: locked {_amount(locked)}, found {_amount(there)}")
    return found


def _amount(locked: Locked) -> str:
    files = "" if locked.nfiles is None else f" in {locked.nfiles} files"
    return f"{locked.size} bytes{files}"


def against_record(stage: LockedStage, record: Record, project: Path, hasher: Hasher) -> list[str]:
    """Where the lock vouches for bytes, or settings, that the stage's own record does not know."""
    found = []
    sides = (("read", stage.deps, "inputs"), ("wrote", stage.outs, "outputs"))
    for verb, items, side in sides:
        recorded = {a.path: a for a in artefacts(record, side)}  # type: ignore[arg-type]
        locked = {item.path: item for item in items if _is_data(item.path, stage.name)}
        for path in sorted({*recorded} - {*locked}):
            found.append(f"stage {stage.name} {verb} {path}, which dvc.lock does not list")
        for path in sorted({*locked} - {*recorded}):
            found.append(f"dvc.lock lists {path}, which stage {stage.name} never {verb}")
        for path in sorted({*recorded} & {*locked}):
            there = as_dvc_sees(project / path, path, hasher)
            if there is None or there.md5 != locked[path].md5:
                continue  # the lock is not of these bytes, so they say nothing about it
            digest = _sha256(project / path, hasher)
            if digest != recorded[path].sha256:
                cause = (
                    "it was edited during the run, or DVC was told to accept it"
                    if verb == "read"
                    else "something else wrote it, and DVC was told to accept it (`dvc commit`)"
                )
                found.append(
                    f"dvc.lock vouches for {path} as it lies there ({digest}), but stage {stage.name} "
                    f"{verb} {recorded[path].sha256}: {cause}"
                )
    return found + _settings(stage, record)


def _is_data(path: str, stage: str) -> bool:
    """Whether a path stands in the record of its stage: data do, code and the record itself do not."""
    own = (f"{DATA}records/{stage}.json", f"{DATA}records/{stage}.run.json")
    return path.startswith(DATA) and path not in own


def _sha256(path: Path, hasher: Hasher) -> str:
    from paser.artifacts import tree_digest

    return tree_digest(hasher.sha256(path)) if path.is_dir() else hasher.file(path).sha256


def _settings(stage: LockedStage, record: Record) -> list[str]:
    recorded = flat(record["params"])
    found = []
    for key, value in resolved(stage.params).items():
        under = {k: v for k, v in recorded.items() if k == key or k.startswith(f"{key}.")}
        known = recorded.get(key, _unflat(under, key) if under else None)
        if key not in recorded and not under:
            found.append(f"dvc.lock has {key} for stage {stage.name}, its record has not")
        elif not same_setting(known, value):
            found.append(f"{key} of stage {stage.name}: dvc.lock says {value!r}, its record {known!r}")
    missing = [k for k in recorded if not any(k == p or k.startswith(f"{p}.") for p in stage.params)]
    found += [f"{key} of stage {stage.name} is in its record, not in dvc.lock" for key in missing]
    return found


def _unflat(under: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name.removeprefix(f"{key}."): value for name, value in under.items()}


def same_setting(recorded: Any, stated: Any) -> bool:
    """Whether a validated setting and one as written are the same: `1` is `1.0`, `10` the text `"10"`, and
    nothing an empty mapping or list."""
    if isinstance(recorded, Mapping) and isinstance(stated, Mapping):
        return flat(recorded) == flat(stated)
    if stated is None and recorded in ({}, []):
        return True
    if isinstance(recorded, str) and not isinstance(stated, str):
        return recorded == str(stated)
    return bool(recorded == stated)
