"""Digests from the bytes themselves, each file read once and several files at a time.

SHA-256 is what the records hold; MD5 is only there to be compared with `dvc.lock`, which holds nothing
better.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from paser.artifacts import files_below
from paser.errors import PaserError

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Digests:
    """Digests of one file and its size in bytes; `md5` is empty where it was not asked for."""

    sha256: str
    md5: str
    size: int


def digest_file(path: Path, md5: bool) -> Digests:
    """Reads a file once, in pieces of 4 MiB; hashing lets other threads run."""
    strong, weak, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            piece = buffer[:count]
            strong.update(piece)
            if md5:
                weak.update(piece)
            size += count
    return Digests(strong.hexdigest(), weak.hexdigest() if md5 else "", size)


@dataclass
class Hasher:
    """Digests of files and folders; what was hashed once is not read again."""

    md5: bool = False
    known: dict[str, Digests] = field(default_factory=dict)

    def file(self, path: Path) -> Digests:
        """A missing file raises `OSError`."""
        key = os.path.abspath(path)
        if key not in self.known:
            self.known[key] = digest_file(path, self.md5)
        return self.known[key]

    def folder(self, path: Path) -> dict[str, Digests]:
        """Every file of a folder, by its POSIX path inside."""
        return {file.relative_to(path).as_posix(): self.file(file) for file in files_below(path)}

    def sha256(self, path: Path) -> dict[str, str]:
        return {name: found.sha256 for name, found in self.folder(path).items()}

    def warm(self, paths: Iterable[Path]) -> None:
        """Hashes files and folders in threads, the largest files first; what cannot be read is left to
        whoever asks for it."""
        files: dict[str, Path] = {}
        for path in (path for path in paths if path.exists()):
            with contextlib.suppress(PaserError):
                files |= {os.path.abspath(file): file for file in files_below(path)}
        by_size = sorted(files, key=os.path.getsize, reverse=True)

        def hash_one(key: str) -> None:
            try:
                self.known[key] = digest_file(files[key], self.md5)
            except OSError:
                return

        with ThreadPoolExecutor(os.cpu_count()) as workers:
            list(workers.map(hash_one, [key for key in by_size if key not in self.known]))


def dvc_folder_digest(md5s: Mapping[str, str]) -> str:
    """DVC's digest of a folder: MD5 of the JSON list of its files, sorted by path, marked `.dir`."""
    listed = [{"md5": md5s[name], "relpath": name} for name in sorted(md5s)]
    text = json.dumps(listed, sort_keys=True)
    return f"{hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()}.dir"
