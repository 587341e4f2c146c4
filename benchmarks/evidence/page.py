# ruff: noqa: E501 (prose and table rows)
"""docs/evidence.md and its figures, from the cells alone: no number in it is typed by hand."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.data import ROOT
from benchmarks.evidence import cells as cell_files
from benchmarks.evidence import figures, grid
from benchmarks.evidence import world as worlds
from benchmarks.evidence.analysis import METRICS, judge_of, paired, trained
from benchmarks.evidence.cells import Cell
from benchmarks.evidence.world import DENSE, SCHEMES, scores, task_items, world
from paser.evaluation.paired import ACCURACY, Judge, holm, shown, verdict
from paser.progress import duration, say

PAGE = ROOT / "docs/evidence.md"
IMAGES = ROOT / "docs/images"
READING = Path(__file__).parent / "reading.md"
WANDA = grid.WANDA
# The two metrics that pull apart, and what spends more than the others do.
TRADED = ("gap closed", "fidelity gap")
OTHER_BUDGET = ("full", "random, more tokens")
Row = dict[str, Any]
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
    yield opening()
    yield READING.read_text(encoding="utf-8") if READING.exists() else ""
    yield models_table()
    yield confirmation()
    yield reserve()
    yield fresh()
    yield primary_table()
    yield budgets_figure()
    yield differences_figure()
    yield tradeoff_figure()
    winner = (grid.WINNER, grid.plain(grid.WINNER, grid.DEVELOPMENT_SEEDS))
    default = (grid.THIRD_WINNER, grid.candidate(grid.THIRD_WINNER, grid.DEVELOPMENT_SEEDS))
    yield against(
        "## Other selectors",
        f"Development pool, Wanda 50 %, 18,000 tokens: mean over the seeds, and the paired difference to the default rule, "
        f"`{default[0]}`, on the seeds that both have. *p*: two-sided, corrected by Holm's method over all that are planned for "
        f"this table; none from one seed. A difference below 0 is in favour of `{default[0]}`; its parts were chosen on this pool.",
        rivals(),
        *default,
    )
    yield against(
        "## What the parts of PASER are worth",
        "The paper's policy with one part taken away, minus the whole.",
        ablations(),
        "paser",
        grid.plain("paser", grid.DEVELOPMENT_SEEDS),
    )
    yield against(
        "## Policies of our own",
        f"The same pool, scheme and budget. Of the best, which are level, the simplest was confirmed on the other pool: `{grid.WINNER}`. "
        "`per-token, no damage` is a control: the same clusters, shares by size, rows by the share of their tokens that is response.",
        [(name, cells) for name, cells in candidates() if name != grid.WINNER],
        *winner,
    )
    yield chosen_rows()
    yield second()
    yield third()
    yield distilled()
    yield equal_steps()
    yield against(
        "### Rules with the teacher, at equal steps",
        "The original model teaches; the batch is chosen so that all take about "
        f"{2 * grid.STEPS} steps. Rules of which the plan says why they could do better there, and rivals.",
        [
            (name, grid.taught(name, grid.DEVELOPMENT_SEEDS, steps=grid.STEPS))
            for name in (*grid.TAUGHT_RIVALS[1:], *grid.TAUGHT_CANDIDATES)
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
    yield took_part()


def rivals() -> list[tuple[str, list[Cell]]]:
    """Every selector that is not a policy of our own, the paper's first, and its cells."""
    seeds = grid.DEVELOPMENT_SEEDS
    names = ("paser", "random", *grid.THREE_SEEDS, *grid.TWO_SEEDS, "full")
    return [
        *((name, grid.plain(name, seeds)) for name in names),
        ("q-tuning, tokens pruned", grid.pruned_tokens(seeds)),
        ("random, more tokens", grid.with_scoring(seeds)),
    ]


def ablations() -> list[tuple[str, list[Cell]]]:
    return [(name, grid.plain(name, grid.DEVELOPMENT_SEEDS)) for name in grid.ABLATIONS]


