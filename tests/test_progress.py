"""Plain lines in a log: rate and time left, and nothing at all for short work."""

from __future__ import annotations

import pytest

from paser import progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (42.4, "42 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


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
    assert lines[4] == "  work: 50/100 rows, 50 s, 50 s left"
    with progress.progress("short", 100) as advance:
        for _ in range(100):
            clock[0] += 0.001
            advance()
    assert capsys.readouterr().err == ""
