# ruff: noqa: E501 (prose and table rows)
"""How the default was found: the tests of rules on pools of their own, and the developments before them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.evidence import cells as cell_files
from benchmarks.evidence import grid
from benchmarks.evidence.analysis import METRICS, paired, trained
from benchmarks.evidence.cells import Row
from benchmarks.evidence.provenance import one_kind
from benchmarks.evidence.tables import (
    WANDA,
    WHERE,
    blocks,
    by_metric,
    default_and_random,
    gentle_pairs,
    judge,
    share,
    signed,
)
from benchmarks.evidence.world import SCHEMES, world
from paser.evaluation.paired import ACCURACY, FIDELITY

# Columns of a development to which each has its own of gap closed.
BRIEF = 4
# Of a table: a heading, the scheme, the pool and its seeds.
Column = tuple[str, str, str, Sequence[int]]
HOW_FOUND = f"""## How the default was found

Four rules were tested on pools and seeds that they had not been developed on, each after a development of its own; the first two failed. What was decided when,
and what had been seen by then, is in the [plan](decisions/evidence-plan.md), with dates. All developments chose by
the held-out rows on which all tests were made; the intervals do not cover that, nor that four rules were tested. A rule passes where it is ahead of random rows in
{FIDELITY} in every scheme and behind in no scheme in {ACCURACY}. The fourth had to be better than the third besides: its test stands at the top, *The default rule, tested*."""


def last() -> str:
    """The winner of the fourth development, on the fifth pool."""
    pairs = [(grid.DEFAULT, "random"), (grid.DEFAULT, grid.THIRD_WINNER), (grid.THIRD_WINNER, "random")]
    pairs += [(name, other) for name in grid.BESIDE for other in ("random", grid.DEFAULT)]
    return _tested(
        "## The default rule, tested",
        f"`{grid.DEFAULT}`, which came out of four developments (*How the default was found*), on a fifth pool (*last*) from which nothing had been "
        f"drawn. It had to be ahead of `random` in {FIDELITY} in every scheme and behind it in no scheme in {ACCURACY}; and in {FIDELITY} behind the rule that was the default "
        f"before, `{grid.THIRD_WINNER}`, in no scheme and ahead of it in one. Other pairs are description.",
        (grid.LAST, grid.LAST_SEEDS),
        pairs,
    )


def smaller_budget() -> str:
    """The default rule where less is trained on."""
    lines = by_metric(
        (title, scheme, grid.DEFAULT, "random", default_and_random(scheme, budget=grid.SMALL))
        for scheme, title in SCHEMES.items()
    )
    if not any(lines.values()):
        return ""
    return f"## The default rule at the smaller budget\n\nDevelopment pool, {grid.SMALL:,} training tokens.\n\n{blocks(lines)}"


def gentler() -> str:
    """The default rule and random rows where training strays less, because its steps are smaller."""
    pairs = list(gentle_pairs())
    lines = by_metric((what, scheme, grid.DEFAULT, "random", sides) for what, scheme, sides in pairs)
    if not any("rate x 0" in line for line in lines[METRICS[0]]):
        return ""
    kinds = one_kind(((what, sides) for what, _, sides in pairs), "Both sides of each pair")
    return (
        "## Gentler training\n\nRows also lead a model away from the original, to formats it never had, and the more so the larger the steps are. What is the lead "
        f"in {FIDELITY} where they are smaller? Development pool, {grid.LARGE:,} training tokens, the learning rate times 1/2 or 1/4; "
        f"at rate x 1 cells of *The same on another machine*. {kinds}.\n\n{blocks(lines)}"
    )


def confirmation() -> str:
    """The winner against the paper's policy and random rows, on the pool that development did not use."""
    pairs = [(grid.WINNER, "random"), (grid.WINNER, "paser"), ("paser", "random")]
    lines = _confirmed(grid.CONFIRMATION, grid.CONFIRMATION_SEEDS, pairs)
    unseen = _confirmed(grid.CONFIRMATION, grid.UNSEEN_SEEDS, pairs[:2], [WANDA], ", unseen seeds")
    if not any(lines.values()):
        return ""
    return (
        f"### First test: `{grid.WINNER}`\n\nWhat development favoured, on the confirmation pool with seeds of its own, {grid.LARGE:,} training "
        f"tokens. It was not blind to the last row: of {SCHEMES[WANDA]}, a few seeds had been seen before it was "
        "named (the plan says how); *unseen seeds* are those of which no difference had been. "
        "*least*: 2.8 standard errors, the least difference that would be found four times in five.\n\n"
        + blocks({metric: lines[metric] + unseen[metric] for metric in METRICS})
    )


