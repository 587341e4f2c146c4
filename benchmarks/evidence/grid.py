"""Which cells there are, in the order in which they are worth having."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from benchmarks.evidence.cells import Cell
from benchmarks.evidence.world import DENSE, POOLS, SCHEMES
from paser.errors import PaserError
from paser.settings import RecoverSettings

DEVELOPMENT, CONFIRMATION, RESERVE, FRESH, LAST = POOLS
SMALL, LARGE = 6_000, 18_000
WANDA = "wanda-50"
DEVELOPMENT_SEEDS, CONFIRMATION_SEEDS = (1, 2, 3, 4, 5), (11, 12, 13, 14, 15)
RESERVE_SEEDS = (21, 22, 23, 24, 25)
FRESH_SEEDS = (31, 32, 33, 34, 35)
LAST_SEEDS = (41, 42, 43, 44, 45)
# The policy of our own that the development favoured (docs/decisions/evidence-plan.md).
WINNER = "per-token"
FINE: dict[str, Any] = {"k": 24, "k_max": 24}
TAUGHT: dict[str, Any] = {"distill": {"weight": 1.0}}
BY_RATE: dict[str, Any] = {"policy": "damage_rate", "gamma": 0.5}
UNDAMAGED: dict[str, Any] = {"policy": "proportional", "power": 0.0, "thrift": 0.5}
COVERING: dict[str, Any] = {"divergence": "recoverability", "weight": "per_token", "thrift": 0.5}
# Policies of our own by the name that the page gives them: selector, options, settings of the clusters.
CANDIDATES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "per-token": ("per-token", {}, {}),
    "per-token, fine clusters": ("per-token", {}, FINE),
    "per-token, size alone": ("per-token", {"policy": "proportional"}, {}),
    "per-token, uniform budget": ("per-token", {"policy": "uniform"}, {}),
    "per-token, by mean": ("per-token", {"order": "mean"}, {}),
    "per-token, no damage": ("per-token-no-damage", {}, {}),
    "recoverable": ("recoverable", {}, {}),
    "recoverable, fine clusters": ("recoverable", {}, FINE),
    "recoverable, uniform budget": ("recoverable", {"policy": "uniform"}, {}),
    "recoverable, by rate": ("recoverable", BY_RATE, {}),
    "recoverable, by rate, gamma 1": ("recoverable", {**BY_RATE, "gamma": 1.0}, {}),
    "recoverable, by rate, gamma 1/4": ("recoverable", {**BY_RATE, "gamma": 0.25}, {}),
    "per-token, by rate": ("per-token", BY_RATE, {}),
    "coverage, recoverability": ("coverage", COVERING, {}),
    "recoverable-coverage": ("coverage", {**COVERING, **BY_RATE, "standing": 0.5}, {}),
    "recoverable-coverage, no damage": ("coverage", UNDAMAGED, {}),
    "recoverable-coverage, standing 0": ("coverage", {**COVERING, **BY_RATE}, {}),
    "recoverable-coverage, standing 1": ("coverage", {**COVERING, **BY_RATE, "standing": 1.0}, {}),
    "size-aware budget": ("paser", {"policy": "damage_size"}, {}),
    "size-aware, no filter": ("paser", {"policy": "damage_size", "strictness": 0.0}, {}),
    "fine clusters, size-aware, no filter": ("paser", {"policy": "damage_size", "strictness": 0.0}, FINE),
    "coverage": ("coverage", {}, {}),
    "coverage, no noise": ("coverage", {"noise": 0.05}, {}),
}  # fmt: skip
# Those that have the other seeds too: the best of each kind, and the controls: clusters and length, or
# clusters and coverage, without damage.
WITHOUT_DAMAGE = ("per-token, no damage", "recoverable-coverage, no damage")
LEADING = ("per-token", "recoverable", *WITHOUT_DAMAGE, "recoverable-coverage, standing 0")
# The rivals that the plan compares with three seeds, and those with two; our ablations have their own table.
THREE_SEEDS = ("top-damage", "ifd", "prototypes")
ABLATIONS = ("paser-uniform", "paser-random-inside", "paser-no-clusters", "paser-no-conflicts")
TWO_SEEDS = (
    "longest", "total-damage", "k-centre", "instruction-mining", "damage-per-token", "q-tuning", "ifd-small",
    "el2n", "nuggets", "preselect", "influence-effort", "less", "grand", "variance-of-gradients",
)  # fmt: skip
CONFIRMED = ("random", "paser", WINNER)
# The second development: the same pool in the other schemes too, one seed; and what it favoured, which is
# confirmed on the reserve.
SECOND = (
    "random", "paser", "per-token", "recoverable", "recoverable, fine clusters",
    "recoverable, uniform budget", "per-token, uniform budget", "coverage, recoverability",
)  # fmt: skip
SECOND_WINNER = "recoverable, uniform budget"
# The scheme in which rules were level with random rows.
HARD = "wanda-2:4"
# The third: budgets between even shares and shares by damage, and the reserve, which has been looked at by
# then, as a second pool of another make-up.
THIRD = (
    "recoverable, by rate", "recoverable, by rate, gamma 1", "recoverable, by rate, gamma 1/4",
    "per-token, by rate", "recoverable-coverage, standing 0",
)  # fmt: skip
THIRD_BESIDE = ("recoverable", "coverage, recoverability")
# Of it, what went no further after a look in the hardest scheme; the first had a second seed there.
SHORT = ("recoverable, by rate, gamma 1", "recoverable, by rate, gamma 1/4", "per-token, by rate")
LEADS = THIRD_WINNER, _ = "recoverable-coverage, standing 0", "recoverable, by rate"
# The fourth: how far a row stands for others by its own damage. Its cells, and those of the third's winner,
# are of the selector `coverage` with options; the product's name for the default came with the result.
FOURTH = DEFAULT, _ = "recoverable-coverage", "recoverable-coverage, standing 1"
# Beside the default in the hardest scheme, as description: selectors ahead of the third's winner in the
# lightest, and the control of both.
BESIDE = ("total-damage", "longest", "recoverable-coverage, no damage")
RESERVED = ("random", SECOND_WINNER)
# Seeds of which no difference had been seen when the winner was named; of Wanda 50 % two others had been.
UNSEEN_SEEDS = (13, 14, 15)
# Q-Tuning's second half, on the rows of its first.
PRUNED_TOKENS: dict[str, Any] = {"token_pruning": {"share": 0.3}}
# Random rows for what the larger budget and the scoring of the pool cost together: a token that is scored
# goes forward once through two models, a token of training forward and backward in two epochs.
WITH_SCORING = 75_000
# What is compared where the original model teaches.
TAUGHT_COMPARED = ("random", "paser", WINNER, DEFAULT, "longest", "top-damage")
# Optimiser steps an epoch of random rows at the larger budget and the default batch.
STEPS = 18
STEPS_COMPARED = ("random", "paser", WINNER, "longest", DEFAULT)
# By scheme: shares of the default learning rate, for what a selection is worth where training strays less.
GENTLER = {WANDA: (0.5, 0.25), HARD: (0.5,)}
# Rows on which the dense model is trained too.
CEILING = (*CONFIRMED, THIRD_WINNER, DEFAULT)
SENSITIVITY: tuple[tuple[str, dict[str, Any]], ...] = (
    ("K = 4", {"cluster": {"k": 4}}),
    ("K = 8", {"cluster": {"k": 8}}),
    ("K = 16", {"cluster": {"k": 16}}),
    ("K = 32", {"cluster": {"k": 32, "k_max": 32}}),
    ("d = 10", {"cluster": {"dimensions": 10}}),
    ("d = 80", {"cluster": {"dimensions": 80}}),
    ("temperature 0.5", {"temperature": 0.5}),
    ("temperature 2", {"temperature": 2.0}),
    ("strictness 0.5", {"options": {"strictness": 0.5}}),
    ("strictness 0.9", {"options": {"strictness": 0.9}}),
    ("policy damage_size", {"options": {"policy": "damage_size"}}),
    ("policy damage_power", {"options": {"policy": "damage_power"}}),
    ("policy proportional", {"options": {"policy": "proportional"}}),
)
# Of the default rule: options, or settings of the clusters.
SENSITIVITY_OF_DEFAULT: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("gamma 0", {"gamma": 0.0}, {}),
    ("gamma 1", {"gamma": 1.0}, {}),
    ("thrift 0", {"thrift": 0.0}, {}),
    ("thrift 1", {"thrift": 1.0}, {}),
    ("standing 0", {"standing": 0.0}, {}),
    ("standing 1", {"standing": 1.0}, {}),
    ("K = 24", {}, FINE),
)


def plain(chosen: str, seeds: Iterable[int], name: str | None = None, **changes: Any) -> list[Cell]:
    """A selector with its defaults on the development pool, Wanda 50 %, the larger budget."""
    given = {"pool": DEVELOPMENT, "scheme": WANDA, "budget": LARGE, **changes}
    return [Cell(name=name or chosen, selector=chosen, seed=seed, **given) for seed in seeds]


def candidate(name: str, seeds: Iterable[int], **changes: Any) -> list[Cell]:
    chosen, options, cluster = CANDIDATES[name]
    return plain(chosen, seeds, name=name, options=options, cluster=cluster, **changes)


def named(name: str, seeds: Iterable[int], **changes: Any) -> list[Cell]:
    """A policy of our own by the page's name, or a selector."""
    of = candidate if name in CANDIDATES else plain
    return of(name, seeds, **changes)


