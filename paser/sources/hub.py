"""Models and data sets from the Hugging Face Hub, through its own client and its own cache.

A branch or tag is resolved to a commit. Of a model only weights in safetensors or GGUF, JSON and
tokenizer files are fetched: never a pickle, never code.
"""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from paser.artifacts import PICKLES, disk_errors, files_below
from paser.errors import SourceError
from paser.progress import say, warn
from paser.sources.uri import HfUri, glob_pattern

MODEL_FILES = (
    "*.safetensors", "*.gguf", "*.json", "*.jinja", "*.model", "*.tiktoken", "vocab.txt", "merges.txt",
)  # fmt: skip
DATA_FILES = ("*.json", "*.jsonl", "*.json.gz", "*.jsonl.gz", "*.parquet")


def wanted(name: str, *, model: bool, globs: tuple[str, ...] = ()) -> bool:
    """Whether a file of a repository is fetched: of an allowed kind, and matching a glob if there are any."""
    kinds = MODEL_FILES if model else DATA_FILES
    if not any(fnmatch(PurePosixPath(name).name, kind) for kind in kinds):
        return False
    return not globs or any(glob_pattern(glob).fullmatch(name) for glob in globs)


def fetch_repository(uri: HfUri, target: Path, *, model: bool, cache_dir: Path | None = None) -> str:
    """Copies the wanted files of a repository to `target`; returns the commit they come from.

    With `HF_HUB_OFFLINE=1` only the client's cache is read. Raises `SourceError` when the repository,
    the revision or a wanted file is missing, or the Hub cannot be reached or stops answering half-way.
    """
    snapshot = _snapshot(uri, model=model, cache_dir=cache_dir)
    commit = snapshot.name
    if not uri.fixed:
        warn(
            f"hf:{uri.repository}@{uri.revision} can move; it is now commit {commit}. "
            f"Write hf:{uri.repository}@{commit} to fix it"
        )
    names = [path.relative_to(snapshot).as_posix() for path in files_below(snapshot)]
    names = [name for name in names if wanted(name, model=model, globs=uri.globs)]
    if not names:
        kinds = ", ".join(MODEL_FILES if model else DATA_FILES)
        among = f" that match {', '.join(uri.globs)}" if uri.globs else ""
        raise SourceError(
            f"hf:{uri.repository}@{commit} has no files of a usable kind{among}",
            remedy=f"PASER reads {kinds}; pickles are never fetched",
        )
    for name in names:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(path):
            shutil.copyfile(snapshot / name, path)
    return commit


def _snapshot(uri: HfUri, *, model: bool, cache_dir: Path | None) -> Path:
    from httpx import HTTPError
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    offline = bool(constants.HF_HUB_OFFLINE)
    kinds = MODEL_FILES if model else DATA_FILES
    say(f"fetching hf:{uri.repository}@{uri.revision}{' from the local cache' if offline else ''}")
    try:
        with disk_errors(Path(cache_dir or constants.HF_HUB_CACHE)):
            return Path(
                snapshot_download(
                    uri.repository,
                    repo_type="model" if model else "dataset",
                    revision=uri.revision,
                    allow_patterns=list(uri.globs or kinds),
                    ignore_patterns=[*(f"*{suffix}" for suffix in PICKLES), "*.py"],
                    cache_dir=cache_dir,
                    local_files_only=offline,
                )
            )
    except LocalEntryNotFoundError as error:
        raise SourceError(
            f"hf:{uri.repository}@{uri.revision} is not in the local cache and the Hub cannot be reached",
            remedy="connect to the network (and unset HF_HUB_OFFLINE), then run the same command again",
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise SourceError(
            f"hf:{uri.repository}@{uri.revision} cannot be fetched: {_first_line(error)}",
            remedy="check owner, name and revision; `hf auth login` gives access to gated repositories",
        ) from error
    except HTTPError as error:
        raise SourceError(
            f"hf:{uri.repository}@{uri.revision}: the download was interrupted: {_first_line(error)}",
            remedy="run the same command again; finished files are kept",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
