# ruff: noqa: E501 (prose and table rows)
"""What selections consist of, what they cost, and what damage says of what training wins back."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from benchmarks.evidence import cells as cell_files
from benchmarks.evidence import grid
from benchmarks.evidence import world as worlds
from benchmarks.evidence.analysis import trained
from benchmarks.evidence.comparison import ablations, candidates, rivals
from benchmarks.evidence.tables import WANDA, judge
from benchmarks.evidence.world import SCHEMES, world

# A token goes backward at twice the cost of forward; in training both ways in each epoch. In forward passes.
BACKWARD = 2
PASSES_OF_TRAINING = (1 + BACKWARD) * cell_files.recover_settings().epochs


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


@functools.cache
def _sources(pool: str) -> dict[str, str]:
    return {row["row_id"]: row["source"] for row in world().pools[pool]}


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
         f"label's held-out rows, a mean over {len(base)} seeds. *A training token*: of all response tokens together, over all tokens of prompts and responses. Last line: "
         "Spearman's rank correlation with that column.", "",
         "| | " + " | ".join(columns) + " | fidelity gap of `random` |", "|---" + "|--:" * (len(columns) + 1) + "|", *lines]
    )  # fmt: skip
