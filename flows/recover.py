"""The flow `recover`: the stages of `dvc.yaml` in the graph's own order, independent ones at the same time.

`python -m flows.recover` runs it once on this machine, as the deployments of `prefect.yaml` do on a schedule.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture, wait
from prefect.logging import get_run_logger
from prefect.states import Completed, Crashed, Failed
from prefect.tasks import exponential_backoff

from flows import dvc_stage, shown, workspace
from flows.errors import FlowError
from flows.locking import one_at_a_time
from flows.project import find_project
from flows.stage_task import Job, run_stage
from paser.errors import PaserError

DONE = ("Cached", "Restored", "Completed")
USAGE = """\
usage: python -m flows.recover [KEY=VALUE ...]

Runs what is stale of the pipeline. Keys are the flow's parameters, values are YAML:

  targets=[score]                 stages to run with all they depend on; all by default
  force=true                      run the targets though they are fresh
  'overrides={select.budget: 20%, recover.distill.weight: 0.5}'
                                  other values for keys of params.yaml, in a workspace of their own
  gpu_deployment=stage/gpu        deployment that runs the GPU stages on another machine
  project=FOLDER                  by default PASER_PROJECT, or this clone
  wait_minutes=60                 how long to wait for another flow or DVC command
  retry_seconds=30                pause before the first retry of a stage"""


@flow(name="recover", result_serializer="json", persist_result=True)
def recover(
    targets: list[str] | None = None,
    force: bool = False,
    overrides: dict[str, Any] | None = None,
    gpu_deployment: str | None = None,
    project: str | None = None,
    wait_minutes: float = 60.0,
    retry_seconds: float = 30.0,
) -> State[dict[str, Any]]:
    """Runs what is stale of the pipeline, and shows what it did.

    Args:
        targets: stages to run with all they depend on; all stages by default.
        force: run the targets though they are fresh.
        overrides: other values for keys of params.yaml, such as `{"select.budget": "20%"}`. Such a run
            works in a workspace of its own below `.paser/workspaces`, and leaves the project as it is.
        gpu_deployment: deployment that runs the GPU stages on another machine, such as `stage/gpu`.
        project: folder of the project; by default `PASER_PROJECT`, or the clone this is installed from.
        wait_minutes: how long to wait for another flow or DVC command in the same project.
        retry_seconds: pause before the first retry of a stage; it doubles with each.
    """
    log = get_run_logger()
    try:
        home = find_project(project)
        place = workspace.workspace_of(home, overrides) if overrides else home
        extra = workspace.surroundings(home, place) if overrides else {}
        holder = {"flow_run": str(runtime.flow_run.id), "name": str(runtime.flow_run.name)}
        with one_at_a_time(place, holder, 60 * wait_minutes, say=log.info, on_dead=_mark_dead):
            if overrides:
                workspace.open_workspace(home, overrides)
            nodes = dvc_stage.with_upstream(dvc_stage.read_graph(place), targets or [])
            forced = {node.name for node in nodes if force and (not targets or node.name in targets)}
            futures: dict[str, PrefectFuture[Any]] = {}
            for node in nodes:
                job = Job(place, node, node.name in forced, 60 * wait_minutes, extra, gpu_deployment)
                stage_task: Any = run_stage.with_options(
                    task_run_name=node.name,
                    retries=node.retries,
                    retry_delay_seconds=exponential_backoff(retry_seconds) if node.retries else 0,
                )
                futures[node.name] = stage_task.submit(
                    job, wait_for=[futures[name] for name in node.upstream if name in futures]
                )
            wait(list(futures.values()))
            states = {name: _ended(future.state) for name, future in futures.items()}
            if states.get("audit", ("Not run",))[0] in DONE:
                _catalogue(home, place)
            lines = shown.stage_rows(place, {name: ended[:2] for name, ended in states.items()})
            shown.show(place, lines, f"{holder['name']} in {place}")
    except PaserError as error:
        return Failed(message=str(error))
    return _final(place, states)


Ended = tuple[str, float, dict[str, Any], str]


def _ended(state: State[Any]) -> Ended:
    """State, seconds, digests and message of a stage's task; a task that never ran is `Not run`."""
    if state.is_completed():
        found: dict[str, Any] = state.result()
        name = "Cached" if state.name == "Cached" else found["state"]
        seconds = 0.0 if name == "Cached" else found["seconds"]
        return name, seconds, found["digests"], state.message or ""
    if state.is_pending():
        return "Not run", 0.0, {}, "a stage before it failed"
    return state.name or "Failed", 0.0, {}, state.message or ""


