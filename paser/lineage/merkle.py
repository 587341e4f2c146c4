"""A Merkle tree over row ids in training order, after RFC 6962 (section 2.1).

The root stands for the exact sequence of rows; one row's membership can be proved with a handful of
digests, to somebody who must not see the other rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from paser.errors import PaserError

EMPTY_ROOT = hashlib.sha256(b"").hexdigest()


def _leaf(row_id: str) -> bytes:
    return hashlib.sha256(b"\x00" + row_id.encode("utf-8")).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _levels(row_ids: Sequence[str]) -> list[list[bytes]]:
    """From the leaves up to the root; an odd last node moves up unchanged, which is RFC 6962's shape."""
    level = [_leaf(row_id) for row_id in row_ids]
    levels = [level]
    while len(level) > 1:
        above = [_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            above.append(level[-1])
        levels.append(above)
        level = above
    return levels


def merkle_root(row_ids: Sequence[str]) -> str:
    """Root of the ids in the given order, 64 hexadecimal digits; no ids give SHA-256 of nothing."""
    return _levels(row_ids)[-1][0].hex() if row_ids else EMPTY_ROOT


def inclusion_proof(row_ids: Sequence[str], index: int) -> list[str]:
    """The sibling digests from leaf `index` (from 0) up to the root: about log2(n) of them."""
    if not 0 <= index < len(row_ids):
        raise PaserError(f"row {index} is not among {len(row_ids)} rows", remedy="count positions from 0")
    proof = []
    for level in _levels(row_ids)[:-1]:
        sibling = index ^ 1
        if sibling < len(level):
            proof.append(level[sibling].hex())
        index //= 2
    return proof


def check_proof(row_id: str, index: int, size: int, proof: Sequence[str], root: str) -> bool:
    """Whether `row_id` is at position `index` of the `size` rows behind `root` (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    position, last, digest = index, size - 1, _leaf(row_id)
    try:
        siblings = [bytes.fromhex(text) for text in proof]
    except ValueError:
        return False
    for sibling in siblings:
        if last == 0:
            return False
        if position % 2 or position == last:
            digest = _node(sibling, digest)
            while position % 2 == 0 and position:
                position //= 2
                last //= 2
        else:
            digest = _node(digest, sibling)
        position //= 2
        last //= 2
    return last == 0 and digest.hex() == root
