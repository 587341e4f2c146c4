"""Writes constraints-cuda.txt: the pins of constraints.txt and, behind them, what torch's CUDA build brings.

pip resolves and downloads nothing but metadata. Run it where pip finds the CUDA build of torch (Linux,
x86-64, no local CPU build in pip's reach), and again whenever constraints.txt changes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ".[flows,ray]"
HEADER = """\
# constraints.txt and the packages that torch's CUDA build needs, for workers with NVIDIA GPUs (Dockerfile).
# Written by `python .ci/constraints_cuda.py`. Resolved by pip; never installed on a machine with a GPU.
"""


def pins(path: Path) -> dict[str, str]:
    """Package and version of each line, by normalised name."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            found[normalised(name)] = version
    return found


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def resolved(constraints: Path) -> dict[str, str]:
    """What pip would install with `constraints`: package and version."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--constraint", str(constraints), "--report", str(report), EXTRAS]
        subprocess.run(command, cwd=ROOT, check=True)
        content = json.loads(report.read_text(encoding="utf-8"))
    return {normalised(i["metadata"]["name"]): i["metadata"]["version"] for i in content["install"]}


def main() -> None:
    plain = ROOT / "constraints.txt"
    found, known = resolved(plain), pins(plain)
    if "+" in found["torch"]:
        sys.exit(f"pip found torch {found['torch']}, not the CUDA build: take that build out of pip's reach")
    added = sorted(f"{name}=={version}" for name, version in found.items() if name not in known)
    added = [line for line in added if not line.startswith(("paser==", "pip==", "setuptools=="))]
    lines = [line for line in plain.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = HEADER + "\n".join([*lines, "# torch's CUDA build", *added]) + "\n"
    (ROOT / "constraints-cuda.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