def reserve() -> str:
    """The winner of the second development, on the third pool."""
    return _tested(
        f"### Second test: `{grid.SECOND_WINNER}`",
        "What the second development favoured, on the third pool (*reserve*).",
        (grid.RESERVE, grid.RESERVE_SEEDS),
        [(grid.SECOND_WINNER, "random")],
    )


def fresh() -> str:
    """The winner of the third development, on the fourth pool."""
    return _tested(
        f"### Third test: `{grid.THIRD_WINNER}`",
        "What the third development favoured, on a fourth pool (*fresh*) from which nothing had been drawn. It passed, and was the default until the "
        "fourth test.",
        (grid.FRESH, grid.FRESH_SEEDS),
        [(grid.THIRD_WINNER, "random")],
    )


def _lacking(pool: str) -> str:
    """Labels of held-out rows that no row of this pool has."""
    held_out, inside = (
        {str(row["label"]) for row in rows} for rows in (world().held_out, world().pools[pool])
    )
    return ", ".join(sorted(held_out - inside))


def _tested(title: str, what: str, where: tuple[str, Sequence[int]], pairs: Sequence[tuple[str, str]]) -> str:
    lines = _confirmed(*where, pairs)
    if not any(lines.values()):
        return ""
    return (
        f"{title}\n\n{what} {grid.LARGE:,} training tokens, seeds of its own; held-out rows and task items are those of all "
        f"developments. Held-out rows have labels that this pool lacks: {_lacking(where[0])}.\n\n"
        + blocks(lines)
    )


def _confirmed(
    pool: str,
    seeds: Sequence[int],
    pairs: Sequence[tuple[str, str]],
    schemes: Iterable[str] = SCHEMES,
    suffix: str = "",
) -> dict[str, list[str]]:
    """By metric, one line for each pair of selectors in each scheme on this pool."""
    return by_metric(
        (
            SCHEMES[scheme] + suffix,
            scheme,
            one,
            other,
            [grid.confirmed(n, seeds, scheme, pool=pool) for n in (one, other)],
        )
        for scheme in schemes
        for one, other in pairs
    )


def second() -> str:
    """The second development, on one seed of the development pool in every scheme."""
    return _developed(
        "### Second development: every scheme",
        f"Development pool, {grid.LARGE:,} training tokens, one seed. It was to go by the mean over schemes; with this seed seen, before any row of the "
        "third pool was, it was decided to go by the highest of the lowest bounds, because a rule has to pass in every scheme, and by the mean "
        "where two are level. The mean alone would have taken another.",
        grid.SECOND[1:],
        _columns(grid.DEVELOPMENT, grid.DEVELOPMENT_SEEDS[:1]),
    )


def third() -> str:
    """The third development: the same columns, and another pool in the scheme that is the hardest to win."""
    return _developed(
        "### Third development: another pool too",
        "As in the second, and on seeds of the reserve, where labels with short answers are most of the rows. *By rate*: budget by "
        "(damage of all response tokens over all training tokens of the cluster) to the power `gamma`, 1/2 where none is named. On the reserve some rules "
        "have one seed of two. A dash where a cell is missing; the lowest bound and the mean are over the columns that are there.",
        (*grid.THIRD, *grid.THIRD_BESIDE, grid.SECOND_WINNER),
        _columns_of_third(),
    )


def fourth() -> str:
    """The fourth development: the pool of the third test too, since it has been looked at."""
    return _developed(
        "### Fourth development: rows that stand for others by their own damage",
        f"*Standing*: a row stands for those near it by its own damage to this power; 0 in the rule of the third test, 1/2 in `{grid.DEFAULT}`. Where the lowest bound is at least "
        "+0.02, the highest mean goes on, if it is above that of 0. *Fresh* is the pool of the third test, looked at by then; one seed, two on the reserve.",
        (grid.THIRD_WINNER, *grid.FOURTH),
        [*_columns_of_third(), *_columns(grid.FRESH, grid.FRESH_SEEDS[:1])],
    )


def _columns(pool: str, seeds: Sequence[int], schemes: Iterable[str] = SCHEMES) -> list[Column]:
    """One for each scheme; the heading names a pool that is not the development pool."""
    suffix = "" if pool == grid.DEVELOPMENT else f", {pool}"
    return [(SCHEMES[scheme] + suffix, scheme, pool, seeds) for scheme in schemes]


