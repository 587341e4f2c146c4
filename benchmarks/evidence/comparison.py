# ruff: noqa: E501 (prose and table rows)
"""Selectors against each other on the development pool: tables, figures, sensitivity, the ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.data import ROOT
from benchmarks.evidence import cells as cell_files
from benchmarks.evidence import figures, grid
from benchmarks.evidence.analysis import METRICS, paired, trained
from benchmarks.evidence.cells import Cell, Row
from benchmarks.evidence.tables import WANDA, WHERE, judge, share, signed
from benchmarks.evidence.world import DENSE, SCHEMES
from paser.evaluation.paired import ACCURACY, CLOSED, FIDELITY, holm, shown, verdict

# The two metrics that pull apart, and what spends more than the others do.
TRADED = (CLOSED, FIDELITY)
MORE_TOKENS = "random, more tokens"
OTHER_BUDGET = ("full", MORE_TOKENS)
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
