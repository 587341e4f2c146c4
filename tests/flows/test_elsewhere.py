"""Stages on another machine: what is refused, and two clones that share nothing but a DVC remote."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect.client.schemas.objects import State

from flows import dvc_stage
from flows.elsewhere import checkout, clean_commit, stage
from flows.errors import FlowError
from flows.recover import recover
from paser.artifacts import read_json
from tests import project as projects
from tests.flows.conftest import Make
from tests.flows.serving import Machine, free_port

ROOT = Path(__file__).parent.parent.parent
GPU = ("prune", "embed", "score", "recover", "control", "evaluate")
STAGE = {"cmd": "cp source.txt a.txt", "deps": ["source.txt"], "outs": ["a.txt"], "meta": {"gpu": True}}


def commit(folder: Path) -> None:
    who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    projects.run(folder, "git", "add", "-A")
    projects.run(folder, "git", *who, "commit", "-q", "-m", "all")


def elsewhere(folder: Path) -> State[object]:
    return recover(project=str(folder), gpu_deployment="stage/gpu", retry_seconds=0.1, return_state=True)


@pytest.mark.usefixtures("server")
def test_a_caller_without_remote_or_with_changes_is_refused_with_the_reason(
    toy: Make, tmp_path: Path
) -> None:
    folder = toy(a=STAGE)
    (folder / ".gitignore").write_text("/a.txt\n.paser/\n")
    commit(folder)
    assert "no DVC remote" in (elsewhere(folder).message or "")
    projects.run(folder, "dvc", "remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
    message = elsewhere(folder).message or ""
    assert "differs from its commit" in message
    assert ".dvc/config" in message
    assert "commit and push" in message


@pytest.mark.usefixtures("server")
def test_a_remote_that_cannot_be_reached_is_a_clear_failure(toy: Make, tmp_path: Path) -> None:
    """And the same run without it, or with the remote back, completes."""
    first = {"cmd": "cp source.txt b.txt", "deps": ["source.txt"], "outs": ["b.txt"]}
    second = {**STAGE, "deps": ["b.txt"], "cmd": "cp b.txt a.txt"}
    folder = toy(b=first, a=second)
    (folder / ".gitignore").write_text("/a.txt\n/b.txt\n.paser/\n")
    (tmp_path / "file").write_text("no folder")
    projects.run(folder, "dvc", "remote", "add", "-q", "-d", "store", str(tmp_path / "file" / "store"))
    commit(folder)
    state = elsewhere(folder)
    assert state.is_failed()
    assert "dvc push b.txt" in (state.message or "")
    assert "remote can be reached" in (state.message or "")
    assert recover(project=str(folder), return_state=True).is_completed()


def test_a_project_in_a_folder_of_a_repository_is_checked_and_checked_out_there(tmp_path: Path) -> None:
    project = tmp_path / "repo/der Plan/p"
    project.mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml", "dvc.lock", "../params.yaml"):
        (project / name).write_text("{}\n")
    (project / ".gitignore").write_text(".paser/\n")
    projects.run(tmp_path / "repo", "git", "init", "-q")
    commit(tmp_path / "repo")
    for name in ("params.yaml", "dvc.lock"):
        (project / name).write_text("seed: 2\n")
    found = clean_commit(project)
    place = checkout(project, found, "score")
    assert place.is_relative_to(project / ".paser/checkouts")
    assert (place / "params.yaml").read_text() == "{}\n"
    assert (place / "dvc.yaml").exists()
    assert checkout(project, found, "score") == place
    (project / "../params.yaml").write_text("of something else\n")
    with pytest.raises(FlowError, match=r"differs from its commit[\s\S]*der Plan/params\.yaml"):
        clean_commit(project)


@pytest.mark.usefixtures("server")
def test_a_worker_runs_a_stage_of_a_project_in_a_folder_of_a_repository(toy: Make, tmp_path: Path) -> None:
    top = tmp_path / "repo"
    top.mkdir()
    project = toy(a=STAGE).rename(top / "p")
    shutil.rmtree(project / ".git")
    shutil.rmtree(project / ".dvc")
    projects.run(top, "git", "init", "-q")
    projects.run(project, "dvc", "init", "-q", "--subdir")
    projects.run(project, "dvc", "remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
    (project / ".gitignore").write_text("/a.txt\n.paser/\n")
    commit(top)
    found = clean_commit(project)
    state = stage("a", found, "seed: 2\n", {}, project=str(project), return_state=True)
    assert state.is_completed(), state.message
    (place,) = (project / ".paser/checkouts").iterdir()
    assert (place / "p/a.txt").read_text() == "source\n"
    assert (place / "p/params.yaml").read_text() == "seed: 2\n"
    assert not (project / "a.txt").exists()
    assert dvc_stage.remote_result(project, "a")


@pytest.fixture
def machines(
    tmp_path: Path, llama: Path, encoder: Path
) -> Iterator[tuple[Machine, Path, subprocess.Popen[bytes]]]:
    """A caller that serves and has no GPU worker, and a worker's clone; one git origin, one DVC remote."""
    first = projects.make_project(tmp_path / "first", llama, encoder)
    shutil.copy(ROOT / "prefect.yaml", first)
    projects.run(first, "dvc", "remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
    commit(first)
    origin = tmp_path / "origin.git"
    projects.run(tmp_path, "git", "clone", "-q", "--bare", str(first), str(origin))
    for name in ("caller", "worker"):
        projects.run(tmp_path, "git", "clone", "-q", str(origin), name)
    machine = Machine(tmp_path / "caller", free_port(), "cpu", {})
    machine.serve("start")
    clone = tmp_path / "worker"
    there = machine.environment | {"PREFECT_HOME": str(tmp_path / "worker-home"), "PASER_PROJECT": str(clone)}
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "flows.serve", "worker", "--pool", "gpu", "--project", str(clone)],
            env=there,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    yield machine, clone, worker
    worker.terminate()
    worker.wait(60)
    machine.serve("stop")


def outputs(project: Path) -> dict[str, str]:
    """Digests that DVC recorded of every output but the run records, which have a clock, and the report,
    which shows it."""
    stages = yaml.safe_load((project / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    outs = [out for name, entry in stages.items() if name != "report" for out in entry["outs"]]
    return {out["path"]: out["md5"] for out in outs if not out["path"].endswith(".run.json")}


@pytest.mark.slow
def test_two_clones_with_one_remote_give_what_one_machine_gives(
    machines: tuple[Machine, Path, subprocess.Popen[bytes]], finished: Path
) -> None:
    machine, clone, worker = machines
    run = machine.start_run("recover/gpu-elsewhere")
    state = machine.ended(run, 2400.0)
    assert state["type"] == "COMPLETED", state["message"]
    found = machine.tasks(run)
    assert {found[name] for name in GPU} == {"Completed"}
    stages = machine.post("/flow_runs/filter", flows={"name": {"any_": ["stage"]}})
    assert {entry["parameters"]["stage"] for entry in stages} == set(GPU)
    for name in GPU:
        facts = read_json(machine.project / f"data/records/{name}.run.json")
        assert facts["flow_run"] in {entry["id"] for entry in stages}
        assert facts["worker"].startswith("gpu-")
    assert (clone / ".paser/checkouts").is_dir()
    assert outputs(machine.project) == outputs(finished)
    assert "up to date" in projects.run(machine.project, "dvc", "repro").stdout
    again = machine.start_run("recover/gpu-elsewhere")
    assert machine.ended(again)["type"] == "COMPLETED"
    assert set(machine.tasks(again).values()) == {"Cached"}
    assert worker.poll() is None
    assert (clone / ".dvc/cache").is_dir()
