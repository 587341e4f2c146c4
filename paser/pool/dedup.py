"""Near duplicates: word 5-grams, MinHash for candidates, the exact Jaccard similarity to decide.

Digits are kept, because two sums that differ in one number are two samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Shingles = NDArray[np.uint64]

SHINGLE_WORDS = 5
PERMUTATIONS = 128
# Largest chance that a pair exactly at the threshold is not even a candidate.
_MISS = 1e-4
_EDGES = ".,;:!?\"'`*()[]{}“”‘’"


def words(text: str) -> list[str]:
    """Words as they are compared: case-folded, without the punctuation around them; `-5` keeps its sign."""
    return [word.strip(_EDGES) or word for word in text.casefold().split()]


def grams(text: str) -> list[str]:
    """The word 5-grams in their order, with repetitions; a shorter text is one gram, whole."""
    parts = words(text)
    return [" ".join(parts[i : i + SHINGLE_WORDS]) for i in range(max(len(parts) - SHINGLE_WORDS + 1, 1))]


def shingles(text: str) -> Shingles:
    """64-bit digests of the distinct `grams`, sorted."""
    import numpy as np

    digests = (
        int.from_bytes(hashlib.blake2b(gram.encode("utf-8"), digest_size=8).digest(), "big")
        for gram in {*grams(text)}
    )
    return np.unique(np.fromiter(digests, dtype=np.uint64))


def jaccard(first: Shingles, second: Shingles) -> float:
    """Shared share of two sets of shingles, 0 (nothing) to 1 (the same)."""
    import numpy as np

    shared = np.intersect1d(first, second, assume_unique=True).size
    return float(shared / (first.size + second.size - shared))


def surely_far(text: str, known: Set[str], threshold: float) -> bool:
    """Whether no text whose grams are all in `known` can be near `text` at this similarity (0 to 1).

    A near text has at least the share `threshold` of the grams of `text`. So of n grams the first few that
    are missing in `known`, more than (1 - threshold) n, decide, and most texts are told by those.
    """
    found = grams(text)
    most = (1 - threshold) * len(found) + 1e-9
    missing: set[str] = set()
    for gram in found:
        if gram in known:
            return False
        missing.add(gram)
        if len(missing) > most:
            return True
    return False


def bands(threshold: float) -> tuple[int, int]:
    """Bands and rows of the LSH: the most selective that misses less than 1 in 10,000 at `threshold`.

    At least two bands, which the LSH requires.
    """
    for rows in range(PERMUTATIONS // 2, 1, -1):
        count = PERMUTATIONS // rows
        if (1 - threshold**rows) ** count <= _MISS:
            return count, rows
    return PERMUTATIONS, 1


def _low_bits(value: int) -> int:
    return value & 0xFFFFFFFF


@dataclass
class NearIndex:
    """Texts by key, to be asked which of them are nearly a given text.

    `threshold` is the least Jaccard similarity (0 to 1) of two near texts, `seed` that of the
    permutations. Equal texts are near at every threshold.
    """

    threshold: float
    seed: int
    _texts: dict[str, Shingles] = field(default_factory=dict, repr=False)
    _order: dict[str, int] = field(default_factory=dict, repr=False)
    _index: Any = field(default=None, repr=False)
    _blank: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        from datasketch import MinHash, MinHashLSH

        self._index = MinHashLSH(num_perm=PERMUTATIONS, params=bands(self.threshold))
        self._blank = MinHash(PERMUTATIONS, seed=self.seed, hashfunc=_low_bits)

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, key: str, text: str) -> None:
        """Adds a text under a key of its own."""
        found = shingles(text)
        self._texts[key] = found
        self._order[key] = len(self._order)
        self._index.insert(key, self._sketch(found))

    def query(self, text: str) -> list[str]:
        """Keys of the texts that are near `text`, in the order in which they were added."""
        return [key for key, _ in self.nearest(text)]

    def nearest(self, text: str) -> list[tuple[str, float]]:
        """Like `query`, each key with its exact similarity."""
        found = shingles(text)
        candidates = sorted(self._index.query(self._sketch(found)), key=self._order.__getitem__)
        scored = [(key, jaccard(found, self._texts[key])) for key in candidates]
        return [(key, similarity) for key, similarity in scored if similarity >= self.threshold]

    def _sketch(self, found: Shingles) -> Any:
        sketch = self._blank.copy()
        sketch.update_batch(found.tolist())
        return sketch
