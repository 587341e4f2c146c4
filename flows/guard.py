"""Runs a command that must not outlive whoever asked for it: `python guard.py COMMAND ...`.

Its standard input is a pipe from the flow. When the flow's process is gone, however it ended, the pipe
closes, and the command with all its children is ended. Run as a file, because it must start at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

GRACE_SECONDS = 5.0


def end_group(leader: int) -> None:
    """SIGTERM to a process group, SIGKILL to what is left of it after a while."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(leader, number)
        except (ProcessLookupError, PermissionError):
            return
        deadline = time.monotonic() + GRACE_SECONDS
        while number == signal.SIGTERM and time.monotonic() < deadline:
            time.sleep(0.1)
            try:
                os.killpg(leader, 0)
            except (ProcessLookupError, PermissionError):
                return


def main(command: list[str]) -> int:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)
        end_group(child.pid)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end_group(child.pid))
    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
