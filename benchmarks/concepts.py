"""Concept extraction: rows a second on one core; and how the share of rows that the concept filter
refuses moves with the granularity of concepts and with strictness.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.data import as_sample, real_rows
from benchmarks.measure import measured
from paser.method.concepts import ConceptGraph, key_phrases

SIZES = (2_500, 10_000, 39_922)
CONCEPTS = (2, 4, 8, 16, 30)
WORDS = (1, 3)
STRICTNESS = (1.0, 0.75, 0.5, 0.25)
TARGET_RATE = 10_000
PASSES = 3


def run() -> dict[str, Any]:
    return {
        "rate": measured("benchmarks.concepts:rate")["result"],
        "refused": [
            cell
            for words in WORDS
            for strictness in STRICTNESS
            for cell in measured("benchmarks.concepts:refused", words=words, strictness=strictness)["result"]
        ],
    }


def texts() -> list[str]:
    """Prompt and response of each row of `pool-large`, in the file's order."""
    samples = (as_sample(number, row) for number, row in enumerate(real_rows()))
    return [f"{sample.prompt}\n{sample.output}" for sample in samples]


def rate() -> dict[str, float]:
    """Rows a second: the first pass, and the best of some."""
    rows = texts()
    key_phrases("a warm start: the list of stop words")
    rates = []
    for _ in range(PASSES):
        start = time.perf_counter()
        for text in rows:
            key_phrases(text)
        rates.append(len(rows) / (time.perf_counter() - start))
    return {
        "rows": len(rows),
        "characters": sum(map(len, rows)) / len(rows),
        "first": rates[0],
        "best": max(rates),
    }


def refused(words: int, strictness: float) -> list[dict[str, Any]]:
    """The share refused at each size and number of concepts; rows are visited in the file's order."""
    phrases = [key_phrases(text, max(CONCEPTS), words) for text in texts()]
    cells = []
    for concepts in CONCEPTS:
        graph, count = ConceptGraph(), 0
        for number, found in enumerate(phrases, start=1):
            if graph.clash(found[:concepts], strictness):
                count += 1
            else:
                graph.add(found[:concepts], str(number))
            if number in SIZES:
                cells.append(
                    {
                        "words": words,
                        "strictness": strictness,
                        "concepts": concepts,
                        "rows": number,
                        "refused": count / number,
                    }
                )
    return cells


def render(result: dict[str, Any]) -> str:
    rate = result["rate"]
    share = {(c["words"], c["concepts"], c["strictness"], c["rows"]): c["refused"] for c in result["refused"]}
    head = " | ".join(f"{size:,} rows, {s}" for s in STRICTNESS for size in SIZES)
    lines = [
        f"| {concepts} | {words} | "
        + " | ".join(f"{share[words, concepts, s, size]:.0%}" for s in STRICTNESS for size in SIZES)
        + " |"
        for words in reversed(WORDS)
        for concepts in CONCEPTS
    ]
    met = "met" if rate["first"] >= TARGET_RATE else "missed"
    return f"""## Concepts

Key phrases of prompt and response, {rate["rows"]:,} real rows of {rate["characters"]:.0f} characters on average, one core:
**{rate["first"]:,.0f} rows/s** in the first pass, {rate["best"]:,.0f} in the best of {PASSES}. Target: at least {TARGET_RATE:,}: {met}.

Share of rows that the concept filter refuses, by concepts a sample, words a concept, and strictness (the
share of known pairs that must be joined; 1.0 is the paper's rule). All rows are candidates and are visited
in the order of the file, without budget or clusters.

| concepts | words | {head} |
|---|---|{"---|" * len(STRICTNESS) * len(SIZES)}
{chr(10).join(lines)}
"""  # noqa: E501
