"""`python -m benchmarks [NAME ...]`: runs benchmarks (all by default) and writes docs/benchmarks.md.

Each benchmark is a module with `run() -> result` and `render(result) -> Markdown`. Results are kept as
`benchmarks/results/NAME.json`, so that a page with all of them can be written after running one.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.data import ROOT
from paser.artifacts import read_json, write_json
from paser.errors import PaserError
from paser.progress import duration, say

NAMES = (
    "scoring", "ray", "clustering", "scale", "concepts", "selection", "pruning", "damage", "recovery",
    "flows", "audit",
)  # fmt: skip
RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/benchmarks.md"
OPENING = """# Benchmarks

Written by `make bench` (`python -m benchmarks`); no number is typed by hand. Times are noisy, so each table
compares within one run. Labels of the real pool are used for judging, never for choosing.

"""


def machine() -> dict[str, Any]:
    from importlib.metadata import version

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "scikit-learn", "umap-learn")},
    }


def main(names: list[str]) -> None:
    if unknown := [name for name in names if name not in NAMES]:
        raise PaserError(f"no benchmark is called {', '.join(unknown)}", remedy=f"one of {', '.join(NAMES)}")
    for name in names or NAMES:
        say(f"benchmark {name}")
        start = time.perf_counter()
        result = importlib.import_module(f"benchmarks.{name}").run()
        seconds = time.perf_counter() - start
        write_json(RESULTS / f"{name}.json", {"machine": machine(), "seconds": seconds, "result": result})
        say(f"benchmark {name}: {duration(seconds)}")
    write_page()


def write_page() -> None:
    """What has results, in the order of `NAMES`."""
    sections = []
    for name in NAMES:
        if (RESULTS / f"{name}.json").exists():
            found = read_json(RESULTS / f"{name}.json")
            where = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
            text = importlib.import_module(f"benchmarks.{name}").render(found["result"]).strip()
            sections.append(f"{text}\n\n*{where}; {duration(found['seconds'])} in all.*\n")
    PAGE.write_text(OPENING + "\n".join(sections), encoding="utf-8")
    say(f"{PAGE.relative_to(ROOT)} written")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except PaserError as error:
        sys.exit(f"error: {error}")
