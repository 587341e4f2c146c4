"""Computes what is missing of the grid, several cells beside each other, and writes the page."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from benchmarks.evidence import cells as cell_files
from benchmarks.evidence import grid
from benchmarks.evidence import world as worlds
from paser.errors import PaserError
from paser.progress import duration, say, warn

WORKERS = int(os.environ.get("PASER_BENCH_WORKERS", "0")) or os.cpu_count() or 1


def shared(cell: cell_files.Cell) -> tuple[str, str, float]:
    return cell.pool, cell.scheme, cell.temperature


def prepare(pool: str, scheme: str, temperature: float) -> None:
    """What cells share, before they run beside each other: models, embeddings, scores."""
    worlds.embeddings(pool)
    for needed in (scheme, worlds.SMALL_MODEL):
        worlds.model_path(needed)
    say(f"scores of the {pool} pool, {scheme}, temperature {temperature:g}")
    worlds.scores(pool, scheme, temperature)


def one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"


def processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn"), initializer=one_thread)


def batched(cells: list[cell_files.Cell], size: int) -> Iterator[list[cell_files.Cell]]:
    for first in range(0, len(cells), size):
        yield cells[first : first + size]


def compute(cell: cell_files.Cell) -> str:
    start = time.perf_counter()
    cell_files.done(cell)
    return duration(time.perf_counter() - start)


def main(parts: list[str]) -> None:
    if unknown := [name for name in parts if name.partition(":")[0] not in grid.PARTS]:
        raise PaserError(
            f"the grid has no part {', '.join(unknown)}", remedy=f"parts: {', '.join(grid.PARTS)}"
        )
    wanted = list(grid.cells(parts or grid.PARTS))
    missing = [cell for cell in wanted if cell.training_if_done() is None]
    say(f"evidence: {len(wanted)} cells, {len(wanted) - len(missing)} done before")
    for scheme in dict.fromkeys([*worlds.SCHEMES, *(cell.trained for cell in missing)]):
        worlds.model_path(scheme)
    failed: list[cell_files.Cell] = []
    done = 0
    with processes() as workers:
        schemes = dict.fromkeys([worlds.DENSE, *worlds.SCHEMES, *(cell.trained for cell in wanted)])
        list(workers.map(cell_files.untrained, schemes))
    for needs, cells in itertools.groupby(missing, key=shared):
        prepare(*needs)
        # New processes for each few cells: what one leaves in memory does not add up. Python 3.11's own
        # `max_tasks_per_child` stops for ever once every process has had its number.
        for group in batched(list(cells), 8 * WORKERS):
            with processes() as workers:
                running = {workers.submit(compute, cell): cell for cell in group}
                for future in as_completed(running):
                    cell, done = running[future], done + 1
                    try:
                        took = future.result()
                    except Exception as error:  # the others go on, and the page is written
                        warn(f"{cell.name}, seed {cell.seed}: {type(error).__name__}: {error}")
                        failed.append(cell)
                    else:
                        say(f"  {done}/{len(missing)}: {cell.name}, seed {cell.seed}: {took}")
    from benchmarks.evidence import page

    page.write()
    if failed:
        raise PaserError(f"{len(failed)} cells failed", remedy="see above; run the command again")
