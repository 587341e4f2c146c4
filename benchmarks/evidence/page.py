# ruff: noqa: E501 (prose and table rows)
"""docs/evidence.md and its figures, from the cells alone: no number in it is typed by hand."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.data import ROOT
from benchmarks.evidence import cells as cell_files
from benchmarks.evidence import comparison, grid, prose, provenance, rules, selections
from benchmarks.evidence.analysis import METRICS
from benchmarks.evidence.tables import OVER, WHERE, both_sides, judge, least, number, primary_pair, share
from benchmarks.evidence.world import DENSE, SCHEMES, TASK_ITEMS, task_items, world
from paser.evaluation.paired import ACCURACY, CLOSED, FIDELITY
from paser.progress import say

PAGE = ROOT / "docs/evidence.md"


def write() -> None:
    text = "\n\n".join(part.strip() for part in parts() if part) + "\n"
    PAGE.write_text(text, encoding="utf-8")
    say(f"{PAGE.relative_to(ROOT)} written")


def parts() -> Iterable[str]:
    default = (grid.DEFAULT, grid.candidate(grid.DEFAULT, grid.DEVELOPMENT_SEEDS))
    compared = comparison.all_compared()
    yield opening()
    yield prose.reading()
    yield models_table()
    yield rules.last()
    yield rules.smaller_budget()
    yield rules.gentler()
    yield primary_table()
    yield comparison.budgets_figure()
    yield comparison.differences_figure()
    yield comparison.tradeoff_figure()
    yield comparison.against(
        "## Other selectors",
        f"{WHERE}: mean over the seeds, what the default rule, `{grid.DEFAULT}`, has on the seeds that both have, and the paired "
        "difference. *p*: two-sided, corrected by Holm's method, for each metric over all that are planned for this table and the one "
        "of our own policies; none from one seed. A difference below 0 is in favour of the default rule; its parts were chosen on this pool. "
        f"{comparison.MORE}: more training tokens than the others (*Cost*).",
        comparison.rivals(),
        *default,
        compared,
    )
    yield comparison.against(
        "## What the parts of PASER are worth",
        "The paper's policy with one part taken away, minus the whole. Holm's method over this table.",
        comparison.ablations(),
        "paser",
        grid.plain("paser", grid.DEVELOPMENT_SEEDS),
    )
    yield comparison.ablations_figure()
    yield comparison.against(
        "## Policies of our own",
        f"The same pool, scheme, budget and family of *p*. How the default came out of them: *How the default was found*. Two controls do not look at "
        f"damage: `per-token, no damage` (clusters by size, rows by the share of their tokens that is response) and `{grid.DEFAULT}, no damage` "
        "(clusters by size, plain coverage).",
        comparison.other_policies(),
        *default,
        compared,
    )
    yield selections.chosen_rows()
    yield rules.HOW_FOUND
    yield rules.confirmation()
    yield rules.second()
    yield rules.reserve()
    yield rules.third()
    yield rules.fresh()
    yield rules.fourth()
    yield rules.distilled()
    yield rules.equal_steps()
    yield comparison.against(
        "### Selectors with the teacher, at equal steps",
        f"The original model teaches; the batch is chosen so that all take about {2 * grid.STEPS} steps.",
        [
            (name, grid.taught(name, grid.DEVELOPMENT_SEEDS, steps=grid.STEPS))
            for name in grid.TAUGHT_COMPARED[1:]
        ],
        "random",
        grid.taught("random", grid.DEVELOPMENT_SEEDS, steps=grid.STEPS),
    )
    yield selections.why()
    yield comparison.by_capability_tested()
    yield comparison.by_capability()
    yield comparison.by_task()
    yield comparison.sensitivity()
    yield comparison.ceiling()
    yield selections.costs()
    yield provenance.machine()
    yield provenance.took_part()


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
                if sides := both_sides(metric, scheme, *primary_pair(scheme, budget)):
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
