"""What Prefect costs: a run of twelve fresh stages, and the overhead of a stage that runs.

On a running server and a project whose stages are one `cat` each, so that what is timed is the flow and DVC.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.data import ROOT
from flows.command import environment
from paser.stages.graph import STAGES

REPEATS = 5
FRESH_TARGET, OVERHEAD_TARGET = 6.0, 2.0


def run() -> dict[str, Any]:
    """Seconds of whole processes (`python -m flows.recover`, `dvc repro -s`), medians of `REPEATS`."""
    with tempfile.TemporaryDirectory(prefix="paser-bench-") as name:
        folder = Path(name)
        project = _project(folder / "project")
        os.environ["PREFECT_HOME"] = str(folder / "prefect")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        from flows.serve import settings, wait_for_api

        extra = settings(project, port)
        command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, env=environment(extra), stdout=log, stderr=log)
            try:
                wait_for_api(extra["PREFECT_API_URL"], 120.0, lambda: server.poll() is None)
                return _measure(project, extra)
            finally:
                server.terminate()
                server.wait(30)


def _measure(project: Path, extra: dict[str, str]) -> dict[str, Any]:
    flow = [sys.executable, "-m", "flows.recover", f"project={project}"]
    names = list(STAGES)
    last = names[-1]

    def stale() -> None:
        shutil.rmtree(project / ".dvc/cache/runs", ignore_errors=True)
        with (project / "last.txt").open("a", encoding="utf-8") as stream:
            stream.write("changed\n")

    _seconds(flow, project, extra)
    fresh, ran, by_dvc = [], [], []
    for _ in range(REPEATS):
        fresh.append(_seconds(flow, project, extra))
        ran.append(_seconds(flow, project, extra, before=stale))
        repro = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "-s", last]
        by_dvc.append(_seconds(repro, project, extra, before=stale))
    return {
        "stages": len(names),
        "fresh": fresh,
        "one_stale": ran,
        "dvc": by_dvc,
        "overhead": [a - b - c for a, b, c in zip(ran, fresh, by_dvc, strict=True)],
    }


def _seconds(
    command: list[str], project: Path, extra: dict[str, str], before: Callable[[], None] | None = None
) -> float:
    if before is not None:
        before()
    start = time.perf_counter()
    subprocess.run(command, cwd=project, env=environment(extra), capture_output=True, check=True)
    return time.perf_counter() - start


def _project(folder: Path) -> Path:
    """Stages with the names, arrows and code of the real ones; the last also reads `last.txt`."""
    shutil.copytree(ROOT / "paser", folder / "paser", ignore=shutil.ignore_patterns("__pycache__"))
    writes = {path: spec.name for spec in STAGES.values() for path in (*spec.outputs, spec.record)}
    lines = ["stages:"]
    for spec in STAGES.values():
        deps = sorted(
            {f"{writes[path]}.txt" for path in spec.inputs if path in writes} - {f"{spec.name}.txt"}
        )
        deps = deps or ["first.txt"]
        if spec.name == list(STAGES)[-1]:
            deps.append("last.txt")
        lines += [f"  {spec.name}:", f"    cmd: cat {' '.join(deps)} > {spec.name}.txt", "    deps:"]
        lines += [f"      - {dep}" for dep in (*deps, *spec.all_code)]
        lines += ["    outs:", f"      - {spec.name}.txt"]
    (folder / "dvc.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in ("first.txt", "last.txt"):
        (folder / name).write_text(f"{name}\n", encoding="utf-8")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, env=environment(), check=True)
    return folder


def render(result: dict[str, Any]) -> str:
    fresh, overhead = median(result["fresh"]), median(result["overhead"])

    def row(words: str, value: float, target: float) -> str:
        verdict = "met" if value <= target else "missed"
        return f"| {words} | {value:.1f} s | at most {target:.0f} s | {verdict} |"

    return "\n".join(
        [
            "## Flows",
            "",
            f"Whole processes on a running server, medians of {len(result['fresh'])} rounds: "
            f"`python -m flows.recover` with {result['stages']} fresh stages; and with one stale stage "
            f"({median(result['one_stale']):.1f} s), less that and less `dvc repro -s` by itself "
            f"({median(result['dvc']):.1f} s). The stages have the names, arrows and code dependencies of "
            "the real ones and copy a file each.",
            "",
            "| | measured | target | |",
            "|---|---|---|---|",
            row(f"{result['stages']} fresh stages", fresh, FRESH_TARGET),
            row("overhead of a stage that runs", overhead, OVERHEAD_TARGET),
        ]
    )
