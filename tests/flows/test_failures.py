"""Failure drills: each ends in a clear state, and the next run gives what an undisturbed one gives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from flows.recover import recover
from tests import project as projects
from tests.flows.conftest import Make
from tests.flows.serving import Machine, free_port, until
from tests.flows.test_dvc_stage import HOLD

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
LONGER = {**projects.SETTINGS, "recover": {"epochs": 12, "checkpoint_steps": 2, "learning_rate": 0.01}}


def digests(project: Path) -> dict[str, str]:
    """Digests that DVC recorded of every output but the run records, which have a clock."""
    entries = yaml.safe_load((project / "dvc.lock").read_text(encoding="utf-8"))["stages"].values()
    return {o["path"]: o["md5"] for e in entries for o in e["outs"] if not o["path"].endswith(".run.json")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, llama: Path, encoder: Path) -> Path:
    """A project whose `score` and `recover` take long enough to be hit, recovered without disturbance."""
    folder = projects.make_project(tmp_path_factory.mktemp("drill") / "p", llama, encoder, rows=3000)
    shutil.copy(ROOT / "prefect.yaml", folder)
    projects.write_settings(folder, LONGER)
    projects.run(folder, "dvc", "repro", "recover")
    return folder


def without(project: Path, copy: Path, stage: str) -> Path:
    """A copy in which `stage` and all after it have never run, and nothing of them is cached."""
    shutil.copytree(project, copy)
    lock = yaml.safe_load((copy / "dvc.lock").read_text(encoding="utf-8"))
    names = list(lock["stages"])
    for name in names[names.index(stage) :]:
        for out in lock["stages"].pop(name)["outs"]:
            path = copy / out["path"]
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (copy / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False), encoding="utf-8")
    shutil.rmtree(copy / ".dvc/cache/runs")
    shutil.rmtree(copy / ".paser/cache")
    return copy


def progress_of(folder: Path, title: str) -> bool:
    """Whether a stage that shows `title` has done a part of its work."""
    for path in folder.glob("paser-*/progress.json"):
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            continue
        if state["title"] == title and 0 < state["done"] < state["total"]:
            return True
    return False


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine with one CPU worker, for the project that the test puts in `project`."""
    (tmp_path / "tmp").mkdir()
    found = Machine(tmp_path / "project", free_port(), "cpu", {"TMPDIR": str(tmp_path / "tmp")})
    yield found
    if found.project.exists():
        found.serve("stop")


