"""Runs one command of a stage and passes on its lines as they come; it never outlives the flow."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

GUARD = Path(__file__).with_name("guard.py")
TAIL = 15
TICK_SECONDS = 1.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# What DVC says around a stage; the rest is the stage's own.
_OF_DVC = re.compile(
    r"^(ERROR: failed to (reproduce|pull|push)|Running stage |> paser stage |Updating lock file"
    r"|Generating lock file|To track the changes|\tgit add|To enable auto staging|\tdvc config|Use `dvc push`"
    r"|WARNING: )|^\s*$"
)


@dataclass(frozen=True)
class Ended:
    """How a command ended. `lines` are the last of what it printed, `own` those without DVC's words."""

    code: int
    seconds: float
    lines: tuple[str, ...]
    own: tuple[str, ...]
    timed_out: bool = False

    @property
    def said(self) -> str:
        return "\n".join(self.own or self.lines)

    def says(self, words: str) -> bool:
        return any(words in line for line in self.lines)

    @property
    def busy(self) -> bool:
        """Whether it failed only because another DVC command held what it needed."""
        busy = self.says("it is being blocked by") or self.says("Unable to acquire lock")
        return self.code != 0 and busy


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, with the interpreter's folder first on PATH, so that `paser` and `dvc` are its own."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    quiet = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1", "PATH": path}
    return {**os.environ, **quiet, **(extra or {})}


def dvc(*words: str) -> list[str]:
    return [sys.executable, "-m", "dvc", *words]


def run(
    command: list[str],
    folder: Path,
    *,
    extra: Mapping[str, str] | None = None,
    hours: float = 24.0,
    on_line: Callable[[str], None] = lambda line: None,
    on_tick: Callable[[], None] = lambda: None,
) -> Ended:
    """Runs `command` in `folder`; each line it prints goes to `on_line`, and `on_tick` is called each second.

    After `hours` it is ended and `timed_out` is set. An exception in this process ends it too.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(GUARD), *command],
        cwd=folder,
        env=environment(extra),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    tail: deque[str] = deque(maxlen=10 * TAIL)
    own: deque[str] = deque(maxlen=TAIL)
    timed_out, ticked = False, started
    try:
        while True:
            try:
                line = lines.get(timeout=TICK_SECONDS)
                if line is None:
                    break
                tail.append(line)
                if not _OF_DVC.match(line):
                    own.append(line)
                    on_line(line)
            except queue.Empty:
                pass
            now = time.monotonic()
            if now - ticked >= TICK_SECONDS:
                ticked = now
                on_tick()
            if not timed_out and now - started > hours * 3600:
                timed_out = True
                process.terminate()
    finally:
        if process.stdin:
            process.stdin.close()
        code = process.wait()
    return Ended(code, time.monotonic() - started, tuple(tail), tuple(own), timed_out)


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(_COLOURS.sub("", line.rstrip("\r\n")))
    lines.put(None)
