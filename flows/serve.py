"""Server, work pools, workers and deployments of one machine: what `make serve` starts and `make stop` ends.

Each process that is started leaves a note with its id and start time; only what such a note describes is
ever ended. Logs, notes and the server's database lie in `.paser/prefect`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil

from flows.command import environment
from flows.errors import FlowError
from flows.project import VARIABLE, find_project
from paser.artifacts import read_json, write_json
from paser.errors import PaserError

POOLS = ("cpu", "gpu")
PORT, HOST = "PASER_PORT", "PASER_HOST"
HEARTBEAT_SECONDS = 30
SILENT_SECONDS = 90
START_SECONDS = 300.0
STOP_SECONDS = 20.0


def start(project: Path, pools: tuple[str, ...] = POOLS) -> None:
    """Starts what is not running yet, with a worker for each of `pools`, and prints the UI's address.

    `PASER_PORT` and `PASER_HOST` say where the server listens: on 127.0.0.1:4200 by default.

    Raises `FlowError` when the port belongs to someone else, the server that runs listens elsewhere, or it
    does not come up.
    """
    host, port = listens()
    where = ["--host", host, "--port", str(port)]
    extra = settings(project)
    os.environ.update(extra)
    folder = _folder(project)
    prefect = [sys.executable, "-m", "prefect"]
    if not _running(folder / "server.json"):
        if _answers(f"{extra['PREFECT_API_URL']}/health") or _taken(reached_at(host), port):
            raise FlowError(
                f"port {port} is taken by another program", remedy=f"end it, or set {PORT} to a free port"
            )
        print(f"starting the server (log: {folder / 'server.log'})", flush=True)
        _spawn(folder, "server", [*prefect, "server", "start", *where])
    elif (there := read_json(folder / "server.json")["command"][-len(where) :]) != where:
        raise FlowError(
            f"the server of {project} runs with {' '.join(there)}, not with {' '.join(where)}",
            remedy=f"`make stop` ends it; or set {HOST} and {PORT} as when it was started",
        )
    wait_for_api(extra["PREFECT_API_URL"], START_SECONDS, lambda: _running(folder / "server.json"))
    _furnish()
    _deploy(project)
    for pool in pools:
        if not _running(folder / f"worker-{pool}.json"):
            module = [sys.executable, "-m", "flows.serve", "worker", "--pool", pool]
            _spawn(folder, f"worker-{pool}", module)
    print(f"workers: {', '.join(pools)}; deployments: see prefect.yaml; `make stop` ends all of it")
    print(f"UI: {extra['PREFECT_API_URL'].removesuffix('/api')}", flush=True)


def stop(project: Path) -> None:
    """Ends what `start` started and nothing else; workers first, so that they can say goodbye."""
    folder = _folder(project)
    for name in (*(f"worker-{pool}" for pool in POOLS), "server"):
        note = folder / f"{name}.json"
        process = _process(note)
        if process is not None:
            _end(process)
            print(f"{name}: ended", flush=True)
        note.unlink(missing_ok=True)


def work(project: Path, pool: str) -> None:
    """Runs a worker of `pool` until it is told to stop; starts it again when it dies.

    A worker of Prefect gives up when the server is away for long, at its start at once. This one waits.
    """
    os.environ[VARIABLE] = str(project)
    url = os.environ.get("PREFECT_API_URL")
    if not url and (os.environ.get(HOST) or os.environ.get(PORT)):
        url = os.environ["PREFECT_API_URL"] = api_url()
    if not url:
        raise FlowError(
            "PREFECT_API_URL is not set",
            remedy="set it to the server's, such as http://HOST:4200/api; on the server's own machine "
            f"{PORT} or {HOST} will do",
        )
    name = f"{pool}-{socket.gethostname()}"
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", name]
    command += ["--type", "process", *(["--limit", "1"] if pool == "gpu" else [])]
    child: list[subprocess.Popen[bytes]] = []

    def end(*_: Any) -> None:
        for process in child:
            if process.poll() is None:
                process.terminate()
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    while True:
        wait_for_api(url, float("inf"))
        if pool == "gpu":
            from flows.gpu import ensure_limit

            ensure_limit()
        process = subprocess.Popen(command, env=environment(settings_of_worker()))
        child[:] = [process]
        print(f"the worker ended with exit code {process.wait()}; starting it again", flush=True)
        time.sleep(5.0)


def listens() -> tuple[str, int]:
    """Host and port of the server, from `PASER_HOST` and `PASER_PORT`."""
    port = os.environ.get(PORT) or "4200"
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise FlowError(f"{PORT} is {port!r}, which is no port", remedy="set it to a number, 1 .. 65535")
    return os.environ.get(HOST) or "127.0.0.1", int(port)


def reached_at(host: str) -> str:
    """Where this machine reaches a server that listens on `host`, which may mean all its addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def api_url() -> str:
    """The address of this machine's server."""
    host, port = listens()
    there = reached_at(host)
    return f"http://[{there}]:{port}/api" if ":" in there else f"http://{there}:{port}/api"


