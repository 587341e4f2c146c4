"""`make serve` brings up one machine, its schedule fires, and `make stop` ends exactly that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import httpx
import psutil
import pytest
import yaml

from flows import serve
from flows.errors import FlowError
from flows.serve import _process
from paser.artifacts import write_json
from tests.flows.conftest import Make
from tests.flows.serving import Machine, free_port, until

ROOT = Path(__file__).parent.parent.parent
COPY = {"cmd": "cp source.txt a.txt", "deps": ["source.txt"], "outs": ["a.txt"]}


@pytest.fixture
def machine(toy: Make) -> Iterator[Machine]:
    folder = toy(a=COPY)
    text = (ROOT / "prefect.yaml").read_text(encoding="utf-8")
    (folder / "prefect.yaml").write_text(text.replace('"0 2 * * *"', '"* * * * *"'), encoding="utf-8")
    found = Machine(folder, free_port(), "cpu", {})
    yield found
    found.serve("stop")


def test_deployments_have_a_schedule_pools_limits_and_queue() -> None:
    found = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    by_name = {entry["name"]: entry for entry in found}
    assert by_name["nightly"]["schedules"][0]["cron"]
    assert {entry["work_pool"]["name"] for entry in found} == {"cpu", "gpu"}
    for name in ("nightly", "on-demand", "gpu-elsewhere", "grid"):
        assert by_name[name]["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}


def test_a_note_of_a_process_that_is_gone_ends_nobody(tmp_path: Path) -> None:
    """The id of a process that ended may belong to someone else by now."""
    with subprocess.Popen(["sleep", "60"]) as other:
        started = psutil.Process(other.pid).create_time()
        write_json(tmp_path / "n.json", {"pid": other.pid, "started": started - 100})
        assert _process(tmp_path / "n.json") is None
        write_json(tmp_path / "n.json", {"pid": other.pid, "started": started})
        assert _process(tmp_path / "n.json") is not None
        other.kill()
    assert _process(tmp_path / "n.json") is None
    assert _process(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        (None, None, "http://127.0.0.1:4200/api"),
        ("0.0.0.0", "4300", "http://127.0.0.1:4300/api"),
        ("10.0.0.7", "4300", "http://10.0.0.7:4300/api"),
        ("::", None, "http://[::1]:4200/api"),
        ("fd00::7", None, "http://[fd00::7]:4200/api"),
    ],
)
def test_everything_talks_to_the_server_where_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str | None, port: str | None, url: str
) -> None:
    for name, value in {"PASER_HOST": host, "PASER_PORT": port}.items():
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    assert serve.settings(tmp_path)["PREFECT_API_URL"] == url


def test_a_worker_by_hand_finds_the_server_of_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(url: str, *_: object) -> None:
        raise FlowError(f"waits for {url}")

    monkeypatch.setattr(serve, "wait_for_api", stops)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    plain = {k: v for k, v in os.environ.items() if k not in ("PREFECT_API_URL", "PASER_HOST", "PASER_PORT")}
    for given, said in (
        ({}, "PREFECT_API_URL is not set"),
        ({"PASER_PORT": "4300"}, r"waits for http://127\.0\.0\.1:4300/api"),
        ({"PASER_PORT": "4300", "PREFECT_API_URL": "http://there/api"}, "waits for http://there/api"),
    ):
        with mock.patch.dict(os.environ, plain | given, clear=True), pytest.raises(FlowError, match=said):
            serve.work(tmp_path, "cpu")


def test_a_port_that_is_none_and_a_server_that_listens_elsewhere_are_named(tmp_path: Path) -> None:
    with mock.patch.dict(os.environ, {"PASER_PORT": "http"}), pytest.raises(FlowError, match="is 'http'"):
        serve.start(tmp_path)
    note = tmp_path / ".paser/prefect/server.json"
    where = ["--host", "127.0.0.1", "--port", "4200"]
    started = psutil.Process().create_time()
    write_json(note, {"pid": os.getpid(), "started": started, "command": ["prefect", *where]})
    with (
        mock.patch.dict(os.environ, {"PASER_HOST": "127.0.0.1", "PASER_PORT": "4201"}),
        pytest.raises(FlowError, match=r"with --host 127\.0\.0\.1 --port 4200, not with .* --port 4201"),
    ):
        serve.start(tmp_path)


@pytest.mark.slow
def test_a_schedule_fires_and_stop_ends_exactly_what_was_started(machine: Machine) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        printed = machine.serve("start")
        assert f"UI: http://127.0.0.1:{machine.port}" in printed
        pids = [machine.pid("server"), machine.pid("worker-cpu")]
        assert "starting the server" not in machine.serve("start")
        assert [machine.pid("server"), machine.pid("worker-cpu")] == pids

        def scheduled() -> list[str]:
            runs = machine.post("/flow_runs/filter", sort="EXPECTED_START_TIME_ASC")
            return [r["id"] for r in runs if r["auto_scheduled"] and r["state"]["type"] == "COMPLETED"]

        run = until(scheduled, "a scheduled run to complete", 300.0)[0]
        assert machine.tasks(run) == {"a": "Completed"}
        assert (machine.project / "a.txt").exists()
        family = [p for pid in pids for p in psutil.Process(pid).children(recursive=True)]
        assert "server: ended" in machine.serve("stop")
        assert not [pid for pid in pids if psutil.pid_exists(pid)]
        assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert other.poll() is None
        other.kill()
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{machine.url}/health", timeout=5.0)
