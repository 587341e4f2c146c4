"""`python -m benchmarks.evidence same [COMMIT]`: is changed code still worth the cells of the code before it?

A cell's name has the meaning of the code that made it, so a change empties the grid. Here selections and
trainings of earlier code are made again; where all bits are the same, `equal.json` says so, and the cells
count for the new code too. On another processor the same code may give other bits: where a cell is not as
it was, and a commit of the earlier code is named, that code makes it again here as well, and this counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.data import ROOT
from benchmarks.evidence import cells as cell_files
from benchmarks.evidence import grid
from benchmarks.evidence.cells import EQUAL, Cell, Row, equal_code, write_cell
from paser.artifacts import read_json
from paser.errors import PaserError
from paser.progress import say, warn

MEASURES = ("rows", "tokens", "steps", "loss", "jsd", "tasks")
# Makes what it is asked for with the code where it runs, a line of JSON for a line of JSON.
_EARLIER = """
import json, sys
from benchmarks.evidence import cells
from paser.selectors.registry import selectors
codes = [cells.training_code(), *(cells.selecting_code(name) for name in selectors())]
print("made", json.dumps([cells.known_as(code) for code in codes]), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    cell = cells.Cell(**asked["cell"])
    if asked["order"] is None:
        found, code = cells.chosen_rows(cell), cells.selecting_code(cell.selector)
    else:
        found, code = cells.trained_on(cell, asked["order"]), cells.training_code()
    print("made", json.dumps({"found": found, "code": cells.known_as(code)}), flush=True)
"""
# (cell, order of its training or None for its selection, the code that is meant) -> what earlier code makes
Made = Callable[[Cell, list[str] | None, str], Row | None]


@dataclass(frozen=True)
class Earlier:
    """`codes`: the names by which the cells of earlier code go, where they are not registered yet."""

    made: Made
    codes: Sequence[str] = ()


def main(commit: str | None = None) -> None:
    with earlier_code(commit) as earlier:
        _main(earlier)


def _main(earlier: Earlier) -> None:
    """One cell of each selector and setting whose code changed, then one training of each kind."""
    known = equal_code()
    known.update({code: code for code in earlier.codes if code not in known.values()})
    # What development cells share is there first; the last of a kind is the one that is made again.
    everything = sorted(
        grid.cells(grid.PARTS), key=lambda cell: (cell.pool == grid.DEVELOPMENT, cell.scheme == grid.WANDA)
    )
    for code in dict.fromkeys(cell_files.selecting_code(cell.selector) for cell in everything):
        same_code = [cell for cell in everything if cell_files.selecting_code(cell.selector) == code]
        if any(cell.selection_by(code).exists() for cell in same_code):
            known.setdefault(code, code)  # its cells go by its own name, and later code is held against them
        made = _made(same_code, lambda cell, earlier: cell.selection_by(earlier), known)
        kept = {_choice(cell): (cell, path, was) for cell, path, was in made}
        _compare(code, kept.values(), _chosen, lambda cell, was: earlier.made(cell, None, was), known)
    write_cell(EQUAL, dict(sorted(known.items())))
    # What was chosen by earlier code is found only now.
    chosen = [cell for cell in everything if cell.selection_path.exists()]
    made = _made(
        chosen, lambda cell, earlier: cell.training_by(cell_files.training_order(cell), earlier), known
    )
    kinds = {_kind(cell): (cell, path, was) for cell, path, was in made}
    _compare(
        cell_files.training_code(),
        kinds.values(),
        _trained,
        lambda cell, was: earlier.made(cell, list(cell_files.training_order(cell)), was),
        known,
    )
    write_cell(EQUAL, dict(sorted(known.items())))


@contextlib.contextmanager
def earlier_code(commit: str | None) -> Iterator[Earlier]:
    """What code of this commit makes on this machine, in a process and a worktree of its own; None of
    everything without a commit."""
    if commit is None:
        yield Earlier(lambda cell, order, was: None)
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "earlier"
        _git("worktree", "add", "--quiet", "--detach", str(tree), commit)
        try:
            (tree / ".paser").symlink_to(ROOT / ".paser")
            with subprocess.Popen(
                [sys.executable, "-c", _EARLIER], cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            ) as process:  # fmt: skip
                assert process.stdin is not None
                assert process.stdout is not None
                asking, answers = process.stdin, process.stdout
                codes = _answer(answers)
                yield Earlier(lambda cell, order, was: _asked(asking, answers, cell, order, was), codes)
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _asked(asking: IO[str], answers: IO[str], cell: Cell, order: list[str] | None, was: str) -> Row | None:
    asking.write(json.dumps({"cell": cell.as_json(), "order": order}) + "\n")
    asking.flush()
    made = _answer(answers)
    if made["code"] != was:
        raise PaserError(
            f"the commit has other code than the one that made {cell.name}, seed {cell.seed}",
            remedy="name a commit whose cells are those of the grid",
        )
    found: Row = made["found"]
    return found


def _answer(answers: IO[str]) -> Any:
    """What the process says between the noise of libraries."""
    answer = next((line for line in answers if line.startswith("made ")), None)
    if answer is None:
        raise PaserError("the earlier code failed", remedy="see above")
    return json.loads(answer.removeprefix("made "))


def _git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=ROOT, check=True)


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
    earlier: Callable[[Cell, str], Row | None],
    known: dict[str, str],
) -> None:
    """Registers `code` as equal to the earlier one where every cell is; else under its own name."""
    found = list(made)
    if code in known or not found:
        return
    for cell, path, was in found:
        before, now = read_json(path), again(cell)
        if _differ(now, before) and ((here := earlier(cell, was)) is None or _differ(now, here)):
            warn(f"{cell.name}, seed {cell.seed}: not as before; the cells of this code are made anew")
            known[code] = code
            return
        say(f"{cell.name}, seed {cell.seed}: the same")
    names = {was for _, _, was in found}
    if len(names) > 1:
        warn(f"the cells are of {len(names)} earlier codes, and one name can stand for one of them only")
    known[code] = min(names) if len(names) == 1 else code


def _differ(now: Row, before: Row) -> bool:
    return any(now[key] != before[key] for key in now)


def _chosen(cell: Cell) -> Row:
    return {"rows": cell_files.chosen_rows(cell)["rows"]}


def _trained(cell: Cell) -> Row:
    found = cell_files.trained_on(cell, cell_files.training_order(cell))
    return {name: found[name] for name in MEASURES}
