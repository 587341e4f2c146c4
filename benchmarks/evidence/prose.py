# ruff: noqa: E501 (prose and table rows)
"""reading.md with values from the cells, and a check of what its sentences say of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean, median

from benchmarks.evidence import cells as cell_files
from benchmarks.evidence import grid
from benchmarks.evidence.analysis import METRICS, paired, trained
from benchmarks.evidence.cells import Cell, Row
from benchmarks.evidence.comparison import (
    MORE_TOKENS,
    all_compared,
    compared_with,
    healed_over,
    left_by_label,
    of_ceiling,
    tested_by_label,
)
from benchmarks.evidence.provenance import least_in_common, moved, near_earlier
from benchmarks.evidence.selections import PASSES_OF_TRAINING, contents
from benchmarks.evidence.tables import (
    SHARED_SEEDS,
    UNKNOWN,
    WANDA,
    default_and_random,
    gentle_pairs,
    gently,
    judge,
    least,
    primary_pair,
    signed,
)
from benchmarks.evidence.world import SCHEMES, TASK_ITEMS, task_items, world
from paser.evaluation.paired import ACCURACY, CLOSED, FIDELITY, verdict

READING = Path(__file__).parent / "reading.md"
# Selectors that `reading.md` tells of.
TOLD = (
    grid.DEFAULT, grid.THIRD_WINNER, "random", "paser", "per-token", "recoverable", "longest", "total-damage",
    "ifd", "less", "grand", "variance-of-gradients", "influence-effort", "preselect",
    *grid.WITHOUT_DAMAGE, "paser-random-inside", "full", MORE_TOKENS,
)  # fmt: skip
# A value of `reading.md`: text, or a difference.
Told = Callable[[], str | Row]


def reading() -> str:
    """`reading.md`, with values from the cells in the place of their names in braces. Before a difference's name may
    stand what the sentence says of it ("ahead: ...", "level or behind: ..."), or "least: " for the least difference that
    its seeds would find.

    Raises:
        ValueError: The cells do not say what the sentence says.
    """
    values = told()
    return re.sub(
        r"\{([^{}]+)\}", lambda found: _value(found[1], values), READING.read_text(encoding="utf-8")
    )


def _value(braces: str, values: Mapping[str, Told]) -> str:
    claim, _, name = braces.rpartition(": ")
    found = values[name]()
    if isinstance(found, str):
        if claim and found != UNKNOWN:
            raise ValueError(f"{READING.name} says {claim!r} of {name!r}, which is no difference ({found})")
        return found
    if claim == "least":
        return least(found)
    said = verdict(found).replace("tie", "level")
    if claim and said not in claim.split(" or "):
        raise ValueError(
            f"{READING.name} says {claim!r} of {name!r}, and the cells say {said!r} ({signed(found)}): "
            "change the sentence"
        )
    return signed(found)


def told() -> dict[str, Told]:
    """What `reading.md` may name, computed where it does: paired differences (`_differences`) by metric, as they were
    measured; and, as the page shows them, what selectors have on the development pool and consist of, the ceiling,
    how far another processor moves a metric, and a few counts."""
    values: dict[str, Told] = {
        f"{metric} {name}": partial(_difference, metric, scheme, *sides)
        for name, scheme, sides in _differences()
        for metric in METRICS
    }
    for name in TOLD:
        cells = _told_cells(name)
        for metric in METRICS:
            values[f"{metric} of {name}"] = partial(_mean, metric, cells)
        values[f"tokens of {name}"] = partial(_tokens, cells)
        values[f"wrong answers of {name}"] = partial(_consists, "wrong", ".0%", cells)
        values[f"response tokens of {name}"] = partial(_consists, "response", ",.0f", cells)
    values["left without training"] = partial(_left, None)
    values["left without training in other labels"] = partial(_left, None, "behind")
    values["wrong answers of the pool"] = lambda: (
        f"{contents([[r['row_id'] for r in world().pools[grid.DEVELOPMENT]]], grid.DEVELOPMENT)['wrong']:.0%}"
    )
    for name in grid.CEILING:
        values[f"JSD by {name}"] = partial(_jsd_of_ceiling, name)
        values[f"left by {name}"] = partial(_left, name)
        values[f"left by {name} in other labels"] = partial(_left, name, "behind")
        values[f"healed by {name} over random"] = partial(_healed_over_random, name)
    for metric in METRICS:
        values[f"moved in {metric}"] = partial(_moved, metric)
        values[f"ahead of the default in {metric}"] = partial(_ahead_of_default, metric)
    for metric in (FIDELITY, CLOSED):
        for scheme, title in SCHEMES.items():
            for said in ("ahead", "behind"):
                values[f"labels {said} in {metric}, {title}"] = partial(_labels, metric, scheme, said)
    for said in ("ahead", "behind"):
        values[f"labels {said} in gap closed"] = partial(_names_of_labels, said)
    values["words, at most, of labels behind in gap closed"] = partial(_words, max, "behind")
    values["words, at least, of labels ahead in gap closed"] = partial(_words, min, "ahead")
    values["rows in common on another processor"] = lambda: f"{least_in_common():.0%}"
    values["near an earlier pool"] = lambda: f"{near_earlier(grid.LAST) / len(world().pools[grid.LAST]):.0%}"
    values["comparisons in which the paper's policy is ahead in task accuracy"] = _ahead_in_accuracy
    values["items"] = lambda: f"{sum(min(TASK_ITEMS, len(items)) for items in task_items().values())}"
    values["trainings that scoring costs"] = _trainings_that_scoring_costs
    return values


def _differences() -> Iterator[tuple[str, str, list[list[Cell]]]]:
    """What is told of each metric: its name after the metric's, the scheme, and the cells of both sides."""
    seeds = grid.DEVELOPMENT_SEEDS
    for scheme, title in SCHEMES.items():
        # Of the default, on the pool of its test and at the smaller budget.
        for other in ("random", grid.THIRD_WINNER):
            yield f"over {other}, {title}", scheme, _on_last(grid.DEFAULT, other, scheme)
        small = default_and_random(scheme, budget=grid.SMALL)
        yield f"over random, {title}, {grid.SMALL:,} tokens", scheme, small
        # Of the paper's policy and of random rows, by budget.
        primary = {budget: primary_pair(scheme, budget) for budget in (grid.SMALL, grid.LARGE)}
        for budget, sides in primary.items():
            yield f"of paser over random, {title}, {budget:,} tokens", scheme, sides
        by_budget = [primary[budget][1] for budget in (grid.LARGE, grid.SMALL)]
        yield f"of random, {title}, {grid.LARGE:,} over {grid.SMALL:,} tokens", scheme, by_budget
    # What stands beside the default on the pool of its test.
    for name in grid.BESIDE:
        for other in ("random", grid.DEFAULT):
            yield f"of {name} over {other}, {SCHEMES[grid.HARD]}", grid.HARD, _on_last(name, other, grid.HARD)
    # Gentler training of both, or of random rows alone.
    for what, scheme, sides in gentle_pairs():
        yield f"over random, {what}", scheme, sides
        ours, theirs = (gently(name, scheme, 1) for name in (grid.DEFAULT, "random"))
        yield f"over random, {what}, itself x 1", scheme, [ours, sides[1]]
        yield f"of random, {what}, over x 1", scheme, [sides[1], theirs]
    # With the original model as teacher.
    for name in (grid.WINNER, "paser"):
        yield f"of {name} over random, taught", WANDA, [grid.taught(n, seeds) for n in (name, "random")]
    for name in TOLD:
        for other in (grid.DEFAULT, "random", "paser"):
            if name != other:
                sides = [_told_cells(name), grid.named(other, seeds)]
                yield f"of {name} over {other}", WANDA, sides