def _catalogue(home: Path, place: Path) -> None:
    """Takes the audit entry into the project's catalogue, that of a workspace too; failing is only told of.

    An entry that disagrees with its own digests is for `paser audit verify`, not for this run.
    """
    from paser.lineage.catalogue import Catalogue, sync

    kept = Catalogue.of(home)
    try:
        done = sync(place, kept)
    except (PaserError, OSError) as error:
        get_run_logger().warning("data/audit was not taken into the catalogue: %s", error)
        return
    if done is not None and done[1]:
        get_run_logger().info("model %s taken into the catalogue %s", done[0][:12], kept.root)


def _final(place: Path, states: dict[str, Ended]) -> State[dict[str, Any]]:
    failed = {name: ended for name, ended in states.items() if ended[0] not in (*DONE, "Not run")}
    if failed:
        name, ended = next(iter(failed.items()))
        also = [other for other in failed if other != name]
        not_run = [other for other, found in states.items() if found[0] == "Not run"]
        text = ended[3]
        text += f"\nfailed as well: {', '.join(also)}" if also else ""
        text += f"\nnot run: {', '.join(not_run)}" if not_run else ""
        return Failed(message=text)
    counts = {word: sum(ended[0] == word for ended in states.values()) for word in DONE}
    return Completed(
        message=", ".join(f"{count} {word.lower()}" for word, count in counts.items() if count),
        data={
            "project": str(place),
            "stages": {name: ended[0] for name, ended in states.items()},
            "digests": {path: value for ended in states.values() for path, value in ended[2].items()},
        },
    )


def _mark_dead(note: dict[str, Any]) -> None:
    """Ends a run, and its tasks, whose process died: the project's lock proves that it is gone."""
    from uuid import UUID

    message = "its process died; found by the next flow that took the project's lock"
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(UUID(note["flow_run"]))
        except (ObjectNotFound, KeyError, ValueError):
            return
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        for found in client.read_task_runs(flow_run_filter=chosen):
            if found.state and not found.state.is_final():
                client.set_task_run_state(found.id, Crashed(message=message), force=True)
        if run.state and not run.state.is_final():
            client.set_flow_run_state(run.id, Crashed(message=message), force=True)


def main() -> None:
    """Runs the flow once; parameters as `key=value`, values in YAML: `targets=[score] force=true`."""
    words = sys.argv[1:]
    if "--help" in words or "-h" in words:
        print(USAGE)
        sys.exit(0)
    try:
        given = _given(words)
    except FlowError as error:
        sys.exit(f"error: {error}\n\n{USAGE}")
    state = recover(**given, return_state=True)
    print(f"{state.name}: {state.message}")
    sys.exit(0 if state.is_completed() else 1)


def _given(words: list[str]) -> dict[str, Any]:
    """The parameters in words `key=value`; raises `FlowError` for anything else."""
    from yaml import YAMLError

    from paser.settings import read_yaml

    given = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise FlowError(f"{word!r} is not `key=value`", remedy=f"write {word}=VALUE")
        if key not in recover.parameters.properties:
            known = ", ".join(recover.parameters.properties)
            raise FlowError(
                f"the flow has no parameter {key!r}",
                remedy=f"one of {known}; a key of params.yaml goes below one: 'overrides={{{key}: {value}}}'",
            )
        try:
            given[key] = read_yaml(value)
        except YAMLError as error:
            raise FlowError(f"{word!r} has no YAML after `=`: {error}", remedy="correct the value") from error
    return given


if __name__ == "__main__":
    main()
