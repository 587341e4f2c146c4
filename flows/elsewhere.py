"""A stage on another machine: Prefect carries what to run, the DVC remote carries the data.

The caller sends the commit, the text of `params.yaml` and the entries of `dvc.lock` the stage reads from; the
worker runs it in a clean checkout of that commit, and the caller restores the result from the run-cache.
"""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.logging import get_run_logger
from prefect.states import Cancelling, Completed, Failed

from flows import command, dvc_stage, workspace
from flows.errors import FlowError
from flows.locking import one_at_a_time
from flows.project import find_project
from flows.stage_task import Job, run_stage
from paser.errors import PaserError

# Travel with the run, so they may differ from the commit.
CARRIED = ("params.yaml", "dvc.lock")
POLL_SECONDS = 2.0
# Beyond the stage's own limit: time for the queue, and to pull and push.
EXTRA_HOURS = 12.0


def run_elsewhere(job: Job) -> tuple[str, str]:
    """Has the deployment `job.elsewhere` run the stage, and restores its result here.

    Returns the state's name and message. Raises `FlowError` when the caller is not in a state that another
    machine could reproduce: no remote, or files that differ from the commit.
    """
    name, log = job.node.name, get_run_logger()
    if not dvc_stage.has_remote(job.project):
        raise FlowError(
            f"{job.project} has no DVC remote, through which {name} could get its data",
            remedy="`dvc remote add -d NAME URL`, in each clone",
        )
    commit = clean_commit(job.project)
    if not job.force and dvc_stage.remote_result(job.project, name):
        log.info("the remote has the result of these inputs of %s", name)
        return _restore(job, "Restored", "the remote had the result of these inputs")
    if job.node.inputs:
        dvc(job.project, "push", *job.node.inputs, hours=job.node.hours)
    made: Any = run_deployment(
        name=job.elsewhere or "",
        parameters={
            "stage": name,
            "commit": commit,
            "settings": (job.project / "params.yaml").read_text(encoding="utf-8"),
            "lock": dvc_stage.lock_entries(job.project, list(job.node.upstream)),
            "force": job.force,
        },
        flow_run_name=f"{name}-{commit[:8]}",
        timeout=3600 * (job.node.hours + EXTRA_HOURS),
        poll_interval=POLL_SECONDS,
    )
    run: FlowRun = made
    state = run.state
    if state is None or not state.is_final():
        _cancel(run)
        return (
            "Failed",
            f"{name} did not end on {job.elsewhere} within its time; its run {run.name} is cancelled",
        )
    if not state.is_completed():
        return "Failed", f"{name} on {job.elsewhere} ended as {state.name}: {state.message or 'no message'}"
    if not dvc_stage.remote_result(job.project, name):
        return "Failed", (
            f"{job.elsewhere} ran {name}, but its result does not belong to what lies here\n"
            "  remedy: check that the worker's clone and this one use the same remote, then run it again"
        )
    return _restore(job, "Completed", f"ran on {job.elsewhere} as {run.name}: {state.message}")


@flow(name="stage", result_serializer="json", persist_result=True)
def stage(
    stage: str,
    commit: str,
    settings: str,
    lock: dict[str, Any],
    force: bool = False,
    project: str | None = None,
) -> State[dict[str, Any]]:
    """Runs one stage for a flow on another machine, in a clean checkout of `commit`.

    Args:
        stage: its name in dvc.yaml.
        commit: the caller's commit; fetched from the clone's origin where it is missing.
        settings: text of the caller's params.yaml.
        lock: entries of the caller's dvc.lock for the stages whose outputs this one reads.
        force: run the stage though a result of these inputs is known.
        project: folder of this worker's clone; by default `PASER_PROJECT`, or where this is installed from.
    """
    log = get_run_logger()
    try:
        home = find_project(project)
        place = checkout(home, commit, stage)
        holder = {"flow_run": str(runtime.flow_run.id), "name": str(runtime.flow_run.name)}
        with one_at_a_time(place, holder, 3600.0, say=log.info):
            _prepare(home, place, commit, settings, lock)
            node = next(n for n in dvc_stage.read_graph(place) if n.name == stage)
            if node.inputs:
                dvc(place, "pull", *node.inputs, hours=node.hours)
            job = Job(place, node, force, extra=workspace.surroundings(home, place))
            ended: State[Any] = run_stage.with_options(task_run_name=stage)(job, return_state=True)
            if not ended.is_completed():
                return Failed(message=ended.message)
            dvc(place, "push", "--run-cache", stage, hours=node.hours)
    except PaserError as error:
        return Failed(message=str(error))
    found: dict[str, Any] = ended.result()
    return Completed(message=f"{found['state'].lower()} on {socket.gethostname()}", data=found)


