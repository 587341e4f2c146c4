"""The main job in one command: the whole pipeline by DVC, then the result."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from paser.artifacts import read_json, sha256_file
from paser.cache import Cache
from paser.errors import PaserError
from paser.progress import console, duration, say
from paser.settings import load_settings

SLOW_SHARE = 0.5


def run_demo(project: Path) -> None:
    """Runs `dvc repro` in `project` and prints the result tables and where the report lies."""
    if not (project / "dvc.yaml").exists():
        raise PaserError(f"{project} has no dvc.yaml", remedy="run the demo in a clone of the repository")
    _fit_to_machine(project)
    lock = project / "dvc.lock"
    before = sha256_file(lock) if lock.exists() else None
    if before is None:
        say("first run: about 10 minutes on two cores with native bfloat16, with some 240 MB of downloads")
    started = time.monotonic()
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    done = subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=project, env=environment, check=False)
    if done.returncode:
        raise PaserError(
            "the pipeline stopped", remedy="the lines above say why; run the same command again to go on"
        )
    spent = duration(time.monotonic() - started)
    unchanged = before is not None and sha256_file(lock) == before
    say(f"nothing to do: every stage is up to date ({spent})" if unchanged else f"done in {spent}")
    from paser.evaluation.table import result_tables
    from paser.lineage.catalogue import Catalogue, sync

    sync(project, Catalogue.of(project))
    out = console()
    out.print(result_tables(read_json(project / "data" / "metrics.json")))
    out.print(f"report:  {project / 'data' / 'report' / 'index.html'}", soft_wrap=True)
    out.print("proof:   paser audit verify data/models/recovered", soft_wrap=True)


def _fit_to_machine(project: Path) -> None:
    """Without native bfloat16 the demo runs on half of its rows; params.yaml says so."""
    from paser.models.precision import NATIVE_SPEEDUP, bfloat16_speedup, choose_device, set_threads

    settings = load_settings(project / "params.yaml")
    set_threads(settings.runtime.threads)
    device = choose_device(settings.runtime.device)
    speedup = bfloat16_speedup(device, Cache.of(project))
    native = speedup >= NATIVE_SPEEDUP
    word = "bfloat16" if native else "float32"
    say(f"models run in {word} on {device} (bfloat16 is {speedup:.1f} x as fast as float32 here)")
    if native or settings.pool.share < 1.0 or (project / "dvc.lock").exists():
        return
    path = project / "params.yaml"
    text, count = re.subn(r"(?m)^(  share:) 1\.0$", rf"\1 {SLOW_SHARE}", path.read_text(encoding="utf-8"))
    if count == 1:
        path.write_text(text, encoding="utf-8")
        say(
            f"no native bfloat16: the demo runs on half of its rows (pool.share: {SLOW_SHARE} in params.yaml)"
        )
