"""A machine that serves, for tests: `flows.serve` with a server, a port and workers of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from paser.artifacts import read_json
from tests import project as projects


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], what: str, seconds: float = 240.0) -> Any:
    """Waits until `condition()` is true and returns its value."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.25)


@dataclass
class Machine:
    """A project with its own server; `extra` is environment for all it starts."""

    project: Path
    port: int
    pools: str
    extra: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        home = str(self.project / ".paser" / "prefect")
        own = {"PASER_PORT": str(self.port), "PREFECT_HOME": home, "PREFECT_API_URL": self.url}
        return projects.ENVIRONMENT | own | self.extra

    def serve(self, verb: str) -> str:
        words = [sys.executable, "-m", "flows.serve", verb, "--project", str(self.project)]
        done = subprocess.run(
            [*words, "--pools", self.pools], env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def post(self, path: str, **body: Any) -> Any:
        """A server whose database is busy answers 503, and is asked again, as Prefect's own clients do."""

        def asked() -> httpx.Response | None:
            answer = httpx.post(f"{self.url}{path}", json=body, timeout=60.0)
            return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

        answer = until(asked, f"an answer to {path}", 60.0)
        answer.raise_for_status()
        return answer.json()

    def start_run(self, deployment: str, **parameters: Any) -> str:
        """Starts a run of a deployment (`recover/on-demand`) and returns its id."""
        found = httpx.get(f"{self.url}/deployments/name/{deployment}", timeout=60.0).json()
        run = self.post(f"/deployments/{found['id']}/create_flow_run", parameters=parameters)
        return str(run["id"])

    def state(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/flow_runs/{run}", timeout=60.0).json()["state"]
        return found

    def ended(self, run: str, seconds: float = 400.0) -> dict[str, Any]:
        """The final state of a run."""
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        until(lambda: self.state(run)["type"] in final, f"run {run} to end", seconds)
        return self.state(run)

    def tasks(self, run: str) -> dict[str, str]:
        found = self.post("/task_runs/filter", flow_runs={"id": {"any_": [run]}})
        return {task["name"]: task["state"]["name"] for task in found}

    def pid(self, name: str) -> int:
        return int(read_json(self.project / f".paser/prefect/{name}.json")["pid"])

    def kill(self, name: str) -> None:
        """`kill -9` to a process that `flows.serve` started and to all below it but guarded stages, as when a
        machine loses its power; the stage must notice by itself."""
        top = psutil.Process(self.pid(name))
        for process in (top, *top.children(recursive=True)):
            words = process.cmdline()
            if any("flows.serve" in word or word in ("prefect", "prefect.engine", "prefect.flow_engine")
                   or "prefect" in Path(word).name for word in words):  # fmt: skip
                os.kill(process.pid, signal.SIGKILL)
        top.wait(30)
