"""Between the pool's tables on disk and the columns that selectors work on.

Texts stay in their table and are fetched by position, because few of millions of rows are ever read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from paser.errors import SettingsError, StageError
from paser.records import draw_key, prompt_text
from paser.selectors.protocol import DELTA_LOSS, JSD, ScoredPool, Selection

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Row = dict[str, Any]
TEXT = ("instruction", "input", "output")
# The columns that selection reads; those of the pool go to selected.jsonl and control.jsonl.
POOL_COLUMNS = ("row_id", *TEXT, "source", "source_row", "license", "label")
CLUSTER_COLUMNS = ("row_id", "split", "cluster")
SCORE_COLUMNS = (
    "row_id", JSD, "loss_original", "loss_pruned", "prompt_tokens", "response_tokens", "status",
)  # fmt: skip
OTHER_DIVERGENCES = ("kl", "reverse_kl", "recoverability")
_BATCH = 1 << 16


class TableRows:
    """Rows of a table by position.

    Each batch is asked for its own rows: pyarrow's `take` on a chunked table copies whole columns.
    """

    def __init__(self, table: pa.Table) -> None:
        import numpy as np

        self._batches = table.to_batches()
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def __call__(self, positions: np.ndarray) -> list[tuple[Any, ...]]:
        """The cells of each row, in the order of the columns."""
        import numpy as np
        import pyarrow as pa

        rows: list[tuple[Any, ...]] = [()] * len(positions)
        batch_of = np.searchsorted(self._starts, positions, side="right") - 1
        for number in np.unique(batch_of).tolist():
            inside = np.flatnonzero(batch_of == number)
            places = pa.array(np.asarray(positions)[inside] - self._starts[number])
            taken = self._batches[number].take(places)
            cells = zip(*(column.to_pylist() for column in taken.columns), strict=True)
            for place, row in zip(inside.tolist(), cells, strict=True):
                rows[place] = row
        return rows


def row_text(instruction: str, input: str | None, output: str) -> str:
    """The text of a row from which its concepts are taken: prompt and response."""
    return f"{prompt_text(instruction, input)}\n{output}"


def prompts(pool: pa.Table) -> Iterator[str]:
    """The prompts of a pool, in its order."""
    return (prompt for prompt, _ in exchanges(pool))


def exchanges(pool: pa.Table) -> Iterator[tuple[str, str]]:
    """Prompt and response of the rows of a pool, in its order."""
    for batch in pool.select(TEXT).to_batches(max_chunksize=_BATCH):
        instruction, input, output = (column.to_pylist() for column in batch.columns)
        yield from zip(map(prompt_text, instruction, input), output, strict=True)


def scored_pool(
    pool: pa.Table, clusters: pa.Table, scores: pa.Table, near: Mapping[int, str], divergence: str = JSD
) -> ScoredPool:
    """Joins the three tables by row id, in pool order.

    `near`: what of the evaluation a row shows, by position; such rows are not chosen. Raises StageError for
    a row that is missing from a table, SettingsError when the scores lack the column of `divergence`.
    """
    import numpy as np
    import pyarrow.compute as pc

    clusters = clusters.filter(pc.equal(clusters["split"], "pool"))
    cluster = clusters["cluster"].to_numpy()[_places(pool, clusters, "clusters.parquet")]
    places = _places(pool, scores, "scores.parquet")
    numbers = [name for name in scores.column_names if name not in ("row_id", "status")]
    score = {name: scores[name].to_numpy()[places] for name in numbers}
    divergences = {JSD: score[JSD]}
    divergences |= {name: score[name] for name in OTHER_DIVERGENCES if name in score}
    divergences[DELTA_LOSS] = score["loss_pruned"] - score["loss_original"]
    if divergence not in divergences:
        raise SettingsError(
            f"select.divergence is {divergence}, but scores.parquet has no column {divergence!r}",
            remedy="score the pool again with `dvc repro -f score`, or choose jsd or delta_loss",
        )
    status = scores["status"].combine_chunks().dictionary_encode()
    texts = TableRows(pool.select(TEXT))
    return ScoredPool(
        row_ids=pool["row_id"].to_pylist(),
        texts=lambda positions: [row_text(*cells) for cells in texts(positions)],
        clusters=cluster,
        status=np.array(status.dictionary.to_pylist(), dtype=object)[status.indices.to_numpy()[places]],
        divergences={name: values.astype(float) for name, values in divergences.items()},
        prompt_tokens=score["prompt_tokens"],
        response_tokens=score["response_tokens"],
        contaminated=near,
        divergence=divergence,
    )


def _places(pool: pa.Table, table: pa.Table, name: str) -> np.ndarray:
    """Where in `table` each row of the pool stands."""
    import pyarrow.compute as pc

    places = pc.index_in(pool["row_id"], value_set=table["row_id"].combine_chunks()).combine_chunks()
    if places.null_count:
        row_id = pool["row_id"][pc.index(places.is_null(), True).as_py()].as_py()
        raise StageError(f"row {row_id} of pool.parquet is missing in {name}", remedy="`dvc repro select`")
    found: np.ndarray = places.to_numpy()
    return found


def decision_batches(pool: ScoredPool, selection: Selection) -> Iterator[Row]:
    """`decisions.parquet`: every row of the pool, as columns, batch by batch."""
    import numpy as np
    import pyarrow as pa

    def known(values: np.ndarray) -> pa.Array:
        return pa.array(values, mask=np.isnan(values))

    for begin in range(0, len(pool), _BATCH):
        part = slice(begin, min(begin + _BATCH, len(pool)))
        rank = selection.rank[part]
        yield {
            "row_id": pool.row_ids[part],
            "cluster": pool.clusters[part],
            "jsd": known(pool.divergences[JSD][part]),
            "ies": known(selection.ies[part]),
            "rank": pa.array(rank, mask=rank == 0),
            "decision": np.where(selection.accepted[part], "accepted", "rejected").astype(object),
            "reason": selection.reasons[part],
            "detail": [selection.detail(position) for position in range(part.start, part.stop)],
        }


def training_rows(table: pa.Table, pool: ScoredPool, selection: Selection, seed: int) -> Iterator[Row]:
    """The accepted rows in training order: shuffled by seed, so that clusters mix in each batch."""
    import numpy as np

    positions = selection.positions.tolist()
    order = sorted(positions, key=lambda i: draw_key("order", seed, pool.row_ids[i]))
    tokens = pool.tokens
    rows = TableRows(table.select(POOL_COLUMNS))
    for begin in range(0, len(order), _BATCH):
        part = order[begin : begin + _BATCH]
        for i, cells in zip(part, rows(np.array(part)), strict=True):
            row = dict(zip(POOL_COLUMNS, cells, strict=True))
            yield row | {"cluster": int(pool.clusters[i]), "tokens": int(tokens[i])}
