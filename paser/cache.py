"""The content-keyed cache of shards, checkpoints and downloads below `.paser/cache/`.

It lives outside every DVC output, because DVC removes a stage's outputs before it runs the stage. An
entry's name is the digest of everything that determines its content, so a stale entry cannot be read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from paser.artifacts import files_below, remove


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
        return sum(p.stat().st_size for p in files_below(self.root)) if self.root.exists() else 0

    def prune(self, limit_bytes: int) -> list[str]:
        """Removes the entries used longest ago until at most `limit_bytes` remain.

        Returns the removed entries as `room/key`.
        """
        if not self.root.exists():
            return []
        entries = [entry for room in sorted(self.root.iterdir()) if room.is_dir() for entry in room.iterdir()]
        sizes = {e: sum(p.stat().st_size for p in files_below(e)) for e in entries}
        total, removed = sum(sizes.values()), []
        for entry in sorted(entries, key=lambda e: (e.stat().st_mtime, e.name)):
            if total <= limit_bytes:
                break
            remove(entry)
            total -= sizes[entry]
            removed.append(entry.relative_to(self.root).as_posix())
        return removed
