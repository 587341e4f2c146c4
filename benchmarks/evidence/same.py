"""`python -m benchmarks.evidence same`: is code that changed still worth the cells of the code before it?

A cell's name has the meaning of the code that made it, so a change empties the grid. Here the first cell of
the earlier code is trained again, and the first selection of each selector is made again; where all bits are
the same, `equal.json` says so, and the cells count for the new code too.
"""

from __future__ import annotations

from benchmarks.evidence import cells as cell_files
from benchmarks.evidence import grid
from benchmarks.evidence.cells import EQUAL, Cell, Row, equal_code, write_cell
from paser.artifacts import read_json
from paser.progress import say, warn

MEASURES = ("rows", "tokens", "steps", "loss", "jsd", "tasks")


def main() -> None:
    known = equal_code()
    everything = list(grid.cells(grid.PARTS))
    first: dict[str, Cell] = {}
    for cell in everything:
        first.setdefault(cell.selector, cell)
    for cell in first.values():
        _compare_selection(cell, known)
    _compare_training(everything, known)
    write_cell(EQUAL, dict(sorted(known.items())))
    equal_code.cache_clear()


def _compare_selection(cell: Cell, known: dict[str, str]) -> None:
    code = cell_files.selecting_code(cell.selector)
    if code in known:
        return
    for earlier in sorted(set(known.values())):
        path = cell.selection_by(earlier)
        if path.exists():
            if cell_files.chosen_rows(cell)["rows"] == read_json(path)["rows"]:
                known[code] = earlier
                say(f"{cell.selector}: the same rows")
            else:
                warn(f"{cell.selector}: other rows than before; its cells are computed anew")
            return
    known.setdefault(code, code)


def _compare_training(everything: list[Cell], known: dict[str, str]) -> None:
    code = cell_files.training_code()
    if code in known:
        return
    for cell in everything:
        ids = cell_files.training_order(cell) if cell.selection_path.exists() else []
        for earlier in sorted(set(known.values())):
            path = cell.training_by(ids, earlier)
            if ids and path.exists():
                if _measures(cell_files.trained_on(cell, ids)) == _measures(read_json(path)):
                    known[code] = earlier
                    say(f"{cell.name}, seed {cell.seed}, trained again: the same bits")
                else:
                    warn(f"{cell.name}, seed {cell.seed}, trained again: other bits; all cells are anew")
                return
    known.setdefault(code, code)


def _measures(found: Row) -> Row:
    return {name: found[name] for name in MEASURES}