def stage_processes(project: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(project) and "stage" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(("stage", "title"), [("score", "score"), ("recover", "recovered")])
def test_a_worker_killed_in_the_middle_of_a_stage(
    undisturbed: Path, machine: Machine, tmp_path: Path, stage: str, title: str
) -> None:
    without(undisturbed, machine.project, stage)
    machine.serve("start")
    run = machine.start_run("recover/on-demand", targets=["recover"])
    until(lambda: progress_of(tmp_path / "tmp", title), f"{stage} to be under way", 600.0)
    machine.kill("worker-cpu")
    until(lambda: not stage_processes(machine.project), "the stage to end with its flow", 30.0)
    assert stage not in yaml.safe_load((machine.project / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    machine.serve("start")
    again = machine.start_run("recover/on-demand", targets=["recover"])
    state = machine.ended(again, 1200.0)
    assert state["type"] == "COMPLETED", state["message"]
    killed = machine.state(run)
    assert killed["type"] == "CRASHED"
    assert "died" in killed["message"]
    assert digests(machine.project) == digests(undisturbed)


def test_a_dead_run_gives_back_what_it_held(toy: Make, machine: Machine) -> None:
    """Without another run in its project, the server notices by itself: no heartbeat, no lease."""
    stage = {"cmd": "sleep 300", "deps": ["source.txt"], "outs": ["a.txt"], "meta": {"gpu": True}}
    toy(a=stage).rename(machine.project)
    shutil.copy(ROOT / "prefect.yaml", machine.project)
    machine.serve("start")
    run = machine.start_run("recover/on-demand")
    name = f"gpu-{os.uname().nodename}"

    def held() -> int:
        limits = machine.post("/v2/concurrency_limits/filter")
        return sum(limit["active_slots"] for limit in limits if limit["name"] == name)

    until(lambda: held() == 1, "the stage to hold the GPU")
    machine.kill("worker-cpu")
    until(lambda: held() == 0, "the slot to be free", 240.0)
    until(lambda: machine.state(run)["type"] == "CRASHED", "the run to be marked", 400.0)
    assert "heartbeat" in machine.state(run)["message"]


def test_a_server_that_is_restarted(toy: Make, machine: Machine) -> None:
    """The stage goes on meanwhile, and the run ends as if nothing had been."""
    copy = {"deps": ["source.txt"], "meta": {"gpu": True}}
    command = "bash -c 'touch started; while ! test -e go; do sleep 1; done; cp source.txt a.txt'"
    toy(a={**copy, "cmd": command, "outs": ["a.txt"]}).rename(machine.project)
    shutil.copy(ROOT / "prefect.yaml", machine.project)
    machine.serve("start")
    run = machine.start_run("recover/on-demand")
    until(lambda: (machine.project / "started").exists(), "the stage to start")
    os.kill(machine.pid("server"), signal.SIGKILL)
    time.sleep(10)
    machine.serve("start")
    (machine.project / "go").touch()
    state = machine.ended(run)
    assert state["type"] == "COMPLETED", state["message"]
    assert machine.tasks(run) == {"a": "Completed"}
    again = machine.start_run("recover/on-demand")
    assert machine.ended(again)["type"] == "COMPLETED"
    assert machine.tasks(again) == {"a": "Cached"}


def test_two_runs_of_a_deployment_at_once_queue_up(toy: Make, machine: Machine) -> None:
    stage = {"cmd": "bash -c 'sleep 8; cp source.txt a.txt'", "deps": ["source.txt"], "outs": ["a.txt"]}
    toy(a=stage).rename(machine.project)
    shutil.copy(ROOT / "prefect.yaml", machine.project)
    machine.serve("start")
    runs = [machine.start_run("recover/on-demand") for _ in range(2)]
    states = [machine.ended(run) for run in runs]
    assert [state["type"] for state in states] == ["COMPLETED", "COMPLETED"]
    assert sorted(machine.tasks(run)["a"] for run in runs) == ["Cached", "Completed"]
    histories = [httpx.get(f"{machine.url}/flow_run_states/?flow_run_id={run}").json() for run in runs]
    assert "AwaitingConcurrencySlot" in {state["name"] for history in histories for state in history}


@pytest.mark.usefixtures("server")
def test_a_dvc_repository_that_someone_else_locked(done: Path) -> None:
    before = digests(done)
    (done / "data/report/index.html").unlink()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(done / ".dvc/tmp/lock"), "600"], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        state: Any = recover(project=str(done), wait_minutes=0.05, return_state=True)
        holder.kill()
    assert state.is_failed()
    assert "another DVC command" in state.message
    assert recover(project=str(done), return_state=True).is_completed()
    assert digests(done) == before


@pytest.mark.usefixtures("server")
def test_a_full_disk(undisturbed: Path, tmp_path: Path) -> None:
    """The project lies on a small disk of its own, which is enlarged for the second run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    source = without(undisturbed, tmp_path / "source", "recover")
    used = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={2 * used}", "none", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("a disk can be mounted by root only")
    try:
        project = Path(shutil.copytree(source, disk / "p"))
        free = shutil.disk_usage(disk).free
        (disk / "ballast").write_bytes(b"\0" * (free - 65536))
        state: Any = recover(project=str(project), targets=["recover"], return_state=True)
        assert state.is_failed()
        assert "no space left" in state.message.lower()
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", f"remount,size={20 * used}", str(disk)], check=True)
        state = recover(project=str(project), targets=["recover"], return_state=True)
        assert state.is_completed(), state.message
        assert digests(project) == digests(undisturbed)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
