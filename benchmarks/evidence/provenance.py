# ruff: noqa: E501 (prose and table rows)
"""What took part: cells, machines, what cleaning removed; and cells of another machine."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace

from benchmarks.evidence import cells as cell_files
from benchmarks.evidence import grid
from benchmarks.evidence import world as worlds
from benchmarks.evidence.analysis import METRICS, paired
from benchmarks.evidence.cells import Cell
from benchmarks.evidence.tables import WANDA, judge, signed
from benchmarks.evidence.world import SCHEMES, world
from paser.evaluation.paired import FIDELITY
from paser.progress import duration

# The tests: part, seeds, pool, and what was tested against random rows.
TESTED: tuple[tuple[str, Sequence[int], str, tuple[str, ...]], ...] = (
    ("confirmation", grid.CONFIRMATION_SEEDS, grid.CONFIRMATION, (grid.WINNER, "paser")),
    ("reserve", grid.RESERVE_SEEDS, grid.RESERVE, (grid.SECOND_WINNER,)),
    ("fresh", grid.FRESH_SEEDS, grid.FRESH, (grid.THIRD_WINNER,)),
    ("last", grid.LAST_SEEDS, grid.LAST, (grid.DEFAULT,)),
)


def made_twice() -> list[tuple[Cell, Cell]]:
    """Cells that were made once more, each after the one of the first machine."""
    pairs = [(replace(cell, again=False), cell) for cell in grid.machine()]
    return [pair for pair in pairs if all(cell.training_if_done() is not None for cell in pair)]


def machine() -> str:
    """Cells of one machine beside the same of another."""
    twice = made_twice()
    lines = [_again(*pair) for pair in twice]
    if not lines:
        return ""
    leads = []
    for scheme in (WANDA, grid.HARD):
        first, again = (_lead(cells, scheme) for cells in zip(*twice, strict=True))
        if first and again:
            leads.append(f"{SCHEMES[scheme]}: {first}, again {again}")
    head = " | ".join(f"{metric} | again" for metric in METRICS)
    return "\n".join(
        ["## The same on another machine", "",
         "Another kind of processor rounds otherwise, so that pruning takes some other weights, and passes give other bits. Cells that were there, made "
         "once more from pruning on; measured, as everything here, against the pruned model of the first machine. "
         "*Rows*: share of the rows in common.", "",
         f"| | | seed | processor | again | rows | {head} |", "|---|---|--:|---|---|--:|" + "--:|--:|" * len(METRICS), *lines, "",
         f"`{grid.DEFAULT}` minus `random` in {FIDELITY}, of these seeds: {'; '.join(leads)}."]
    )  # fmt: skip


def _lead(cells: Sequence[Cell], scheme: str) -> str:
    """The default minus random rows among these cells, in fidelity; empty where no seed has both."""
    sides = ([c for c in cells if (c.scheme, c.name) == (scheme, n)] for n in (grid.DEFAULT, "random"))
    ours, theirs = paired(*sides)
    return signed(judge(scheme).difference(FIDELITY, ours, theirs)) if ours else ""


def _again(earlier: Cell, again: Cell) -> str:
    found = [cell_files.done(cell) for cell in (earlier, again)]
    values = [f"{judge(again.scheme).mean(m, [one])['value']:.3f}" for m in METRICS for one in found]
    kinds = " | ".join(one["machine"].partition("(")[0] for one in found)
    return f"| {SCHEMES[again.scheme]} | `{again.name}` | {again.seed} | {kinds} | {_in_common(earlier, again):.0%} | {' | '.join(values)} |"


def _in_common(earlier: Cell, again: Cell) -> float:
    """The share of a selection's rows that were chosen again."""
    first, second = (set(cell_files.selection(cell)["rows"]) for cell in (earlier, again))
    return len(first & second) / len(first)


def least_in_common() -> float:
    """The least share of the default's rows that another machine chose again."""
    return min((_in_common(*pair) for pair in made_twice() if pair[1].name == grid.DEFAULT), default=1.0)


