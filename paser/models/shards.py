"""Values of rows kept in shards, so that a killed stage does only what was left and a grown pool only what
is new.

Which rows share a shard means nothing: whoever computes the rows must give each the same values whatever
is computed with it. A resumed run then gives the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import fingerprint, remove, staged
from paser.cache import Cache
from paser.progress import progress, say, warn

if TYPE_CHECKING:
    import numpy as np

# A killed run loses at most about this much work.
SHARD_SECONDS = 20.0
_ROW_ID = "row_id"
Arrays = dict[str, "np.ndarray"]


def run_rows(
    title: str,
    row_ids: Sequence[str],
    determines: Mapping[str, Any],
    compute: Callable[[list[int]], Iterable[tuple[list[int], Arrays]]],
    cache: Cache,
    sizes: Sequence[int] | None = None,
) -> Arrays:
    """Arrays over all rows, in row order; what `cache` holds of them is not computed.

    `compute(positions)` yields portions: some of the positions, and arrays whose first axis follows them.
    `determines` is everything besides a row's id that decides its values (its digest is part of each
    shard's name). `sizes`: tokens of each row, for the progress; rows count alike without.
    """
    first: dict[str, int] = {}
    for position, row_id in enumerate(row_ids):
        first.setdefault(row_id, position)
    name = fingerprint(dict(determines))
    result = _Collected(len(row_ids))
    room = cache.entry(title, name).parent
    for shard in sorted(room.glob(f"{name}-*.npz")):
        if kept := _read(shard):
            cache.entry(title, shard.name)
            here = [(first[row_id], i) for i, row_id in enumerate(kept.pop(_ROW_ID)) if row_id in first]
            if here:
                positions, lines = zip(*here, strict=True)
                result.add(list(positions), {key: values[list(lines)] for key, values in kept.items()})
    missing = [position for position in first.values() if not result.known[position]]
    if len(missing) < len(first):
        say(f"  {title}: {len(first) - len(missing):,} of {len(first):,} rows are kept from an earlier run")
    if missing:
        shards = _Shards(room, name, row_ids)
        total = sum(sizes[p] for p in missing) if sizes else len(missing)
        with progress(title, total, "tokens" if sizes else "rows") as advance:
            try:
                for done, arrays in compute(missing):
                    result.add(done, arrays)
                    shards.add(done, arrays)
                    advance(sum(sizes[p] for p in done) if sizes else len(done))
            finally:
                shards.write()
    return result.arrays([first[row_id] for row_id in row_ids])


class _Collected:
    """Arrays over `count` rows that are filled in portions."""

    def __init__(self, count: int) -> None:
        import numpy as np

        self.known = np.zeros(count, dtype=bool)
        self._arrays: Arrays = {}

    def add(self, positions: list[int], arrays: Arrays) -> None:
        import numpy as np

        for key, values in arrays.items():
            if key not in self._arrays:
                self._arrays[key] = np.zeros((len(self.known), *values.shape[1:]), dtype=values.dtype)
            self._arrays[key][positions] = values
        self.known[positions] = True

    def arrays(self, positions: list[int]) -> Arrays:
        return {key: values[positions] for key, values in self._arrays.items()}


class _Shards:
    """Finished portions, written together every some seconds."""

    def __init__(self, room: Path, name: str, row_ids: Sequence[str]) -> None:
        self._room, self._name, self._row_ids = room, name, row_ids
        self._waiting: list[tuple[list[int], Arrays]] = []
        self._written = time.monotonic()

    def add(self, positions: list[int], arrays: Arrays) -> None:
        self._waiting.append((positions, arrays))
        if time.monotonic() - self._written >= SHARD_SECONDS:
            self.write()

    def write(self) -> None:
        import numpy as np

        if not self._waiting:
            return
        ids = [self._row_ids[p] for positions, _ in self._waiting for p in positions]
        arrays = {
            key: np.concatenate([portion[key] for _, portion in self._waiting]) for key in self._waiting[0][1]
        }
        self._waiting = []
        entry = self._room / f"{self._name}-{fingerprint(sorted(ids))}.npz"
        with staged(entry) as partial, partial.open("wb") as stream:
            np.savez(stream, **{_ROW_ID: np.array(ids, dtype=bytes)}, **arrays)  # type: ignore[arg-type]
        self._written = time.monotonic()


def _read(shard: Path) -> dict[str, Any] | None:
    """The arrays of a shard, its row ids as texts; a damaged one is removed with a warning."""
    import numpy as np

    try:
        with np.load(shard, allow_pickle=False) as content:
            kept: dict[str, Any] = {key: content[key] for key in content.files}
        lengths = {len(values) for values in kept.values()}
        if len(lengths) != 1 or _ROW_ID not in kept:
            raise ValueError("its arrays do not belong together")
        kept[_ROW_ID] = [row_id.decode("ascii") for row_id in kept[_ROW_ID].tolist()]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        warn(f"{shard} is damaged ({error}); its rows are computed again")
        remove(shard)
        return None
    return kept