def settings(project: Path) -> dict[str, str]:
    """Environment of the server and of all that talks to it."""
    return {
        **settings_of_worker(),
        VARIABLE: str(project),
        "PREFECT_HOME": os.environ.get("PREFECT_HOME") or str(_folder(project)),
        "PREFECT_API_URL": api_url(),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # In memory, the default, a restart of the server would forget who holds a slot, for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }


def settings_of_worker() -> dict[str, str]:
    """Heartbeats by which the server notices that a run's process died; no telemetry."""
    return {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS), "DO_NOT_TRACK": "1"}


def wait_for_api(url: str, seconds: float, alive: Callable[[], bool] = lambda: True) -> None:
    """Waits until the API at `url` answers; `FlowError` after `seconds` or when `alive` says no."""
    deadline = time.monotonic() + seconds
    while not _answers(f"{url}/health"):
        if time.monotonic() > deadline or not alive():
            raise FlowError(f"no Prefect server answers at {url}", remedy="its log says why")
        time.sleep(1.0)


def _furnish() -> None:
    """Work pools, the limit of this host's GPUs, and the automation that ends runs without heartbeats."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.exceptions import ObjectNotFound

    from flows.gpu import ensure_limit

    with get_client(sync_client=True) as client:
        for pool in POOLS:
            try:
                client.read_work_pool(pool)
            except ObjectNotFound:
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        name = "runs whose process died"
        known = client.read_automations_by_name(name)
        if not known:
            ends = {f"prefect.flow-run.{word}" for word in ("Completed", "Failed", "Cancelled", "Crashed")}
            made = AutomationCore(
                name=name,
                description="A run that sends no more heartbeats is marked as crashed",
                trigger=EventTrigger.model_validate(
                    {
                        "after": {"prefect.flow-run.heartbeat"},
                        "expect": {"prefect.flow-run.heartbeat", *ends},
                        "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
                        "for_each": {"prefect.resource.id"},
                        "posture": Posture.Proactive,
                        "threshold": 1,
                        "within": timedelta(seconds=SILENT_SECONDS),
                    }
                ),
                actions=[
                    ChangeFlowRunState(
                        name="Crashed",
                        force=False,
                        state=StateType.CRASHED,
                        message=f"no heartbeat for {SILENT_SECONDS} s: its process died",
                    )
                ],
            )
            client.create_automation(made)
    ensure_limit()


def _deploy(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise FlowError(
            f"the deployments of {project / 'prefect.yaml'} were refused:\n{done.stdout}{done.stderr}"
        )


def _spawn(folder: Path, name: str, command: list[str]) -> None:
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = psutil.Process(process.pid).create_time()
    write_json(folder / f"{name}.json", {"pid": process.pid, "started": started, "command": command})


def _process(note: Path) -> psutil.Process | None:
    """The process that a note describes, if it still runs; an id that was given away again does not count."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        process = psutil.Process(found["pid"])
        same = abs(process.create_time() - found["started"]) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None


def _running(note: Path) -> bool:
    return _process(note) is not None


def _end(process: psutil.Process) -> None:
    """Ends a process and its children; what does not listen is killed."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        _send(member, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for member in alive:
        _send(member, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=STOP_SECONDS)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5.0).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _taken(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5.0):
        return True
    return False


def _folder(project: Path) -> Path:
    folder = project / ".paser" / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__)
    parser.add_argument("verb", choices=("start", "stop", "worker"))
    parser.add_argument("--project", help="folder of the project; by default this clone")
    parser.add_argument("--pools", default=",".join(POOLS), help="pools that get a worker here")
    parser.add_argument("--pool", choices=POOLS, default="gpu", help="work pool of the worker")
    given = parser.parse_args(words)
    project = find_project(given.project)
    if given.verb == "start":
        if unknown := set(given.pools.split(",")) - set(POOLS):
            raise FlowError(f"no pool is called {unknown.pop()!r}", remedy=f"one of {', '.join(POOLS)}")
        start(project, tuple(given.pools.split(",")))
    elif given.verb == "stop":
        stop(project)
    else:
        work(project, given.pool)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except PaserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
