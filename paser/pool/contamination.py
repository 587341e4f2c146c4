"""Training rows that show what the models are evaluated on: shared word n-grams and equal prompts.

The rule of GPT-3's authors (arXiv 2005.14165, appendix C), at the level of rows: 13 words in a row that an
evaluation prompt has too, unless they stand in many rows, as the words of a template do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from paser.pool.dedup import words

# An n-gram of more rows of the pool than this is a template's, and tells nothing.
COMMON = 10
# Words of an n-gram by which rows that surely share none are passed over.
_ANCHOR = 5
_HOW = {"exact": "equal to", "near": "nearly equal to", "ngram": "shares words with"}


@dataclass(frozen=True)
class Probe:
    """An item that models are evaluated on. `texts`: its prompt, in each form in which a row may have it."""

    of: str
    item: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Overlap:
    """A row and the first item found in it.

    `kind`: `exact` (the prompts are equal), `near` (nearly equal) or `ngram` (words in a row are shared).
    """

    of: str
    item: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{_HOW[self.kind]} evaluation prompt {self.item} of {self.of}: {self.text!r}"


def overlaps(rows: Iterable[tuple[str, str]], probes: Sequence[Probe], n: int) -> dict[int, Overlap]:
    """Positions of the rows (prompt, response) that overlap a probe, with the first overlap of each.

    Texts are compared as words, case-folded and without the punctuation around them. A row overlaps when
    its prompt is equal to a probe's text, or prompt and response hold `n` words in a row (n >= 5) of a
    probe's text, unless more than `COMMON` rows hold these words. A probe of fewer than `n` words overlaps
    by an equal prompt alone.
    """
    exact: dict[str, Probe] = {}
    grams: dict[str, Probe] = {}
    anchors: set[str] = set()
    for probe in probes:
        for text in probe.texts:
            parts = words(text)
            if not parts:
                continue
            exact.setdefault(" ".join(parts), probe)
            for gram in _grams(parts, n):
                grams.setdefault(gram, probe)
            if len(parts) >= n:
                anchors.update(_grams(parts, _ANCHOR))
    found: dict[int, Overlap] = {}
    shared: dict[int, list[str]] = {}
    counts: Counter[str] = Counter()
    for position, (prompt, response) in enumerate(rows):
        asked = words(prompt)
        whole = " ".join(asked)
        if same := exact.get(whole):
            found[position] = Overlap(same.of, same.item, "exact", whole[:120])
        parts = [*asked, *words(response)]
        # Each run of n words holds a 5-gram that starts at a multiple of n - 4.
        starts = range(0, len(parts) - _ANCHOR + 1, n - _ANCHOR + 1)
        if anchors and any(" ".join(parts[i : i + _ANCHOR]) in anchors for i in starts):
            here = [gram for gram in dict.fromkeys(_grams(parts, n)) if gram in grams]
            if here:
                shared[position] = here
                counts.update(here)
    for position, here in shared.items():
        if position not in found:
            telling = [gram for gram in here if counts[gram] <= COMMON]
            if telling:
                probe = grams[telling[0]]
                found[position] = Overlap(probe.of, probe.item, "ngram", telling[0])
    return dict(sorted(found.items()))


def _grams(parts: Sequence[str], n: int) -> Iterator[str]:
    return (" ".join(parts[i : i + n]) for i in range(len(parts) - n + 1))


def by_set(found: Mapping[int, Overlap]) -> dict[str, int]:
    """Rows that overlap each set of items, sets in alphabetical order."""
    return dict(sorted(Counter(overlap.of for overlap in found.values()).items()))
