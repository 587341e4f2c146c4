"""What an audit entry keeps of a text instead of the text: a digest, and a sketch that finds near copies.

A sketch is a b-bit MinHash (Li and König 2010) of the word 5-grams by which the pool tells near duplicates:
of each of datasketch's minima the lowest bits. The permutations are the library's; they are applied to a
batch of texts at once, because one text at a time takes 20 times as long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from paser.pool.dedup import SHINGLE_WORDS, words
from paser.records import normalise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

VALUES = 128
BITS = 2
SKETCH_BYTES = VALUES * BITS // 8
DIGEST_BYTES = 16
SEED = 1  # of the permutations; part of the format, like the two above
STANDARD_ERROR = 0.06  # of `similarity`, at most
_CHUNK = 2048
_WORDS = 1 << 20
# Odd multipliers that tell the places of a word in a gram apart.
_PLACES = (
    0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F,
)  # fmt: skip


def text_digest(text: str) -> bytes:
    """The first 16 bytes of the SHA-256 of the normalised text."""
    return hashlib.sha256(normalise(text).encode("utf-8")).digest()[:DIGEST_BYTES]


def sketches(texts: Sequence[str]) -> Bytes:
    """Sketches of some texts: an array of shape (texts, 32), the same on every machine.

    Each byte holds the lowest two bits of four minima, the first lowest. The values are those of
    `datasketch.MinHash(128, seed=1, scheme="affine32")` over `gram_hashes`.
    """
    import numpy as np

    known = _Words()
    parts = [_sketch_chunk(texts[i : i + _CHUNK], known) for i in range(0, len(texts), _CHUNK)]
    return np.concatenate(parts) if parts else np.zeros((0, SKETCH_BYTES), np.uint8)


def gram_hashes(
    texts: Sequence[str], known: dict[str, int] | None = None
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """32-bit hashes of the word 5-grams of some texts, one text after the other, and where each begins.

    A text of fewer than five words is one gram, whole, as in `paser.pool.dedup`. `known` are
    hashes of words to go on with.
    """
    import numpy as np

    known = _Words() if known is None else known
    hashes: list[int] = []
    counts = []
    for text in texts:
        found = [known[word] for word in text.casefold().split()]
        counts.append(max(len(found) - SHINGLE_WORDS + 1, 1))
        hashes += found + [0] * (SHINGLE_WORDS - len(found))
    values = np.array(hashes, dtype=np.uint64)
    grams = np.zeros(len(values) - SHINGLE_WORDS + 1 if len(values) else 0, dtype=np.uint64)
    for place, factor in enumerate(_PLACES):
        grams += values[place : place + len(grams)] * np.uint64(factor)
    grams ^= grams >> np.uint64(32)
    sizes = np.array(counts, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    # Each text has four words more than grams; those begin no gram.
    places = np.arange(sizes.sum()) + np.repeat(np.arange(len(sizes)) * (SHINGLE_WORDS - 1), sizes)
    return grams[places].astype(np.uint32), starts


def similarity(sketch: Bytes, others: Bytes) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of one sketch to each of an array of sketches, 0 to 1.

    Unrelated minima agree in two bits by chance one time in four, which is taken off. The standard error is
    0.04 at 0.8 and at most 0.06.
    """
    import numpy as np

    agreeing = _agreement()[np.bitwise_xor(others, sketch)].sum(axis=1, dtype=np.int64)
    chance = 2.0**-BITS
    estimate: NDArray[np.float64] = np.clip((agreeing / VALUES - chance) / (1 - chance), 0.0, 1.0)
    return estimate


def _sketch_chunk(texts: Sequence[str], known: dict[str, int]) -> Bytes:
    import numpy as np

    hashes, starts = gram_hashes(texts, known)
    mixed = _mixed(hashes)
    factors, offsets = _permutations()
    kept = np.empty((len(texts), VALUES), dtype=np.uint8)
    for number in range(VALUES):
        permuted = mixed * factors[number] + offsets[number]
        kept[:, number] = np.minimum.reduceat(permuted, starts) & np.uint32((1 << BITS) - 1)
    groups = kept.reshape(len(texts), SKETCH_BYTES, 8 // BITS)
    shifts = np.arange(0, 8, BITS, dtype=np.uint8)
    packed: Bytes = np.bitwise_or.reduce(groups << shifts, axis=2)
    return packed


def _mixed(hashes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """MurmurHash3's 32-bit finaliser, which datasketch applies to every value first."""
    import numpy as np

    mixed = hashes ^ (hashes >> np.uint32(16))
    mixed = mixed * np.uint32(0x85EBCA6B)
    mixed = mixed ^ (mixed >> np.uint32(13))
    mixed = mixed * np.uint32(0xC2B2AE35)
    finished: NDArray[np.uint32] = mixed ^ (mixed >> np.uint32(16))
    return finished


@cache
def _permutations() -> Any:
    from datasketch import MinHash

    return MinHash(VALUES, seed=SEED, scheme="affine32").permutations


@cache
def _agreement() -> Bytes:
    """How many of the four values in a byte agree, by the exclusive or of two bytes."""
    import numpy as np

    mask = (1 << BITS) - 1
    return np.array(
        [sum((byte >> shift) & mask == 0 for shift in range(0, 8, BITS)) for byte in range(256)], np.uint8
    )


class _Words(dict[str, int]):
    """64-bit hashes of pieces of text between white space, as words are compared."""

    def __missing__(self, piece: str) -> int:
        word = words(piece)[0]
        value = int.from_bytes(hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest(), "big")
        if len(self) < _WORDS:
            self[piece] = value
        return value