def baselines() -> list[Cell]:
    """`paser` and `random` where policies of our own are developed."""
    first = [plain(name, DEVELOPMENT_SEEDS[:3]) for name in ("random", "paser")]
    return [cell for seed in zip(*first, strict=True) for cell in seed]


def candidates() -> list[Cell]:
    """Policies of our own: one seed of each, then two more of those that lead."""
    first, *more = DEVELOPMENT_SEEDS[:3]
    cells = [cell for name in CANDIDATES if name not in SHORT for cell in candidate(name, [first])]
    return cells + [cell for seed in more for name in LEADING for cell in candidate(name, [seed])]


def secondary() -> list[Cell]:
    """The default rule, and what it is compared with."""
    cells = candidate(DEFAULT, DEVELOPMENT_SEEDS[:3])
    cells += [cell for name in (*THREE_SEEDS, *ABLATIONS) for cell in plain(name, DEVELOPMENT_SEEDS[:3])]
    cells += [cell for name in TWO_SEEDS for cell in plain(name, DEVELOPMENT_SEEDS[:2])]
    cells += pruned_tokens(DEVELOPMENT_SEEDS[:2]) + with_scoring(DEVELOPMENT_SEEDS[:1])
    return cells + plain("full", DEVELOPMENT_SEEDS[:1])


