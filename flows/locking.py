"""One flow at a time in a project, and what is left of a flow whose process died.

The lock is the operating system's, so it ends with the process that holds it, whatever killed it. A note
beside it says who holds it; a note without a lock belongs to a run that died.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flows.errors import Busy
from paser.artifacts import write_json

POLL_SECONDS = 1.0


@contextmanager
def one_at_a_time(
    project: Path,
    holder: dict[str, str],
    wait_seconds: float,
    *,
    say: Callable[[str], None],
    on_dead: Callable[[dict[str, Any]], None] = lambda note: None,
) -> Iterator[None]:
    """Holds the project's lock; waits up to `wait_seconds` for another flow and says for whom.

    `holder` (`flow_run`, `name`) is noted for others to read. `on_dead` gets the note of a run that died
    with the lock in hand. Raises `Busy` after the wait.
    """
    folder = project / ".paser"
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "flow.json"
    lock = FileLock(folder / "flow.lock")
    deadline, told = time.monotonic() + wait_seconds, False
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout as error:
            who = _who(_read(note))
            if time.monotonic() >= deadline:
                raise Busy(
                    f"{who} is at work in {project}, and one flow at a time may be",
                    remedy="wait for it to end or cancel it, or run this one with a longer wait_minutes",
                ) from error
            if not told:
                say(f"{who} is at work in {project}: waiting for it to end")
                told = True
            time.sleep(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))
    try:
        left = _read(note)
        if left and left.get("flow_run") != holder.get("flow_run"):
            say(f"{_who(left)} died while it held the project; going on from what it finished")
            on_dead(left)
        write_json(note, {**holder, "pid": os.getpid(), "host": socket.gethostname()})
        yield
        note.unlink(missing_ok=True)
    except Exception:
        note.unlink(missing_ok=True)
        raise
    finally:
        lock.release()


def _read(note: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return found


def _who(note: dict[str, Any]) -> str:
    if not note:
        return "another flow run"
    return f"flow run {note.get('name')} (process {note.get('pid')} on {note.get('host')})"
