"""The selection algorithm (method.md, section 4): clusters by damage, samples by efficiency, one shared
concept graph, a budget that is spent exactly, and a decision for every row.

Rows are columns and concepts are asked for when a row is visited, so that millions of rows fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paser.method.budget import allocate
from paser.method.concepts import Clash, ConceptGraph

if TYPE_CHECKING:
    import numpy as np

TOLERATED_SHORTFALL = 0.02
RELAX_STEPS = (0.75, 0.5, 0.25, 0.0)

SELECTED, RESPREAD, RELAXED = "selected", "respread", "relaxed"
BUDGET, CONFLICT = "budget", "conflict"
REASONS = (BUDGET, CONFLICT, SELECTED, RESPREAD, RELAXED)
ACCEPTING = (SELECTED, RESPREAD, RELAXED)
_CODE = {reason: code for code, reason in enumerate(REASONS)}

# Rows whose concepts are asked for at once: the least, which may look so far beyond the last row that the
# budget reaches, and the most.
LOOK_AHEAD, BLOCK = 32, 1024
_SEPARATOR = "\x1f"
_STRICTNESS = "strictness "
_REPEATED = ", round "
_REFUSED = "; at first refused: "


@dataclass(frozen=True)
class Candidates:
    """The rows that may be chosen, as columns of length n.

    `clusters`: 0 .. K-1. `ies`: efficiency, higher first. `cost`: what a row takes from the budget, at
    least 1: 1, or its training tokens. `concepts(positions)`: the key phrases (without control characters)
    of each of these rows, asked for when they are visited.
    """

    row_ids: Sequence[str]
    clusters: np.ndarray
    ies: np.ndarray
    cost: np.ndarray
    concepts: Callable[[np.ndarray], Sequence[Sequence[str]]]


@dataclass(frozen=True)
class Step:
    """One tour over the clusters. `round` counts the tours of the same name, from 1."""

    name: str
    round: int = 1

    def __str__(self) -> str:
        return self.name if self.round == 1 else f"{self.name}{_REPEATED}{self.round}"


ALLOCATION, RE_SPREAD = "allocation", "re-spread"


@dataclass(frozen=True)
class Move:
    """Budget that a cluster spent in a step after the first allocation."""

    step: str
    cluster: int
    amount: int


@dataclass(frozen=True)
class Outcome:
    """What became of each row, amounts a cluster, and what was moved, relaxed and left.

    `reasons`: int8 codes of `REASONS`, shape (n,). `rank`: place by efficiency in the row's cluster, 1 the
    first, shape (n,). `steps`: in which of `step_names` a row was accepted, shape (n,). `visiting`:
    clusters, the first visited first.
    """

    reasons: np.ndarray
    rank: np.ndarray
    steps: np.ndarray
    step_names: Sequence[Step]
    clashes: dict[int, Clash]
    clusters: np.ndarray
    visiting: Sequence[int]
    allocated: Sequence[int]
    spent: Sequence[int]
    moves: Sequence[Move]
    cause: str | None
    graph: ConceptGraph

    @property
    def accepted(self) -> np.ndarray:
        """Shape (n,), bool."""
        accepted: np.ndarray = self.reasons >= _CODE[SELECTED]
        return accepted

    @property
    def conflicts(self) -> int:
        """Rows that the concept graph turned away at first, accepted later or not."""
        return self.count(CONFLICT) + self.count(RELAXED)

    @property
    def judged(self) -> int:
        """Rows on which the concept graph decided."""
        return self.conflicts + self.count(SELECTED) + self.count(RESPREAD)

    @property
    def relaxed(self) -> dict[str, int]:
        """Rows accepted at each lower strictness, the highest first."""
        counts: dict[str, int] = {}
        for code, step in enumerate(self.step_names):
            if step.name.startswith(_STRICTNESS):
                taken = int(((self.steps == code) & (self.reasons == _CODE[RELAXED])).sum())
                name = step.name.removeprefix(_STRICTNESS)
                counts[name] = counts.get(name, 0) + taken
        return {name: taken for name, taken in counts.items() if taken}

    def count(self, reason: str) -> int:
        return int((self.reasons == _CODE[reason]).sum())

    def reason(self, position: int) -> str:
        return REASONS[self.reasons[position]]

    def detail(self, position: int) -> str:
        """The reason in words; empty for a row that was accepted at once."""
        reason = self.reason(position)
        if reason == SELECTED:
            return ""
        if reason == BUDGET:
            k = int(self.clusters[position])
            return f"cluster {k} had spent its {self.spent[k]}"
        if reason == CONFLICT:
            return str(self.clashes[position])
        step = str(self.step_names[self.steps[position]])
        return f"{step}{_REFUSED}{self.clashes[position]}" if reason == RELAXED else step


def acceptance_step(reason: str, detail: str) -> tuple[int, float, int]:
    """Sorts accepted rows by the tour that took them, from what `Outcome.detail` says of them.

    Within a tour, rows are taken by the order in which clusters are visited, then by rank.
    """
    name, _, number = detail.partition(_REFUSED)[0].partition(_REPEATED)
    relaxed = name.startswith(_STRICTNESS)
    strictness = float(name.removeprefix(_STRICTNESS)) if relaxed else 1.0
    return ACCEPTING.index(reason), -strictness, int(number or 1)


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
    Each row is judged once, and once more in each step of relaxation.
    """
    run = _Run(candidates, budget, weights, damage, keep_concepts=on_shortfall == "relax")
    there = sum(run.caps)
    allocated = allocate(min(budget, there), list(weights), run.caps, run.names, run.floors(floor))
    run.tour(run.queues(BUDGET), allocated, SELECTED, strictness, Step(ALLOCATION))
    run.spread(BUDGET, RESPREAD, strictness, RE_SPREAD)
    if on_shortfall == "relax" and budget <= there:
        for step in (s for s in RELAX_STEPS if s < strictness):
            if run.left <= TOLERATED_SHORTFALL * budget:
                break
            run.spread(CONFLICT, RELAXED, step, f"{_STRICTNESS}{step}")
    return run.outcome(allocated)