def moved(metric: str) -> float:
    """The most by which a cell's metric was another on another kind of processor; 0 where none was made there."""
    most = 0.0
    for pair in made_twice():
        first, second = (cell_files.done(cell) for cell in pair)
        if first["machine"] != second["machine"]:
            a, b = (judge(pair[0].scheme).mean(metric, [one])["value"] for one in (first, second))
            most = max(most, abs(a - b))
    return most


def took_part() -> str:
    wanted = list(grid.cells(grid.PARTS))
    both = [(cell, found) for cell in wanted if (found := cell.training_if_done()) is not None]
    done = [found for _, found in both]
    # Cells of one selection share its file.
    selections = {cell.selection_path: cell_files.selection(cell) for cell, _ in both}
    commits = sorted({found["commit"][:12] for found in done if found.get("commit")})
    machines = sorted({found["machine"] for found in done if found.get("machine")})
    training = duration(sum(found["processor_seconds"] for found in done))
    measuring = duration(sum(found["measuring_seconds"] for found in done))
    selecting = duration(sum(found["processor_seconds"] for found in selections.values()))
    libraries = ", ".join(f"{name} {v}" for name, v in cell_files.libraries().items())
    return f"""## What took part

{len(done)} of {len(wanted)} cells of the grid are done{missing()}. Of one processor, training took
{training}, measuring what was trained {measuring}, and selecting {selecting}, without the scores of the pools. Cells were computed at commits {", ".join(commits) or "unknown"}, on {", ".join(machines) or "unknown"};
{libraries}. {same_processor()}. Cleaning removed from the pools: {removed()}. With nearly the prompt of a held-out row: {near()}."""


def same_processor() -> str:
    """Of the tests, which have pairs whose sides come from different processors."""
    tests = [
        (
            f"`{name}` of `{part}` on {SCHEMES[scheme]}",
            [grid.confirmed(n, seeds, scheme, pool=pool) for n in (name, "random")],
        )
        for part, seeds, pool, names in TESTED
        for scheme in SCHEMES
        for name in names
    ]
    return one_kind(tests, "In the tests on pools of their own both sides of each pair")


def one_kind(pairs: Iterable[tuple[str, list[list[Cell]]]], which: str) -> str:
    """A sentence that `which` come from one kind of processor, and of which comparisons that is not so."""
    mixed = [
        what
        for what, sides in pairs
        if any(a["machine"] != b["machine"] for a, b in zip(*paired(*sides), strict=True))
    ]
    return f"{which} come from one kind of processor{', but for ' + ', '.join(mixed) if mixed else ''}"


def missing() -> str:
    """What is not done yet, by part."""
    left = {
        name: [cell for cell in part() if cell.training_if_done() is None]
        for name, part in grid.PARTS.items()
    }
    open_parts = [
        f"{len(cells)} of the {len(grid.PARTS[name]())} of `{name}`" for name, cells in left.items() if cells
    ]
    return f"; missing in the tables: {', '.join(open_parts)}" if open_parts else ""


def near() -> str:
    """Rows that are nearly held-out rows, or rows of the other pool."""
    pools = world().pools
    counted = [
        f"{worlds.near(rows, world().held_out)} rows of the {name} pool" for name, rows in pools.items()
    ]
    across = [f"{near_earlier(name)} of the {name} pool" for name in worlds.POOLS[1:]]
    return f"{', '.join(counted)}; with nearly that of a row of an earlier pool: {', '.join(across)}"


@functools.cache
def near_earlier(pool: str) -> int:
    """How many rows of this pool have nearly the prompt of a row of a pool before it."""
    before = worlds.POOLS[: worlds.POOLS.index(pool)]
    return worlds.near(world().pools[pool], [row for name in before for row in world().pools[name]])


def removed() -> str:
    return "; ".join(
        f"{name}: " + ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        + f" (of {world().injected[name]} injected rows, "
        f"{sum(row['source'].startswith('injected') for row in world().pools[name])} are left)"
        for name, reasons in world().removed.items()
    )  # fmt: skip
