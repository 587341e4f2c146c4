"""From the tables of earlier stages to decisions, selection and control: what stage `select` does, and what
an audit does again to see whether the recorded decisions follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import read_columns, read_embeddings, read_json, read_jsonl
from paser.evaluation.items import read_items
from paser.pool.build import read_sources
from paser.pool.contamination import COMMON, Overlap, Probe, by_set, overlaps
from paser.selectors.choose import choose, contaminated
from paser.selectors.protocol import JSD, ScoredPool, Selection
from paser.selectors.tables import (
    CLUSTER_COLUMNS,
    OTHER_DIVERGENCES,
    POOL_COLUMNS,
    SCORE_COLUMNS,
    TEXT,
    decision_batches,
    exchanges,
    prompts,
    scored_pool,
    training_rows,
)
from paser.settings import Settings
from paser.sources.catalog import HUB, TASK_ROLE, TEXT_FORMAT
from paser.sources.fetching import read_index

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Row = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """The tables of a selection; `names` are those of the clusters. `held_out` and `evaluation` (evaluation
    sources and tasks) are what the models are evaluated on. `embeddings()`: of the pool's prompts, in its
    order, read when a rule asks for them."""

    pool: pa.Table
    clusters: pa.Table
    scores: pa.Table
    names: dict[int, str]
    held_out: list[Probe]
    evaluation: list[Probe]
    embeddings: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Derived:
    """A selection and its control; `report` is the content of `budget.json`."""

    table: pa.Table
    pool: ScoredPool
    selection: Selection
    control: Selection
    report: Row
    seed: int
    overlaps: dict[int, Overlap]
    words: int

    def contamination(self) -> Row:
        """`contamination.json`: the rule, counts, and every row of the pool that overlaps what is
        evaluated."""
        accepted = {position for position in self.overlaps if self.selection.accepted[position]}
        rows = [
            {"row_id": self.pool.row_ids[position], "selected": position in accepted, **vars(overlap)}
            for position, overlap in self.overlaps.items()
        ]
        return {
            "rule": f"prompt equal or nearly equal to an evaluation prompt, or {self.words} words in a "
            f"row shared with one (words that more than {COMMON} rows of the pool share do not count; of a "
            "shorter prompt, equality alone)",
            "pool_rows": len(self.pool),
            "overlapping": len(rows),
            "selected": len(accepted),
            "by_set": by_set(self.overlaps),
            "rows": rows,
        }

    def decisions(self) -> Iterator[Row]:
        """`decisions.parquet`, as columns, batch by batch."""
        return decision_batches(self.pool, self.selection)

    def selected(self) -> Iterator[Row]:
        return training_rows(self.table, self.pool, self.selection, self.seed)

    def random(self) -> Iterator[Row]:
        return training_rows(self.table, self.pool, self.control, self.seed)


def read_inputs(locate: Callable[[str], Path]) -> Inputs:
    """Reads what a selection needs; `locate` gives the place of a project path."""
    clusters = read_json(locate("data/clusters.json"))["clusters"]
    pool = read_columns(locate("data/pool.parquet"), POOL_COLUMNS)
    return Inputs(
        pool=pool,
        clusters=read_columns(locate("data/clusters.parquet"), CLUSTER_COLUMNS),
        scores=measured(read_columns(locate("data/scores.parquet"), SCORE_COLUMNS, OTHER_DIVERGENCES)),
        names={c["cluster"]: c["name"] for c in clusters},
        held_out=_held_out(locate("data/holdout.parquet")),
        evaluation=_evaluation(locate("data/sources/evaluation"))
        + _tasks(locate(f"data/sources/{TASK_ROLE}")),
        embeddings=lambda: read_embeddings(locate("data/embeddings.npy"), pool.num_rows),
    )


def measured(scores: pa.Table) -> pa.Table:
    """Without those other divergences that have no value where JSD has some: they were never measured, which
    is another fault than a prediction that was no number."""
    if scores[JSD].null_count == scores.num_rows:
        return scores
    there = [name for name in OTHER_DIVERGENCES if name in scores.column_names]
    return scores.drop_columns([name for name in there if scores[name].null_count == scores.num_rows])


def _held_out(path: Path) -> list[Probe]:
    rows = read_columns(path, ("row_id", *TEXT))
    return [
        Probe("held-out rows", row_id, (prompt,))
        for row_id, (prompt, _) in zip(rows["row_id"].to_pylist(), exchanges(rows), strict=True)
    ]


def _evaluation(folder: Path) -> list[Probe]:
    samples = read_sources(folder.parent, "evaluation")
    return [Probe(f"evaluation {s.source}", s.source_row, (s.prompt,)) for s in samples]


def _tasks(folder: Path) -> list[Probe]:
    """The items of the tasks that are evaluated, from local sources and from the Hub."""
    found: list[Probe] = []
    for entry in read_index(folder):
        if entry.source.format != TEXT_FORMAT:
            items = read_items(folder / entry.source.name, entry.source)
            found += items.probes(f"task {entry.source.name}")
    for path in sorted((folder / HUB).glob("*.jsonl")):
        found += [Probe(f"task {path.stem}", row["item"], tuple(row["texts"])) for row in read_jsonl(path)]
    return found


def overlapping(inputs: Inputs, settings: Settings) -> dict[int, Overlap]:
    """What of the evaluation rows of the pool show, by position."""
    chosen = settings.select
    near = contaminated(prompts(inputs.pool), inputs.evaluation, settings.pool.near_duplicate, settings.seed)
    probes = [*inputs.evaluation, *inputs.held_out]
    shared = overlaps(exchanges(inputs.pool), probes, chosen.contamination_words)
    return dict(sorted((shared | near).items()))


def derive(inputs: Inputs, settings: Settings) -> Derived:
    """Decides on every row, by `seed`, `select` and `pool.near_duplicate` of the settings."""
    chosen = settings.select
    found = overlapping(inputs, settings)
    refused = {i: str(overlap) for i, overlap in found.items()} if chosen.contamination == "exclude" else {}
    pool = scored_pool(inputs.pool, inputs.clusters, inputs.scores, refused, chosen.divergence)
    selection, control, report = choose(pool, chosen, settings.seed, inputs.names, inputs.embeddings)
    return Derived(
        inputs.pool, pool, selection, control, report, settings.seed, found, chosen.contamination_words
    )
