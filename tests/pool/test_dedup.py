from __future__ import annotations

import random

import numpy as np
import pytest

from paser.pool.dedup import NearIndex, bands, grams, jaccard, shingles, surely_far, words

TEXT = " ".join(f"word{i}" for i in range(40))


def edited(text: str, changes: int) -> str:
    parts = text.split()
    parts[-changes:] = [f"other{i}" for i in range(changes)]
    return " ".join(parts)


def test_words_ignore_case_and_punctuation_but_keep_numbers_signs_and_operators() -> None:
    assert words('He said: "Add -5 + 3.5 (now)!"') == ["he", "said", "add", "-5", "+", "3.5", "now"]


def test_shingles_are_word_five_grams() -> None:
    assert shingles("a b c d e f").size == 2
    assert shingles("a b c d").size == 1
    assert jaccard(shingles("a b c d"), shingles("A, b c d!")) == 1.0
    assert jaccard(shingles("a b c d e f"), shingles("b c d e f g")) == pytest.approx(1 / 3)


def test_similarity_is_the_exact_share_of_shared_five_grams() -> None:
    first, second = shingles(TEXT), shingles(edited(TEXT, 2))
    assert jaccard(first, second) == pytest.approx(34 / 38)
    assert jaccard(first, first) == 1.0


def test_a_near_text_is_found_and_a_less_near_one_is_not() -> None:
    index = NearIndex(0.8, seed=1)
    index.add("near", edited(TEXT, 2))
    index.add("far", edited(TEXT, 8))
    index.add("same", TEXT)
    assert index.query(TEXT) == ["near", "same"]
    assert dict(index.nearest(TEXT)) == {"near": pytest.approx(34 / 38), "same": 1.0}
    assert len(index) == 3


def test_short_texts_are_near_only_when_equal() -> None:
    index = NearIndex(0.5, seed=1)
    index.add("a", "Add 2 and 3.")
    assert index.query("add 2 and 3") == ["a"]
    assert index.query("Add 2 and 4.") == []


@pytest.mark.parametrize("threshold", [0.5, 0.65, 0.8, 0.95, 1.0])
def test_every_pair_at_or_above_the_threshold_is_found(threshold: float) -> None:
    rng = random.Random(3)
    index = NearIndex(threshold, seed=5)
    texts = [" ".join(f"t{i}w{rng.randrange(400)}" for _ in range(rng.randint(6, 60))) for i in range(60)]
    for number, text in enumerate(texts):
        index.add(str(number), text)
    for number, text in enumerate(texts):
        for changes in (0, 1, 2, 4):
            other = edited(text, changes) if changes else text
            expected = jaccard(shingles(text), shingles(other)) >= threshold
            assert (index.query(other) == [str(number)]) is expected


@pytest.mark.parametrize("threshold", np.linspace(0.5, 1.0, 11))
def test_the_bands_miss_a_pair_at_the_threshold_less_than_once_in_ten_thousand(threshold: float) -> None:
    count, rows = bands(float(threshold))
    assert count * rows <= 128
    assert (1 - threshold**rows) ** count <= 1e-4


def test_the_answer_does_not_depend_on_the_seed() -> None:
    answers = []
    for seed in (1, 2, 3):
        index = NearIndex(0.8, seed)
        for changes in range(1, 9):
            index.add(str(changes), edited(TEXT, changes))
        answers.append(index.query(TEXT))
    assert answers[0] == answers[1] == answers[2] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("threshold", [0.5, 0.65, 0.8, 0.95, 1.0])
def test_no_near_text_is_called_surely_far_and_most_others_are(threshold: float) -> None:
    rng = random.Random(7)
    texts = [" ".join(f"w{rng.randrange(4)}" for _ in range(rng.randint(1, 24))) for _ in range(150)]
    texts += [edited(TEXT, changes) for changes in range(1, 20)] + [TEXT]
    near = 0
    for known in texts[::3]:
        for text in texts:
            if jaccard(shingles(text), shingles(known)) >= threshold:
                near += 1
                assert not surely_far(text, {*grams(known)}, threshold), (text, known)
    assert near > 50
    unrelated = " ".join(f"else{i}" for i in range(40))
    assert surely_far(unrelated, {*grams(TEXT)}, threshold)
    assert surely_far("word1", {*grams(TEXT)}, threshold)
