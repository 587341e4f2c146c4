"""Fills the catalogue from the git history of `dvc.lock`, with every entry that DVC's cache or remote has."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from paser.errors import PaserError
from paser.lineage.catalogue import Catalogue

AUDIT = "data/audit"
LOCK = "dvc.lock"


@dataclass(frozen=True)
class Found:
    """One audit entry of the history: the newest commit whose `dvc.lock` names it, and what became of it.

    `digest` is DVC's of the entry, empty where that `dvc.lock` cannot be read. `state`: `added`, `known` or
    `missing`; `detail`: the entry's id, or why it could not be had.
    """

    commit: str
    digest: str
    state: str
    detail: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def rebuild(project: Path, catalogue: Catalogue) -> list[Found]:
    """Takes in every entry that any commit's `dvc.lock` names, newest first, through `dvc get`."""
    top = _git(project, "rev-parse", "--show-toplevel").strip()
    prefix = _git(project, "rev-parse", "--show-prefix").strip()
    found, seen = [], set()
    for commit in _git(project, "log", "--all", "--format=%H", "--", LOCK).split():
        try:
            digest = _digest(_git(project, "show", f"{commit}:{prefix}{LOCK}", missing=""), commit)
        except PaserError as error:
            found.append(Found(commit, "", "missing", error.problem))
            continue
        if digest is None or digest in seen:
            continue
        seen.add(digest)
        if catalogue.knows_origin(digest):
            found.append(Found(commit, digest, "known", ""))
            continue
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "audit"
            problem = _fetch(Path(top), f"{prefix}{AUDIT}", commit, target)
            if problem:
                found.append(Found(commit, digest, "missing", problem))
                continue
            try:
                identity, new = catalogue.add(target, commit, digest)
            except PaserError as error:
                found.append(Found(commit, digest, "missing", error.problem.replace(f"{target}/", "")))
                continue
            found.append(Found(commit, digest, "added" if new else "known", identity))
    return found


def _digest(lock: str, commit: str) -> str | None:
    """DVC's digest of the audit entry in the text of a `dvc.lock`; None where it has none."""
    if not lock:
        return None
    try:
        stages = dict(yaml.safe_load(lock)["stages"])
        outs = stages["audit"]["outs"] if "audit" in stages else []
        return next((str(out["md5"]) for out in outs if out["path"] == AUDIT), None)
    except (yaml.YAMLError, LookupError, TypeError, ValueError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise PaserError(
            f"{LOCK} of commit {commit} cannot be read: {said}", remedy="does `git show` show it whole?"
        ) from error


def _fetch(repository: Path, path: str, commit: str, target: Path) -> str | None:
    """None where DVC could restore the entry of a commit, else its last words."""
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-m", "dvc", "get", "--rev", commit, "-o", str(target)]
    done = subprocess.run(
        [*command, str(repository), path],
        cwd=target.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0 and target.is_dir():
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("ERROR")), (lines or ["dvc get failed"])[-1])


def _git(project: Path, *words: str, missing: str | None = None) -> str:
    done = subprocess.run(
        ["git", "-C", str(project), *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        if missing is not None:
            return missing
        raise PaserError(
            f"`git {' '.join(words[:2])}` failed in {project}: {done.stderr.strip()}",
            remedy="rebuild reads the git history of a project",
        )
    return done.stdout
