"""`make serve` brings up one machine, its schedule fires, and `make stop` ends exactly that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

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
