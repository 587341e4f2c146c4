# ruff: noqa: E501 (prose and table rows)
"""docs/evidence.md and its figures, from the cells alone: no number in it is typed by hand."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.data import ROOT
from benchmarks.evidence import cells as cell_files
from benchmarks.evidence import figures, grid
from benchmarks.evidence import world as worlds
from benchmarks.evidence.analysis import METRICS, judge_of, paired, trained
from benchmarks.evidence.cells import Cell
from benchmarks.evidence.world import DENSE, SCHEMES, TASK_ITEMS, task_items, world
from paser.evaluation.paired import ACCURACY, CLOSED, FIDELITY, Judge, holm, shown, verdict
from paser.progress import duration, say

PAGE = ROOT / "docs/evidence.md"
IMAGES = ROOT / "docs/images"
READING = Path(__file__).parent / "reading.md"
WANDA = grid.WANDA
WHERE = f"Development pool, {SCHEMES[WANDA]}, {grid.LARGE:,} training tokens"
# Beside a gap closed of more than 1.
OVER = "†"
MORE_TOKENS = "random, more tokens"
# Selectors that `reading.md` tells of.
TOLD = (
    grid.DEFAULT, grid.THIRD_WINNER, "random", "paser", "per-token", "recoverable", "longest", "total-damage",
    "ifd", "less", "grand", "variance-of-gradients", "influence-effort", "paser-random-inside", MORE_TOKENS,
)  # fmt: skip
# A token goes backward at twice the cost of forward; in training both ways in each epoch. In forward passes.
BACKWARD = 2
PASSES_OF_TRAINING = (1 + BACKWARD) * cell_files.recover_settings().epochs
# The two metrics that pull apart, and what spends more than the others do.
TRADED = (CLOSED, FIDELITY)
# Columns of a development to which each has its own of gap closed.
BRIEF = 4
UNKNOWN = "(not run yet)"
OTHER_BUDGET = ("full", MORE_TOKENS)
# The tests: part, seeds, pool, and what was tested against random rows.
TESTED: tuple[tuple[str, Sequence[int], str, tuple[str, ...]], ...] = (
    ("confirmation", grid.CONFIRMATION_SEEDS, grid.CONFIRMATION, (grid.WINNER, "paser")),
    ("reserve", grid.RESERVE_SEEDS, grid.RESERVE, (grid.SECOND_WINNER,)),
    ("fresh", grid.FRESH_SEEDS, grid.FRESH, (grid.THIRD_WINNER,)),
    ("last", grid.LAST_SEEDS, grid.LAST, (grid.DEFAULT,)),
)
# Of *Gentler training*: scheme, and the learning rate as a multiple of the default.
GENTLER = (
    (WANDA, 1.0),
    *((WANDA, share) for share in grid.GENTLER),
    (grid.HARD, 1.0),
    (grid.HARD, grid.GENTLER[0]),
)
Row = dict[str, Any]
# A value of `reading.md`: text, or a difference.
Told = Callable[[], str | Row]
# Of a table: a heading, the scheme, the pool and its seeds.
Column = tuple[str, str, str, Sequence[int]]


@functools.cache
def judge(scheme: str) -> Judge:
    return judge_of(scheme)


def write() -> None:
    text = "\n\n".join(part.strip() for part in parts() if part) + "\n"
    PAGE.write_text(text, encoding="utf-8")
    say(f"{PAGE.relative_to(ROOT)} written")


def parts() -> Iterable[str]:
    default = (grid.DEFAULT, grid.candidate(grid.DEFAULT, grid.DEVELOPMENT_SEEDS))
    ours = [(name, cells) for name, cells in candidates() if name != grid.DEFAULT]
    compared = [*rivals(), *ours]
    yield opening()
    yield reading()
    yield models_table()
    yield last()
    yield smaller_budget()
    yield gentler()
    yield primary_table()
    yield budgets_figure()
    yield differences_figure()
    yield tradeoff_figure()
    yield against(
        "## Other selectors",
        f"{WHERE}: mean over the seeds, what the default rule, `{grid.DEFAULT}`, has on the seeds that both have, and the paired "
        "difference. *p*: two-sided, corrected by Holm's method, for each metric over all that are planned for this table and the one "
        "of our own policies; none from one seed. A difference below 0 is in favour of the default rule; its parts were chosen on this pool.",
        rivals(),
        *default,
        compared,
    )
    yield against(
        "## What the parts of PASER are worth",
        "The paper's policy with one part taken away, minus the whole. Holm's method over this table.",
        ablations(),
        "paser",
        grid.plain("paser", grid.DEVELOPMENT_SEEDS),
    )
    yield against(
        "## Policies of our own",
        f"The same pool, scheme, budget and family of *p*. How the default came out of them: *How the default was found*. Two controls do not look at "
        f"damage: `per-token, no damage` (clusters by size, rows by the share of their tokens that is response) and `{grid.DEFAULT}, no damage` "
        "(clusters by size, plain coverage).",
        ours,
        *default,
        compared,
    )
    yield chosen_rows()
    yield HOW_FOUND
    yield confirmation()
    yield second()
    yield reserve()
    yield third()
    yield fresh()
    yield fourth()
    yield distilled()
    yield equal_steps()
    yield against(
        "### Selectors with the teacher, at equal steps",
        f"The original model teaches; the batch is chosen so that all take about {2 * grid.STEPS} steps.",
        [
            (name, grid.taught(name, grid.DEVELOPMENT_SEEDS, steps=grid.STEPS))
            for name in grid.TAUGHT_COMPARED[1:]
        ],
        "random",
        grid.taught("random", grid.DEVELOPMENT_SEEDS, steps=grid.STEPS),
    )
    yield why()
    yield by_capability()
    yield by_task()
    yield sensitivity()
    yield ceiling()
    yield costs()
    yield machine()
    yield took_part()


def rivals() -> list[tuple[str, list[Cell]]]:
    """Every selector that is not a policy of our own, the paper's first, and its cells."""
    seeds = grid.DEVELOPMENT_SEEDS
    names = ("paser", "random", *grid.THREE_SEEDS, *grid.TWO_SEEDS, "full")
    return [
        *((name, grid.plain(name, seeds)) for name in names),
        ("q-tuning, tokens pruned", grid.pruned_tokens(seeds)),
        (MORE_TOKENS, grid.with_scoring(seeds)),
    ]


