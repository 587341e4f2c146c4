"""Rows that show what is evaluated are found; templates and short phrases alone are not enough."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from paser.pool.contamination import COMMON, Probe, by_set, overlaps

LONG = "A farmer has seventeen sheep and all but nine of them run away one night, how many are left?"
PROBE = Probe("task riddles", "row 3", (LONG,))


def test_a_row_with_the_same_thirteen_words_overlaps_wherever_they_stand() -> None:
    inside = f"Read this carefully. {LONG} Explain your answer."
    found = overlaps([("Say hello.", "Hello."), (inside, "Nine."), ("Quote a riddle.", f"“{LONG.upper()}”")],
                     [PROBE], 13)  # fmt: skip
    assert {position: overlap.kind for position, overlap in found.items()} == {1: "ngram", 2: "ngram"}
    assert "row 3 of task riddles" in str(found[1])
    assert by_set(found) == {"task riddles": 2}


def test_twelve_shared_words_are_not_thirteen() -> None:
    twelve = " ".join(LONG.split()[:12])
    assert overlaps([(f"{twelve} survive?", "")], [PROBE], 13) == {}
    assert list(overlaps([(f"{twelve} survive?", "")], [PROBE], 12)) == [0]


def test_a_short_prompt_overlaps_when_the_whole_prompt_is_equal() -> None:
    short = Probe("held-out rows", "r1", ("What is 2 + 3?",))
    rows = [("what is 2 + 3", "5"), ("What is 2 + 3? And 4 + 4?", "5 and 8"), ("Sum", "What is 2 + 3?")]
    found = overlaps(rows, [short], 13)
    assert list(found) == [0]
    assert found[0].kind == "exact"


def test_each_form_of_a_prompt_counts() -> None:
    probe = Probe("task", "1", ("Where do cats live?", "Question: Where do cats live?\nAnswer:"))
    assert list(overlaps([("Question: where do cats live? Answer:", "")], [probe], 13)) == [0]


def test_the_words_of_a_template_do_not_count() -> None:
    template = (
        "Please choose the correct answer to the following question and reply with one letter alone now:"
    )
    probes = [Probe("task", str(i), (f"{template} number {i}",)) for i in range(3)]
    few = [(f"{template} thing {i}", "") for i in range(COMMON)]
    assert len(overlaps(few, probes, 13)) == COMMON
    many = [(f"{template} thing {i}", "") for i in range(COMMON + 1)]
    assert overlaps(many, probes, 13) == {}


def test_without_probes_nothing_overlaps() -> None:
    assert overlaps([(LONG, "")], [], 13) == {}
    assert overlaps([("", "")], [Probe("task", "1", ("", "  "))], 13) == {}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 16))
def test_the_shortcut_misses_no_run_of_words(seed: int, n: int) -> None:
    rng = random.Random(seed)
    draw = [f"w{rng.randrange(6)}" for _ in range(60)]
    probe = [f"w{rng.randrange(6)}" for _ in range(40)]
    start = rng.randrange(30)
    row = [*draw[:start], *probe[7 : 7 + n], *draw[start:]]
    assert list(overlaps([(" ".join(row), "")], [Probe("x", "1", (" ".join(probe),))], n)) == [0]