def _columns_of_third() -> list[Column]:
    """Every scheme, and another pool in the one that is the hardest to win."""
    return [
        *_columns(grid.DEVELOPMENT, grid.DEVELOPMENT_SEEDS[:1]),
        *_columns(grid.RESERVE, grid.RESERVE_SEEDS[:2], [grid.HARD]),
    ]


def _developed(title: str, intro: str, names: Iterable[str], columns: Sequence[Column]) -> str:
    """Fidelity and gap closed minus random rows in each column, and the lowest bound in fidelity, by which a
    development goes; of many columns, gap closed as a mean."""
    brief = len(columns) > BRIEF
    lines: dict[str, tuple[float, float, str]] = {}
    for name in names:
        found = [_over_random(name, *column[1:]) for column in columns]
        done = [one for one in found if one]
        if not done:
            continue
        least = min(one["fidelity gap"]["low"] for one in done)
        mean, closed = (
            sum(one[m]["value"] for one in done) / len(done) for m in ("fidelity gap", "gap closed")
        )
        cells = [signed(one["fidelity gap"]) if one else "-" for one in found]
        cells += [f"{least:+.3f}", f"{mean:+.3f}"]
        if brief:
            cells.append(f"{closed:+.2f}")
        else:
            cells += [f"{one['gap closed']['value']:+.2f}" if one else "-" for one in found]
        lines[name] = round(least, 3), mean, f"| `{name}` | " + " | ".join(cells) + " |"
    if not lines:
        return ""
    head = "| minus `random` | " + " | ".join(f"{column[0]}, fidelity gap" for column in columns)
    closed_in = ["mean"] if brief else [column[0] for column in columns]
    head += " | lowest bound | mean | " + " | ".join(f"{where}, gap closed" for where in closed_in) + " |"
    return "\n".join(
        [title, "", intro, "", head, "|---" + "|--:" * (len(columns) + len(closed_in) + 2) + "|",
         *[line for _, _, line in sorted(lines.values(), reverse=True)]]
    )  # fmt: skip


def _over_random(name: str, scheme: str, pool: str, seeds: Sequence[int]) -> dict[str, Row] | None:
    """The differences to random rows by metric, on the seeds that both have; None without one."""
    sides = (grid.named(n, seeds, scheme=scheme, pool=pool) for n in (name, "random"))
    ours, theirs = paired(*sides)
    return {m: judge(scheme).difference(m, ours, theirs) for m in METRICS} if ours else None


def distilled() -> str:
    """The same comparison where the original model teaches."""
    of = {name: grid.taught(name, grid.DEVELOPMENT_SEEDS) for name in grid.CONFIRMED}
    plain = {name: grid.plain(name, grid.DEVELOPMENT_SEEDS) for name in grid.CONFIRMED}
    pairs = ((grid.WINNER, "random"), (grid.WINNER, "paser"), ("paser", "random"))
    lines = by_metric(
        [
            *(("distilled", WANDA, one, other, [of[one], of[other]]) for one, other in pairs),
            *(("distilled, not distilled", WANDA, n, n, [of[n], plain[n]]) for n in grid.CONFIRMED),
        ]
    )
    if not any(lines.values()):
        return ""
    return (
        "## With the original model as teacher\n\n`recover.distill.weight: 1`: training follows the original model's distributions "
        f"on the chosen rows, not their responses. {WHERE}.\n\n" + blocks(lines)
    )


def equal_steps() -> str:
    """What is left of the differences where all take as many optimiser steps."""
    lines = []
    named = {None: "by rows", grid.STEPS: "equal", 2 * grid.STEPS: "twice as many"}
    for teacher, recover in (("no", {}), ("yes", grid.TAUGHT)):
        for name in grid.STEPS_COMPARED:
            for steps, how in named.items():
                cells = grid.named(name, grid.DEVELOPMENT_SEEDS[:1], recover=recover, steps=steps)
                if found := list(trained(cells).values()):
                    values = " | ".join(share(judge(WANDA).mean(m, found), m) for m in METRICS)
                    lines.append(f"| {teacher} | `{name}` | {how} | {found[0]['steps']} | {values} |")
    if not any("| equal |" in line for line in lines):
        return ""
    return "\n".join(
        ["## At equal optimiser steps", "",
         f"A batch has {cell_files.recover_settings().batch_size} rows, so at equal tokens a selection of many short rows takes more optimiser steps. "
         f"Here the batch is as large as gives about {2 * grid.STEPS} steps in all, whatever the rows, or half of that. {WHERE}, one seed.", "",
         "| teacher | | steps | | " + " | ".join(METRICS) + " |", "|---|---|---|--:|--:|--:|--:|", *lines]
    )  # fmt: skip
