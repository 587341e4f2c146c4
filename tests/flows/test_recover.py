"""The flow and `dvc repro` share one truth; states say what happened; nothing outlives its flow."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import State

from flows import dvc_stage
from flows.locking import one_at_a_time
from flows.recover import recover
from paser.artifacts import read_json, sha256_file
from paser.lineage.catalogue import Catalogue
from tests import project as projects
from tests.flows.conftest import Make

pytestmark = pytest.mark.usefixtures("server")


def run(project: Path, **parameters: Any) -> State[Any]:
    given = {"wait_minutes": 1.0, "retry_seconds": 0.1, **parameters}
    return recover(project=str(project), **given, return_state=True)


def stages(state: State[Any]) -> dict[str, str]:
    assert state.is_completed(), state.message
    found: dict[str, str] = state.result()["stages"]
    return found


def not_cached(state: State[Any]) -> dict[str, str]:
    return {name: how for name, how in stages(state).items() if how != "Cached"}


def nothing_to_do(project: Path) -> bool:
    return "Data and pipelines are up to date" in projects.run(project, "dvc", "repro").stdout


def task_runs(state: State[Any]) -> dict[str, State[Any]]:
    """The states in the UI, by stage."""
    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        return {found.name: found.state for found in client.read_task_runs(flow_run_filter=chosen)}


def artifacts(state: State[Any]) -> dict[str, Any]:
    chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        return {found.key: found.data for found in client.read_artifacts(artifact_filter=chosen)}


def test_after_dvc_repro_a_flow_run_is_all_cached(done: Path) -> None:
    lock = sha256_file(done / "dvc.lock")
    for _ in range(2):
        state = run(done)
        assert set(stages(state).values()) == {"Cached"}
        assert {found.name for found in task_runs(state).values()} == {"Cached"}
    assert len(stages(state)) == 12
    assert sha256_file(done / "dvc.lock") == lock
    shown = artifacts(state)
    table = {line["stage"]: line for line in json.loads(shown["stages"])}
    record = read_json(done / "data/records/score.json")["outputs"][0]
    assert table["score"]["state"] == "Cached"
    assert f"scores.parquet {record['rows']}" in table["score"]["rows"]
    assert record["sha256"][:12] in table["score"]["sha256"]
    assert {line["capability"] for line in json.loads(shown["damage"])} == {"animals", "recipes", "sums"}
    assert sum(line["spent"] for line in json.loads(shown["budget"])) > 0
    assert (done / "data/report/index.html").as_uri() in shown["report"]


def test_after_a_flow_run_dvc_repro_does_nothing(done: Path) -> None:
    projects.write_settings(done, {**projects.SETTINGS, "report": {"map_rows": 100}})
    state = run(done)
    assert not_cached(state) == {"report": "Completed"}
    assert nothing_to_do(done)
    assert set(stages(run(done)).values()) == {"Cached"}
    facts = read_json(done / "data/records/report.run.json")
    assert facts["flow_run"] == str(state.state_details.flow_run_id)


def test_a_flow_run_ends_in_the_catalogue_and_events_of_its_stages_name_it(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "file")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__LOG_FILE_PATH", str(tmp_path / "events.json"))
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__APPEND", "true")
    assert Catalogue.of(done).models() == []
    projects.write_settings(done, {**projects.SETTINGS, "report": {"map_rows": 100}})
    state = run(done)
    assert not_cached(state) == {"report": "Completed"}
    (model,) = Catalogue.of(done).models()
    assert model.id == sha256_file(done / "data/audit/entry.json")
    events = [json.loads(line) for line in (tmp_path / "events.json").read_text("utf-8").splitlines()]
    assert [event["job"]["name"] for event in events] == ["paser.report"] * 2
    for event in events:
        parent = event["run"]["facets"]["parent"]
        assert parent["job"]["name"] == "recover"
        assert parent["run"]["runId"] == str(state.state_details.flow_run_id)


def test_an_altered_entry_fails_no_flow_and_stays_out_of_the_catalogue(done: Path) -> None:
    """DVC brings back what it knows, so only an entry that it was told to accept comes this far."""
    path = done / "data/audit/metrics.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b" ")
    projects.run(done, "dvc", "commit", "-f", "audit")
    state = run(done, targets=["audit"])
    assert set(stages(state).values()) == {"Cached"}
    assert Catalogue.of(done).models() == []


@pytest.mark.parametrize("how", ["deleted", "altered"])
def test_a_lost_output_brings_back_exactly_its_stage(done: Path, tmp_path: Path, how: str) -> None:
    """As with `dvc repro`: the bytes come back the same, so that stages after it have nothing to do."""
    path = done / "data/budget.json"
    before = sha256_file(path)
    path.unlink() if how == "deleted" else path.write_bytes(path.read_bytes() + b" ")
    by_dvc = Path(shutil.copytree(done, tmp_path / "by-dvc"))
    assert not_cached(run(done)) == {"select": "Restored"}
    assert sha256_file(path) == before
    assert nothing_to_do(done)
    printed = projects.run(by_dvc, "dvc", "repro").stdout
    assert printed.count("skipping run, checking out outputs") == 1
    assert "Stage 'select' is cached" in printed


def test_an_output_that_dvc_has_no_copy_of_is_computed_again(done: Path) -> None:
    digest = dvc_stage.look(done, "report").digests["data/report"]
    (done / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()
    (done / "data/report/index.html").unlink()
    assert not_cached(run(done)) == {"report": "Completed"}
    assert (done / "data/report/index.html").exists()


def test_a_change_runs_the_stages_it_reaches_and_no_others(toy: Make) -> None:
    folder = toy(
        a={"cmd": "cp source.txt a.txt", "deps": ["source.txt"], "outs": ["a.txt"]},
        b={"cmd": "cp a.txt b.txt", "deps": ["a.txt"], "outs": ["b.txt"]},
        c={"cmd": "cp other.txt c.txt", "deps": ["other.txt"], "outs": ["c.txt"]},
    )
    assert set(not_cached(run(folder))) == {"a", "b", "c"}
    assert nothing_to_do(folder)
    (folder / "source.txt").write_text("changed\n")
    assert set(not_cached(run(folder))) == {"a", "b"}
    assert (folder / "b.txt").read_text() == "changed\n"
    assert nothing_to_do(folder)
    assert set(not_cached(run(folder, targets=["b"], force=True))) == {"b"}


def test_a_failed_stage_says_what_the_stage_said(done: Path) -> None:
    with (done / "data/withdrawn.csv").open("a", encoding="utf-8") as stream:
        stream.write("rwo,r1-0,typing error,2026-01-01\n")
    state = run(done)
    assert state.is_failed()
    found = task_runs(state)
    assert found["fetch"].name == "Cached"
    assert found["pool"].name == "Failed"
    message = found["pool"].message or ""
    assert "withdrawn.csv" in message
    assert "remedy" in message
    assert "rwo" in message
    assert "failed to reproduce" not in message
    assert "not run: prune" in (state.message or "")
    assert json.loads(artifacts(state)["stages"])[2]["state"] == "Not run"


def test_a_run_with_overrides_leaves_the_project_alone(done: Path) -> None:
    files = ["dvc.lock", "params.yaml", "data/clusters.json", "data/records/cluster.run.json"]
    before = [sha256_file(done / name) for name in files]
    changes = {"targets": ["cluster"], "overrides": {"cluster.k": 2}}
    state = run(done, **changes)
    assert stages(state) == {
        "fetch": "Restored", "pool": "Restored", "embed": "Restored", "cluster": "Completed",
    }  # fmt: skip
    place = Path(state.result()["project"])
    assert place.is_relative_to(done / ".paser/workspaces")
    assert len(read_json(place / "data/clusters.json")["clusters"]) == 2
    assert len(read_json(done / "data/clusters.json")["clusters"]) == 3
    assert [sha256_file(done / name) for name in files] == before
    assert set(stages(run(done, **changes)).values()) == {"Cached"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [({"select.budgets": "9%"}, "budgets"), ({"select.budget": "900%"}, "'900%' is not a share")],
)
def test_a_wrong_override_is_refused_before_anything_runs(
    done: Path, overrides: dict[str, Any], said: str
) -> None:
    state = run(done, overrides=overrides)
    assert state.is_failed()
    assert said in (state.message or "")
    assert task_runs(state) == {}


def test_a_second_run_with_the_same_overrides_leaves_the_workspace_alone_while_the_first_works(
    toy: Make,
) -> None:
    folder = toy(a={"cmd": "cp source.txt a.txt", "deps": ["source.txt"], "outs": ["a.txt"]})
    overrides = {"seed": 2}
    place = Path(run(folder, overrides=overrides).result()["project"])
    (folder / "source.txt").write_text("changed\n")
    (place / "params.yaml").write_text("seed: 3\n")
    with one_at_a_time(place, {"flow_run": "first", "name": "first"}, 0.0, say=print):
        state = run(folder, overrides=overrides, wait_minutes=0.0)
        assert "flow run first" in (state.message or "")
        assert (place / "source.txt").read_text() == "source\n"
        assert (place / "params.yaml").read_text() == "seed: 3\n"
    assert stages(run(folder, overrides=overrides)) == {"a": "Completed"}
    assert (place / "a.txt").read_text() == "changed\n"


SLOW = (
    "python -c \"import time; open('{0}.log', 'w').write(str(time.time())); time.sleep({1})\""
    " && touch {0}.txt"
)


def span(folder: Path, name: str) -> tuple[float, float]:
    return float((folder / f"{name}.log").read_text()), (folder / f"{name}.txt").stat().st_mtime


def test_independent_stages_run_at_the_same_time_but_gpu_stages_do_not(toy: Make) -> None:
    names = {"cpu": {}, "one": {"gpu": True}, "two": {"gpu": True}}
    folder = toy(
        **{
            name: {"cmd": SLOW.format(name, 3), "deps": ["source.txt"], "outs": [f"{name}.txt"], "meta": meta}
            for name, meta in names.items()
        }
    )
    assert set(not_cached(run(folder)).values()) == {"Completed"}
    cpu, *gpus = (span(folder, name) for name in names)
    assert any(cpu[0] < end and start < cpu[1] for start, end in gpus)
    (_, first_end), (second_start, _) = sorted(gpus)
    assert first_end <= second_start


def test_a_stage_past_its_time_limit_is_ended(toy: Make) -> None:
    folder = toy(a={"cmd": "sleep 600", "deps": ["source.txt"], "outs": ["a.txt"], "meta": {"hours": 0.001}})
    started = time.monotonic()
    state = run(folder)
    assert "a took longer than 0.001 hours" in (state.message or "")
    assert time.monotonic() - started < 60


def test_a_stage_that_may_be_retried_is(toy: Make) -> None:
    command = "test -e tried || (touch tried; echo no network; exit 1); cp source.txt a.txt"
    folder = toy(
        a={"cmd": f"bash -ec '{command}'", "deps": ["source.txt"], "outs": ["a.txt"], "meta": {"retries": 2}}
    )
    assert stages(run(folder)) == {"a": "Completed"}
    (folder / "tried").unlink()
    (folder / "a.txt").unlink()
    shutil.rmtree(folder / ".dvc/cache")
    (folder / "dvc.yaml").write_text((folder / "dvc.yaml").read_text().replace("retries: 2", "retries: 0"))
    assert "no network" in (run(folder).message or "")


FLOW = [sys.executable, "-m", "flows.recover"]


def start_flow(project: Path, server: str, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PREFECT_API_URL": server}
    return subprocess.Popen(
        [*FLOW, f"project={project}", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path: Path, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.1)


def test_two_flows_at_once_and_one_that_was_killed(toy: Make, server: str) -> None:
    """The second is told who holds the project; after `kill -9` the stage ends too, the run is marked, the
    lock is free, and the next run completes."""
    command = "bash -c 'echo $$ > pid; touch started; test -e go || sleep 300; cp source.txt a.txt'"
    folder = toy(a={"cmd": command, "deps": ["source.txt"], "outs": ["a.txt"]})
    first = start_flow(folder, server)
    wait_for(folder / "started")
    second = run(folder, wait_minutes=0.0)
    assert second.is_failed()
    assert f"process {first.pid} on" in (second.message or "")
    assert "one flow at a time" in (second.message or "")
    note = read_json(folder / ".paser/flow.json")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    pid = int((folder / "pid").read_text())
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the stage outlived its flow"
        time.sleep(0.1)
    (folder / "go").touch()
    assert stages(run(folder)) == {"a": "Completed"}
    with get_client(sync_client=True) as client:
        killed = client.read_flow_run(note["flow_run"])
    assert killed.state is not None
    assert killed.state.is_crashed()
    assert not (folder / ".paser/flow.json").exists()


def test_a_flow_waits_while_dvc_runs_the_same_stage(toy: Make) -> None:
    command = "bash -c 'touch started; sleep 5; cp source.txt a.txt'"
    folder = toy(a={"cmd": command, "deps": ["source.txt"], "outs": ["a.txt"]})
    by_hand = subprocess.Popen(["dvc", "repro"], cwd=folder, env=projects.ENVIRONMENT)
    wait_for(folder / "started")
    assert stages(run(folder)) == {"a": "Cached"}
    assert by_hand.wait() == 0


def test_progress_is_shown_while_a_stage_works(toy: Make) -> None:
    code = (
        "import time; from paser.progress import progress\n"
        "with progress('scoring', 4, 'rows') as advance:\n"
        "    for _ in range(4): time.sleep(1.2); advance()\n"
        "open('a.txt', 'w').write('done')\n"
    )
    folder = toy(a={"cmd": f"{sys.executable} work.py", "deps": ["work.py"], "outs": ["a.txt"]})
    (folder / "work.py").write_text(code)
    assert artifacts(run(folder))["progress-a"] >= 50.0