def ablations() -> list[tuple[str, list[Cell]]]:
    return [(name, grid.plain(name, grid.DEVELOPMENT_SEEDS)) for name in grid.ABLATIONS]


def candidates() -> list[tuple[str, list[Cell]]]:
    """Policies of our own that run in the scheme of the secondary comparison."""
    names = [name for name in grid.CANDIDATES if name not in grid.SHORT]
    return [(name, grid.candidate(name, grid.DEVELOPMENT_SEEDS)) for name in names]


HOW_FOUND = f"""## How the default was found

Four rules were tested on pools and seeds that they had not been developed on, each after a development of its own; the first two failed. What was decided when,
and what had been seen by then, is in the [plan](decisions/evidence-plan.md), with dates. All developments chose by
the held-out rows on which all tests were made; the intervals do not cover that, nor that four rules were tested. A rule passes where it is ahead of random rows in
{FIDELITY} in every scheme and behind in no scheme in {ACCURACY}. The fourth had to be better than the third besides: its test stands at the top, *The default rule, tested*."""


def opening() -> str:
    pools = "; ".join(
        f"{name} {len(rows):,} rows of {len({row['label'] for row in rows})} labels"
        for name, rows in world().pools.items()
    )
    tasks = ", ".join(f"{name} ({min(TASK_ITEMS, len(items))} items)" for name, items in task_items().items())
    return f"""# Evidence

Written by `make evidence`, by a plan that was fixed before the first cell and whose changes since are dated:
[decisions/evidence-plan.md](decisions/evidence-plan.md). What selectors are: [selectors.md](selectors.md). SmolLM2-135M, pruned. Pools: {pools}.
{len(world().held_out)} held-out rows of {len({r["label"] for r in world().held_out})} labels, the same for everything; {tasks}.

- **{FIDELITY}**: how much of the distance to the original model is won back, 1 - JSD of the recovered model / JSD of the pruned one. JSD is the Jensen-Shannon divergence
  of the next-token distributions, a mean over the tokens of the held-out rows' reference answers. 1: the original again; below 0: farther away than without training.
- **{ACCURACY}**: mean over the tasks (`acc_norm`: the choice with the highest likelihood for its length).
- **{CLOSED}**: how much of the rise in loss is undone. Over 1 (marked {OVER}): the recovered model has a lower loss than the original.
- **seed**: draws 80 % of the pool, the clusters, whatever a selector draws, and the order and dropout of the training.
- **damage** of a row: JSD between the two models on its response. **Recoverability**: what a step of training on it takes off that distance, to
  first order ([selectors.md](selectors.md)). **By rate**: a cluster's share of the budget follows what a training token recovers there.
- **`{grid.DEFAULT}`**, the default rule: budget by rate, and of each cluster the rows that stand for the most recoverability. **`paser`**: the paper's policy. **`random`**: rows drawn at random.

Everything is compared at the same number of training tokens, but for what says so. Intervals are 95 % bootstraps over seeds and rows (or items),
paired where a difference is shown; a difference counts (*ahead*, *behind*) where its interval excludes 0, and where a *p* stands beside it, that is at most 0.05 too.
No *p* is less than 0.0002 times the size of its family. Tables without *p* are not corrected for their number of comparisons. Two or three seeds say little about other
seeds. One small model: a measurement, no law.
"""