def pruned_tokens(seeds: Iterable[int]) -> list[Cell]:
    return plain("q-tuning", seeds, name="q-tuning, tokens pruned", recover=PRUNED_TOKENS)


def with_scoring(seeds: Iterable[int]) -> list[Cell]:
    return plain("random", seeds, name="random, more tokens", budget=WITH_SCORING)


def ceiling() -> list[Cell]:
    """The dense model on the rows that were chosen for the pruned one."""
    return [cell for name in CEILING for cell in named(name, DEVELOPMENT_SEEDS[:1], train=DENSE)]


def smaller_budget() -> list[Cell]:
    """The default rule at the budget that the primary comparison has beside the larger one."""
    return [
        cell
        for scheme in SCHEMES
        for cell in candidate(DEFAULT, DEVELOPMENT_SEEDS[:3], scheme=scheme, budget=SMALL)
    ]


def gentler() -> list[Cell]:
    """The default rule and random rows at lower learning rates, in the lightest scheme and the hardest."""
    return [
        cell
        for scheme, shares in GENTLER.items()
        for share in shares
        for name in ("random", DEFAULT)
        for cell in gently(name, scheme, share)
    ]


def gently(name: str, scheme: str, share: float) -> list[Cell]:
    """At this share of the default learning rate."""
    rate = share * float(RecoverSettings.model_fields["learning_rate"].default)
    return named(name, DEVELOPMENT_SEEDS[:2], scheme=scheme, recover={"learning_rate": rate})


