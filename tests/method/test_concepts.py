"""Key phrases, and the concept graph against a brute-force networkx version."""

from __future__ import annotations

from itertools import combinations

import networkx
from hypothesis import given
from hypothesis import strategies as st

from paser.method.concepts import MAX_CHARACTERS, ConceptGraph, key_phrases, stop_words


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


def test_words_keep_inner_marks_and_lose_possessives() -> None:
    text = "Mother-in-law\u2019s don't-care _flag_ ﬁne-tuning\u2014(O'Brien's)"
    assert set(key_phrases(text)) == {"mother-in-law don't-care", "flag", "fine-tuning", "o'brien"}


def test_the_work_on_a_long_text_is_bounded() -> None:
    head = "red fox. " * (MAX_CHARACTERS // 9)
    assert key_phrases(head + " " * MAX_CHARACTERS + "green owl and blue jay") == key_phrases(head)
    assert key_phrases("x" * (3 * MAX_CHARACTERS)) == ("x" * MAX_CHARACTERS,)


@given(st.text(max_size=200), st.integers(1, 6), st.integers(1, 4))
def test_phrases_of_any_text_are_bounded(text: str, limit: int, words: int) -> None:
    found = key_phrases(text, limit, words)
    assert len(set(found)) == len(found) <= limit
    for phrase in found:
        assert 1 <= len(phrase.split()) <= words
        assert not any(word in stop_words() or word.isdigit() for word in phrase.split())


@given(
    st.lists(st.sampled_from(["red", "fox", "owl", "the", ".", "jay\n", "12", "x", "blue's"]), max_size=30)
)
def test_phrases_are_the_runs_with_the_highest_degree_by_frequency(tokens: list[str]) -> None:
    """RAKE written out: runs, then degree / frequency, then the order."""
    runs: list[list[str]] = [[]]
    for token in tokens:
        if token in ("the", ".", "12", "x"):
            runs.append([])
        else:
            runs[-1].append(token.strip().removesuffix("'s"))
            if token.endswith("\n"):
                runs.append([])
    phrases = [run[i : i + 3] for run in runs for i in range(0, len(run), 3)]
    scores = {
        " ".join(phrase): sum(
            sum(len(p) * p.count(word) for p in phrases) / sum(p.count(word) for p in phrases)
            for word in phrase
        )
        for phrase in phrases
    }
    expected = sorted(scores, key=lambda phrase: (-scores[phrase], phrase))[:4]
    assert list(key_phrases(" ".join(tokens), 4)) == expected


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
            assert reference.nodes[clash.first]["introduced_by"] == clash.first_row
            assert reference.nodes[clash.second]["introduced_by"] == clash.second_row
            unjoined = [pair for pair in known if not reference.has_edge(*pair)]
            assert (clash.first, clash.second) == unjoined[0]
            assert (clash.joined, clash.known) == (joined, len(known))
            continue
        graph.add(concepts, str(number))
        for concept in concepts:
            if concept not in reference:
                reference.add_node(concept, introduced_by=str(number), samples=0)
            reference.nodes[concept]["samples"] += 1
        for a, b in combinations(concepts, 2):
            reference.add_edge(a, b, samples=reference.get_edge_data(a, b, {"samples": 0})["samples"] + 1)
    exported = graph.to_networkx()
    assert dict(exported.nodes.data("samples")) == dict(reference.nodes.data("samples"))
    assert dict(exported.nodes.data("introduced_by")) == dict(reference.nodes.data("introduced_by"))
    edges = {frozenset((a, b)): samples for a, b, samples in reference.edges.data("samples")}
    assert {frozenset((a, b)): samples for a, b, samples in exported.edges.data("samples")} == edges
    assert len(graph) == len(reference)


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
