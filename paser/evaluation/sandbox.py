"""Programs that a model wrote, run where they can do no harm: for HumanEval and MBPP.

Each runs in a process of its own without network and other processes in sight (namespaces of Linux), that can
write to one empty folder alone (Landlock), with limits on time, memory and files. Where the machine offers no
such place, nothing is run.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from paser.errors import PaserError
from paser.evaluation import guard

_GUARD = Path(guard.__file__)
_REMEDY = (
    "run the tasks with code on Linux 6.2 or newer where `unshare` (util-linux) may make namespaces, for "
    "instance as root of a virtual machine; or leave them out"
)


@dataclass(frozen=True)
class Limits:
    """Wall-clock and processor seconds, and bytes of address space, Python itself included."""

    seconds: int = 10
    memory: int = 1 << 30


@dataclass(frozen=True)
class Outcome:
    """`passed`: the program ran to its end without an exception. `detail`: what stopped it otherwise."""

    passed: bool
    detail: str = ""


def run_program(source: str, limits: Limits | None = None) -> Outcome:
    """Runs a Python program in the sandbox, from its first line to its last.

    A program that leaves early, by `sys.exit` or `os._exit`, has not passed. Raises `PaserError` where
    there is no sandbox.
    """
    limits = limits or Limits()
    require_sandbox()
    return _run(source, limits)


@functools.cache
def require_sandbox() -> None:
    """Raises `PaserError` unless a program without faults passes, and one that reaches out does not."""
    if not sys.platform.startswith("linux") or shutil.which("unshare") is None:
        raise PaserError("generated code cannot be run here: there is no `unshare`", remedy=_REMEDY)
    found = _run("import collections, itertools, math, re\nassert 1 + 1 == 2", Limits())
    if not found.passed:
        raise PaserError(f"generated code cannot be run here: {found.detail}", remedy=_REMEDY)
    with tempfile.TemporaryDirectory(prefix="paser-") as folder:
        os.chmod(folder, 0o777)
        target = Path(folder) / "escaped"
        _run(f"open({str(target)!r}, 'w')", Limits())
        if target.exists():
            raise PaserError("generated code cannot be run here: it can write files", remedy=_REMEDY)
    if _run("import socket\nassert socket.if_nameindex()[1:]", Limits()).passed:
        raise PaserError("generated code cannot be run here: it has a network", remedy=_REMEDY)


def _run(source: str, limits: Limits) -> Outcome:
    word = secrets.token_hex(16)
    unprivileged = [] if os.getuid() == 0 else ["--map-root-user"]
    with tempfile.TemporaryDirectory(prefix="paser-program-") as folder:
        command = [
            "unshare", *unprivileged, "--net", "--ipc", "--pid", "--fork", "--kill-child=SIGKILL", "--",
            sys.executable, "-I", "-B", str(_GUARD),
            folder, str(limits.seconds), str(limits.memory), word,
        ]  # fmt: skip
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={"HOME": folder, "TMPDIR": folder, "PATH": os.defpath, "LANG": "C.UTF-8"},
            start_new_session=True,
        ) as process:
            try:
                said, complaint = process.communicate(source.encode("utf-8", "replace"), limits.seconds)
            except subprocess.TimeoutExpired:
                _kill(process)
                return Outcome(False, f"stopped after {limits.seconds} s")
    text = said.decode("utf-8", "replace").strip()
    if process.returncode == 0 and text == word:
        return Outcome(True)
    if process.returncode == 0:
        return Outcome(False, "left before its end")
    return Outcome(False, text or complaint.decode("utf-8", "replace").strip()[:300] or "killed")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills the session; what the kernel put into the namespace of processes dies with its first one."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