class _Run:
    """The state of one selection: what is spent, and what became of each row so far."""

    def __init__(
        self,
        candidates: Candidates,
        budget: int,
        weights: np.ndarray,
        damage: np.ndarray,
        keep_concepts: bool,
    ) -> None:
        import numpy as np

        self.rows, self.budget, self.weights = candidates, budget, list(weights)
        self.keep_concepts = keep_concepts
        self.cost = np.asarray(candidates.cost, dtype=np.int64)
        self.clusters = np.asarray(candidates.clusters)
        count, size = len(weights), len(self.cost)
        place = places_by_id(candidates.row_ids)
        order = np.lexsort((place, -np.asarray(candidates.ies, dtype=float), self.clusters))
        edges = np.searchsorted(self.clusters[order], np.arange(count + 1))
        self.members = [order[edges[k] : edges[k + 1]] for k in range(count)]
        self.rank = np.zeros(size, dtype=np.int64)
        for inside in self.members:
            self.rank[inside] = np.arange(1, len(inside) + 1)
        self.names = [
            candidates.row_ids[inside[np.argmin(place[inside])]] if len(inside) else f"~{k}"
            for k, inside in enumerate(self.members)
        ]
        self.caps = [int(self.cost[inside].sum()) for inside in self.members]
        self.visiting = sorted(range(count), key=lambda k: (-damage[k], self.names[k]))
        self.reasons = np.full(size, _CODE[BUDGET], dtype=np.int8)
        self.steps = np.zeros(size, dtype=np.int16)
        self.judged = np.zeros(size, dtype=np.int8)
        self.judging = 1
        self.step_names: list[Step] = []
        self.clashes: dict[int, Clash] = {}
        self.concepts: dict[int, str] = {}
        self.spent = [0] * count
        self.moves: list[Move] = []
        self.graph = ConceptGraph()

    def floors(self, rows: int) -> list[int]:
        """What the first `rows` rows of each cluster cost."""
        return [int(self.cost[inside[:rows]].sum()) for inside in self.members]

    @property
    def left(self) -> int:
        return self.budget - sum(self.spent)

    def queues(self, reason: str) -> list[np.ndarray]:
        """Rows with this reason that were not yet judged in this step, by efficiency, a cluster each."""
        return [
            inside[(self.reasons[inside] == _CODE[reason]) & (self.judged[inside] < self.judging)]
            for inside in self.members
        ]

    def spread(self, waiting: str, reason: str, strictness: float, name: str) -> None:
        """Gives what is left of the budget to the rows whose reason is `waiting`, until all of them that
        fit were judged."""
        self.judging += 1
        tour = 1
        while self.left > 0:
            queues = self.queues(waiting)
            amounts = self._amounts(queues)
            if not any(amounts):
                break
            before = list(self.spent)
            step = Step(name, tour)
            self.tour(queues, amounts, reason, strictness, step)
            self.moves += [
                Move(str(step), k, self.spent[k] - before[k])
                for k in self.visiting
                if self.spent[k] > before[k]
            ]
            tour += 1

    def _amounts(self, queues: list[np.ndarray]) -> list[int]:
        """What is left, divided over the clusters with rows that fit it.

        When every share is too small for any row, all of it goes to the first cluster that can use it;
        all zero when none can.
        """
        smallest = [int(self.cost[q].min()) if len(q) else self.left + 1 for q in queues]
        able = [least <= self.left for least in smallest]
        caps = [int(self.cost[q].sum()) if can else 0 for q, can in zip(queues, able, strict=True)]
        amounts = allocate(self.left, self.weights, caps, self.names)
        if any(least <= amount for least, amount in zip(smallest, amounts, strict=True)):
            return amounts
        chosen = next((k for k in self.visiting if able[k]), None)
        return [self.left if k == chosen else 0 for k in range(len(queues))]

    def tour(
        self, queues: list[np.ndarray], amounts: Sequence[int], reason: str, strictness: float, step: Step
    ) -> None:
        """Takes rows from each queue, in the order of the clusters, for at most `amounts` a cluster."""
        self.step_names.append(step)
        for k in self.visiting:
            self._take(k, queues[k], amounts[k], reason, strictness)

    def _take(self, k: int, queue: np.ndarray, room: int, reason: str, strictness: float) -> None:
        import numpy as np

        begin = 0
        while room > 0 and begin < len(queue):
            window = queue[begin : begin + BLOCK]
            fitting = np.flatnonzero(self.cost[window] <= room)
            certain = int(np.searchsorted(np.cumsum(self.cost[window[fitting]]), room, side="right"))
            fitting = fitting[: max(certain, LOOK_AHEAD)]
            block = window[fitting]
            for i, concepts in zip(block.tolist(), self._concepts(block), strict=True):
                cost = int(self.cost[i])
                if cost > room:
                    continue
                clash = self.graph.clash(concepts, strictness)
                if clash is None:
                    self.graph.add(concepts, self.rows.row_ids[i])
                    self.reasons[i] = _CODE[reason]
                    self.steps[i] = len(self.step_names) - 1
                    self.spent[k] += cost
                    room -= cost
                else:
                    self._refuse(i, clash, concepts)
            begin += int(fitting[-1]) + 1 if len(fitting) else len(window)

    def _refuse(self, i: int, clash: Clash, concepts: Sequence[str]) -> None:
        self.reasons[i] = _CODE[CONFLICT]
        self.judged[i] = self.judging
        self.clashes[i] = clash
        if self.keep_concepts and i not in self.concepts:
            self.concepts[i] = _SEPARATOR.join(concepts)

    def _concepts(self, block: np.ndarray) -> Sequence[Sequence[str]]:
        if len(block) and int(block[0]) in self.concepts:
            return [self.concepts[i].split(_SEPARATOR) for i in block.tolist()]
        return self.rows.concepts(block)

    def outcome(self, allocated: list[int]) -> Outcome:
        return Outcome(
            reasons=self.reasons,
            rank=self.rank,
            steps=self.steps,
            step_names=self.step_names,
            clashes=self.clashes,
            clusters=self.clusters,
            visiting=self.visiting,
            allocated=allocated,
            spent=self.spent,
            moves=self.moves,
            cause=self._cause(),
            graph=self.graph,
        )

    def _cause(self) -> str | None:
        """Why some of the budget is unspent; None when all of it is spent."""
        if self.left <= 0:
            return None
        waiting = self.cost[self.reasons == _CODE[BUDGET]]
        refused = self.cost[self.reasons == _CODE[CONFLICT]]
        lowered = [step.name for step in self.step_names if step.name.startswith(_STRICTNESS)]
        if len(waiting) and int(waiting.min()) > self.left:
            return "what is left is less than the smallest sample costs"
        filtered = f"the concept filter refused {len(refused)} rows"
        if len(refused) and self.keep_concepts and self.left <= TOLERATED_SHORTFALL * self.budget:
            relaxed = f"relaxed below {lowered[-1]}" if lowered else "relaxed"
            return f"{filtered}; so little is left that it was not {relaxed}"
        if len(refused) and lowered and int(refused.min()) > self.left:
            return f"{filtered}; when it was relaxed, each of them cost more than was left"
        if len(refused):
            return f"{filtered} and nothing else is left"
        return "every usable row was taken"


def places_by_id(row_ids: Sequence[str]) -> np.ndarray:
    """The place of each row by its id, 0 the first, shape (n,)."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    order = pc.sort_indices(pa.array(row_ids, type=pa.string())).to_numpy()
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    return places
