"""Runs one stage: checks and hashes its inputs, runs it on staging paths, renames, writes the record.

A stage module has one function, `run(context)`. It writes each declared output to
`context.out(path)`, which is beside the target; all of them are renamed together at the end, after the
inputs were hashed a second time and found unchanged.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from paser.artifacts import beside, disk_errors, remove, replace, tidy, write_json
from paser.cache import Cache
from paser.errors import PaserError, StageError
from paser.lineage.events import StageEvents
from paser.lineage.record import (
    RECORD_VERSION,
    Artefact,
    all_versions,
    code_digest,
    describe,
)
from paser.progress import duration, say, warn
from paser.settings import Settings, load_settings
from paser.stages.graph import Stage, stage

# Other runs may still read or write what was used so recently; pruning leaves it.
SPARED_SECONDS = 3600.0
# Who started the run, where someone says so: field of the run record -> environment variable.
STARTED_BY = {
    "flow_run": "PASER_FLOW_RUN_ID",
    "worker": "PASER_WORKER",
    "deployment": "PASER_DEPLOYMENT_ID",
}


@dataclass
class Context:
    """What a stage's `run` gets: the project, its settings, its inputs and staging paths."""

    project: Path
    stage: Stage
    settings: Settings
    cache: Cache
    inputs: Mapping[str, Artefact] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def input(self, relative: str) -> Path:
        """A declared input; an undeclared one is a programming error, because DVC would not see it."""
        if not any(relative == d or relative.startswith(f"{d}/") for d in self.stage.inputs):
            raise StageError(f"stage {self.stage.name} does not declare the input {relative}")
        return self.project / relative

    def digest(self, relative: str) -> str:
        """SHA-256 of a declared input as it was read when the stage began."""
        return self.inputs[relative].sha256

    def out(self, relative: str) -> Path:
        """The staging path of a declared output."""
        if relative not in self.stage.outputs:
            raise StageError(f"stage {self.stage.name} does not declare the output {relative}")
        target = self.project / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        return beside(target)

    def note(self, **facts: Any) -> None:
        """Measured facts for the stage's record; only what two runs share (no clock, no host)."""
        self.facts.update(facts)


def run_stage(name: str, project: Path) -> dict[str, Any]:
    """Runs stage `name` in `project` and returns its record."""
    spec = stage(name)
    settings = load_settings(project / "params.yaml")
    started, clock = datetime.now(UTC), time.monotonic()
    inputs = [_read(project, relative, spec) for relative in spec.inputs]
    by_path = {artefact.path: artefact for artefact in inputs}
    context = Context(project, spec, settings, Cache.of(project), by_path)
    module = importlib.import_module(f"paser.stages.{name}")
    with StageEvents(name).around(inputs) as written:
        with _staging(context):
            try:
                module.run(context)
            except PaserError as error:
                raise _with_way_back(error, project) from error
            for relative in spec.outputs:
                if not context.out(relative).exists():
                    raise StageError(f"stage {name} did not write {relative}")
            _unchanged(project, inputs, spec)
        for relative in spec.outputs:
            replace(context.out(relative), project / relative)
        outputs = [describe(project, relative) for relative in spec.outputs]
        written += outputs
    record = {
        "version": RECORD_VERSION,
        "stage": name,
        "inputs": [artefact.as_json() for artefact in inputs],
        "outputs": [artefact.as_json() for artefact in outputs],
        "params": {key: _param(settings, key) for key in spec.params},
        "code": code_digest(spec.all_code),
        "seed": settings.seed,
        "versions": all_versions(),
        "facts": context.facts,
    }
    write_json(project / spec.record, record)
    seconds = time.monotonic() - clock
    write_json(project / spec.run_record, _run_facts(project, name, started, seconds))
    _prune(context)
    say(f"{name}: done in {duration(seconds)}")
    return record


def _read(project: Path, relative: str, spec: Stage) -> Artefact:
    try:
        return describe(project, relative)
    except FileNotFoundError as error:
        raise StageError(
            f"stage {spec.name} needs {relative}, which does not exist",
            remedy=f"`dvc repro {spec.name}` runs the stages before it",
        ) from error


def _unchanged(project: Path, inputs: list[Artefact], spec: Stage) -> None:
    """A file edited during the run would be recorded as if it had been read; so the stage fails."""
    for before in inputs:
        after = describe(project, before.path)
        if after.sha256 != before.sha256:
            changed = before.path
            if before.files and after.files:
                names = sorted({*before.files.items()} ^ {*after.files.items()})
                changed = f"{before.path}/{names[0][0]}"
            raise StageError(
                f"{changed} changed while stage {spec.name} ran",
                remedy="run the stage again, and leave its inputs alone meanwhile",
            )


@contextlib.contextmanager
def _staging(context: Context) -> Iterator[None]:
    """Removes whatever an earlier killed run or this failed one left beside the targets."""
    for relative in context.stage.outputs:
        tidy(context.project / relative)
    try:
        with disk_errors(context.project / context.stage.outputs[0]):
            yield
    except BaseException:
        for relative in context.stage.outputs:
            remove(context.out(relative))
        raise


def _prune(context: Context) -> None:
    """Keeps the cache below its limit; the stage is done, so what cannot be removed is only told of."""
    try:
        context.cache.prune(int(context.settings.runtime.cache_gb * 1e9), spare_seconds=SPARED_SECONDS)
    except OSError as error:
        warn(f"the cache {context.cache.root} was not pruned to runtime.cache_gb: {error}")


def _with_way_back(error: PaserError, project: Path) -> PaserError:
    """DVC removed the earlier outputs before the run; where there were some, the error says how to have
    them back."""
    if not (project / "dvc.lock").exists():
        return error
    back = "earlier outputs come back with `git restore dvc.lock && dvc checkout`"
    remedy = f"{error.remedy}; {back}" if error.remedy else back
    return type(error)(error.problem, remedy=remedy)


def _param(settings: Settings, key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _run_facts(project: Path, name: str, started: datetime, seconds: float) -> dict[str, Any]:
    """Everything about this run that another run of the same inputs would not share."""
    return {
        "stage": name,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "commit": _git(project, "rev-parse", "HEAD"),
        "dirty": bool(_git(project, "status", "--porcelain", "--untracked-files=no")),
    } | {field: os.environ[name] for field, name in STARTED_BY.items() if os.environ.get(name)}


def _git(project: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(project), *words], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
