"""One of the processes that train a model together: `accelerate` starts it with the job's file.

It ends with the stage that started it, and leaves what went wrong beside the job for that stage to say.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from paser.artifacts import read_json, write_json
from paser.errors import PaserError
from paser.recovery.processes import end_with_parent, read_back
from paser.settings import RecoverSettings


def train(job: dict[str, Any]) -> None:
    """Takes part in the training that `job` describes."""
    import torch
    from accelerate import PartialState

    from paser.models.loading import load_causal_lm
    from paser.models.precision import set_threads
    from paser.recovery.lora import Extras, fine_tune

    set_threads(job["threads"])
    PartialState(cpu=job["device"] == "cpu")
    if job["device"] == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))

    def model(name: str) -> Any:
        return load_causal_lm(Path(job[name]), dtype=getattr(torch, job["dtype"]), device=job["device"])

    fine_tune(
        model("model"),
        [read_back(row) for row in job["rows"]],
        RecoverSettings.model_validate(job["settings"]),
        seed=job["seed"],
        pad_id=job["pad_id"],
        checkpoints=Path(job["checkpoints"]),
        title=job["title"],
        processes=job["processes"],
        extras=Extras(
            model("teacher") if job["teacher"] else None,
            [read_back(row) for row in job["held_out"]],
            Path(job["logs"]) if job["logs"] else None,
        ),
    )


def main(path: str) -> int:
    end_with_parent(os.getppid())
    try:
        train(read_json(Path(path)))
    except Exception as error:
        # Told to the stage, which speaks for all processes.
        known = isinstance(error, PaserError)
        rank = os.environ.get("RANK", "0")
        problem = error.problem if isinstance(error, PaserError) else f"process {rank}: {_short(error)}"
        note = {"known": known, "problem": problem, "remedy": getattr(error, "remedy", None)}
        write_json(Path(path).with_name(f"error-{rank}.json"), note)
        os._exit(1)  # the others may wait for this one; a clean end would wait for them
    return 0


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
