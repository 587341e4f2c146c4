"""`python -m benchmarks.evidence same`: is code that changed still worth the cells of the code before it?

A cell's name has the meaning of the code that made it, so a change empties the grid. Here selections and
trainings of earlier code are made again; where all bits are the same, `equal.json` says so, and the cells
count for the new code too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.evidence import cells as cell_files
from benchmarks.evidence import grid
from benchmarks.evidence.cells import EQUAL, Cell, Row, equal_code, write_cell
from paser.artifacts import read_json
from paser.progress import say, warn

MEASURES = ("rows", "tokens", "steps", "loss", "jsd", "tasks")


def main() -> None:
    """One cell of each selector and setting whose code changed, then one training of each kind."""
    known = equal_code()
    # What development cells share is there first; the last of a kind is the one that is made again.
    everything = sorted(
        grid.cells(grid.PARTS), key=lambda cell: (cell.pool == grid.DEVELOPMENT, cell.scheme == grid.WANDA)
    )
    for code in dict.fromkeys(cell_files.selecting_code(cell.selector) for cell in everything):
        same_code = [cell for cell in everything if cell_files.selecting_code(cell.selector) == code]
        if any(cell.selection_by(code).exists() for cell in same_code):
            known.setdefault(code, code)  # its cells go by its own name, and later code is held against them
        made = _made(same_code, lambda cell, earlier: cell.selection_by(earlier), known)
        _compare(
            code, {_choice(cell): (cell, path, was) for cell, path, was in made}.values(), _chosen, known
        )
    write_cell(EQUAL, dict(sorted(known.items())))
    # What was chosen by earlier code is found only now.
    chosen = [cell for cell in everything if cell.selection_path.exists()]
    made = _made(
        chosen, lambda cell, earlier: cell.training_by(cell_files.training_order(cell), earlier), known
    )
    kinds = {_kind(cell): (cell, path, was) for cell, path, was in made}
    _compare(cell_files.training_code(), kinds.values(), _trained, known)
    write_cell(EQUAL, dict(sorted(known.items())))


def _choice(cell: Cell) -> tuple[str, ...]:
    """Cells alike in this may stand for each other's selections."""
    return cell.selector, str(cell.options), str(cell.cluster), str(cell.temperature)


def _kind(cell: Cell) -> tuple[str, ...]:
    """Cells alike in this may stand for each other's trainings."""
    return str(cell.recover), cell.trained, str(cell.steps)


def _made(
    cells: Iterable[Cell], path_of: Callable[[Cell, str], Path], known: Row
) -> list[tuple[Cell, Path, str]]:
    """Cells with a file of earlier code, the file, and the code by whose name it goes."""
    earlier = sorted(set(known.values()))
    return [
        (cell, path, code) for cell in cells for code in earlier if (path := path_of(cell, code)).exists()
    ]


def _compare(
    code: str,
    made: Iterable[tuple[Cell, Path, str]],
    again: Callable[[Cell], Row],
    known: dict[str, str],
) -> None:
    """Registers `code` as equal to the earlier one where every cell is; else under its own name."""
    found = list(made)
    if code in known or not found:
        return
    for cell, path, _ in found:
        before, now = read_json(path), again(cell)
        if any(now[key] != before[key] for key in now):
            warn(f"{cell.name}, seed {cell.seed}: not as before; the cells of this code are made anew")
            known[code] = code
            return
        say(f"{cell.name}, seed {cell.seed}: the same")
    names = {was for _, _, was in found}
    if len(names) > 1:
        warn(f"the cells are of {len(names)} earlier codes, and one name can stand for one of them only")
    known[code] = min(names) if len(names) == 1 else code


def _chosen(cell: Cell) -> Row:
    return {"rows": cell_files.chosen_rows(cell)["rows"]}


def _trained(cell: Cell) -> Row:
    found = cell_files.trained_on(cell, cell_files.training_order(cell))
    return {name: found[name] for name in MEASURES}