def candidates() -> list[tuple[str, list[Cell]]]:
    return [(name, grid.candidate(name, grid.DEVELOPMENT_SEEDS)) for name in grid.CANDIDATES]


def opening() -> str:
    pools = ", ".join(f"{name} {len(rows):,} rows" for name, rows in world().pools.items())
    return f"""# Evidence

Written by `make evidence`; the plan was fixed before the first cell: [decisions/evidence-plan.md](decisions/evidence-plan.md).
What selectors are: [selectors.md](selectors.md). SmolLM2-135M, pruned; pools: {pools}; {len(world().held_out)} held-out rows
of {len({r["label"] for r in world().held_out})} labels; {", ".join(f"{n} ({min(100, len(i))} items)" for n, i in task_items().items())}.
Everything is compared at the same number of training tokens, but for `full` and what says so. Intervals are 95 % bootstraps over seeds and rows (or items),
paired where a difference is shown; a difference counts where its interval excludes 0. One small model: a measurement, no law.
"""


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


def primary_table() -> str:
    blocks = []
    for metric in METRICS:
        lines = []
        for scheme in SCHEMES:
            for budget in (grid.SMALL, grid.LARGE):
                ours, theirs = (
                    grid.plain(name, grid.DEVELOPMENT_SEEDS, scheme=scheme, budget=budget)
                    for name in ("paser", "random")
                )
                if sides := _sides(metric, scheme, ours, theirs):
                    a, b, difference, found = sides
                    lines.append(
                        f"| {SCHEMES[scheme]} | {budget:,} | {a} | {b} | {difference} | "
                        f"{number(found['sd'])} | {found['least']:.3f} |"
                    )
        if lines:
            head = f"| scheme | tokens | `paser` | `random` | {metric}: difference | | seeds | sd | least |"
            blocks.append("\n".join([head, "|---|--:|--:|--:|--:|---|--:|--:|--:|", *lines]))
    if not blocks:
        return ""
    return (
        "## `paser` against `random`\n\nThe paper's policy with the product's defaults, development pool. *sd*: "
        "standard deviation of the paired difference over seeds; *least*: 2.8 standard errors over seeds and rows, the least "
        "difference that would be found four times in five. A tie where *least* is large is no evidence of equality.\n\n"
        + "\n\n".join(blocks)
    )


def confirmation() -> str:
    """The winner against the paper's policy and random rows, on the pool that development did not use."""
    pairs = [(grid.WINNER, "random"), (grid.WINNER, "paser"), ("paser", "random")]
    pairs += [(grid.WINNER, other) for other in grid.SCEPTICS]
    lines = _confirmed(grid.CONFIRMATION, grid.CONFIRMATION_SEEDS, pairs)
    unseen = _confirmed(grid.CONFIRMATION, grid.UNSEEN_SEEDS, pairs[:2], [WANDA], ", unseen seeds")
    if not any(lines.values()):
        return ""
    return (
        f"## Confirmation\n\n`{grid.WINNER}`, which development favoured, on the other pool with other seeds: {grid.LARGE:,} training "
        "tokens. It was not blind to the last row: of Wanda 50 %, two seeds of it and three of the others had been seen before it was "
        "named (the plan says how); *unseen seeds* are those of which no difference had been. Held-out rows and task items are "
        f"the same as in development. {', '.join(f'`{name}`' for name in grid.SCEPTICS)}: description, which the plan did not have at "
        "first. *least*: 2.8 standard errors, the least difference that would be found four times in five.\n\n"
        + _blocks({metric: lines[metric] + unseen[metric] for metric in METRICS})
    )


def reserve() -> str:
    """The winner of the second development, on the third pool."""
    return _confirmed_again(
        "## Second confirmation",
        f"`{grid.SECOND_WINNER}`, which the second development favoured (below), on a third pool that nothing had been drawn from",
        (grid.RESERVE, grid.RESERVE_SEEDS),
        grid.SECOND_WINNER,
    )


