"""Generated programs: what they compute counts, and what hostile ones try does not succeed."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paser.errors import PaserError
from paser.evaluation import sandbox
from paser.evaluation.sandbox import Limits, run_program

try:
    sandbox.require_sandbox()
    WHY = ""
except PaserError as error:
    WHY = str(error.problem)
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY or "there is a sandbox")


def test_a_right_program_passes_and_a_wrong_one_says_why() -> None:
    assert run_program("def add(a, b):\n    return a + b\nassert add(2, 3) == 5\nprint('hello')").passed
    wrong = run_program("assert 1 == 2, 'one is not two'")
    assert not wrong.passed
    assert wrong.detail == "AssertionError: one is not two"
    assert "SyntaxError" in run_program("def f(:").detail


def test_it_may_write_into_its_own_folder() -> None:
    assert run_program("open('a.txt', 'w').write('x')\nassert open('a.txt').read() == 'x'").passed


@pytest.mark.parametrize("leave", ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit"])
def test_leaving_early_is_not_passing(leave: str) -> None:
    assert not run_program(f"{leave}\nassert False").passed


IGNORE = """import signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGXCPU):
    signal.signal(number, signal.SIG_IGN)
while True: pass"""


@pytest.mark.parametrize("loop", ["while True: pass", "import time\ntime.sleep(60)", IGNORE])
def test_an_endless_program_is_stopped(loop: str) -> None:
    before = time.monotonic()
    assert not run_program(loop, Limits(seconds=2)).passed
    assert time.monotonic() - before < 6


def test_a_memory_bomb_gets_no_more_than_its_limit() -> None:
    found = run_program("block = []\nwhile True: block.append(bytearray(10_000_000))", Limits(memory=1 << 29))
    assert not found.passed
    assert "MemoryError" in found.detail


def test_nothing_outside_its_folder_can_be_changed(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    kept = tmp_path / "kept.txt"
    kept.write_text("mine", encoding="utf-8")
    kept.chmod(0o666)
    for attempt in (
        f"open({str(kept)!r}, 'w')",
        f"open({str(tmp_path / 'new.txt')!r}, 'w')",
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.truncate({str(kept)!r}, 0)",
        f"import os; os.rename({str(kept)!r}, 'here.txt')",
        f"import os; os.link({str(kept)!r}, 'here.txt')",
        f"import os; os.mkdir({str(tmp_path / 'folder')!r})",
        "open('/dev/shm/paser-escaped', 'w')",
    ):
        assert "Error" in run_program(attempt).detail, attempt
    assert kept.read_text(encoding="utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert not Path("/dev/shm/paser-escaped").exists()


def test_a_large_file_is_refused() -> None:
    assert not run_program("open('big', 'wb').write(b'0' * 50_000_000)").passed


def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reach = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)"
        assert subprocess.run([sys.executable, "-c", reach], check=False).returncode == 0
        assert "Error" in run_program(reach).detail


@pytest.mark.parametrize("bomb", [
    "import os\nwhile True: os.fork()",
    "import subprocess\nsubprocess.run(['true'])",
    "import threading\nthreading.Thread(target=print).start()",
])  # fmt: skip
def test_it_starts_no_other_process(bomb: str) -> None:
    found = run_program(bomb, Limits(seconds=5))
    assert not found.passed
    assert "Error" in found.detail


def test_other_processes_are_out_of_reach() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"]) as other:
        found = run_program(f"import os\nos.kill({other.pid}, 9)")
        assert "Error" in found.detail
        assert other.poll() is None
        other.kill()


def test_without_a_sandbox_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    sandbox.require_sandbox.cache_clear()
    with pytest.raises(PaserError, match=r"cannot be run here[\s\S]*remedy"):
        run_program("pass")
    sandbox.require_sandbox.cache_clear()
