"""From the tables of earlier stages to decisions, selection and control: what stage `select` does, and what
an audit does again to see whether the recorded decisions follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import read_columns, read_json
from paser.pool.build import read_sources
from paser.selectors.choose import choose, contaminated
from paser.selectors.protocol import ScoredPool, Selection
from paser.selectors.tables import (
    CLUSTER_COLUMNS,
    OTHER_DIVERGENCES,
    POOL_COLUMNS,
    SCORE_COLUMNS,
    decision_batches,
    prompts,
    scored_pool,
    training_rows,
)
from paser.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """The tables of a selection; `names` are those of the clusters, `evaluation` are prompts."""

    pool: pa.Table
    clusters: pa.Table
    scores: pa.Table
    names: dict[int, str]
    evaluation: list[str]


@dataclass(frozen=True)
class Derived:
    """A selection and its control; `report` is the content of `budget.json`."""

    table: pa.Table
    pool: ScoredPool
    selection: Selection
    control: Selection
    report: Row
    seed: int

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
    evaluation = read_sources(locate("data/sources/evaluation").parent, "evaluation")
    return Inputs(
        pool=read_columns(locate("data/pool.parquet"), POOL_COLUMNS),
        clusters=read_columns(locate("data/clusters.parquet"), CLUSTER_COLUMNS),
        scores=read_columns(locate("data/scores.parquet"), SCORE_COLUMNS, OTHER_DIVERGENCES),
        names={c["cluster"]: c["name"] for c in clusters},
        evaluation=[sample.prompt for sample in evaluation],
    )


def derive(inputs: Inputs, settings: Settings) -> Derived:
    """Decides on every row, by `seed`, `select` and `pool.near_duplicate` of the settings."""
    near = contaminated(prompts(inputs.pool), inputs.evaluation, settings.pool.near_duplicate, settings.seed)
    pool = scored_pool(inputs.pool, inputs.clusters, inputs.scores, near, settings.select.divergence)
    selection, control, report = choose(pool, settings.select, settings.seed, inputs.names)
    return Derived(inputs.pool, pool, selection, control, report, settings.seed)
