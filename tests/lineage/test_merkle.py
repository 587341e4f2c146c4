from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paser.errors import PaserError
from paser.lineage.merkle import check_proof, inclusion_proof, merkle_root

ids = st.lists(st.text(alphabet="abcdef0123456789", min_size=1, max_size=6), min_size=1, max_size=40)


def rfc_6962(leaves: list[bytes]) -> bytes:
    """The recursive definition of RFC 6962, section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + rfc_6962(leaves[:k]) + rfc_6962(leaves[k:])).digest()


def test_root_of_no_rows_is_the_digest_of_nothing() -> None:
    assert merkle_root([]) == hashlib.sha256(b"").hexdigest()


@given(ids)
@settings(max_examples=60, deadline=None)
def test_root_is_that_of_rfc_6962(row_ids: list[str]) -> None:
    assert merkle_root(row_ids) == rfc_6962([row.encode() for row in row_ids]).hex()


@given(ids, st.data())
@settings(max_examples=60, deadline=None)
def test_every_row_can_be_proved_and_nothing_else(row_ids: list[str], data: st.DataObject) -> None:
    root, size = merkle_root(row_ids), len(row_ids)
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(row_ids, index)
    assert check_proof(row_ids[index], index, size, proof, root)
    assert not check_proof(f"{row_ids[index]}x", index, size, proof, root)
    assert not check_proof(row_ids[index], index, size, [*proof, "00" * 32], root)
    assert not check_proof(row_ids[index], size, size, proof, root)
    if proof:
        assert not check_proof(row_ids[index], index, size, proof[:-1], root)
        assert not check_proof(row_ids[index], index, size, ["zz", *proof[1:]], root)
    other = data.draw(st.integers(0, size - 1))
    if row_ids[other] != row_ids[index]:
        assert check_proof(row_ids[index], other, size, proof, root) is False


@given(
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=2, max_size=20, unique=True), st.data()
)
@settings(max_examples=40, deadline=None)
def test_root_depends_on_order_and_number(row_ids: list[str], data: st.DataObject) -> None:
    i, j = data.draw(st.lists(st.integers(0, len(row_ids) - 1), min_size=2, max_size=2, unique=True))
    swapped = list(row_ids)
    swapped[i], swapped[j] = swapped[j], swapped[i]
    roots = {
        merkle_root(row_ids),
        merkle_root(swapped),
        merkle_root(row_ids[:-1]),
        merkle_root([*row_ids, "d"]),
    }
    assert len(roots) == 4


def test_a_position_outside_the_rows_is_an_error() -> None:
    with pytest.raises(PaserError, match="row 2 is not among 2 rows"):
        inclusion_proof(["a", "b"], 2)
