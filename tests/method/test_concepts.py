"""Key phrases, and the concept graph against a brute-force networkx version."""

from __future__ import annotations

from itertools import combinations

import networkx
from hypothesis import given
from hypothesis import strategies as st

from paser.method.concepts import ConceptGraph, key_phrases


def test_rake_by_hand() -> None:
    # Runs: [prime factors], [large prime numbers], [sorted].
    # degree/frequency: prime (2+3)/2, factors 2, large 3, numbers 3, sorted 1
    text = "The prime factors of large prime numbers are sorted."
    assert key_phrases(text) == ("large prime numbers", "prime factors", "sorted")


def test_phrases_are_bounded_and_normalised() -> None:
    text = "Alpha beta gamma delta epsilon! John's 42 dogs, x. ALPHA\u2019s end"
    found = key_phrases(text, limit=8, max_words=3)
    assert all(len(phrase.split()) <= 3 for phrase in found)
    assert "alpha beta gamma" in found
    assert "delta epsilon" in found
    assert all("42" not in phrase.split() and "x" not in phrase.split() for phrase in found)
    assert len(key_phrases(text, limit=2)) == 2
    assert key_phrases("") == ()
    assert key_phrases("the of and 7") == ()


def test_line_ends_and_punctuation_end_a_phrase() -> None:
    assert set(key_phrases("red fox\ngreen owl, blue jay")) == {"red fox", "green owl", "blue jay"}


samples = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=5, unique=True), max_size=25)


@given(samples, st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
def test_agrees_with_networkx(stream: list[list[str]], strictness: float) -> None:
    graph, reference = ConceptGraph(), networkx.Graph()
    for number, concepts in enumerate(stream):
        known = [(a, b) for a, b in combinations(sorted(concepts), 2) if a in reference and b in reference]
        joined = sum(reference.has_edge(a, b) for a, b in known)
        consistent = not known or joined / len(known) >= strictness
        clash = graph.clash(concepts, strictness)
        assert (clash is None) == consistent
        if clash:
            assert not reference.has_edge(clash.first, clash.second)
            assert clash.first in stream[int(clash.first_row)]
            assert (clash.joined, clash.known) == (joined, len(known))
            continue
        graph.add(concepts, str(number))
        reference.add_nodes_from(concepts)
        reference.add_edges_from(combinations(concepts, 2))
    exported = graph.to_networkx()
    assert set(exported.nodes) == set(reference.nodes)
    assert {frozenset(e) for e in exported.edges} == {frozenset(e) for e in reference.edges}


def test_a_rejection_names_the_concepts_and_who_brought_them() -> None:
    graph = ConceptGraph()
    graph.add(["fox", "forest"], "r1-one")
    graph.add(["owl", "night"], "r1-two")
    clash = graph.clash(["fox", "owl", "moon"])
    assert clash is not None
    assert (clash.first, clash.first_row, clash.second, clash.second_row) == (
        "fox",
        "r1-one",
        "owl",
        "r1-two",
    )
    assert "never together" in str(clash)
    assert graph.clash(["fox", "moon"]) is None
