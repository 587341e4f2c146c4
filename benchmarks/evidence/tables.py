# ruff: noqa: E501 (prose and table rows)
"""Lines and numbers that tables of docs/evidence.md share."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.evidence import grid
from benchmarks.evidence.analysis import METRICS, judge_of, paired
from benchmarks.evidence.cells import Cell, Row
from benchmarks.evidence.world import SCHEMES
from paser.evaluation.paired import CLOSED, Judge, verdict

WANDA = grid.WANDA
# Those that the default rule has on the development pool: what stands beside it is of them.
SHARED_SEEDS = grid.DEVELOPMENT_SEEDS[:3]
WHERE = f"Development pool, {SCHEMES[WANDA]}, {grid.LARGE:,} training tokens"
# Beside a gap closed of more than 1.
OVER = "†"
UNKNOWN = "(not run yet)"


@functools.cache
def judge(scheme: str) -> Judge:
    return judge_of(scheme)


def primary_pair(scheme: str, budget: int) -> list[list[Cell]]:
    """The cells of the paper's policy and those of random rows."""
    return [
        grid.plain(name, grid.DEVELOPMENT_SEEDS, scheme=scheme, budget=budget) for name in ("paser", "random")
    ]


def default_and_random(
    scheme: str, seeds: Sequence[int] = grid.DEVELOPMENT_SEEDS, **changes: Any
) -> list[list[Cell]]:
    """The cells of the default rule and those of random rows, of the development pool."""
    return [grid.named(name, seeds, scheme=scheme, **changes) for name in (grid.DEFAULT, "random")]


def gentle_pairs() -> Iterator[tuple[str, str, list[list[Cell]]]]:
    """Scheme and learning rate as text, the scheme, and the cells of the default rule and those of random rows at
    this multiple of the default learning rate; 1 first."""
    for scheme, shares in grid.GENTLER.items():
        for share in (1, *shares):
            sides = [gently(name, scheme, share) for name in (grid.DEFAULT, "random")]
            yield f"{SCHEMES[scheme]}, rate x {share:g}", scheme, sides


def gently(name: str, scheme: str, share: float) -> list[Cell]:
    """The cells at this share of the default learning rate; at 1 those that were made again, on the kind of
    processor on which the others were made."""
    return grid.once_more(name, scheme) if share == 1 else grid.gently(name, scheme, share)


def both_sides(
    metric: str, scheme: str, ours: list[Cell], theirs: list[Cell]
) -> tuple[str, str, str, Row] | None:
    """Of the seeds that both have: either side, then difference, verdict and seeds as three columns, and
    the difference as numbers; None without such a seed."""
    a, b = paired(ours, theirs)
    if not a:
        return None
    j = judge(scheme)
    found = j.difference(metric, a, b)
    difference = f"{signed(found)} | {verdict(found)} | {len(a)}"
    return share(j.mean(metric, a), metric), share(j.mean(metric, b), metric), difference, found


def compared(metric: str, what: str, scheme: str, one: str, other: str, sides: Sequence[list[Cell]]) -> str:
    """One line: a selector, another, and the paired difference; empty where no seed has both."""
    both = both_sides(metric, scheme, *sides)
    if not both:
        return ""
    a, b, difference, found = both
    return f"| {what} | `{one}` | {a} | `{other}` | {b} | {difference} | {least(found)} |"


def by_metric(
    comparisons: Iterable[tuple[str, str, str, str, Sequence[list[Cell]]]],
) -> dict[str, list[str]]:
    """The lines of each metric; of what, scheme, a selector, another, and the cells of both."""
    asked = list(comparisons)
    return {metric: [line for one in asked if (line := compared(metric, *one))] for metric in METRICS}


def blocks(lines: Mapping[str, Sequence[str]]) -> str:
    """One table for each metric that has lines."""
    return "\n\n".join(
        "\n".join([_compared_head(metric), *found]) for metric, found in lines.items() if found
    )


def _compared_head(metric: str) -> str:
    return f"| | | {metric} | minus | | difference | | seeds | least |\n|---|---|--:|---|--:|--:|---|--:|--:|"


def share(found: Row, metric: str = "") -> str:
    over = OVER if metric == CLOSED and found["value"] > 1 else ""
    return f"{found['value']:.3f}{over} [{found['low']:.3f}, {found['high']:.3f}]"


def signed(found: Row) -> str:
    return f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def least(found: Row) -> str:
    """The least difference that could be found; one seed says nothing of others."""
    return number(found["least"] if found["seeds"] > 1 else None)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