def sensitivity() -> list[Cell]:
    return [
        cell
        for name, changes in SENSITIVITY
        for cell in plain("paser", DEVELOPMENT_SEEDS[:1], name=name, **changes)
    ]


def sensitivity_of_default() -> list[Cell]:
    chosen, options, _ = CANDIDATES[DEFAULT]
    return [
        cell
        for name, changes, cluster in SENSITIVITY_OF_DEFAULT
        for cell in plain(
            chosen, DEVELOPMENT_SEEDS[:1], name=name, options={**options, **changes}, cluster=cluster
        )
    ]


def primary() -> list[Cell]:
    """`paser` and `random` in every scheme at both budgets, on the development pool."""
    return [
        cell
        for scheme in SCHEMES
        for budget in (LARGE, SMALL)
        for name in ("random", "paser")
        for cell in plain(name, DEVELOPMENT_SEEDS, scheme=scheme, budget=budget)
    ]


def confirmation() -> list[Cell]:
    """The winner beside `random` and `paser` on the untouched pool and seeds, scheme by scheme."""
    return [
        cell
        for scheme in SCHEMES
        for seed in CONFIRMATION_SEEDS
        for name in CONFIRMED
        for cell in confirmed(name, [seed], scheme)
    ]


def reserve() -> list[Cell]:
    """The winner of the second development on the pool that nothing had been drawn from, in the scheme that
    decided."""
    return [
        cell
        for seed in RESERVE_SEEDS
        for name in RESERVED
        for cell in confirmed(name, [seed], HARD, pool=RESERVE)
    ]


def fresh() -> list[Cell]:
    """The winner of the third development on rows that no pool has had."""
    return [
        cell
        for scheme in SCHEMES
        for name in ("random", THIRD_WINNER)
        for cell in confirmed(name, FRESH_SEEDS, scheme, pool=FRESH)
    ]


def last() -> list[Cell]:
    """The winner of the fourth development beside that of the third on rows that no pool has had, the hardest
    scheme first; then, in that one, what is beside it as description."""
    decides = ("random", THIRD_WINNER, DEFAULT)
    schemes = sorted(SCHEMES, key=lambda scheme: scheme != HARD)
    deciding = [(scheme, LAST_SEEDS, decides) for scheme in schemes]
    return [
        cell
        for scheme, seeds, names in (*deciding, (HARD, LAST_SEEDS[:3], BESIDE))
        for seed in seeds
        for name in names
        for cell in confirmed(name, [seed], scheme, pool=LAST)
    ]


def confirmed(name: str, seeds: Iterable[int], scheme: str, pool: str = CONFIRMATION) -> list[Cell]:
    """A policy of our own, or a selector, on a pool that it was not developed on."""
    return named(name, seeds, pool=pool, scheme=scheme)


def second() -> list[Cell]:
    """Policies that could hold in every scheme."""
    first = DEVELOPMENT_SEEDS[:1]
    return [cell for scheme in SCHEMES for name in SECOND for cell in named(name, first, scheme=scheme)]