def reading() -> str:
    """`reading.md`, with values from the cells in the place of their names in braces. Before a difference's name may
    stand what the sentence says of it ("ahead: ...", "level or behind: ...").

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
    said = verdict(found).replace("tie", "level")
    if claim and said not in claim.split(" or "):
        raise ValueError(
            f"{READING.name} says {claim!r} of {name!r}, and the cells say {said!r} ({signed(found)}): "
            "change the sentence"
        )
    return signed(found)


def told() -> dict[str, Told]:
    """What `reading.md` may name, computed where it does: of the default minus random rows and minus the default of
    before on the last pool, by scheme; of the default minus random rows on the development pool by scheme, gentler and at
    the smaller budget; of the paper's policy minus random rows, by scheme and budget; of selectors on the development
    pool, and of these minus the default, random rows and the paper's policy on the seeds of both; of the ceiling. Paired
    differences are as they were measured, everything else as the page shows it."""
    values: dict[str, Told] = {}

    def differ(name: str, scheme: str, ours: list[Cell], theirs: list[Cell]) -> None:
        for metric in METRICS:
            values[f"{metric} {name}"] = partial(_difference, metric, scheme, ours, theirs)

    for scheme, title in SCHEMES.items():
        for other in ("random", grid.THIRD_WINNER):
            sides = [
                grid.confirmed(n, grid.LAST_SEEDS, scheme, pool=grid.LAST) for n in (grid.DEFAULT, other)
            ]
            differ(f"over {other}, {title}", scheme, *sides)
        for budget in (grid.SMALL, grid.LARGE):
            differ(f"of paser over random, {title}, {budget:,} tokens", scheme, *_primary(scheme, budget))
        differ(
            f"over random, {title}, {grid.SMALL:,} tokens",
            scheme,
            *_default_and_random(scheme, budget=grid.SMALL),
        )
    for scheme, rate in GENTLER:
        differ(f"over random, {SCHEMES[scheme]}, rate x {rate:g}", scheme, *_gently(scheme, rate))
    to = {name: grid.named(name, grid.DEVELOPMENT_SEEDS) for name in (grid.DEFAULT, "random", "paser")}
    for name in TOLD:
        cells = _told_cells(name)
        for metric in METRICS:
            values[f"{metric} of {name}"] = partial(_mean, metric, cells)
        for other in to.keys() - {name}:
            differ(f"of {name} over {other}", WANDA, cells, to[other])
        values[f"wrong answers of {name}"] = partial(_consists, "wrong", ".0%", cells)
        values[f"response tokens of {name}"] = partial(_consists, "response", ",.0f", cells)
    values["wrong answers of the pool"] = lambda: (
        f"{contents([[r['row_id'] for r in world().pools[grid.DEVELOPMENT]]], grid.DEVELOPMENT)['wrong']:.0%}"
    )
    for name in grid.CEILING:
        values[f"healed by {name}"] = partial(_of_ceiling, "healed", ".2f", name)
        values[f"JSD by {name}"] = partial(_of_ceiling, "jsd", ".3f", name)
    values["near an earlier pool"] = lambda: f"{near_earlier(grid.LAST) / len(world().pools[grid.LAST]):.0%}"
    values["items"] = lambda: f"{sum(min(TASK_ITEMS, len(items)) for items in task_items().values())}"
    values["trainings that scoring costs"] = _trainings_that_scoring_costs
    return values


def _told_cells(name: str) -> list[Cell]:
    if name == MORE_TOKENS:
        return grid.with_scoring(grid.DEVELOPMENT_SEEDS)
    return grid.named(name, grid.DEVELOPMENT_SEEDS)


def _difference(metric: str, scheme: str, ours: list[Cell], theirs: list[Cell]) -> str | Row:
    """The paired difference."""
    a, b = paired(ours, theirs)
    return judge(scheme).difference(metric, a, b) if a else UNKNOWN


def _mean(metric: str, cells: list[Cell]) -> str:
    done = list(trained(cells).values())
    return f"{judge(WANDA).mean(metric, done)['value']:.2f}" if done else UNKNOWN


def _consists(what: str, form: str, cells: list[Cell]) -> str:
    done = trained(cells)
    chosen = [cell_files.selection(cell)["rows"] for cell in cells if cell.seed in done]
    return format(contents(chosen, grid.DEVELOPMENT)[what], form) if chosen else UNKNOWN


def _of_ceiling(what: str, form: str, name: str) -> str:
    top = of_ceiling(name)
    return format(top[what], form) if top else UNKNOWN


def _trainings_that_scoring_costs() -> str:
    (first,) = grid.named("paser", grid.DEVELOPMENT_SEEDS[:1])
    forward = cell_files.selection(first)["cost"]["forward_tokens"]
    return f"{forward / (PASSES_OF_TRAINING * grid.LARGE):.1f}"


def models_table() -> str:
    lines = []
    for scheme in (DENSE, *SCHEMES):
        found = cell_files.untrained(scheme)
        j = judge(scheme)
        accuracy = j.mean("task accuracy", [found])
        row = j.rows.units[0]
        loss, jsd = (float(row @ found[key]) for key in ("loss", "jsd"))
        lines.append(f"| {SCHEMES.get(scheme, scheme)} | {loss:.3f} | {jsd:.3f} | {share(accuracy)} |")
    undamaged = {s: sorted(set(judge(s).labels) - set(judge(s).damaged)) for s in SCHEMES}
    left_out = "; ".join(
        f"{SCHEMES[scheme]}: {', '.join(labels)}" for scheme, labels in undamaged.items() if labels
    )
    return f"""## Before recovery

| model | held-out loss, nats | JSD to dense, nats | task accuracy |
|---|--:|--:|--:|
{chr(10).join(lines)}

Labels whose damage interval is not above 0 are not part of *gap closed*: {left_out or "none"}."""


def _primary(scheme: str, budget: int) -> list[list[Cell]]:
    """The cells of the paper's policy and those of random rows."""
    return [
        grid.plain(name, grid.DEVELOPMENT_SEEDS, scheme=scheme, budget=budget) for name in ("paser", "random")
    ]