def _on_last(name: str, other: str, scheme: str) -> list[list[Cell]]:
    return [grid.confirmed(n, grid.LAST_SEEDS, scheme, pool=grid.LAST) for n in (name, other)]


def _told_cells(name: str) -> list[Cell]:
    """Of the seeds that the default rule has."""
    if name == MORE_TOKENS:
        return grid.with_scoring(SHARED_SEEDS)
    return grid.named(name, SHARED_SEEDS)


def _difference(metric: str, scheme: str, ours: list[Cell], theirs: list[Cell]) -> str | Row:
    """The paired difference."""
    a, b = paired(ours, theirs)
    return judge(scheme).difference(metric, a, b) if a else UNKNOWN


def _mean(metric: str, cells: list[Cell]) -> str:
    done = list(trained(cells).values())
    return f"{judge(WANDA).mean(metric, done)['value']:.2f}" if done else UNKNOWN


def _tokens(cells: list[Cell]) -> str:
    """Training tokens of the first seed."""
    done = trained(cells)
    chosen = [cell_files.selection(cell)["tokens"] for cell in cells if cell.seed in done]
    return f"{chosen[0]:,}" if chosen else UNKNOWN


def _consists(what: str, form: str, cells: list[Cell]) -> str:
    done = trained(cells)
    chosen = [cell_files.selection(cell)["rows"] for cell in cells if cell.seed in done]
    return format(contents(chosen, grid.DEVELOPMENT)[what], form) if chosen else UNKNOWN


