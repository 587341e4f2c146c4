"""Models as a user names them: fetched below a temporary folder, with messages about what was named.

`inspect`, `damage` and `select` work on such folders. A message that named the temporary one would send its
reader to a path that is gone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paser.cache import Cache
from paser.errors import PaserError
from paser.models.loading import model_directory
from paser.sources.catalog import source_from_uri
from paser.sources.fetching import ADAPTER_CONFIG, BASE, base_and_adapter, fetch_one


@dataclass(frozen=True)
class Given:
    """A model that was named as `uri`: the folder it was fetched to, the one inside to load it from, and the
    pickles that were left out."""

    uri: str
    folder: Path
    path: Path
    left_out: tuple[str, ...]


def fetch_models(uris: Mapping[str, str], cache: Cache, work: Path) -> dict[str, Given]:
    """Fetches models, by name, each to a folder of its own below `work`; local files are linked, not copied.

    Errors speak of the URI; those of whatever reads the folders do so inside `naming(places(...))`.
    """
    found = {}
    for number, (name, uri) in enumerate(uris.items()):
        safe = name if re.fullmatch(r"\w[\w.-]*", name) else f"pruned-{number}"
        target = work / "models" / str(number) / safe
        with naming({target: uri}):
            fetched = fetch_one(source_from_uri(uri, "original", name=safe), None, cache, target)
            found[name] = Given(uri, target, model_directory(target), fetched.left_out)
    return found


def places(models: Mapping[str, Given]) -> dict[Path, str]:
    """The folders of fetched models, and what the user named in their place."""
    return {given.folder: given.uri for given in models.values()}


@contextmanager
def naming(places: Mapping[Path, str]) -> Iterator[None]:
    """While open, errors that name a folder of `places` name what the user gave in its place."""
    try:
        yield
    except PaserError as error:
        problem, remedy = (shown(text, places) if text else None for text in (error.problem, error.remedy))
        if (problem, remedy) == (error.problem, error.remedy):
            raise
        raise type(error)(str(problem), remedy=remedy) from error


def shown(text: str, places: Mapping[Path, str]) -> str:
    """`text` with each folder of `places` as the user named it."""
    for folder, uri in places.items():
        for path, name in _names(folder, uri):
            text = re.sub(rf"{re.escape(str(path))}(?![\w.-])", name.replace("\\", r"\\"), text)
    return text


def _names(folder: Path, uri: str) -> list[tuple[Path, str]]:
    """What stands for a fetched folder, and for parts of it that the user named otherwise; parts first."""
    if pair := base_and_adapter(uri if ":" in uri else f"file:{uri}", None):
        return [*_names(folder / BASE, pair[0]), *_names(folder, pair[1])]
    plain = re.sub(r"^file:(//)?", "", uri)
    given = Path(plain).expanduser()
    if given.is_file():
        return [(folder / given.name, plain), (folder, str(given.parent))]
    found = [(folder, plain.rstrip("/"))]
    if (folder / BASE).is_dir() and not (given / BASE).is_dir():
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        found.insert(0, (folder / BASE, str(config.get("base_model_name_or_path"))))
    return found