def primary_table() -> str:
    blocks = []
    for metric in METRICS:
        lines = []
        for scheme in SCHEMES:
            for budget in (grid.SMALL, grid.LARGE):
                if sides := _sides(metric, scheme, *_primary(scheme, budget)):
                    a, b, difference, found = sides
                    lines.append(
                        f"| {SCHEMES[scheme]} | {budget:,} | {a} | {b} | {difference} | "
                        f"{number(found['sd'])} | {least(found)} |"
                    )
        if lines:
            head = f"| scheme | tokens | `paser` | `random` | {metric}: difference | | seeds | sd | least |"
            blocks.append("\n".join([head, "|---|--:|--:|--:|--:|---|--:|--:|--:|", *lines]))
    if not blocks:
        return ""
    return (
        "## `paser` against `random`\n\nThe paper's policy (in our implementation), development pool. *sd*: "
        "standard deviation of the paired difference over seeds; *least*: 2.8 standard errors over seeds and rows, the least "
        "difference that as many seeds would find four times in five. A tie where *least* is large is no evidence of equality.\n\n"
        + "\n\n".join(blocks)
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
        + _blocks({metric: lines[metric] + unseen[metric] for metric in METRICS})
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
    lines = {
        metric: [
            line
            for scheme, title in SCHEMES.items()
            if (
                line := _compared(
                    title,
                    metric,
                    scheme,
                    grid.DEFAULT,
                    "random",
                    *_default_and_random(scheme, budget=grid.SMALL),
                )
            )
        ]
        for metric in METRICS
    }
    if not any(lines.values()):
        return ""
    return f"## The default rule at the smaller budget\n\nDevelopment pool, {grid.SMALL:,} training tokens.\n\n{_blocks(lines)}"


def gentler() -> str:
    """The default rule and random rows where training strays less, because its steps are smaller."""
    lines: dict[str, list[str]] = {metric: [] for metric in METRICS}
    for metric in METRICS:
        for scheme, rate in GENTLER:
            if line := _compared(
                f"{SCHEMES[scheme]}, rate x {rate:g}",
                metric,
                scheme,
                grid.DEFAULT,
                "random",
                *_gently(scheme, rate),
            ):
                lines[metric].append(line)
    if not any("rate x 0" in line for line in lines[METRICS[0]]):
        return ""
    return (
        "## Gentler training\n\nRows also lead a model away from the original, to formats it never had, and the more so the larger the steps are. What is the lead "
        f"in {FIDELITY} where they are smaller? Development pool, {grid.LARGE:,} training tokens, the learning rate times 1/2 or 1/4.\n\n{_blocks(lines)}"
    )


def _gently(scheme: str, rate: float) -> list[list[Cell]]:
    """The cells of the default rule and those of random rows at this multiple of the default learning rate."""
    if rate == 1:
        return _default_and_random(scheme, grid.DEVELOPMENT_SEEDS[:2])
    return [grid.gently(name, scheme, rate) for name in (grid.DEFAULT, "random")]


def _default_and_random(
    scheme: str, seeds: Sequence[int] = grid.DEVELOPMENT_SEEDS, **changes: Any
) -> list[list[Cell]]:
    """The cells of the default rule and those of random rows, of the development pool."""
    return [grid.named(name, seeds, scheme=scheme, **changes) for name in (grid.DEFAULT, "random")]


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
        + _blocks(lines)
    )


def _confirmed(
    pool: str,
    seeds: Sequence[int],
    pairs: Sequence[tuple[str, str]],
    schemes: Iterable[str] = SCHEMES,
    suffix: str = "",
) -> dict[str, list[str]]:
    """By metric, one line for each pair of selectors in each scheme on this pool."""
    return {
        metric: [
            line
            for scheme in schemes
            for one, other in pairs
            if (
                line := _compared(
                    SCHEMES[scheme] + suffix, metric, scheme, one, other,
                    *(grid.confirmed(name, seeds, scheme, pool=pool) for name in (one, other)),
                )
            )
        ]
        for metric in METRICS
    }  # fmt: skip


