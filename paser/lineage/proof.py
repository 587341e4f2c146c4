"""Proof that one row is among those a model was trained on, for somebody who must not see the others.

It is made from the model's own folder and holds digests alone; whoever checks it needs only the proof
and the model's Merkle root.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paser.artifacts import read_json
from paser.errors import PaserError
from paser.lineage.merkle import check_proof, inclusion_proof, merkle_root
from paser.lineage.provenance import PROVENANCE, load_provenance

PROOF_VERSION = 1
LEAST_OF_ID = 11  # `r1-` and 8 digits
_TYPES = {"row_id": str, "index": int, "size": int, "root": str, "proof": list}


def prove(model: Path, row: str) -> dict[str, Any]:
    """Proof of a row: `{version, row_id, index, size, root, proof}`.

    `row` is a row id or its beginning (11 characters or more). `index` counts from 0 in training order,
    `size` is the number of rows, `proof` the sibling digests from the leaf up (RFC 6962, 2.1.1). Raises
    `PaserError` for a row the model was not trained on and for a provenance that contradicts itself.
    """
    provenance = load_provenance(model)
    row_ids = provenance["row_ids"]
    root = merkle_root(row_ids)
    if root != provenance["merkle_root"]:
        raise PaserError(
            f"{model / PROVENANCE} states Merkle root {provenance['merkle_root']}, its row ids give {root}",
            remedy="it was altered: restore it with `dvc checkout`",
        )
    index = _position(row_ids, row.lower(), model)
    return {
        "version": PROOF_VERSION,
        "row_id": row_ids[index],
        "index": index,
        "size": len(row_ids),
        "root": root,
        "proof": inclusion_proof(row_ids, index),
    }


def _position(row_ids: list[str], row: str, model: Path) -> int:
    if row in row_ids:
        return row_ids.index(row)
    found = [i for i, row_id in enumerate(row_ids) if len(row) >= LEAST_OF_ID and row_id.startswith(row)]
    if len(found) == 1:
        return found[0]
    if found:
        raise PaserError(f"{len(found)} rows of {model} begin with {row!r}", remedy="give more of the row id")
    raise PaserError(
        f"row {row!r} is not among the {len(row_ids)} rows {model} was trained on",
        remedy="`paser audit trace MODEL --json` lists their row ids",
    )


def load_proof(path: Path) -> dict[str, Any]:
    """Reads what `prove` gave; anything of another shape or version is a `PaserError`."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("version") != PROOF_VERSION:
        raise PaserError(
            f"{path} is not a proof of version {PROOF_VERSION}", remedy="`paser audit prove` writes one"
        )
    for key, kind in _TYPES.items():
        if type(content.get(key)) is not kind:
            raise PaserError(
                f"{path}: {key!r} is {content.get(key)!r}", remedy="`paser audit prove` writes a whole proof"
            )
    if not all(isinstance(digest, str) for digest in content["proof"]):
        raise PaserError(f"{path}: 'proof' is not a list of digests", remedy="`paser audit prove` writes one")
    proof: dict[str, Any] = content
    return proof


def why_not(proof: Mapping[str, Any], root: str, size: int | None = None) -> str | None:
    """None where the proof holds against `root`, else what is wrong with it in a sentence.

    The root the proof states is never trusted. With the `size` of a model, the row's position is proved
    too; without, only that it is among the rows.
    """
    if proof["root"] != root:
        return f"it is a proof for Merkle root {proof['root']}, not for {root}"
    if size is not None and proof["size"] != size:
        return f"it is a proof for {proof['size']} rows, the model was trained on {size}"
    if not check_proof(proof["row_id"], proof["index"], proof["size"], proof["proof"], root):
        return f"row {proof['row_id']} and the digests of the proof do not give the Merkle root {root}"
    return None