def clean_commit(project: Path) -> str:
    """The commit of the project's repository; raises `FlowError` when files differ from it."""
    carried = [f"{_inside(project)}{name}" for name in CARRIED]
    changed = [
        line
        for line in _git(project, "status", "--porcelain", "-z", "--untracked-files=normal").split("\0")
        if line and line[3:] not in carried
    ]
    if changed:
        raise FlowError(
            f"{project} differs from its commit, so another machine cannot run the same: "
            f"{', '.join(line.strip() for line in changed[:5])}",
            remedy="commit and push the changes, or run without gpu_deployment",
        )
    return _git(project, "rev-parse", "HEAD").strip()


def checkout(home: Path, commit: str, stage: str) -> Path:
    """The project in a checkout of `commit` for `stage` below `.paser/checkouts`, made where missing."""
    folder = home / ".paser" / "checkouts" / f"{commit[:12]}-{stage}"
    if not _has(home, commit):
        _git(home, "fetch", "--quiet", "--all")
    if not _has(home, commit):
        raise FlowError(
            f"{home} does not know commit {commit}", remedy="push it to where this clone fetches from"
        )
    if not (folder / ".git").exists():
        _git(home, "worktree", "prune")
        _git(home, "worktree", "add", "--quiet", "--force", "--detach", str(folder), commit)
    return folder / _inside(home)


def dvc(project: Path, *words: str, hours: float) -> None:
    """A DVC command that moves data; raises `FlowError` with its last lines."""
    log = get_run_logger()
    full = command.dvc("--wait-for-lock", *words)
    ended = command.run(full, project, hours=hours, on_line=log.info)
    if ended.timed_out or ended.code:
        why = f"took longer than {hours:g} hours" if ended.timed_out else f"failed:\n{ended.said}"
        raise FlowError(
            f"dvc {' '.join(words)} in {project} {why}",
            remedy="check that the DVC remote can be reached from here, then run the flow again",
        )


def _prepare(home: Path, place: Path, commit: str, settings: str, lock: dict[str, Any]) -> None:
    import yaml

    _git(place, "reset", "--quiet", "--hard", commit)
    _git(place, "clean", "--quiet", "-fd", ":/")
    (place / "params.yaml").write_text(settings, encoding="utf-8")
    content = yaml.safe_dump({"schema": "2.0", "stages": lock}, sort_keys=False)
    (place / "dvc.lock").write_text(content, encoding="utf-8")
    workspace.share_cache(home, place)


def _restore(job: Job, state: str, message: str) -> tuple[str, str]:
    dvc(job.project, "repro", "-s", "--pull", job.node.name, hours=job.node.hours)
    return state, message


def _cancel(run: FlowRun) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Cancelling(message="its caller waited long enough"), force=True)


def _inside(project: Path) -> str:
    """The project's path in its repository, with a slash behind it; empty where it is the repository."""
    return _git(project, "rev-parse", "--show-prefix").removesuffix("\n")


def _has(home: Path, commit: str) -> bool:
    known = subprocess.run(
        ["git", "-C", str(home), "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True, check=False
    )
    return known.returncode == 0


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FlowError(f"git {' '.join(words)} in {folder} failed: {done.stderr.strip()}")
    return done.stdout
