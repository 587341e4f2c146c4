"""Concepts and the concept consistency graph (method.md, section 3).

A concept is a normalised RAKE key phrase. The graph remembers which concepts were accepted together, and
which accepted sample brought each of them in, so that a rejection can name its cause.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import networkx

# Of a longer text, only this many characters are read: a bound on the work, above nearly every sample.
MAX_CHARACTERS = 4000
# Pieces of text between white space whose words are remembered: some 30 MB of English.
_MEMORY = 1 << 17
# A word (with inner apostrophes and hyphens), or a mark that ends a phrase.
_TOKEN = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*|[^\w\s]|_")
_BREAK = "\n"


@cache
def stop_words() -> frozenset[str]:
    """scikit-learn's English stop words."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


def key_phrases(text: str, limit: int = 8, max_words: int = 3) -> tuple[str, ...]:
    """At most `limit` key phrases of at most `max_words` words, best first.

    RAKE (Rose et al. 2010): phrases are runs of words between stop words and punctuation; a word scores
    degree / frequency over the text's phrases, a phrase the sum of its words. Longer runs are cut into
    pieces of `max_words`. Phrases are lower case, NFKC, without possessive endings; words of one letter
    and bare numbers do not count. Ties are broken alphabetically. Only the first `MAX_CHARACTERS`
    characters are read.
    """
    phrases: list[list[str]] = []
    for run in _runs(text):
        words = run.split()
        if len(words) > max_words:
            phrases += [words[i : i + max_words] for i in range(0, len(words), max_words)]
        elif words:
            phrases.append(words)
    frequency: dict[str, int] = {}
    degree: dict[str, int] = {}
    for phrase in phrases:
        length = len(phrase)
        for word in phrase:
            if word in frequency:
                frequency[word] += 1
                degree[word] += length
            else:
                frequency[word], degree[word] = 1, length
    # Negative, so that the best come first; names are sorted only for what may be among the best.
    weight = {word: -total / frequency[word] for word, total in degree.items()}
    scores = {" ".join(p): sum([weight[w] for w in p]) if len(p) > 1 else weight[p[0]] for p in phrases}
    best = sorted(scores.values())[:limit]
    ranked = sorted([(score, phrase) for phrase, score in scores.items() if score <= best[-1]])
    return tuple([phrase for _, phrase in ranked[:limit]])


def _runs(text: str) -> list[str]:
    """Runs of words between stop words, punctuation and line ends; words are parted by white space."""
    text = text[:MAX_CHARACTERS]
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    pieces = text.lower().replace("\n", " . ").split()
    return " ".join(map(_words, pieces)).split(_BREAK)


@lru_cache(maxsize=_MEMORY)
def _words(piece: str) -> str:
    """The words of a piece of text without white space; what ends a phrase stands as `_BREAK`."""
    stops = stop_words()
    words = [token.replace("\u2019", "'").removesuffix("'s") for token in _TOKEN.findall(piece)]
    return " ".join(
        word if len(word) > 1 and word not in stops and not word.isdigit() else _BREAK for word in words
    )


class Clash(NamedTuple):
    """Two known concepts that were never seen together, and the samples that brought them in.

    `joined` of the sample's `known` pairs of known concepts are joined.
    """

    first: str
    second: str
    first_row: str
    second_row: str
    joined: int
    known: int

    def __str__(self) -> str:
        return (
            f"{self.first!r} (from {self.first_row}) and {self.second!r} (from {self.second_row}) are "
            f"both known but were never together; {self.joined} of {self.known} known pairs are joined"
        )


@dataclass(slots=True)
class Concept:
    """A concept of accepted samples.

    `introduced_by`: id of the first sample that carries it; `samples`: how many do; `joined`: the concepts
    seen together with it, and in how many samples.
    """

    name: str
    introduced_by: str
    samples: int = 0
    joined: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ConceptGraph:
    """Concepts seen in accepted samples; two are joined when they were accepted together."""

    concepts: dict[str, Concept] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.concepts)

    def clash(self, concepts: Iterable[str], strictness: float = 1.0) -> Clash | None:
        """None if a sample with these concepts is consistent, else the first pair that is not.

        A pair is known when both concepts are in the graph. The sample is consistent when the share of
        its known pairs that are joined is at least `strictness` (1.0 is the paper's rule, 0.0 accepts
        everything) or no pair is known. First means alphabetically.
        """
        known = [self.concepts[name] for name in sorted(self.concepts.keys() & concepts)]
        joined = 0
        first: tuple[Concept, Concept] | None = None
        for i, one in enumerate(known, start=1):
            near = one.joined
            for other in known[i:]:
                if other.name in near:
                    joined += 1
                elif first is None:
                    first = one, other
        pairs = len(known) * (len(known) - 1) // 2
        if first is None or joined >= strictness * pairs - 1e-12:
            return None
        one, other = first
        return Clash(one.name, other.name, one.introduced_by, other.introduced_by, joined, pairs)

    def add(self, concepts: Iterable[str], row_id: str) -> None:
        """Accepts a sample: its concepts and all their pairs enter the graph."""
        members = []
        for name in dict.fromkeys(concepts):
            concept = self.concepts.get(name)
            if concept is None:
                concept = self.concepts[name] = Concept(name, row_id)
            concept.samples += 1
            members.append(concept)
        for one in members:
            for other in members:
                if other is not one:
                    one.joined[other.name] = one.joined.get(other.name, 0) + 1

    def to_networkx(self) -> networkx.Graph:
        """The graph for networkx users: nodes with `introduced_by` and `samples`, edges with `samples`."""
        import networkx

        graph = networkx.Graph()
        for name in sorted(self.concepts):
            concept = self.concepts[name]
            graph.add_node(name, introduced_by=concept.introduced_by, samples=concept.samples)
        for name in sorted(self.concepts):
            joined = self.concepts[name].joined
            graph.add_edges_from(
                (name, other, {"samples": joined[other]}) for other in sorted(joined) if name < other
            )
        return graph
