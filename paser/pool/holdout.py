"""The held-out split: fixed numbers by label, in an order that depends on seed and text alone.

A pool row with a held-out prompt, or nearly one, would let training see the question; it leaves the
pool.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from paser.pool.clean import Kept, Quarantined
from paser.pool.dedup import NearIndex
from paser.records import draw_key


@dataclass(frozen=True)
class Split:
    """`short` names the labels with fewer held-out rows than asked for, and how many they have."""

    pool: list[Kept]
    holdout: list[Kept]
    quarantined: list[Quarantined]
    short: dict[str, int]


def split(rows: Iterable[Kept], per_label: int, threshold: float, seed: int) -> Split:
    """Splits off `per_label` rows of each label, or, without labels, that many times the sources.

    Rows without a near prompt elsewhere go first, so that few pool rows are lost. At least half of
    each label's rows stay. `threshold` is the Jaccard similarity from which two prompts are near.
    """
    rows = sorted(rows, key=lambda row: row.sample.row_id)
    prompts = NearIndex(threshold, seed)
    for row in rows:
        prompts.add(row.sample.row_id, row.sample.prompt)
    neighbours = {row.sample.row_id: prompts.query(row.sample.prompt) for row in rows}
    labels: dict[str | None, list[Kept]] = {}
    for row in rows:
        labels.setdefault(row.sample.label, []).append(row)
    held: dict[str, Kept] = {}
    short: dict[str, int] = {}
    for label, members in sorted(labels.items(), key=lambda item: item[0] or ""):
        wanted = per_label if label else per_label * len({row.sample.source for row in members})
        number = min(wanted, len(members) // 2)
        if number < wanted:
            short[label or "(no label)"] = number
        members = sorted(
            members,
            key=lambda row: (
                len(neighbours[row.sample.row_id]) > 1,
                draw_key("holdout", seed, row.sample.row_id),
            ),
        )
        held |= {row.sample.row_id: row for row in members[:number]}
    pool: list[Kept] = []
    quarantined: list[Quarantined] = []
    for row in rows:
        if row.sample.row_id in held:
            continue
        near = [key for key in neighbours[row.sample.row_id] if key in held]
        if near:
            quarantined.append(Quarantined(row.sample, "near_heldout", f"prompt of {near[0]}", near[0]))
        else:
            pool.append(row)
    return Split(pool, sorted(held.values(), key=lambda row: row.sample.row_id), quarantined, short)
