"""The selection algorithm (method.md, section 4): clusters by damage, samples by efficiency, one shared
concept graph, a budget that is spent exactly, and a decision for every row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from paser.method.budget import allocate
from paser.method.concepts import Clash, ConceptGraph

if TYPE_CHECKING:
    import numpy as np

TOLERATED_SHORTFALL = 0.02
RELAX_STEPS = (0.75, 0.5, 0.25, 0.0)

SELECTED, RESPREAD, RELAXED = "selected", "respread", "relaxed"
BUDGET, CONFLICT = "budget", "conflict"


@dataclass(frozen=True)
class Candidates:
    """The rows that may be chosen. All of length n.

    `ies`: efficiency, higher first. `cost`: what a row takes from the budget: 1, or its training
    tokens. `concepts`: its key phrases.
    """

    row_ids: Sequence[str]
    clusters: Sequence[int]
    ies: Sequence[float]
    cost: Sequence[int]
    concepts: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Decision:
    """What became of one row, and why."""

    accepted: bool
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Move:
    """Budget that was given to a cluster in a step after the first allocation."""

    step: str
    cluster: int
    amount: int


@dataclass
class Outcome:
    """Decisions in candidate order; amounts a cluster; what was moved, relaxed and left."""

    decisions: list[Decision]
    allocated: list[int]
    spent: list[int]
    moves: list[Move] = field(default_factory=list)
    cause: str | None = None
    graph: ConceptGraph = field(default_factory=ConceptGraph)

    @property
    def conflicts(self) -> int:
        """Rows that the concept graph turned away at first, accepted later or not."""
        reasons = Counter(d.reason for d in self.decisions)
        return reasons[CONFLICT] + reasons[RELAXED]


def select(
    candidates: Candidates,
    budget: int,
    weights: np.ndarray,
    damage: np.ndarray,
    *,
    strictness: float = 1.0,
    on_shortfall: str = "relax",
    floor: int = 0,
) -> Outcome:
    """Chooses rows worth at most `budget`.

    Parameters
    ----------
    weights : shape (K,), the policy's shares
    damage : shape (K,), CDS; clusters are visited from the highest to the lowest
    strictness : 0 .. 1, see `ConceptGraph.clash`
    on_shortfall : `relax` or `leave`, when more than 2 % of the budget stays unspent; a budget above
        all that there is is never relaxed for: it gets what the filter accepts
    floor : least number of rows a cluster, as far as it has them; its first ones by efficiency

    The result depends neither on the order of rows nor on the numbering of clusters: ties go by row id.
    """
    run = _Run(candidates, budget, len(weights), damage)
    total = min(budget, sum(run.caps))
    allocated = allocate(total, list(weights), run.caps, run.names, run.floors(floor))
    run.visit(run.pending, allocated, SELECTED, strictness, "allocation")
    run.spread(run.pending, weights, RESPREAD, strictness, "re-spread")
    if on_shortfall == "relax" and budget <= sum(run.caps):
        for step in (s for s in RELAX_STEPS if s < strictness):
            if run.left <= TOLERATED_SHORTFALL * budget:
                break
            run.spread(run.refused, weights, RELAXED, step, f"strictness {step}")
    return run.outcome(allocated)


class _Run:
    """The state of one selection: what is spent, and which rows still wait, cluster by cluster."""

    def __init__(self, candidates: Candidates, budget: int, count: int, damage: np.ndarray) -> None:
        self.rows, self.budget, self.count = candidates, budget, count
        members: list[list[int]] = [[] for _ in range(count)]
        for i, cluster in enumerate(candidates.clusters):
            members[cluster].append(i)
        self.names = [min((candidates.row_ids[i] for i in m), default=f"~{k}") for k, m in enumerate(members)]
        self.caps = [sum(candidates.cost[i] for i in m) for m in members]
        self.pending = [sorted(m, key=lambda i: (-candidates.ies[i], candidates.row_ids[i])) for m in members]
        self.refused: list[list[int]] = [[] for _ in range(count)]
        self.visiting = sorted(range(count), key=lambda k: (-damage[k], self.names[k]))
        self.decisions: list[Decision | None] = [None] * len(candidates.row_ids)
        self.clashes: dict[int, Clash] = {}
        self.spent = [0] * count
        self.moves: list[Move] = []
        self.graph = ConceptGraph()

    def floors(self, rows: int) -> list[int]:
        """What the first `rows` rows of each cluster cost."""
        return [sum(self.rows.cost[i] for i in queue[:rows]) for queue in self.pending]

    @property
    def left(self) -> int:
        return self.budget - sum(self.spent)

    def visit(
        self, queues: list[list[int]], amounts: Sequence[int], reason: str, strictness: float, step: str
    ) -> None:
        """Takes rows from `queues`, at most `amounts` a cluster; leaves what was not taken in them."""
        for k in self.visiting:
            room, waiting = amounts[k], []
            queue = queues[k]
            for position, i in enumerate(queue):
                if room <= 0:
                    waiting += queue[position:]
                    break
                if self.rows.cost[i] > room:
                    waiting.append(i)
                    continue
                clash = self.graph.clash(self.rows.concepts[i], strictness)
                if clash is None:
                    self.graph.add(self.rows.concepts[i], self.rows.row_ids[i])
                    room -= self.rows.cost[i]
                    self.spent[k] += self.rows.cost[i]
                    detail = "" if reason == SELECTED else step
                    if i in self.clashes:
                        detail = f"{step}; at first refused: {self.clashes[i]}"
                    self.decisions[i] = Decision(True, reason, detail)
                else:
                    self.clashes[i] = clash
                    if reason == RELAXED:
                        waiting.append(i)
                    else:
                        self.refused[k].append(i)
            queues[k] = waiting

    def spread(
        self, queues: list[list[int]], weights: np.ndarray, reason: str, strictness: float, step: str
    ) -> None:
        """Gives what is left of the budget to the rows in `queues`, until nothing more is taken."""
        smallest = {k: min((self.rows.cost[i] for i in queue), default=0) for k, queue in enumerate(queues)}
        while self.left > 0:
            caps = [
                sum(self.rows.cost[i] for i in queue) if queue and smallest[k] <= self.left else 0
                for k, queue in enumerate(queues)
            ]
            amounts = allocate(self.left, list(weights), caps, self.names)
            amounts = self._usable(queues, amounts)
            before, waited = sum(self.spent), sum(map(len, queues))
            spent = list(self.spent)
            self.visit(queues, amounts, reason, strictness, step)
            self.moves += [
                Move(step, k, self.spent[k] - spent[k]) for k in self.visiting if self.spent[k] > spent[k]
            ]
            if sum(self.spent) == before and (reason == RELAXED or sum(map(len, queues)) == waited):
                break

    def _usable(self, queues: list[list[int]], amounts: list[int]) -> list[int]:
        """When every share is too small for any row, all that is left goes to one cluster that can use it."""
        fits = any(self.rows.cost[i] <= amounts[k] for k, queue in enumerate(queues) for i in queue)
        if fits:
            return amounts
        for k in self.visiting:
            if any(self.rows.cost[i] <= self.left for i in queues[k]):
                return [self.left if j == k else 0 for j in range(self.count)]
        return amounts

    def outcome(self, allocated: list[int]) -> Outcome:
        for k in range(self.count):
            for i in self.refused[k]:
                self.decisions[i] = Decision(False, CONFLICT, str(self.clashes[i]))
            for i in self.pending[k]:
                self.decisions[i] = Decision(False, BUDGET, f"cluster {k} had spent its {self.spent[k]}")
        done = [d for d in self.decisions if d is not None]
        assert len(done) == len(self.decisions)
        return Outcome(done, allocated, self.spent, self.moves, self._cause(), self.graph)

    def _cause(self) -> str | None:
        """Why some of the budget is unspent; None when all of it is spent."""
        if self.left <= 0:
            return None
        waiting = [self.rows.cost[i] for queue in self.pending for i in queue]
        refused = [i for queue in self.refused for i in queue]
        if waiting and min(waiting) > self.left:
            return "what is left is less than the smallest sample costs"
        if refused:
            return f"the concept filter refused {len(refused)} rows and nothing else is left"
        return "every usable row was taken"