def third() -> list[Cell]:
    """Budgets by what a training token recovers: on Wanda 2:4, where others were level with `random`, on two
    pools; what leads there, in the other schemes."""
    first, (seed, second) = DEVELOPMENT_SEEDS[:1], RESERVE_SEEDS[:2]
    others = [scheme for scheme in SCHEMES if scheme != HARD]
    cells = [cell for name in THIRD for cell in named(name, first, scheme=HARD)]
    names = ("random", SECOND_WINNER, *THIRD, *THIRD_BESIDE)
    cells += [cell for name in names for cell in confirmed(name, [seed], HARD, pool=RESERVE)]
    cells += [
        cell
        for name in ("random", SECOND_WINNER, SHORT[0], *LEADS)
        for cell in confirmed(name, [second], HARD, pool=RESERVE)
    ]
    return cells + [cell for scheme in others for name in LEADS for cell in named(name, first, scheme=scheme)]


def fourth() -> list[Cell]:
    """Rows that stand for others by their own damage, where the third's winner and `random` have been."""
    cells = [cell for name in FOURTH for cell in confirmed(name, RESERVE_SEEDS[:2], HARD, pool=RESERVE)]
    return cells + [
        cell
        for pool, seeds in ((DEVELOPMENT, DEVELOPMENT_SEEDS[:1]), (FRESH, FRESH_SEEDS[:1]))
        for scheme in SCHEMES
        for name in ("random", THIRD_WINNER, *FOURTH)
        for cell in confirmed(name, seeds, scheme, pool=pool)
    ]


def distilled() -> list[Cell]:
    """With the original model as teacher in place of the responses: what each selection is worth then."""
    return [cell for seed in DEVELOPMENT_SEEDS[:3] for name in CONFIRMED for cell in taught(name, [seed])]


def taught(name: str, seeds: Iterable[int], **changes: Any) -> list[Cell]:
    """A candidate, or a selector, trained with the original model as teacher."""
    return named(name, seeds, recover=TAUGHT, **changes)


def taught_rivals() -> list[Cell]:
    """What selections are worth where the original model teaches, at equal steps."""
    return [cell for name in TAUGHT_COMPARED for cell in taught(name, DEVELOPMENT_SEEDS[:1], steps=STEPS)]


def equal_steps() -> list[Cell]:
    """Selections at as many optimiser steps an epoch as random rows take with the default batch; with the
    teacher also at twice as many."""
    equal = [
        cell
        for recover in ({}, TAUGHT)
        for name in STEPS_COMPARED
        for cell in named(name, DEVELOPMENT_SEEDS[:1], recover=recover, steps=STEPS)
    ]
    more = [cell for name in CONFIRMED for cell in taught(name, DEVELOPMENT_SEEDS[:1], steps=2 * STEPS)]
    return equal + more


def machine() -> list[Cell]:
    """Random rows and the default rule once more, in the lightest scheme and the hardest."""
    return [
        cell for scheme in (WANDA, HARD) for name in ("random", DEFAULT) for cell in once_more(name, scheme)
    ]


def once_more(name: str, scheme: str) -> list[Cell]:
    return [replace(cell, again=True) for cell in named(name, DEVELOPMENT_SEEDS[:2], scheme=scheme)]


PARTS = {
    "confirmation": confirmation,
    "reserve": reserve,
    "last": last,
    "fresh": fresh,
    "second": second,
    "third": third,
    "fourth": fourth,
    "distilled": distilled,
    "taught": taught_rivals,
    "steps": equal_steps,
    "baselines": baselines,
    "candidates": candidates,
    "ceiling": ceiling,
    "secondary": secondary,
    "gentler": gentler,
    "smaller-budget": smaller_budget,
    "primary": primary,
    "sensitivity": sensitivity,
    "sensitivity-of-default": sensitivity_of_default,
    "machine": machine,
}


def cells(parts: Iterable[str]) -> Iterator[Cell]:
    """The cells of these parts, each once; of `PART:NAME` those with this name."""
    seen = []
    for asked in parts:
        part, _, name = asked.partition(":")
        if name and name not in (known := {cell.name: None for cell in PARTS[part]()}):
            raise PaserError(f"the part {part} has no cell {name!r}", remedy=f"its cells: {', '.join(known)}")
        for cell in PARTS[part]():
            if cell not in seen and name in ("", cell.name):
                seen.append(cell)
                yield cell
