"""The record of one stage run: digests of what was read, of what was written, and of what decided it.

`data/records/STAGE.json` has no clock, host or device, so two runs from the same inputs write the same
bytes. What differs between runs (time, host, commit) goes to `STAGE.run.json`, outside the chain. The
chain links output digest to input digest, never record to record.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import paser
from paser.artifacts import file_digests, sha256_file, tree_digest

RECORD_VERSION = 1
PACKAGE_ROOT = Path(paser.__file__).parent.parent
PACKAGES = (
    "torch", "transformers", "peft", "sentence-transformers", "llmcompressor", "tokenizers", "numpy",
    "scipy", "scikit-learn", "pandas", "pyarrow", "datasketch", "umap-learn",
)  # fmt: skip


@dataclass(frozen=True)
class Artefact:
    """A file or directory as it was read or written.

    `sha256` is the digest of the bytes or, for a directory, of its sorted names and digests, which
    `files` then lists. `rows` is the number of rows of a table, where it has any.
    """

    path: str
    sha256: str
    bytes: int
    rows: int | None = None
    files: dict[str, str] | None = None

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value is not None}


def describe(project: Path, relative: str) -> Artefact:
    """Hashes and counts one input or output; a missing path raises `FileNotFoundError`."""
    path = project / relative
    if path.is_dir():
        files = file_digests(path)
        size = sum((path / name).stat().st_size for name in files)
        return Artefact(relative, tree_digest(files), size, files=files)
    return Artefact(relative, sha256_file(path), path.stat().st_size, rows=count_rows(path))


def count_rows(path: Path) -> int | None:
    """Rows of a parquet, JSON Lines or `.npy` file; None for any other."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.read_metadata(path).num_rows)
    if path.suffix == ".jsonl":
        with path.open("rb") as stream:
            return sum(1 for line in stream if line.strip())
    if path.suffix == ".npy":
        import numpy as np

        return int(np.load(path, mmap_mode="r", allow_pickle=False).shape[0])
    return None


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that can change a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def all_versions() -> dict[str, str]:
    """Of PASER, Python and `package_versions`, as records have them."""
    return {"paser": paser.__version__, "python": platform.python_version()} | package_versions()


def code_digest(paths: tuple[str, ...], root: Path = PACKAGE_ROOT) -> str:
    """Digest of files and folders of this package (`paser/...`): Python files and templates.

    `root` is the folder that holds `paser/`; a file that is missing there is left out.
    """
    digests: dict[str, str] = {}
    for relative in paths:
        path = root / relative
        if path.is_dir():
            digests |= {f"{relative}/{name}": d for name, d in file_digests(path).items()}
        elif path.exists():
            digests[relative] = sha256_file(path)
    return tree_digest(digests)
