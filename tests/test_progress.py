"""Plain lines in a log: rate and time left, and nothing at all for short work."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from paser import progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (42.4, "42 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(
    ("done", "seconds", "text"),
    [(0, 5, "- rows/s"), (50, 4, "12.5 rows/s"), (3000, 2, "1,500 rows/s"), (2, 30, "15 s each")],
)
def test_rates_read_well(done: float, seconds: float, text: str) -> None:
    assert progress.rate(done, seconds, "rows") == text


def test_a_terminal_gets_a_bar_with_rate_and_time_left() -> None:
    code = (
        "import time; from paser.progress import progress\n"
        "with progress('work', 40) as advance:\n"
        "    for _ in range(40): time.sleep(0.03); advance()\n"
    )
    reader, writer = pty.openpty()
    terminal = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", code], stderr=writer, env=terminal, check=True)
    shown = re.sub(r"\x1b\[[?\d;]*\w", "", os.read(reader, 1 << 20).decode())
    assert re.search(r"work .*\d+/40 rows \S+ rows/s 0:00:0\d 0:00:0\d", shown)


def test_lines_come_at_tenths_and_not_too_often(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress("work", 100) as advance:
        for _ in range(100):
            clock[0] += 1
            advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[4] == "  work: 50/100 rows, 1 rows/s, 50 s, 50 s left"
    with progress.progress("short", 100) as advance:
        for _ in range(100):
            clock[0] += 0.001
            advance()
    assert capsys.readouterr().err == ""


def test_a_file_tells_others_how_far_the_work_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    monkeypatch.setenv("PASER_PROGRESS_FILE", str(path))
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress("work", 40, "steps") as advance:
        assert json.loads(path.read_text())["done"] == 0
        clock[0] += 10
        advance(10)
        state = json.loads(path.read_text())
        assert state == {
            "title": "work", "unit": "steps", "done": 10, "total": 40, "seconds": 10, "left": 30,
        }  # fmt: skip
        clock[0] += 0.5
        advance(10)
        assert json.loads(path.read_text()) == state
        clock[0] += 0.1
        advance(20)
        assert json.loads(path.read_text())["done"] == 40
    assert [found.name for found in tmp_path.iterdir()] == ["progress.json"]
