"""Concepts and the concept consistency graph (method.md, section 3).

A concept is a normalised RAKE key phrase. The graph remembers which concepts were accepted together, and
which accepted sample brought each of them in, so that a rejection can name its cause.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import networkx

# A word (with inner apostrophes and hyphens), or a mark that ends a phrase.
_TOKEN = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*|[^\w\s]|_|\n")


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
    and bare numbers do not count. Ties are broken alphabetically.
    """
    phrases = _phrases(text, max_words)
    frequency: Counter[str] = Counter()
    degree: Counter[str] = Counter()
    for phrase in phrases:
        for word in phrase:
            frequency[word] += 1
            degree[word] += len(phrase)
    scores = {" ".join(p): sum(degree[w] / frequency[w] for w in p) for p in phrases}
    return tuple(sorted(scores, key=lambda phrase: (-scores[phrase], phrase))[:limit])


def _phrases(text: str, max_words: int) -> list[tuple[str, ...]]:
    stops = stop_words()
    found: list[tuple[str, ...]] = []
    run: list[str] = []
    for token in [*_TOKEN.findall(unicodedata.normalize("NFKC", text).lower()), "\n"]:
        word = token.replace("\u2019", "'").removesuffix("'s")
        if len(word) > 1 and word not in stops and not word.isdigit():
            run.append(word)
            continue
        found += [tuple(run[i : i + max_words]) for i in range(0, len(run), max_words)]
        run = []
    return found


@dataclass(frozen=True)
class Clash:
    """Two known concepts that were never seen together, and the samples that brought them in."""

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


@dataclass
class ConceptGraph:
    """Concepts seen in accepted samples; an edge joins two that were accepted together."""

    introduced: dict[str, str] = field(default_factory=dict)
    neighbours: dict[str, set[str]] = field(default_factory=dict)

    def clash(self, concepts: Sequence[str], strictness: float = 1.0) -> Clash | None:
        """None if a sample with these concepts is consistent, else the first pair that is not.

        A pair is known when both concepts are in the graph. The sample is consistent when the share of
        its known pairs that are joined is at least `strictness` (1.0 is the paper's rule, 0.0 accepts
        everything) or no pair is known.
        """
        known = sorted({c for c in concepts if c in self.introduced})
        pairs, joined = 0, 0
        first: tuple[str, str] | None = None
        for i, one in enumerate(known):
            near = self.neighbours[one]
            for other in known[i + 1 :]:
                pairs += 1
                if other in near:
                    joined += 1
                elif first is None:
                    first = (one, other)
        if first is None or joined >= strictness * pairs - 1e-12:
            return None
        one, other = first
        return Clash(one, other, self.introduced[one], self.introduced[other], joined, pairs)

    def add(self, concepts: Iterable[str], row_id: str) -> None:
        """Accepts a sample: its concepts and all their pairs enter the graph."""
        members = set(concepts)
        for concept in members:
            self.introduced.setdefault(concept, row_id)
            self.neighbours.setdefault(concept, set()).update(members - {concept})

    def to_networkx(self) -> networkx.Graph:
        """The graph for networkx users; each node has `introduced_by`."""
        import networkx

        graph = networkx.Graph()
        for concept in sorted(self.introduced):
            graph.add_node(concept, introduced_by=self.introduced[concept])
        for concept in sorted(self.neighbours):
            graph.add_edges_from((concept, other) for other in sorted(self.neighbours[concept]))
        return graph
