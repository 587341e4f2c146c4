"""`provenance.json`: the proof that travels inside a recovered model's own folder.

It is written last, after every other file of the model, so a folder that holds one is complete; it names
the rows the model was trained on, in training order, and the digest of every other file beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from paser.artifacts import file_digests, read_json, write_json
from paser.errors import PaserError
from paser.lineage.merkle import merkle_root

PROVENANCE_VERSION = 1
PROVENANCE = "provenance.json"
Role = Literal["recovered", "control"]
STAGE_OF_ROLE: dict[str, str] = {"recovered": "recover", "control": "control"}

_KEYS = (
    "version", "role", "merkle_root", "row_ids", "rows", "tokens", "settings", "inputs", "seed", "facts",
    "files",
)  # fmt: skip


def model_files(model_dir: Path) -> dict[str, str]:
    """SHA-256 of every file of a model folder but its provenance, by POSIX path inside."""
    digests = file_digests(model_dir)
    digests.pop(PROVENANCE, None)
    return digests


def write_provenance(
    model_dir: Path,
    *,
    role: str,
    rows: list[dict[str, Any]],
    settings: dict[str, Any],
    inputs: dict[str, str],
    seed: int,
    facts: dict[str, Any],
    held_out: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Writes `provenance.json` into a finished model folder and returns its content.

    `rows` are the rows of `selected.jsonl` (or `control.jsonl`) in training order, each with `row_id`
    and `tokens`, without those that early stopping has `held_out`: these are listed, but neither counted
    nor under the Merkle root, because nothing was trained on them. `inputs` maps project paths to the
    digests that were read; `facts` are measured values that two runs share. Nothing may be written into the
    folder afterwards.
    """
    if role not in get_args(Role):
        raise PaserError(f"unknown role {role!r}", remedy=f"one of {', '.join(get_args(Role))}")
    row_ids = [str(row["row_id"]) for row in rows]
    content = {
        "version": PROVENANCE_VERSION,
        "role": role,
        "merkle_root": merkle_root(row_ids),
        "row_ids": row_ids,
        "rows": len(row_ids),
        "tokens": sum(int(row["tokens"]) for row in rows),
        "settings": settings,
        "inputs": inputs,
        "seed": seed,
        "facts": facts,
        "files": model_files(model_dir),
    }
    if held_out:
        content["held_out"] = [str(row["row_id"]) for row in held_out]
    write_json(model_dir / PROVENANCE, content)
    return content


def held_out(provenance: Mapping[str, Any]) -> list[str]:
    """Ids of selected rows that early stopping held out of training; they are not under the Merkle root."""
    return [str(row_id) for row_id in provenance.get("held_out", ())]


def load_provenance(model_dir: Path) -> dict[str, Any]:
    """Reads a model's provenance; says what to do where there is none, or none that can be used."""
    if not model_dir.is_dir():
        raise PaserError(
            f"{model_dir} is not a model folder",
            remedy="give the folder of a recovered model, for instance data/models/recovered; "
            "`dvc checkout` restores it",
        )
    path = model_dir / PROVENANCE
    if not path.exists():
        raise PaserError(
            f"{model_dir} holds no {PROVENANCE}: nothing says which rows it was trained on",
            remedy="only models written by `paser stage recover` or `paser stage control` carry one; "
            "restore the folder with `dvc checkout`, or copy it whole",
        )
    content = read_json(path)
    missing = [key for key in _KEYS if key not in content] if isinstance(content, dict) else list(_KEYS)
    if missing:
        raise PaserError(
            f"{path} has no {missing[0]!r}", remedy="it was altered: restore it with `dvc checkout`"
        )
    if content["version"] != PROVENANCE_VERSION:
        raise PaserError(
            f"{path} has version {content['version']!r}, this PASER reads {PROVENANCE_VERSION}",
            remedy="use the version of PASER that wrote it",
        )
    provenance: dict[str, Any] = content
    return provenance