def _blocks(lines: Mapping[str, Sequence[str]]) -> str:
    """One table for each metric that has lines."""
    return "\n\n".join(
        "\n".join([_compared_head(metric), *found]) for metric, found in lines.items() if found
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
    lines = {}
    for metric in METRICS:
        found = [
            _compared("distilled", metric, WANDA, one, other, of[one], of[other])
            for one, other in ((grid.WINNER, "random"), (grid.WINNER, "paser"), ("paser", "random"))
        ]
        found += [
            _compared("distilled, not distilled", metric, WANDA, name, name, of[name], plain[name])
            for name in grid.CONFIRMED
        ]
        lines[metric] = [line for line in found if line]
    if not any(lines.values()):
        return ""
    return (
        "## With the original model as teacher\n\n`recover.distill.weight: 1`: training follows the original model's distributions "
        f"on the chosen rows, not their responses. {WHERE}.\n\n" + _blocks(lines)
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


def _compared_head(metric: str) -> str:
    return f"| | | {metric} | minus | | difference | | seeds | least |\n|---|---|--:|---|--:|--:|---|--:|--:|"


def _compared(
    what: str, metric: str, scheme: str, one: str, other: str, ours: list[Cell], theirs: list[Cell]
) -> str:
    """One line: a selector, another, and the paired difference; empty where no seed has both."""
    sides = _sides(metric, scheme, ours, theirs)
    if not sides:
        return ""
    a, b, difference, found = sides
    return f"| {what} | `{one}` | {a} | `{other}` | {b} | {difference} | {least(found)} |"


def _sides(
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


def why() -> str:
    """What damage and recoverability of the pool's rows say, label by label, of what random rows win back."""
    from scipy.stats import spearmanr

    base = list(trained(grid.plain("random", grid.DEVELOPMENT_SEEDS)).values())
    if not base:
        return ""
    won = judge(WANDA).by_label("fidelity gap", base)
    known = cell_files.by_label(grid.DEVELOPMENT, WANDA)
    means = {label: known[label] for label in sorted(won) if label in known}
    columns = list(next(iter(means.values())))
    lines = [
        f"| {label} | " + " | ".join(f"{value:.3f}" for value in found.values()) + f" | {won[label]:.2f} |"
        for label, found in sorted(means.items(), key=lambda pair: -won[pair[0]])
    ]
    ranks = {
        c: float(spearmanr([found[c] for found in means.values()], [won[label] for label in means])[0])
        for c in columns
    }
    lines.append("| rank correlation | " + " | ".join(f"{ranks[c]:+.2f}" for c in columns) + " | |")
    return "\n".join(
        ["## Damage and what training wins back", "",
         f"Means over the development pool's rows of a label, {SCHEMES[WANDA]}, and the fidelity gap that random rows closed in that "
         "label's held-out rows. *A training token*: of all response tokens together, over all tokens of prompts and responses. Last line: "
         "Spearman's rank correlation with that column.", "",
         "| | " + " | ".join(columns) + " | fidelity gap of `random` |", "|---" + "|--:" * (len(columns) + 1) + "|", *lines]
    )  # fmt: skip


def budgets_figure() -> str:
    """Gap closed and fidelity gap against the budget, in each scheme that has both budgets."""
    shown = []
    for metric in ("fidelity gap", "gap closed"):
        panels: dict[str, dict[str, dict[int, Row]]] = {}
        for scheme in SCHEMES:
            lines: dict[str, dict[int, Row]] = {}
            for name in ("random", "paser", grid.DEFAULT):
                small, large = (
                    grid.named(name, grid.DEVELOPMENT_SEEDS, scheme=scheme, budget=budget)
                    for budget in (grid.SMALL, grid.LARGE)
                )
                of_both = paired(small, large)
                if of_both[0]:
                    means = (judge(scheme).mean(metric, found) for found in of_both)
                    lines[name] = dict(zip((grid.SMALL, grid.LARGE), means, strict=True))
            if "random" in lines:
                panels[SCHEMES[scheme]] = lines
        if panels:
            path = IMAGES / f"evidence-{metric.replace(' ', '-')}.svg"
            figures.by_budget(path, panels, metric)
            shown.append(f"![{metric} against training tokens](images/{path.name})")
    return "\n\n".join(shown)


def differences_figure() -> str:
    """Every selector and policy minus `random` at the larger budget."""
    base = grid.plain("random", grid.DEVELOPMENT_SEEDS)
    named = {name: cells for name, cells in rivals() if name != "random"}
    named |= dict(ablations()) | dict(candidates())
    both = {name: paired(cells, base) for name, cells in named.items()}
    both = {name: sides for name, sides in both.items() if sides[0]}
    if not both:
        return ""
    columns = {
        metric: {name: judge(WANDA).difference(metric, *sides) for name, sides in both.items()}
        for metric in METRICS
    }
    figures.differences(IMAGES / "evidence-selectors.svg", columns, "minus random")
    return (
        f"Every selector minus `random` on the seeds that both have. {WHERE}; hollow: one seed.\n\n"
        "![Each selector's difference to random rows in the three metrics](images/evidence-selectors.svg)"
    )


def tradeoff_figure() -> str:
    """The first metric against the third for everything that was trained at the larger budget."""
    kinds = {
        "selectors": rivals(),
        "parts of the paper's policy": ablations(),
        "policies of our own": candidates(),
    }
    found = {
        kind: {
            name: {m: judge(WANDA).mean(m, done) | {"seeds": len(done)} for m in TRADED}
            for name, cells in named
            if (done := list(trained(cells).values())) and name not in OTHER_BUDGET
        }
        for kind, named in kinds.items()
    }
    if not any(found.values()):
        return ""
    figures.tradeoff(
        IMAGES / "evidence-tradeoff.svg",
        found,
        TRADED,
        {"random", "paser", "longest", "total-damage", "ifd", grid.DEFAULT},
    )
    return (
        "The same cells, gap closed in loss against fidelity; up is better, and right, up to 1 (dotted); beyond it is format. The grey line joins what "
        "nothing surpasses in both.\n\n![Fidelity gap against gap closed, one point a selector](images/evidence-tradeoff.svg)"
    )


def against(
    title: str,
    text: str,
    compared: Sequence[tuple[str, list[Cell]]],
    to: str,
    base: Sequence[Cell],
    family: Sequence[tuple[str, list[Cell]]] = (),
) -> str:
    """Each of `compared` against one that all are compared to, with Holm's correction over `family`, which has
    them all; by default they are the family."""
    family = family or compared
    blocks = []
    for metric in METRICS:
        found = {}
        for name, cells in family:
            ours, theirs = paired(cells, base)
            if ours:
                found[name] = (judge(WANDA).difference(metric, ours, theirs), ours, theirs)
        # The family is what is planned, so that no p-value grows when a cell comes in.
        planned = {name: 1.0 for name, _ in family}
        corrected = holm(planned | {name: d["p"] for name, (d, *_) in found.items() if d["seeds"] > 1})
        here = [name for name, _ in compared if name in found]
        reference = list(trained(base).values())
        if not here or not reference:
            return ""
        whole = share(judge(WANDA).mean(metric, reference), metric)
        lines = [f"| `{to}` | {whole} | | | | | {len(reference)} |"]
        for name in sorted(here, key=lambda n: -found[n][0]["value"]):
            difference, ours, theirs = found[name]
            several = difference["seeds"] > 1
            lines.append(
                f"| `{name}` | {share(judge(WANDA).mean(metric, ours), metric)} | "
                f"{judge(WANDA).mean(metric, theirs)['value']:.3f} | {signed(difference)} | "
                f"{shown(corrected[name]) if several else ''} | "
                f"{verdict(difference, corrected[name] if several else None)} | {len(ours)} |"
            )
        head = f"| | {metric} | `{to}`, same seeds | difference | *p* (Holm) | | seeds |"
        blocks.append("\n".join([head, "|---|--:|--:|--:|--:|---|--:|", *lines]))
    return f"{title}\n\n{text}\n\n" + "\n\n".join(blocks)


def by_capability() -> str:
    done = {
        name: list(trained(grid.named(name, grid.DEVELOPMENT_SEEDS)).values())
        for name in ("random", "paser", grid.DEFAULT, "longest", "total-damage", "ifd")
    }
    done = {name: found for name, found in done.items() if found}
    if not done:
        return ""
    blocks = []
    for metric in ("fidelity gap", "gap closed"):
        columns = {name: judge(WANDA).by_label(metric, found) for name, found in done.items()}
        labels = sorted(next(iter(columns.values())))
        lines = [
            f"| `{name}` | " + " | ".join(f"{columns[name][label]:.2f}" for label in labels) + " |"
            for name in done
        ]
        head = f"| {metric} | " + " | ".join(labels) + " |"
        blocks.append("\n".join([head, "|---" + "|--:" * len(labels) + "|", *lines]))
    return f"## By capability\n\n{WHERE}, means over seeds.\n\n" + "\n\n".join(blocks)


def by_task() -> str:
    original, pruned = cell_files.untrained(DENSE), cell_files.untrained(WANDA)
    tasks = list(original["tasks"])
    lines = []
    for name, found in (("dense", [original]), ("pruned", [pruned])):
        lines.append(_task_line(name, found, tasks, original))
    for name in ("random", "paser", grid.DEFAULT, "longest", *grid.THREE_SEEDS, *grid.ABLATIONS):
        found = list(trained(grid.named(name, grid.DEVELOPMENT_SEEDS)).values())
        if found:
            lines.append(_task_line(f"`{name}`", found, tasks, original))
    head = "| | " + " | ".join(f"{t}, acc_norm | {t}, JSD" for t in tasks) + " | accuracy minus *pruned* |"
    return "\n".join(
        ["## By task", "", "The same cells; JSD between the choices' distributions and those of the dense model; last, the paired difference "
         "of task accuracy to the model that was pruned and not trained.",
         "", head, "|---" + "|--:" * (2 * len(tasks) + 1) + "|", *lines]
    )  # fmt: skip


def _task_line(name: str, found: Sequence[Row], tasks: Sequence[str], original: Row) -> str:
    cells = []
    for task in tasks:
        accuracy = [v for one in found for v in one["tasks"][task]["value"]]
        jsd = [v for one in found for v in cell_files.task_jsd(original, one)[task]]
        cells.append(f"{sum(accuracy) / len(accuracy):.1%} | {sum(jsd) / len(jsd):.4f}")
    untrained = [cell_files.untrained(WANDA)] * len(found)
    gained = signed(judge(WANDA).difference(ACCURACY, found, untrained)) if found != untrained else ""
    return f"| {name} | " + " | ".join(cells) + f" | {gained} |"


def sensitivity() -> str:
    first = grid.DEVELOPMENT_SEEDS[:1]
    of_paser = [("as in the paper", grid.plain("paser", first))]
    of_default = [("as it is", grid.candidate(grid.DEFAULT, first))]
    of_paser += [(cell.name, [cell]) for cell in grid.sensitivity()]
    of_default += [(cell.name, [cell]) for cell in grid.sensitivity_of_default()]
    blocks = [
        block
        for title, cells in (("paser", of_paser), (grid.DEFAULT, of_default))
        if (block := _sensitivity(title, cells))
    ]
    if not blocks:
        return ""
    intro = "## Sensitivity\n\nOne seed each; the spread over seeds above says what to make of differences."
    return "\n\n".join([intro, *blocks])


def _sensitivity(title: str, settings: Sequence[tuple[str, list[Cell]]]) -> str:
    """A table and a figure of one rule by setting, the first of which is the rule as it is."""
    lines: list[str] = []
    drawn: dict[str, dict[str, float]] = {}
    for name, cells in settings:
        found = list(trained(cells).values())
        if not found:
            continue
        chosen = cell_files.selection(cells[0])
        columns = {m: judge(WANDA).mean(m, found)["value"] for m in METRICS}
        values = " | ".join(f"{value:.3f}" for value in columns.values())
        lines.append(f"| {name} | {chosen['clusters']} | {len(chosen['rows'])} | {values} |")
        for metric, value in columns.items():
            drawn.setdefault(metric, {})[name] = value
    first = settings[0][0]
    if len(lines) < 2 or first not in drawn[METRICS[0]]:
        return ""
    image = f"evidence-sensitivity-{title}.svg"
    figures.bars(IMAGES / image, drawn, first)
    head = f"| `{title}` with | clusters | rows | " + " | ".join(METRICS) + " |"
    return "\n".join(
        [head, "|---|--:|--:|--:|--:|--:|", *lines, "",
         f"![The three metrics by setting of {title}; the line is the rule as it is](images/{image})"]
    )  # fmt: skip


def ceiling() -> str:
    """The dense model on rows that were chosen for the pruned one, and how near to it those led."""
    dense, pruned = cell_files.untrained(DENSE), cell_files.untrained(WANDA)
    accuracy = share(judge(DENSE).mean(ACCURACY, [dense]))
    lines = [
        f"| no training | {_held_out(dense, 'loss'):.3f} | 0 | {accuracy} | {_held_out(pruned, 'loss'):.3f} | |"
    ]
    for name in grid.CEILING:
        if top := of_ceiling(name):
            lines.append(
                f"| rows of `{name}` | {top['loss']:.3f} | {top['jsd']:.3f} | {share(top['accuracy'])} | "
                f"{top['reached']:.3f} | {top['healed']:.2f} |"
            )
    if len(lines) < 2:
        return ""
    return "\n".join(
        ["## The ceiling: what training gives the dense model", "",
         "What the dense model gains from the same rows is format, not healing; its JSD is how far the rows lead away from "
         "the dense model. *Healed*: how much of the way from the pruned model's loss to that of the dense model "
         f"trained on the same rows the pruned model went. {WHERE}, one seed.", "",
         "| | dense: held-out loss | JSD to dense | task accuracy | pruned: held-out loss | healed |",
         "|---|--:|--:|--:|--:|--:|", *lines]
    )  # fmt: skip


def of_ceiling(name: str) -> Row | None:
    """Of the dense model that was trained on these rows: held-out loss, JSD, accuracy; of the pruned one, the loss
    that it `reached` and how much it `healed`. None where one of them is missing."""
    (cell,) = [cell for cell in grid.ceiling() if cell.name == name]
    found, recovered = cell.training_if_done(), replace(cell, train=None).training_if_done()
    if found is None or recovered is None:
        return None
    start = cell_files.untrained(WANDA)
    top, reached, before = (_held_out(one, "loss") for one in (found, recovered, start))
    return {
        "loss": top, "jsd": _held_out(found, "jsd"), "accuracy": judge(DENSE).mean(ACCURACY, [found]),
        "reached": reached, "healed": (before - reached) / (before - top),
    }  # fmt: skip


def _held_out(found: Row, key: str) -> float:
    return float(judge(DENSE).rows.units[0] @ found[key])


def chosen_rows() -> str:
    """Of what selections consist: length, steps, and rows that were injected to be avoided."""
    blocks = []
    reserved = dict.fromkeys((*grid.RESERVED, *grid.THIRD, *grid.THIRD_BESIDE, *grid.FOURTH))
    for pool, scheme, seeds, names in (
        (grid.DEVELOPMENT, WANDA, grid.DEVELOPMENT_SEEDS[:3], ()),
        (grid.LAST, grid.HARD, grid.LAST_SEEDS, ("random", grid.THIRD_WINNER, grid.DEFAULT, *grid.BESIDE)),
        (grid.FRESH, grid.HARD, grid.FRESH_SEEDS, ("random", grid.THIRD_WINNER, *grid.FOURTH)),
        (grid.CONFIRMATION, WANDA, grid.CONFIRMATION_SEEDS, grid.CONFIRMED),
        (grid.RESERVE, grid.HARD, grid.RESERVE_SEEDS, reserved),
    ):
        named = [(n, grid.confirmed(n, seeds, scheme, pool=pool)) for n in names]
        named = named or [*rivals(), *ablations(), *candidates()]
        whole = [row["row_id"] for row in world().pools[pool]]
        lines = [_contents_line("the pool", [whole], pool, "")]
        for name, cells in named:
            found = trained(cells)
            done = [cell for cell in cells if cell.seed in seeds and cell.seed in found]
            if done:
                steps = sum(found[cell.seed]["steps"] for cell in done) / len(done)
                chosen = [cell_files.selection(cell)["rows"] for cell in done]
                lines.append(_contents_line(f"`{name}`", chosen, pool, f"{steps:.0f}"))
        head = f"| {pool} pool, {SCHEMES[scheme]} | rows | optimiser steps | response tokens | median of a row | injected wrong answers | injected copies |"
        blocks.append("\n".join([head, "|---" + "|--:" * 6 + "|", *lines]))
    return (
        f"## What was chosen\n\n{grid.LARGE:,} training tokens, means over the seeds. A selection spends the same tokens on few rows with "
        "long answers or on many with short ones. *Injected*: share of the rows that were put into the pool as noise.\n\n"
        + "\n\n".join(blocks)
    )


@functools.cache
def _sources(pool: str) -> dict[str, str]:
    return {row["row_id"]: row["source"] for row in world().pools[pool]}


def contents(chosen: Sequence[list[str]], pool: str) -> dict[str, float]:
    """Means over selections: rows and response tokens of one, tokens of the median row, share of injected rows."""
    import numpy as np

    every = [row_id for rows in chosen for row_id in rows]
    lengths = [worlds.response_tokens(pool)[row_id] for row_id in every]
    wrong, copies = (
        sum(_sources(pool)[row_id] == f"injected-{kind}" for row_id in every) / len(every)
        for kind in ("low-quality", "duplicates")
    )
    return {
        "rows": len(every) / len(chosen), "response": sum(lengths) / len(chosen), "median": float(np.median(lengths)),
        "wrong": wrong, "copies": copies,
    }  # fmt: skip


def _contents_line(name: str, chosen: Sequence[list[str]], pool: str, steps: str) -> str:
    found = contents(chosen, pool)
    return (
        f"| {name} | {found['rows']:.0f} | {steps} | {found['response']:,.0f} | {found['median']:.0f} | "
        f"{found['wrong']:.1%} | {found['copies']:.1%} |"
    )


def costs() -> str:
    lines = []
    for name, cells in (*rivals(), *ablations(), *candidates()):
        if cells[0].training_if_done() is None:
            continue
        chosen = cell_files.selection(cells[0])
        cost = chosen["cost"]
        passes = cost.get("forward_tokens", 0) + BACKWARD * cost.get("backward_tokens", 0)
        lines.append(
            f"| `{name}` | {len(chosen['rows'])} | {chosen['tokens']:,} | {cost.get('forward_tokens', 0):,} | "
            f"{cost.get('backward_tokens', 0):,} | {cost.get('embedded_rows', 0):,} | "
            f"{passes / (PASSES_OF_TRAINING * chosen['tokens']):.1f} |"
        )
    if not lines:
        return ""
    return "\n".join(
        ["## Cost", "",
         "Of one seed: tokens through a model in selecting (scoring of the drawn rows by both models included where its "
         "result is read), rows embedded. Times are left out: cells ran on different machines, beside other cells. "
         f"A token of training costs about {PASSES_OF_TRAINING} forward passes, because it goes forward and backward in each epoch. `random, more tokens` has as many training "
         "tokens as the larger budget and the scoring of the pool cost together.",
         "", "| | rows | training tokens | forward | backward | embedded | selecting, in trainings |",
         "|---|--:|--:|--:|--:|--:|--:|", *lines]
    )  # fmt: skip


def machine() -> str:
    """Cells of one machine beside the same of another."""
    lines, leads = [], []
    for scheme in (WANDA, grid.HARD):
        both = {}
        for name in ("random", grid.DEFAULT):
            again = [cell for cell in grid.machine() if (cell.scheme, cell.name) == (scheme, name)]
            earlier = [replace(cell, again=False) for cell in again]
            lines += [_again(scheme, *pair) for pair in zip(earlier, again, strict=True) if _both(*pair)]
            both[name] = earlier, again
        pairs = [paired(*(both[name][i] for name in (grid.DEFAULT, "random"))) for i in (0, 1)]
        if all(a for a, _ in pairs):
            found = [signed(judge(scheme).difference(FIDELITY, *pair)) for pair in pairs]
            leads.append(f"{SCHEMES[scheme]}: {found[0]}, again {found[1]}")
    if not lines:
        return ""
    head = " | ".join(f"{metric} | again" for metric in METRICS)
    return "\n".join(
        ["## The same on another machine", "",
         "Another processor rounds otherwise, so that pruning takes some other weights, and passes give other bits. Cells that were there, made "
         "once more from pruning on, on a machine that made none of the others; measured, as everything here, against the pruned model of the first machine. "
         "*Rows*: share of the rows in common.", "",
         f"| | | seed | rows | {head} |", "|---|---|--:|--:|" + "--:|--:|" * len(METRICS), *lines, "",
         f"`{grid.DEFAULT}` minus `random` in {FIDELITY}, of these seeds: {'; '.join(leads)}."]
    )  # fmt: skip


def _both(*cells: Cell) -> bool:
    return all(cell.training_if_done() is not None for cell in cells)


def _again(scheme: str, earlier: Cell, again: Cell) -> str:
    rows = [set(cell_files.selection(cell)["rows"]) for cell in (earlier, again)]
    found = [cell_files.done(cell) for cell in (earlier, again)]
    values = [f"{judge(scheme).mean(m, [one])['value']:.3f}" for m in METRICS for one in found]
    common = len(rows[0] & rows[1]) / len(rows[0])
    return f"| {SCHEMES[scheme]} | `{again.name}` | {again.seed} | {common:.0%} | {' | '.join(values)} |"


def models() -> str:
    """How many pruned models there were, and whether pairs of the tests began from the same."""
    versions = {
        scheme: {
            found["model"]
            for cell in grid.cells(grid.PARTS)
            if cell.trained == scheme and (found := cell.training_if_done())
        }
        for scheme in SCHEMES
    }
    mixed = [
        f"{name} of `{part}` ({SCHEMES[scheme]})"
        for part, seeds, pool, names in TESTED
        for scheme in SCHEMES
        for name in names
        if any(
            a["model"] != b["model"]
            for a, b in zip(
                *paired(*(grid.confirmed(n, seeds, scheme, pool=pool) for n in (name, "random"))),
                strict=True,
            )
        )
    ]
    counted = ", ".join(f"{len(found)} of {SCHEMES[scheme]}" for scheme, found in versions.items())
    pairs = f"all but {', '.join(mixed)}" if mixed else "all"
    return (
        f"Models were pruned on each machine anew, and differ in some bits: {counted}. Of the tests on pools of their own, {pairs} have both sides of a pair "
        "from one of them"
    )


def took_part() -> str:
    wanted = list(grid.cells(grid.PARTS))
    done = [found for cell in wanted if (found := cell.training_if_done()) is not None]
    commits = sorted({found["commit"][:12] for found in done if found.get("commit")})
    machines = sorted({found["machine"] for found in done if found.get("machine")})
    seconds = sum(found["processor_seconds"] for found in done)
    libraries = ", ".join(f"{name} {v}" for name, v in cell_files.libraries().items())
    return f"""## What took part

{len(done)} of {len(wanted)} cells of the grid are done{missing()}. Training took
{duration(seconds)} of processor time in all. Cells were computed at commits {", ".join(commits) or "unknown"}, on {", ".join(machines) or "unknown"};
{libraries}. {models()}. Cleaning removed from the pools: {removed()}. With nearly the prompt of a held-out row: {near()}."""


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
