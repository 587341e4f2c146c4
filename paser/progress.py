"""Progress of long work: a bar on a terminal, plain lines elsewhere, always with the time left.

Where the variable `PASER_PROGRESS_FILE` names a file, that file has the state of the work as JSON, for
whoever started the process and wants to show it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

LINE_SECONDS = 3.0
FILE_SECONDS = 1.0
PROGRESS_FILE = "PASER_PROGRESS_FILE"


class Advance(Protocol):
    def __call__(self, amount: float = 1.0) -> None: ...


def say(line: str) -> None:
    """One line for the person who watches; standard output stays free for results."""
    print(line, file=sys.stderr, flush=True)


def console() -> Console:
    """Standard output for tables: as wide as the terminal, or 120 columns in a log."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=120)


def warn(line: str) -> None:
    say(f"warning: {line}")


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def rate(done: float, seconds: float, unit: str) -> str:
    """`12.5 rows/s`; slow work, `8 s each`."""
    if not done or seconds <= 0:
        return f"- {unit}/s"
    each, many = seconds / done, done / seconds
    if each > 1:
        return f"{each:.3g} s each"
    return f"{many:,.0f} {unit}/s" if many >= 100 else f"{many:.3g} {unit}/s"


@contextmanager
def progress(title: str, total: float, unit: str = "rows") -> Iterator[Advance]:
    """Yields `advance(amount)`; `total` is in `unit`.

    Plain lines come at most at each tenth of the work and every few seconds: short work shows none.
    """
    with (_bar if sys.stderr.isatty() else _lines)(title, total, unit) as advance:
        path = os.environ.get(PROGRESS_FILE)
        yield _into_file(path, advance, title, total, unit) if path else advance


def _into_file(path: str, shown: Advance, title: str, total: float, unit: str) -> Advance:
    """An `advance` that also writes `{title, unit, done, total, seconds, left}`, at most once a second."""
    start, last, done = time.monotonic(), 0.0, 0.0

    def write(now: float) -> None:
        spent = now - start
        state = {
            "title": title,
            "unit": unit,
            "done": done,
            "total": total,
            "seconds": round(spent, 1),
            "left": round(spent * (total - done) / done, 1) if done else None,
        }
        partial = f"{path}.partial-{os.getpid()}"
        with open(partial, "w", encoding="utf-8") as stream:
            json.dump(state, stream)
        os.replace(partial, path)

    def advance(amount: float = 1.0) -> None:
        nonlocal done, last
        shown(amount)
        done += amount
        now = time.monotonic()
        if now - last >= FILE_SECONDS or done >= total:
            last = now
            write(now)

    write(start)
    return advance


@contextmanager
def _bar(title: str, total: float, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        start, done = time.monotonic(), 0.0
        task = bar.add_task(title, total=total, rate="")

        def advance(amount: float = 1.0) -> None:
            nonlocal done
            done += amount
            bar.update(task, advance=amount, rate=rate(done, time.monotonic() - start, unit))

        yield advance


@contextmanager
def _lines(title: str, total: float, unit: str) -> Iterator[Advance]:
    start = last = time.monotonic()
    done, shown = 0.0, 0

    def advance(amount: float = 1.0) -> None:
        nonlocal done, shown, last
        done += amount
        tenth = int(10 * done / total) if total else 10
        now = time.monotonic()
        if tenth > shown and now - last >= LINE_SECONDS:
            shown, last = tenth, now
            spent = now - start
            left = spent * (total - done) / done if done else 0.0
            say(
                f"  {title}: {done:,.0f}/{total:,.0f} {unit}, {rate(done, spent, unit)}, {duration(spent)}, "
                f"{duration(left)} left"
            )

    yield advance
