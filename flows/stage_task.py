"""One stage as one task: asks DVC, runs what is stale, and ends in a state that tells the truth.

`Cached`: nothing changed. `Restored`: DVC had the result of these inputs, and nothing ran. `Completed`: the
stage ran. `Failed`: with the stage's own last lines.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import runtime, task
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from flows import command, dvc_stage, gpu
from flows.shown import ProgressShown
from paser.artifacts import fingerprint
from paser.errors import PaserError

BUSY_SECONDS = 2.0


@dataclass(frozen=True)
class Job:
    """A stage to be run: where, how, and what else its process should know.

    `wait_seconds`: how long to wait for another DVC command that holds what the stage needs. `elsewhere`:
    deployment that runs the stage on another machine.
    """

    project: Path
    node: dvc_stage.Node
    force: bool = False
    wait_seconds: float = 3600.0
    extra: Mapping[str, str] = field(default_factory=dict)
    elsewhere: str | None = None


def cache_key(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
    """The key of what DVC knows of a fresh stage; none for a stale one, which must run."""
    job: Job = parameters["job"]
    if job.force:
        return None
    try:
        seen = dvc_stage.look(job.project, job.node.name, job.wait_seconds)
    except PaserError:
        return None
    return (
        fingerprint({"project": str(job.project), "stage": seen.stage, "key": seen.key}) if seen.key else None
    )


@task(name="stage", persist_result=True, result_serializer="json", cache_key_fn=cache_key)
def run_stage(job: Job) -> State[dict[str, Any]]:
    """Runs the stage if DVC calls it stale, or if `job.force`."""
    started = time.monotonic()
    name = job.node.name
    try:
        seen = dvc_stage.look(job.project, name, job.wait_seconds)
        if seen.fresh and not job.force:
            return Completed(name="Cached", message="nothing changed", data=_result(seen, "Cached", 0.0))
        get_run_logger().info("%s is stale: %s", name, _because(seen, job))
        if job.elsewhere and job.node.gpu:
            from flows.elsewhere import run_elsewhere

            state, message = run_elsewhere(job)
        else:
            state, message = _run_here(job)
        if state == "Failed":
            return Failed(message=message)
        after = dvc_stage.look(job.project, name, job.wait_seconds)
        if not after.fresh:
            return Failed(message=f"{name} ran, but DVC calls it stale: {_because(after, job)}")
    except PaserError as error:
        return Failed(message=str(error))
    seconds = time.monotonic() - started
    return Completed(name=state, message=message, data=_result(after, state, seconds))


def started_by() -> dict[str, str]:
    """Ids and flow name of this run, under the names which stages and their events read them by."""
    found = {
        "PASER_FLOW_RUN_ID": runtime.flow_run.id,
        "PASER_FLOW_NAME": runtime.flow_run.flow_name,
        "PASER_WORKER": os.environ.get("PREFECT__WORKER_NAME") or os.environ.get("PREFECT__WORKER_ID"),
        "PASER_DEPLOYMENT_ID": runtime.deployment.id,
    }
    return {name: str(value) for name, value in found.items() if value}


def _run_here(job: Job) -> tuple[str, str]:
    name, log = job.node.name, get_run_logger()
    words = ["--wait-for-lock", "repro", "-s", *(["--force"] if job.force else []), name]
    with gpu.slot(job.node.gpu), tempfile.TemporaryDirectory(prefix="paser-") as folder:
        progress = ProgressShown(name, Path(folder) / "progress.json")
        extra = {**job.extra, **started_by(), "PASER_PROGRESS_FILE": str(progress.path)}
        deadline = time.monotonic() + job.wait_seconds
        while True:
            ended = command.run(
                command.dvc(*words),
                job.project,
                extra=extra,
                hours=job.node.hours,
                on_line=log.info,
                on_tick=progress.update,
            )
            if not ended.busy or time.monotonic() > deadline:
                break
            log.info("%s waits for another DVC command: %s", name, ended.lines[-1] if ended.lines else "")
            time.sleep(BUSY_SECONDS)
    if ended.timed_out:
        return (
            "Failed",
            f"{name} took longer than {job.node.hours:g} hours (meta.hours in dvc.yaml)\n{ended.said}",
        )
    if ended.code:
        return "Failed", f"{name} failed with exit code {ended.code}\n{ended.said}"
    if ended.says("didn't change, skipping"):
        return "Cached", "another DVC command ran it meanwhile"
    if ended.says("is cached - skipping run"):
        return "Restored", "DVC had the result of these inputs"
    return "Completed", "the stage ran"


def _because(seen: dvc_stage.Freshness, job: Job) -> str:
    reasons = [reason.replace(f"{job.project}/", "") for reason in seen.reasons]
    more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return (", ".join(reasons[:5]) + more) or "force"


def _result(seen: dvc_stage.Freshness, state: str, seconds: float) -> dict[str, Any]:
    return {
        "stage": seen.stage,
        "state": state,
        "seconds": round(seconds, 1),
        "digests": dict(seen.digests),
        "key": seen.key,
    }
