"""Work cut into shards that are kept, so that a killed stage does only what was left.

Which rows share a shard, and a batch within it, is a pure function of their ids and lengths: a resumed
run gives the same bytes as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paser.artifacts import fingerprint, staged
from paser.cache import Cache
from paser.progress import progress, say

if TYPE_CHECKING:
    import numpy as np

SHARD_ROWS = 32
Arrays = dict[str, "np.ndarray"]


def shards(row_ids: Sequence[str], rows: int = SHARD_ROWS) -> list[list[int]]:
    """Positions of the rows of each shard: by leading bits of the row id's digest.

    The number of shards is the power of two that leaves at most about `rows` rows in each. Within a
    shard, positions are ordered by row id.
    """
    bits = max(0, (max(len(row_ids), 1) - 1) // rows).bit_length()
    buckets: dict[int, list[int]] = {}
    for position, row_id in enumerate(row_ids):
        digest = row_id.rpartition("-")[2]
        buckets.setdefault(int(digest[:8], 16) >> (32 - bits) if bits else 0, []).append(position)
    return [sorted(buckets[number], key=lambda p: row_ids[p]) for number in sorted(buckets)]


def batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Positions grouped so that rows times the longest of them is at most `batch_tokens`.

    Longest first, ties by position, so that batches hold rows of similar length. A row longer than
    `batch_tokens` is a batch of its own.
    """
    groups: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda p: (-lengths[p], p)):
        group = groups[-1] if groups else None
        if group and lengths[group[0]] * (len(group) + 1) <= batch_tokens:
            group.append(position)
        else:
            groups.append([position])
    return groups


def run_shards(
    title: str,
    row_ids: Sequence[str],
    determines: Mapping[str, Any],
    compute: Callable[[list[int]], Arrays],
    cache: Cache,
) -> Arrays:
    """Arrays over all rows, in row order, computed shard by shard and kept in `cache`.

    `compute(positions)` returns arrays whose first axis follows `positions`; `determines` is everything
    besides the rows' ids that decides the result (its digest is part of each shard's name).
    """
    import numpy as np

    plan = shards(row_ids)
    names = [fingerprint([dict(determines), [row_ids[p] for p in shard]]) + ".npz" for shard in plan]
    entries = [cache.entry(title, name) for name in names]
    known = sum(entry.exists() for entry in entries)
    if known:
        say(f"  {title}: {known} of {len(plan)} shards are kept from an earlier run")
    parts: list[Arrays] = []
    with progress(title, len(row_ids)) as advance:
        for shard, entry in zip(plan, entries, strict=True):
            if not entry.exists():
                result = compute(shard)
                with staged(entry) as partial, partial.open("wb") as stream:
                    np.savez(stream, **result)  # type: ignore[arg-type]
            with np.load(entry, allow_pickle=False) as kept:
                parts.append({name: kept[name] for name in kept.files})
            advance(len(shard))
    order = np.argsort(np.array([p for shard in plan for p in shard], dtype=np.int64), kind="stable")
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
