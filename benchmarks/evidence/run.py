"""Computes what is missing of the grid, several cells beside each other, and writes the page."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from benchmarks.evidence import cells as cell_files
from benchmarks.evidence import grid
from benchmarks.evidence import world as worlds
from paser.errors import PaserError
from paser.progress import duration, say, warn

WORKERS = int(os.environ.get("PASER_BENCH_WORKERS", "0")) or os.cpu_count() or 1


def prepare(missing: list[cell_files.Cell]) -> None:
    """What cells share, before they run beside each other: models, embeddings, scores."""
    for pool in sorted({cell.pool for cell in missing}):
        worlds.embeddings(pool)
    for scheme in sorted({cell.scheme for cell in missing}):
        worlds.model_path(scheme)
    if missing:
        worlds.model_path("llm-pruner-25")
    for pool, scheme, temperature in sorted({(c.pool, c.scheme, c.temperature) for c in missing}):
        say(f"scores of the {pool} pool, {scheme}, temperature {temperature:g}")
        worlds.scores(pool, scheme, temperature)


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
    prepare(missing)
    os.environ["OMP_NUM_THREADS"] = "1"
    failed = []
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn"), max_tasks_per_child=8) as workers:
        schemes = dict.fromkeys([worlds.DENSE, *(cell.trained for cell in wanted)])
        first = [workers.submit(cell_files.untrained, scheme) for scheme in schemes]
        running = {workers.submit(compute, cell): cell for cell in missing}
        for future in first:
            future.result()
        for number, future in enumerate(as_completed(running), start=1):
            cell = running[future]
            try:
                took = future.result()
            except PaserError as error:
                warn(f"{cell.name}, seed {cell.seed}: {error}")
                failed.append(cell)
            else:
                say(f"  {number}/{len(missing)}: {cell.name}, seed {cell.seed}: {took}")
    from benchmarks.evidence import page

    page.write()
    if failed:
        raise PaserError(f"{len(failed)} cells failed", remedy="see above; run the command again")
