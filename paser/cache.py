"""The content-keyed cache of shards, checkpoints and downloads below `.paser/cache/`.

It lives outside every DVC output, because DVC removes a stage's outputs before it runs the stage. An
entry's name is the digest of everything that determines its content, so a stale entry cannot be read.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paser.artifacts import remove


@dataclass(frozen=True)
class Cache:
    """A directory of entries, each `room/key` a file or a directory."""

    root: Path

    @classmethod
    def of(cls, project: Path) -> Cache:
        """The project's cache, or the directory named by `PASER_CACHE_DIR`."""
        return cls(Path(os.environ.get("PASER_CACHE_DIR") or project / ".paser" / "cache"))

    def entry(self, room: str, key: str) -> Path:
        """Path of an entry (not created); its parent exists afterwards and its age is reset."""
        path = self.root / room / key
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            os.utime(path)
        return path

    def size(self) -> int:
        """Bytes in use."""
        return sum(found.st_size for found in _files(self.root))

    def prune(self, limit_bytes: int, spare_seconds: float = 0.0) -> list[str]:
        """Removes the entries used longest ago until at most `limit_bytes` remain; what was read or written
        within `spare_seconds` stays in any case. Other runs may write and prune meanwhile.

        Returns the removed entries as `room/key`.
        """
        if not self.root.exists():
            return []
        used: dict[Path, tuple[float, int]] = {}
        for entry in (entry for room in self.root.iterdir() if room.is_dir() for entry in room.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                found = [entry.stat(), *_files(entry)]
                size = sum(file.st_size for file in found[1:])
                used[entry] = max(file.st_mtime for file in found), size
        total, removed = sum(size for _, size in used.values()), []
        newest = time.time() - spare_seconds
        for entry, (last, size) in sorted(used.items(), key=lambda item: (item[1][0], item[0].name)):
            if total <= limit_bytes or (spare_seconds and last > newest):
                break
            with contextlib.suppress(FileNotFoundError):
                remove(entry)
            total -= size
            removed.append(entry.relative_to(self.root).as_posix())
        return removed


def _files(path: Path) -> Iterator[os.stat_result]:
    """Each file of a directory that does not vanish meanwhile (or the file itself)."""
    inside = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    for file in [path] if path.is_file() else inside:
        try:
            found = os.stat(file)
        except FileNotFoundError:
            continue
        yield found