def fresh() -> str:
    """The winner of the third development, on the fourth pool."""
    return _confirmed_again(
        "## Third confirmation",
        f"`{grid.THIRD_WINNER}`, which the third development favoured (below), on a fourth pool that nothing had been drawn from; "
        f"`longest`, `paser` and `{grid.SIMPLER}` as description",
        (grid.FRESH, grid.FRESH_SEEDS),
        grid.THIRD_WINNER,
        [(name, other) for name in ("longest", grid.SIMPLER) for other in ("random", grid.THIRD_WINNER)],
    )


def _confirmed_again(
    title: str, what: str, where: tuple[str, Sequence[int]], winner: str, more: Sequence[tuple[str, str]] = ()
) -> str:
    pairs = [(winner, "random"), (winner, "paser"), ("paser", "random"), *more]
    lines = _confirmed(*where, pairs)
    if not any(lines.values()):
        return ""
    return (
        f"{title}\n\n{what}, with seeds of its own: {grid.LARGE:,} training tokens. Held-out rows and task items are the same again.\n\n"
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
    columns = _schemes_of_development()
    return _developed(
        "## A second development: every scheme",
        "Development pool, 18,000 tokens, seed 1. What has the highest of the lowest bounds goes on, because the rule for the default asks for "
        "every scheme; of two that are level in it, the one with the higher mean. The mean alone ranks otherwise.",
        grid.SECOND[1:],
        columns,
    )


def _schemes_of_development() -> list[Column]:
    return [
        (title, scheme, grid.DEVELOPMENT, grid.DEVELOPMENT_SEEDS[:1]) for scheme, title in SCHEMES.items()
    ]


def third() -> str:
    """The third development: the same columns, and another pool in the scheme that is the hardest to win."""
    columns = _schemes_of_development()
    columns.append((f"{SCHEMES[grid.HARD]}, reserve", grid.HARD, grid.RESERVE, grid.RESERVE_SEEDS[:2]))
    return _developed(
        "## A third development: another pool too",
        "As in the second, and on two seeds of the reserve, where labels with short answers are most of the rows. *By rate*: budget by "
        "(damage of all response tokens over all training tokens of the cluster) to the power 1/2, or the one named. A dash where a cell "
        "is missing; the lowest bound and the mean are over the columns that are there.",
        (*grid.THIRD, *grid.THIRD_BESIDE, grid.SECOND_WINNER),
        columns,
    )


def _developed(title: str, intro: str, names: Iterable[str], columns: Sequence[Column]) -> str:
    """Fidelity and gap closed minus random rows in each column, and the lowest bound in fidelity, by which a
    development goes."""
    lines: dict[str, tuple[float, float, str]] = {}
    for name in names:
        found = [_over_random(name, *column[1:]) for column in columns]
        fidelity = [one["fidelity gap"] for one in found if one]
        if not fidelity:
            continue
        least = min(one["low"] for one in fidelity)
        mean = sum(one["value"] for one in fidelity) / len(fidelity)
        cells = [signed(one["fidelity gap"]) if one else "-" for one in found]
        cells += [f"{least:+.3f}", f"{mean:+.3f}"]
        cells += [f"{one['gap closed']['value']:+.2f}" if one else "-" for one in found]
        lines[name] = round(least, 3), mean, f"| `{name}` | " + " | ".join(cells) + " |"
    if not lines:
        return ""
    head = "| minus `random` | " + " | ".join(f"{column[0]}, fidelity gap" for column in columns)
    head += " | lowest bound | mean | " + " | ".join(f"{column[0]}, gap closed" for column in columns) + " |"
    return "\n".join(
        [title, "", intro, "", head, "|---" + "|--:" * (2 * len(columns) + 2) + "|",
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
        "on the chosen rows, not their responses. Development pool, Wanda 50 %, 18,000 tokens.\n\n"
        + _blocks(lines)
    )


def equal_steps() -> str:
    """What is left of the differences where all take as many optimiser steps."""
    lines = []
    named = {None: "by rows", grid.STEPS: "equal", 2 * grid.STEPS: "twice as many"}
    for teacher, recover in (("no", {}), ("yes", grid.TAUGHT)):
        for name in grid.STEPS_COMPARED:
            for steps, how in named.items():
                cells = grid.plain(name, grid.DEVELOPMENT_SEEDS[:1], recover=recover, steps=steps)
                if found := list(trained(cells).values()):
                    values = " | ".join(share(judge(WANDA).mean(m, found)) for m in METRICS)
                    lines.append(f"| {teacher} | `{name}` | {how} | {found[0]['steps']} | {values} |")
    if not any("| equal |" in line for line in lines):
        return ""
    return "\n".join(
        ["## At equal optimiser steps", "",
         "A batch has 8 rows, so at equal tokens a selection of many short rows takes more optimiser steps. Here the batch is as large "
         f"as gives about {2 * grid.STEPS} steps in two epochs, whatever the rows, or half of that. Seed 1, Wanda 50 %, 18,000 tokens.", "",
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
    return f"| {what} | `{one}` | {a} | `{other}` | {b} | {difference} | {found['least']:.3f} |"


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
    return share(j.mean(metric, a)), share(j.mean(metric, b)), difference, found


def why() -> str:
    """What damage and recoverability of the pool's rows say, label by label, of what random rows win back."""
    import numpy as np
    from scipy.stats import spearmanr

    base = list(trained(grid.plain("random", grid.DEVELOPMENT_SEEDS)).values())
    if not base:
        return ""
    won = judge(WANDA).by_label("fidelity gap", base)
    known = scores(grid.DEVELOPMENT, WANDA)
    rows = world().pools[grid.DEVELOPMENT]
    means: dict[str, dict[str, float]] = {}
    for label in sorted(won):
        inside = [known[row["row_id"]] for row in rows if str(row["label"]) == label]
        inside = [row for row in inside if row["jsd"] is not None]
        if inside:
            means[label] = {
                "JSD": float(np.mean([row["jsd"] for row in inside])),
                "loss increase": float(
                    np.mean([row["loss_pruned"] - row["loss_original"] for row in inside])
                ),
                "recoverability": float(np.mean([row["recoverability"] for row in inside])),
                "JSD a training token": _rate(inside, "jsd"),
                "recoverability a training token": _rate(inside, "recoverability"),
            }
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
         "Means over the development pool's rows of a label, Wanda 50 %, and the fidelity gap that random rows closed in that "
         "label's held-out rows. *A training token*: of all response tokens together, over all tokens of prompts and responses. Last line: "
         "Spearman's rank correlation with that column.", "",
         "| | " + " | ".join(columns) + " | fidelity gap of `random` |", "|---" + "|--:" * (len(columns) + 1) + "|", *lines]
    )  # fmt: skip


def _rate(rows: Sequence[Row], measure: str) -> float:
    """A measure of all response tokens together, over all training tokens."""
    total = sum(row[measure] * row["response_tokens"] for row in rows)
    return float(total / sum(row["prompt_tokens"] + row["response_tokens"] for row in rows))


def budgets_figure() -> str:
    """Gap closed and fidelity gap against the budget, in each scheme that has both budgets."""
    shown = []
    for metric in ("fidelity gap", "gap closed"):
        panels: dict[str, dict[str, dict[int, Row]]] = {}
        for scheme in SCHEMES:
            lines: dict[str, dict[int, Row]] = {}
            for name in ("random", "paser"):
                for budget in (grid.SMALL, grid.LARGE):
                    cells = grid.plain(name, grid.DEVELOPMENT_SEEDS, scheme=scheme, budget=budget)
                    if found := list(trained(cells).values()):
                        lines.setdefault(name, {})[budget] = judge(scheme).mean(metric, found)
            if len(lines) == 2 and all(len(points) == 2 for points in lines.values()):
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
        "Every selector minus `random` on the seeds that both have, Wanda 50 %, 18,000 tokens; hollow: one seed.\n\n"
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
        {"random", "paser", "longest", "total-damage", "ifd", grid.THIRD_WINNER},
    )
    return (
        "The same cells, gap closed in loss against fidelity; right and up is better, the line joins what nothing surpasses in "
        "both.\n\n![Fidelity gap against gap closed, one point a selector](images/evidence-tradeoff.svg)"
    )


def against(
    title: str, text: str, named: Sequence[tuple[str, list[Cell]]], to: str, base: Sequence[Cell]
) -> str:
    """Each of the named against one that all are compared to, with Holm's correction over the table."""
    blocks = []
    for metric in METRICS:
        found = {}
        for name, cells in named:
            ours, theirs = paired(cells, base)
            if ours:
                found[name] = (judge(WANDA).difference(metric, ours, theirs), ours)
        # The family is what is planned, so that no p-value grows when a cell comes in.
        corrected = holm(
            {name: 1.0 for name, _ in named} | {n: d["p"] for n, (d, _) in found.items() if d["seeds"] > 1}
        )
        reference = list(trained(base).values())
        if not found or not reference:
            return ""
        lines = [f"| `{to}` | {share(judge(WANDA).mean(metric, reference))} | | | | {len(reference)} |"]
        for name in sorted(found, key=lambda n: -found[n][0]["value"]):
            difference, ours = found[name]
            several = difference["seeds"] > 1
            lines.append(
                f"| `{name}` | {share(judge(WANDA).mean(metric, ours))} | {signed(difference)} | "
                f"{shown(corrected[name]) if several else ''} | "
                f"{verdict(difference, corrected[name] if several else None)} | {len(ours)} |"
            )
        head = f"| | {metric} | minus `{to}` | *p* (Holm) | | seeds |"
        blocks.append("\n".join([head, "|---|--:|--:|--:|---|--:|", *lines]))
    return f"{title}\n\n{text}\n\n" + "\n\n".join(blocks)


def by_capability() -> str:
    names = ("random", "paser", "longest", *grid.THREE_SEEDS, *grid.ABLATIONS)
    done = {name: list(trained(grid.plain(name, grid.DEVELOPMENT_SEEDS)).values()) for name in names}
    done |= {n: list(trained(grid.candidate(n, grid.DEVELOPMENT_SEEDS)).values()) for n in grid.CANDIDATES}
    done = {name: found for name, found in done.items() if found}
    if not done:
        return ""
    blocks = []
    for metric in ("fidelity gap", "gap closed"):
        columns = {name: judge(WANDA).by_label(metric, found) for name, found in done.items()}
        labels = sorted(next(iter(columns.values())))
        lines = [
            f"| {name} | " + " | ".join(f"{columns[name][label]:.2f}" for label in labels) + " |"
            for name in done
        ]
        head = f"| {metric} | " + " | ".join(labels) + " |"
        blocks.append("\n".join([head, "|---" + "|--:" * len(labels) + "|", *lines]))
    return (
        "## By capability\n\nDevelopment pool, Wanda 50 %, 18,000 tokens, means over seeds.\n\n"
        + "\n\n".join(blocks)
    )


def by_task() -> str:
    original, pruned = cell_files.untrained(DENSE), cell_files.untrained(WANDA)
    tasks = list(original["tasks"])
    lines = []
    for name, found in (("dense", [original]), ("pruned", [pruned])):
        lines.append(_task_line(name, found, tasks, original))
    for name in ("random", "paser", grid.WINNER, "longest", *grid.THREE_SEEDS, *grid.ABLATIONS):
        found = list(trained(grid.plain(name, grid.DEVELOPMENT_SEEDS)).values())
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
    base = trained(grid.plain("paser", grid.DEVELOPMENT_SEEDS[:1]))
    lines: list[str] = []
    drawn: dict[str, dict[str, float]] = {}
    for name, changes in (("defaults", {}), *grid.SENSITIVITY):
        cells = grid.plain("paser", grid.DEVELOPMENT_SEEDS[:1], name=name, **changes)
        found = list(trained(cells).values())
        if not found:
            continue
        chosen = cell_files.selection(cells[0])
        columns = {m: judge(WANDA).mean(m, found)["value"] for m in METRICS}
        values = " | ".join(f"{value:.3f}" for value in columns.values())
        lines.append(f"| {name} | {chosen['clusters']} | {len(chosen['rows'])} | {values} |")
        for metric, value in columns.items():
            drawn.setdefault(metric, {})[name] = value
    if len(lines) < 2 or not base:
        return ""
    figures.bars(IMAGES / "evidence-sensitivity.svg", drawn, "defaults")
    head = "| `paser` with | clusters | rows | " + " | ".join(METRICS) + " |"
    return "\n".join(
        ["## Sensitivity", "", "One seed each; the spread over seeds above says what to make of differences.",
         "", head, "|---|--:|--:|--:|--:|--:|", *lines, "",
         "![The three metrics by setting; the line is the defaults](images/evidence-sensitivity.svg)"]
    )  # fmt: skip


def ceiling() -> str:
    """The dense model on rows that were chosen for the pruned one, and how near to it those led."""
    dense, pruned = cell_files.untrained(DENSE), cell_files.untrained(WANDA)
    j = judge(DENSE)

    def held_out(found: Row, key: str) -> float:
        return float(j.rows.units[0] @ found[key])

    accuracy = share(j.mean("task accuracy", [dense]))
    lines = [
        f"| no training | {held_out(dense, 'loss'):.3f} | 0 | {accuracy} | {held_out(pruned, 'loss'):.3f} | |"
    ]
    for cell in grid.ceiling():
        found, recovered = cell.training_if_done(), replace(cell, train=None).training_if_done()
        if found is None or recovered is None:
            continue
        top, reached, start = (held_out(one, "loss") for one in (found, recovered, pruned))
        lines.append(
            f"| rows of `{cell.selector}` | {top:.3f} | {held_out(found, 'jsd'):.3f} | "
            f"{share(j.mean('task accuracy', [found]))} | {reached:.3f} | {(start - reached) / (start - top):.2f} |"
        )
    if len(lines) < 2:
        return ""
    return "\n".join(
        ["## The ceiling: what training gives the dense model", "",
         "What the dense model gains from the same rows is format, not healing; its JSD is how far the rows lead away from "
         "the dense model. *Healed*: how much of the way from the pruned model's loss to that of the dense model "
         "trained on the same rows the pruned model went. Seed 1, Wanda 50 %, 18,000 tokens.", "",
         "| | dense: held-out loss | JSD to dense | task accuracy | pruned: held-out loss | healed |",
         "|---|--:|--:|--:|--:|--:|", *lines]
    )  # fmt: skip


def chosen_rows() -> str:
    """Of what selections consist: length, steps, and rows that were injected to be avoided."""
    blocks = []
    reserved = dict.fromkeys((*grid.RESERVED, *grid.THIRD, *grid.THIRD_BESIDE))
    for pool, scheme, seeds, names in (
        (grid.DEVELOPMENT, WANDA, grid.DEVELOPMENT_SEEDS[:3], ()),
        (grid.CONFIRMATION, WANDA, grid.CONFIRMATION_SEEDS, grid.CONFIRMED + grid.SCEPTICS),
        (grid.RESERVE, grid.HARD, grid.RESERVE_SEEDS, reserved),
        (grid.FRESH, grid.HARD, grid.FRESH_SEEDS, grid.LAST_COMPARED),
    ):
        named = [(n, grid.confirmed(n, seeds, scheme, pool=pool)) for n in names]
        named = named or [*rivals(), *ablations(), *candidates()]
        response = worlds.response_tokens(pool)
        source = {row["row_id"]: row["source"] for row in world().pools[pool]}
        lines = [_contents("the pool", [list(response)], response, source, "")]
        for name, cells in named:
            found = trained(cells)
            done = [cell for cell in cells if cell.seed in seeds and cell.seed in found]
            if done:
                steps = sum(found[cell.seed]["steps"] for cell in done) / len(done)
                chosen = [cell_files.selection(cell)["rows"] for cell in done]
                lines.append(_contents(f"`{name}`", chosen, response, source, f"{steps:.0f}"))
        head = f"| {pool} pool, {SCHEMES[scheme]} | rows | optimiser steps | response tokens | median of a row | injected wrong answers | injected copies |"
        blocks.append("\n".join([head, "|---" + "|--:" * 6 + "|", *lines]))
    return (
        "## What was chosen\n\n18,000 training tokens, means over the seeds. A selection spends the same tokens on few rows with "
        "long answers or on many with short ones. *Injected*: share of the rows that were put into the pool as noise.\n\n"
        + "\n\n".join(blocks)
    )


def _contents(
    name: str, chosen: Sequence[list[str]], response: Mapping[str, int], source: Mapping[str, str], steps: str
) -> str:
    import numpy as np

    every = [row_id for rows in chosen for row_id in rows]
    noise = [
        sum(source[r] == f"injected-{kind}" for r in every) / len(every)
        for kind in ("low-quality", "duplicates")
    ]
    lengths = [response[r] for r in every]
    return (
        f"| {name} | {len(every) / len(chosen):.0f} | {steps} | {sum(lengths) / len(chosen):,.0f} | {np.median(lengths):.0f} | "
        f"{noise[0]:.1%} | {noise[1]:.1%} |"
    )


def costs() -> str:
    lines = []
    for name, cells in (*rivals(), *ablations(), *candidates()):
        training = cells[0].training_if_done()
        if training is None:
            continue
        chosen = cell_files.selection(cells[0])
        cost = chosen["cost"]
        lines.append(
            f"| `{name}` | {len(chosen['rows'])} | {chosen['tokens']:,} | {cost.get('forward_tokens', 0):,} | "
            f"{cost.get('backward_tokens', 0):,} | {cost.get('embedded_rows', 0):,} | "
            f"{duration(chosen['processor_seconds'])} | {duration(training['processor_seconds'])} |"
        )
    if not lines:
        return ""
    return "\n".join(
        ["## Cost", "",
         "Of seed 1. Tokens through a model in selecting (scoring of the drawn rows by both models included where its "
         "result is read), rows embedded; processor time of selecting (without scoring and embedding, which are shared) and of training. "
         "A token of training goes forward and backward in two epochs, about six times forward. `random, more tokens` has as many training "
         "tokens as the larger budget and the scoring of the pool cost together.",
         "", "| | rows | training tokens | forward | backward | embedded | selecting | training |",
         "|---|--:|--:|--:|--:|--:|--:|--:|", *lines]
    )  # fmt: skip


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
{libraries}. Cleaning removed from the pools: {removed()}. With nearly the prompt of a held-out row: {near()}."""


def missing() -> str:
    """What is not done yet, by part."""
    left = {
        name: [cell for cell in part() if cell.training_if_done() is None]
        for name, part in grid.PARTS.items()
    }
    told = [f"{name} {len(cells)} of {len(grid.PARTS[name]())}" for name, cells in left.items() if cells]
    return f"; missing in the tables: {', '.join(told)}" if told else ""


def near() -> str:
    """Rows that are nearly held-out rows, or rows of the other pool."""
    pools = list(world().pools.items())
    counted = [f"{worlds.near(rows, world().held_out)} rows of the {name} pool" for name, rows in pools]
    across = []
    for number, (name, rows) in enumerate(pools[1:], start=1):
        earlier = [row for _, others in pools[:number] for row in others]
        across.append(f"{worlds.near(rows, earlier)} of the {name} pool")
    return f"{', '.join(counted)}; with nearly that of a row of an earlier pool: {', '.join(across)}"


def removed() -> str:
    return "; ".join(
        f"{name}: " + ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        + f" (of {world().injected[name]} injected rows, "
        f"{sum(row['source'].startswith('injected') for row in world().pools[name])} are left)"
        for name, reasons in world().removed.items()
    )  # fmt: skip


def share(found: Row) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def signed(found: Row) -> str:
    return f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
