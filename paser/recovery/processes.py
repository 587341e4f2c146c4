"""One training in several processes, one GPU each, started by accelerate's own launcher.

The processes train to the end and leave the last checkpoint; the stage then goes on from it, as after a kill,
with nothing left to train. So a run in several processes has the same files, seals and way back as one alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import read_json, write_json
from paser.errors import SettingsError, StageError
from paser.settings import RecoverSettings

if TYPE_CHECKING:
    from paser.recovery.batches import TrainingRow

WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Together:
    """What every process needs to train; `threads` are those of one process."""

    processes: int
    model: Path
    dtype: str
    device: str
    threads: int
    seed: int
    pad_id: int
    checkpoints: Path
    title: str
    teacher: Path | None = None
    logs: Path | None = None

    def train(
        self, rows: Sequence[TrainingRow], settings: RecoverSettings, held_out: Sequence[TrainingRow] = ()
    ) -> None:
        """Trains until the last checkpoint is in `checkpoints`.

        Raises SettingsError where batches or GPUs cannot be shared out, and StageError, in the words of the
        process that failed, when one of them ends early; the others are ended with it.
        """
        self._check(settings)
        with tempfile.TemporaryDirectory(prefix="paser-training-") as folder:
            job = Path(folder) / "job.json"
            write_json(
                job,
                {
                    "processes": self.processes,
                    "model": str(self.model.resolve()),
                    "dtype": self.dtype,
                    "device": self.device,
                    "threads": self.threads,
                    "seed": self.seed,
                    "pad_id": self.pad_id,
                    "checkpoints": str(self.checkpoints.resolve()),
                    "title": self.title,
                    "settings": settings.model_dump(mode="json"),
                    "teacher": str(self.teacher.resolve()) if self.teacher else None,
                    "logs": str(self.logs.resolve()) if self.logs else None,
                    "rows": [written(row) for row in rows],
                    "held_out": [written(row) for row in held_out],
                },
            )
            command = [sys.executable, "-m", "paser.recovery.processes", str(os.getpid())]
            command += [str(self.processes), str(job)]
            done = subprocess.run(command, env=os.environ | {"LOGLEVEL": "CRITICAL"}, check=False)
            if done.returncode:
                raise _failure(Path(folder), self.processes)

    def _check(self, settings: RecoverSettings) -> None:
        together = settings.micro_batch_size * self.processes
        if settings.batch_size % together:
            raise SettingsError(
                f"recover.batch_size ({settings.batch_size}) is not a multiple of recover.micro_batch_size "
                f"({settings.micro_batch_size}) times runtime.processes ({self.processes})",
                remedy="lower runtime.processes or recover.micro_batch_size",
            )
        if self.device == "cuda":
            import torch

            if torch.cuda.device_count() < self.processes:
                raise SettingsError(
                    f"runtime.processes is {self.processes}, but torch sees {torch.cuda.device_count()} GPUs",
                    remedy="lower runtime.processes: each process has a GPU of its own",
                )


def written(row: TrainingRow) -> list[Any]:
    """A row for the job's file; `read_back` gives the same row."""
    encoded = row.encoded
    return [row.row_id, encoded.prompt_ids, encoded.response_ids, encoded.cut, row.weight, row.kept]


def read_back(content: list[Any]) -> TrainingRow:
    from paser.models.tokens import Encoded
    from paser.recovery.batches import TrainingRow

    row_id, prompt, response, cut, weight, kept = content
    encoded = Encoded(tuple(prompt), tuple(response), cut)
    return TrainingRow(row_id, encoded, weight, None if kept is None else tuple(kept))


def threads_of_each(threads: int, processes: int) -> int:
    """Threads of one of several processes: `threads`, or where it is 0 an equal share of the cores."""
    if threads or processes == 1:
        return threads
    return max((os.cpu_count() or 1) // processes, 1)


def _failure(folder: Path, processes: int) -> StageError:
    """What the processes left to say: PASER's own errors first, because one failure makes the others fail."""
    notes = [read_json(path) for path in sorted(folder.glob("error-*.json"))]
    for note in notes:
        if note["known"]:
            return StageError(note["problem"], remedy=note["remedy"])
    return StageError(
        f"training in {processes} processes stopped: "
        + ("; ".join(note["problem"] for note in notes) or "they ended without a word"),
        remedy="run the stage again, it goes on from the last checkpoint; if it stays, lower "
        "runtime.processes or recover.micro_batch_size",
    )


def end_with_parent(parent: int) -> None:
    """Ends this process soon after `parent`, its parent: nobody else would when the stage is killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(parent: str, processes: str, job: str) -> int:
    """Runs `paser.recovery.worker` in each process; exit code 0 when all of them came to the end."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    end_with_parent(int(parent))
    # With --cpu accelerate would launch through MPI; this is torch's launcher, which serves a CPU as well.
    words = ["--multi_gpu", "--num_processes", processes, "--num_machines", "1", "--mixed_precision", "no"]
    words += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", "1", "--main_process_port", "0"]
    try:
        launch_command(launch_command_parser().parse_args([*words, "-m", "paser.recovery.worker", job]))
    except ChildFailedError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
