"""One call in a process of its own: its time and its peak memory, so that runs do not disturb each other."""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
import time
from typing import Any

from paser.errors import PaserError


def measured(call: str, **arguments: Any) -> dict[str, Any]:
    """Runs `module:function(**arguments)` in a new process.

    Returns `{"seconds", "peak_gb", "result"}`; the function returns something JSON-able. When its result
    has a key `seconds`, that is the time reported (the function timed the part that matters).
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.measure", call, json.dumps(arguments)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PaserError(f"the measured call {call} failed with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(call: str, arguments: str) -> None:
    module, _, function = call.partition(":")
    target = getattr(importlib.import_module(module), function)
    given = json.loads(arguments)
    start = time.perf_counter()
    result = target(**given)
    seconds = time.perf_counter() - start
    if isinstance(result, dict) and "seconds" in result:
        seconds = result["seconds"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"seconds": seconds, "peak_gb": peak, "result": result}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
