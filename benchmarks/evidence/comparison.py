# ruff: noqa: E501 (prose and table rows)
"""Selectors against each other on the development pool: tables, figures, sensitivity, the ceiling."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from statistics import fmean

from benchmarks.data import ROOT
from benchmarks.evidence import cells as cell_files
from benchmarks.evidence import figures, grid
from benchmarks.evidence.analysis import METRICS, paired, trained
from benchmarks.evidence.cells import Cell, Row
from benchmarks.evidence.tables import SHARED_SEEDS, WANDA, WHERE, judge, least, share, signed
from benchmarks.evidence.world import DENSE, SCHEMES
from paser.evaluation.paired import ACCURACY, CLOSED, FIDELITY, Judge, holm, shown, verdict

# The two metrics that pull apart, and what spends more than the others do.
TRADED = (CLOSED, FIDELITY)
MORE_TOKENS = "random, more tokens"
OTHER_BUDGET = ("full", MORE_TOKENS)
# Beside their names.
MORE = "‡"
ABLATION_AS_SETTING = {"paser-no-conflicts": "strictness 0", "paser-uniform": "policy uniform"}
IMAGES = ROOT / "docs/images"


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


def all_compared() -> list[tuple[str, list[Cell]]]:
    """What the default rule is compared with: one family of p-values for each metric."""
    return [*rivals(), *other_policies()]


def other_policies() -> list[tuple[str, list[Cell]]]:
    return [(name, cells) for name, cells in candidates() if name != grid.DEFAULT]


@dataclass(frozen=True)
class Compared:
    """A selector against the one that all are compared to, on the seeds that both have. `p`: Holm's; None from
    one seed, with which nothing is said of others."""

    ours: list[Row]
    theirs: list[Row]
    difference: Row
    p: float | None

    @property
    def verdict(self) -> str:
        return verdict(self.difference, self.p)


def compared_with(
    metric: str, family: Sequence[tuple[str, list[Cell]]], base: Sequence[Cell]
) -> dict[str, Compared]:
    """By name, those of the family that have a seed with `base`. The family is what is planned, so that no p-value
    grows when a cell comes in."""
    sides = {name: both for name, cells in family if (both := paired(cells, base))[0]}
    found = {name: judge(WANDA).difference(metric, *both) for name, both in sides.items()}
    planned = {name: 1.0 for name, _ in family}
    corrected = holm(planned | {name: d["p"] for name, d in found.items() if d["seeds"] > 1})
    return {
        name: Compared(*sides[name], d, corrected[name] if d["seeds"] > 1 else None)
        for name, d in found.items()
    }


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
    blocks = []
    for metric in METRICS:
        found = compared_with(metric, family or compared, base)
        here = [name for name, _ in compared if name in found]
        reference = list(trained(base).values())
        if not here or not reference:
            return ""
        whole = share(judge(WANDA).mean(metric, reference), metric)
        lines = [f"| `{to}` | {whole} | | | | | {len(reference)} | |"]
        for name in sorted(here, key=lambda n: -found[n].difference["value"]):
            one = found[name]
            lines.append(
                f"| `{name}`{f' {MORE}' if name in OTHER_BUDGET else ''} | {share(judge(WANDA).mean(metric, one.ours), metric)} | "
                f"{judge(WANDA).mean(metric, one.theirs)['value']:.3f} | {signed(one.difference)} | "
                f"{'' if one.p is None else shown(one.p)} | {one.verdict} | {len(one.ours)} | {least(one.difference)} |"
            )
        head = f"| | {metric} | `{to}`, same seeds | difference | *p* (Holm) | | seeds | least |"
        blocks.append("\n".join([head, "|---|--:|--:|--:|--:|---|--:|--:|", *lines]))
    return f"{title}\n\n{text}\n\n" + "\n\n".join(blocks)


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
    named = [pair for pair in rivals() if pair[0] not in ("random", *OTHER_BUDGET)]
    if not _differences("evidence-selectors.svg", [*named, *ablations(), *candidates()], "random"):
        return ""
    return (
        f"Every selector minus `random` on the seeds that both have. {WHERE}; hollow: one seed.\n\n"
        "![Each selector's difference to random rows in the three metrics](images/evidence-selectors.svg)"
    )


def ablations_figure() -> str:
    if not _differences("evidence-ablations.svg", ablations(), "paser"):
        return ""
    return "![Each part of the paper's policy taken away, minus the whole](images/evidence-ablations.svg)"


def _differences(image: str, named: Sequence[tuple[str, list[Cell]]], to: str) -> bool:
    """The figure of these minus `to` on the seeds that both have; False where there is none."""
    base = grid.plain(to, grid.DEVELOPMENT_SEEDS)
    both = {name: sides for name, cells in named if (sides := paired(cells, base))[0]}
    columns = {
        metric: {name: judge(WANDA).difference(metric, *sides) for name, sides in both.items()}
        for metric in METRICS
    }
    if both:
        figures.differences(IMAGES / image, columns, f"minus {to}")
    return bool(both)


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


def by_capability() -> str:
    done = {
        name: list(trained(grid.named(name, SHARED_SEEDS)).values())
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
            f"| `{name}` | {len(found)} | "
            + " | ".join(f"{columns[name][label]:.2f}" for label in labels)
            + " |"
            for name, found in done.items()
        ]
        head = f"| {metric} | seeds | " + " | ".join(labels) + " |"
        blocks.append("\n".join([head, "|---" + "|--:" * (len(labels) + 1) + "|", *lines]))
    return (
        f"### Of more selectors\n\n{WHERE}, means over the first three seeds or two of them.\n\n"
        + "\n\n".join(blocks)
    )


def by_capability_tested() -> str:
    """The default rule minus random rows in each label, on the pool of its test."""
    columns = {scheme: tested_by_label(scheme) for scheme in SCHEMES}
    if not any(any(found.values()) for found in columns.values()):
        return ""
    blocks = []
    for metric in (FIDELITY, CLOSED):
        labels = sorted({label for found in columns.values() for label in found[metric]})
        lines = [
            f"| {label} | "
            + " | ".join(
                signed(found[metric][label]) if label in found[metric] else "" for found in columns.values()
            )
            + " |"
            for label in labels
        ]
        head = f"| {metric} | " + " | ".join(SCHEMES[scheme] for scheme in columns) + " |"
        blocks.append("\n".join([head, "|---" + "|--:" * len(columns) + "|", *lines]))
    return (
        f"## By capability\n\n`{grid.DEFAULT}` minus `random` where it was tested (*last* pool, {grid.LARGE:,} training tokens, five seeds), by the "
        "label of the held-out rows. No correction for the number of labels; few rows stand behind each.\n\n"
        + "\n\n".join(blocks)
    )


@functools.cache
def tested_by_label(scheme: str) -> dict[str, dict[str, Row]]:
    """By metric, the paired difference of the default rule to random rows in each label, on the pool of its test;
    gap closed in the labels that pruning damaged."""
    sides = paired(
        *(grid.confirmed(name, grid.LAST_SEEDS, scheme, pool=grid.LAST) for name in (grid.DEFAULT, "random"))
    )
    whole = judge(scheme)
    found: dict[str, dict[str, Row]] = {FIDELITY: {}, CLOSED: {}}
    for label in sorted(set(whole.labels)) if sides[0] else ():
        inside = whole.inside(label)
        pruned, original, *both = (
            [{key: list(compress(one[key], inside)) for key in ("loss", "jsd")} for one in some]
            for some in ([whole.pruned], [whole.original], *sides)
        )
        alone = Judge(pruned[0], original[0], [label] * int(inside.sum()))
        for metric in (FIDELITY, CLOSED):
            if metric == FIDELITY or label in whole.damaged:
                found[metric][label] = alone.difference(metric, *both)
    return found


def by_task() -> str:
    original, pruned = cell_files.untrained(DENSE), cell_files.untrained(WANDA)
    tasks = list(original["tasks"])
    lines = []
    for name, found in (("dense", [original]), ("pruned", [pruned])):
        lines.append(_task_line(name, found, tasks, original))
    for name in ("random", "paser", grid.DEFAULT, "longest", *grid.THREE_SEEDS, *grid.ABLATIONS):
        found = list(trained(grid.named(name, SHARED_SEEDS)).values())
        if found:
            lines.append(_task_line(f"`{name}`", found, tasks, original))
    head = (
        "| | seeds | "
        + " | ".join(f"{t}, acc_norm | {t}, JSD" for t in tasks)
        + " | accuracy minus *pruned* |"
    )
    return "\n".join(
        ["## By task", "", "The same seeds; JSD between the choices' distributions and those of the dense model; last, the paired difference "
         "of task accuracy to the model that was pruned and not trained.",
         "", head, "|---" + "|--:" * (2 * len(tasks) + 2) + "|", *lines]
    )  # fmt: skip


def _task_line(name: str, found: Sequence[Row], tasks: Sequence[str], original: Row) -> str:
    cells = []
    for task in tasks:
        accuracy = [v for one in found for v in one["tasks"][task]["value"]]
        jsd = [v for one in found for v in cell_files.task_jsd(original, one)[task]]
        cells.append(f"{sum(accuracy) / len(accuracy):.1%} | {sum(jsd) / len(jsd):.4f}")
    untrained = [cell_files.untrained(WANDA)] * len(found)
    gained = signed(judge(WANDA).difference(ACCURACY, found, untrained)) if found != untrained else ""
    seeds = len(found) if name.startswith("`") else ""
    return f"| {name} | {seeds} | " + " | ".join(cells) + f" | {gained} |"


def sensitivity() -> str:
    first = grid.DEVELOPMENT_SEEDS[:1]
    of_paser = [("as it is", grid.plain("paser", first))]
    of_default = [("as it is", grid.candidate(grid.DEFAULT, first))]
    of_paser += [(cell.name, [cell]) for cell in grid.sensitivity()]
    # Two of the settings are ablations too; each comes before the others of its key.
    for ablation, setting in ABLATION_AS_SETTING.items():
        key = setting.partition(" ")[0]
        place = next(i for i, (name, _) in enumerate(of_paser) if name.startswith(key))
        of_paser.insert(place, (setting, grid.plain(ablation, first)))
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
    before = [_held_out(one, "loss") for one in (dense, pruned)]
    lines = [
        f"| no training | {before[0]:.3f} | 0 | {accuracy} | {before[1]:.3f} | {before[1] - before[0]:.3f} | 0 | |"
    ]
    for name in grid.CEILING:
        if top := of_ceiling(name):
            over = healed_over(name, "random")
            lines.append(
                f"| rows of `{name}` | {top['loss']:.3f} | {top['jsd']:.3f} | {share(top['accuracy'])} | "
                f"{top['reached']:.3f} | {top['reached'] - top['loss']:.3f} | {share(healed(name) or {})} | "
                f"{signed(over) if over and name != 'random' else ''} |"
            )
    if len(lines) < 2:
        return ""
    return "\n".join(
        ["## The ceiling: what training gives the dense model", "",
         "What the dense model gains from the same rows is format, not healing; its JSD is how far the rows lead away from "
         "the dense model. *Left*: the pruned model's loss less the dense model's, both trained on these rows. *Healed*: gap closed, where what the "
         f"dense model gains is taken off the pruned model's gain; below 0, the dense model gained more. {WHERE}, one seed: intervals are over held-out rows alone.", "",
         "| | dense: held-out loss | JSD to dense | task accuracy | pruned: held-out loss | left | healed | minus that of `random` |",
         "|---|--:|--:|--:|--:|--:|--:|--:|", *lines, "", _left_table()]
    )  # fmt: skip


def _left_table() -> str:
    columns = {"no training": left_by_label(None)}
    columns |= {f"`{name}`": found for name in grid.CEILING if (found := left_by_label(name))}
    lines = [
        f"| {label} | " + " | ".join(f"{found[label]:.2f}" for found in columns.values()) + " |"
        for label in columns["no training"]
    ]
    head = "| left, by label | " + " | ".join(columns) + " |"
    return "\n".join([head, "|---" + "|--:" * len(columns) + "|", *lines])


def left_by_label(name: str | None) -> dict[str, float]:
    """How far the pruned model's loss is above the dense one's in each label, both trained on these rows; of neither
    trained, where no name is given; empty where one of them is missing."""
    both = _on_same_rows(name) if name else (cell_files.untrained(DENSE), cell_files.untrained(WANDA))
    if not both:
        return {}
    inside = {label: judge(WANDA).inside(label) for label in sorted(set(judge(WANDA).labels))}
    top, reached = (
        {label: fmean(compress(one["loss"], where)) for label, where in inside.items()} for one in both
    )
    return {label: reached[label] - top[label] for label in inside}


def of_ceiling(name: str) -> Row | None:
    """Of the dense model that was trained on these rows: held-out loss, JSD, accuracy; the loss that the pruned one
    `reached` on them. None where one of them is missing."""
    both = _on_same_rows(name)
    if not both:
        return None
    top, recovered = both
    return {
        "loss": _held_out(top, "loss"), "jsd": _held_out(top, "jsd"),
        "accuracy": judge(DENSE).mean(ACCURACY, [top]), "reached": _held_out(recovered, "loss"),
    }  # fmt: skip


def healed(name: str) -> Row | None:
    """The gap that the pruned model closed beyond what the dense one gained on the same rows; with its interval."""
    own = _beyond_format(name)
    return judge(WANDA).mean(CLOSED, [own]) if own else None


def healed_over(name: str, other: str) -> Row | None:
    """Paired over held-out rows, one seed."""
    ours, theirs = _beyond_format(name), _beyond_format(other)
    return judge(WANDA).difference(CLOSED, [ours], [theirs]) if ours and theirs else None


def _beyond_format(name: str) -> Row | None:
    """The pruned model as trained, with the losses that it would have had without the dense model's gain."""
    both = _on_same_rows(name)
    if not both:
        return None
    dense = cell_files.untrained(DENSE)
    top, recovered = both
    losses = zip(recovered["loss"], dense["loss"], top["loss"], strict=True)
    return {**recovered, "loss": [reached + (before - after) for reached, before, after in losses]}


def _on_same_rows(name: str) -> tuple[Row, Row] | None:
    """The dense model and the pruned one, trained on the same rows; None where one of them is missing."""
    (cell,) = [cell for cell in grid.ceiling() if cell.name == name]
    top, recovered = cell.training_if_done(), replace(cell, train=None).training_if_done()
    return (top, recovered) if top and recovered else None


def _held_out(found: Row, key: str) -> float:
    return float(judge(DENSE).rows.units[0] @ found[key])
