"""Which training checkpoints can be resumed from: those that were written to the end and not altered.

A checkpoint is sealed after its last file with the digests of all of them. A run killed while it wrote
leaves an unsealed one, which is removed once nobody can be writing it any more.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from paser.artifacts import file_digests, read_json, remove, write_json
from paser.errors import PaserError

SEAL = "complete.json"
PREFIX = "checkpoint-"
# Another run of the same inputs may still be writing what changed so recently.
WRITING_SECONDS = 600.0


def seal(checkpoint: Path) -> None:
    """Marks a checkpoint as complete."""
    write_json(checkpoint / SEAL, file_digests(checkpoint))


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint is sealed and every file is as it was then."""
    try:
        expected = read_json(checkpoint / SEAL)
    except PaserError:
        return False
    found = file_digests(checkpoint)
    found.pop(SEAL, None)
    return bool(found) and found == expected


def newest_complete(directory: Path) -> Path | None:
    """The complete checkpoint of the latest step below `directory`; incomplete ones are removed, unless
    something in them changed in the last `WRITING_SECONDS`. Training writes those anew at their step."""
    if not directory.is_dir():
        return None
    complete = []
    for path in directory.iterdir():
        step = path.name.removeprefix(PREFIX)
        with contextlib.suppress(FileNotFoundError):  # another run of the same inputs removed it
            if path.name.startswith(PREFIX) and step.isdigit() and is_complete(path):
                complete.append((int(step), path))
            elif time.time() - _last_change(path) > WRITING_SECONDS:
                remove(path)
    return max(complete)[1] if complete else None


def _last_change(path: Path) -> float:
    """When a file, or anything in a folder, changed last; in seconds since the epoch."""
    inside = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return max(found.lstat().st_mtime for found in (path, *inside))