def _jsd_of_ceiling(name: str) -> str:
    top = of_ceiling(name)
    return f"{top['jsd']:.3f}" if top else UNKNOWN


def _left(name: str | None, but: str = "") -> str:
    """Over all labels, or but for those in which the default is `but` random rows in loss."""
    others = _labels_in_loss(but) if but else []
    left = [value for label, value in left_by_label(name).items() if label not in others]
    return f"{fmean(left):.2f}" if left else UNKNOWN


def _healed_over_random(name: str) -> str | Row:
    return healed_over(name, "random") or UNKNOWN


def _ahead_of_default(metric: str) -> str:
    """How many selectors and policies the cells have ahead of the default by Holm's correction; of those with two
    seeds or more."""
    base = grid.candidate(grid.DEFAULT, grid.DEVELOPMENT_SEEDS)
    found = [one.verdict for one in compared_with(metric, all_compared(), base).values() if one.p is not None]
    return f"{found.count('ahead')} of {len(found)}"


def _labels(metric: str, scheme: str, said: str) -> str:
    found = [verdict(one) for one in tested_by_label(scheme)[metric].values()]
    return f"{found.count(said)} of {len(found)}"


def _labels_in_loss(said: str) -> list[str]:
    """Labels in which the default is ahead of random rows in gap closed, or behind them, in a scheme or more."""
    tested = [tested_by_label(scheme)[CLOSED] for scheme in SCHEMES]
    return sorted({label for found in tested for label, one in found.items() if verdict(one) == said})


def _names_of_labels(said: str) -> str:
    labels = _labels_in_loss(said)
    return " and ".join(part for part in (", ".join(labels[:-1]), *labels[-1:]) if part) or UNKNOWN


def _words(end: Callable[[list[float]], float], said: str) -> str:
    """Words of the median held-out answer: of such labels the most, or the least."""
    found = [
        median(len(row["output"].split()) for row in world().held_out if row["label"] == label)
        for label in _labels_in_loss(said)
    ]
    return f"{end(found):g}" if found else UNKNOWN


def _moved(metric: str) -> str:
    return f"{moved(metric):.3f}"


def _ahead_in_accuracy() -> str:
    """Of the primary comparisons that have a seed of both sides."""
    found = [
        _difference(ACCURACY, scheme, *primary_pair(scheme, budget))
        for scheme in SCHEMES
        for budget in (grid.SMALL, grid.LARGE)
    ]
    known = [difference for difference in found if not isinstance(difference, str)]
    return f"{sum(verdict(difference) == 'ahead' for difference in known)} of {len(known)}"


def _trainings_that_scoring_costs() -> str:
    (first,) = grid.named("paser", grid.DEVELOPMENT_SEEDS[:1])
    forward = cell_files.selection(first)["cost"]["forward_tokens"]
    return f"{forward / (PASSES_OF_TRAINING * grid.LARGE):.1f}"
