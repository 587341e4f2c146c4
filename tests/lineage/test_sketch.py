"""Sketches are datasketch's MinHash, cut to two bits, and estimate the similarity of two texts."""

from __future__ import annotations

import random

import numpy as np
from datasketch import MinHash

from paser.lineage.sketch import BITS, VALUES, gram_hashes, similarity, sketches, text_digest
from paser.pool.dedup import jaccard, shingles

WORDS = [f"word{i}" for i in range(5000)]


def texts(count: int, lengths: tuple[int, ...], seed: int = 1) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) for _ in range(draw.choice(lengths))) for _ in range(count)]


def test_a_sketch_holds_the_lowest_bits_of_datasketch_s_values() -> None:
    some = ["", "one", "Four little words only", "four LITTLE words, only!", *texts(60, (3, 5, 6, 40, 120))]
    hashes, starts = gram_hashes(some)
    found = sketches(some)
    for number, begin in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else len(hashes)
        theirs = MinHash(VALUES, seed=1, scheme="affine32", hashfunc=lambda value: value)
        theirs.update_batch([int(value) for value in hashes[begin:end]])
        unpacked = [(int(byte) >> shift) & 3 for byte in found[number] for shift in range(0, 8, BITS)]
        assert unpacked == [int(value) & 3 for value in theirs.hashvalues]
    assert (found[2] == found[3]).all()


def test_a_text_s_sketch_does_not_depend_on_its_neighbours() -> None:
    some = texts(5000, (1, 7, 30))
    alone = [0, 17, 2047, 2048, 4999]
    assert (sketches(some)[alone] == np.concatenate([sketches([some[i]]) for i in alone])).all()


def test_the_estimate_is_within_its_error_of_the_exact_similarity() -> None:
    draw = random.Random(7)
    errors = []
    for text in texts(300, (60, 120)):
        words = text.split()
        for place in draw.sample(range(len(words)), draw.choice((0, 1, 2, 4))):
            words[place] = "other"
        other = " ".join(words)
        exact = jaccard(shingles(text), shingles(other))
        errors.append(float(similarity(sketches([text])[0], sketches([other]))[0]) - exact)
    assert np.std(errors) < 0.06
    assert abs(np.mean(errors)) < 0.01


def test_unrelated_texts_are_not_similar() -> None:
    some = sketches(texts(2000, (30, 80)))
    assert similarity(some[0], some[1:]).max() < 0.3


def test_a_digest_is_that_of_the_normalised_text() -> None:
    assert text_digest("  cafe\u0301\r\nau lait ") == text_digest("caf\u00e9\nau lait")
    assert len(text_digest("x")) == 16
