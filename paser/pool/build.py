"""Sources to pool, held-out rows, calibration rows and quarantine, in one deterministic pass.

Calibration comes first and from its own sources alone, so that no change of the pool can change the
pruned model. Every row that was read ends in one of the four tables, or in the count of rows that the
draw of a large source left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paser.errors import SourceError
from paser.pool.clean import NO_POLICY, Kept, Quarantined, Withdrawals, check, normalised
from paser.pool.dedup import NearIndex
from paser.pool.formats import read_source
from paser.pool.holdout import split
from paser.pool.policy import Policy
from paser.progress import warn
from paser.records import Occurrence, Sample, draw_key, sample_to_row
from paser.sources.catalog import Source
from paser.sources.fetching import read_index


@dataclass(frozen=True)
class Rows:
    """A source and its samples, in file order."""

    source: Source
    samples: Iterable[Sample]


@dataclass(frozen=True)
class Rules:
    """The settings of the pool; `count` gives a sample's tokens, template included."""

    count: Callable[[Sample], int]
    max_tokens: int
    near_duplicate: float
    holdout_per_label: int
    share: float
    seed: int
    withdrawals: Withdrawals
    policy: Policy = NO_POLICY


@dataclass(frozen=True)
class Built:
    """The four tables (all but quarantine sorted by row id) and the rows a draw left out, by source."""

    pool: list[Kept]
    holdout: list[Kept]
    calibration: list[Kept]
    quarantine: list[Quarantined]
    not_drawn: dict[str, int]
    short: dict[str, int]


def read_rows(sources_dir: Path, role: str) -> Iterator[Rows]:
    """The fetched sources of a role below `data/sources`, each to be read when its samples are asked for."""
    for entry in read_index(sources_dir / role):
        yield Rows(entry.source, read_source(sources_dir / role / entry.source.name, entry.source))


def read_sources(sources_dir: Path, role: str) -> list[Sample]:
    """The samples of a role below `data/sources`, normalised, in the order of list and files.

    Rows without prompt or response are left out, with a warning that counts them; of the rest at most
    `max_rows` a source are drawn, as for the pool.
    """
    found: list[Sample] = []
    for rows in read_rows(sources_dir, role):
        samples = [normalised(sample) for sample in rows.samples]
        usable = [sample for sample in samples if sample.prompt and sample.output]
        if len(usable) < len(samples):
            warn(
                f"source {rows.source.name}: {len(samples) - len(usable)} of {len(samples)} rows have no "
                "prompt or no response and are left out"
            )
        chosen = _drawn([sample.row_id for sample in usable], rows.source, 1.0)
        found += [usable[i] for i in sorted(chosen)]
    return found


def build(
    pool: Iterable[Rows],
    calibration: Iterable[Rows],
    rules: Rules,
    advance: Callable[[], Any] = lambda: None,
) -> Built:
    """Builds the tables; `advance` is called once per source that was read.

    Order: withdrawn, refused, empty and too long rows; then texts of which another copy has a refused
    licence; for the pool then rows equal or near to a calibration
    row; exact, then near duplicates (the first one stays); the draw of `max_rows`; the held-out split.
    Raises `SourceError` when no row is left for pool or calibration.
    """
    quarantine: list[Quarantined] = []
    refused: dict[str, str] = {}
    not_drawn: dict[str, int] = {}
    reserved, kept = _Deduplicator(rules), _Deduplicator(rules)
    caps: list[tuple[Source, bool]] = []
    for rows in calibration:
        caps.append((rows.source, False))
        for found in _checked(rows, rules, quarantine, refused):
            reserved.take(found, quarantine)
        advance()
    reserved.refuse(refused, quarantine)
    drawn = _draw(reserved.rows, [source for source, _ in caps], 1.0, not_drawn)
    if not drawn:
        raise SourceError("no row is left for calibration", remedy=_causes(quarantine))
    taken = NearIndex(rules.near_duplicate, rules.seed)
    for row in drawn:
        taken.add(row.sample.row_id, _whole(row.sample))
    sources: list[Source] = []
    for rows in pool:
        sources.append(rows.source)
        for found in _checked(rows, rules, quarantine, refused):
            near = taken.nearest(_whole(found.sample))
            if near:
                detail = f"Jaccard {near[0][1]:.2f}"
                quarantine.append(Quarantined(found.sample, "in_calibration", detail, near[0][0]))
            else:
                kept.take(found, quarantine)
        advance()
    kept.refuse(refused, quarantine)
    usable = _draw(kept.rows, sources, rules.share, not_drawn)
    parts = split(usable, rules.holdout_per_label, rules.near_duplicate, rules.seed)
    quarantine += parts.quarantined
    if not parts.pool:
        raise SourceError("no row is left for the pool", remedy=_causes(quarantine))
    return Built(
        pool=parts.pool,
        holdout=parts.holdout,
        calibration=sorted(drawn, key=lambda row: row.sample.row_id),
        quarantine=quarantine,
        not_drawn=not_drawn,
        short=parts.short,
    )


def clean_pool(pool: Iterable[Rows], rules: Rules) -> tuple[list[Kept], list[Quarantined]]:
    """The pool alone, sorted by row id: no calibration rows, nothing held out. For `paser select`."""
    quarantine: list[Quarantined] = []
    refused: dict[str, str] = {}
    kept = _Deduplicator(rules)
    for rows in pool:
        for found in _checked(rows, rules, quarantine, refused):
            kept.take(found, quarantine)
    kept.refuse(refused, quarantine)
    if not kept.rows:
        raise SourceError("no row is left for the pool", remedy=_causes(quarantine))
    return sorted(kept.rows, key=lambda row: row.sample.row_id), quarantine


def kept_rows(rows: Iterable[Kept]) -> list[dict[str, Any]]:
    """Rows of the `pool` table."""
    return [sample_to_row(row.sample, tokens=row.tokens) for row in rows]


def quarantine_rows(rows: Iterable[Quarantined]) -> list[dict[str, Any]]:
    """Rows of the `quarantine` table, sorted by row id, source, place and reason."""
    table = []
    for row in rows:
        columns = {**sample_to_row(row.sample), "row_id": row.row_id}
        del columns["occurrences"]
        table.append(
            {**columns, "reason": row.reason, "detail": row.detail, "duplicate_of": row.duplicate_of}
        )
    table.sort(key=lambda row: (row["row_id"], row["source"], row["source_row"], row["reason"]))
    return table


def _checked(
    rows: Rows, rules: Rules, quarantine: list[Quarantined], refused: dict[str, str]
) -> Iterator[Kept]:
    """The usable rows; `refused` gets, by row id, why a text must not be used under any licence."""
    for sample in map(normalised, rows.samples):
        if problem := rules.policy.against_license(sample.license):
            where = f"{sample.source}:{sample.source_row}"
            refused.setdefault(sample.row_id, f"the same text is in {where}, whose licence {problem}")
        found = check(sample, rules.withdrawals, rules.count, rules.max_tokens, rules.policy)
        if isinstance(found, Kept):
            yield found
        else:
            quarantine.append(found)


def _whole(sample: Sample) -> str:
    return f"{sample.prompt}\n{sample.output}"


class _Deduplicator:
    """Rows as they come; a later copy becomes an occurrence of the first, a near copy is left out."""

    def __init__(self, rules: Rules) -> None:
        self._kept: dict[str, Kept] = {}
        self._near = NearIndex(rules.near_duplicate, rules.seed)

    @property
    def rows(self) -> list[Kept]:
        return list(self._kept.values())

    def refuse(self, refused: Mapping[str, str], quarantine: list[Quarantined]) -> None:
        """Takes out the texts of which some copy has a refused licence; near copies stay out too."""
        for identity in [identity for identity in self._kept if identity in refused]:
            sample = self._kept.pop(identity).sample
            quarantine.append(Quarantined(sample, "license", refused[identity]))

    def take(self, row: Kept, quarantine: list[Quarantined]) -> None:
        sample, identity = row.sample, row.sample.row_id
        here = Occurrence(sample.source, sample.source_row, sample.license)
        if identity in self._kept:
            first = self._kept[identity]
            self._kept[identity] = replace(
                first,
                sample=replace(first.sample, occurrences=(*first.sample.occurrences, here)),
            )
            detail = f"{first.sample.source}:{first.sample.source_row}"
            quarantine.append(Quarantined(sample, "duplicate", detail, identity))
            return
        text = _whole(sample)
        near = max(self._near.nearest(text), key=lambda found: found[1], default=None)
        if near:
            first = self._kept[near[0]]
            detail = f"Jaccard {near[1]:.2f} with {first.sample.source}:{first.sample.source_row}"
            quarantine.append(Quarantined(sample, "near_duplicate", detail, near[0]))
            return
        self._near.add(identity, text)
        self._kept[identity] = replace(row, sample=replace(sample, occurrences=(here,)))


def _draw(rows: list[Kept], sources: list[Source], share: float, not_drawn: dict[str, int]) -> list[Kept]:
    """At most `max_rows` of each source, times `share`; the order of the rows is kept."""
    chosen: set[str] = set()
    for source in sources:
        members = [row.sample.row_id for row in rows if row.sample.source == source.name]
        drawn = _drawn(members, source, share)
        chosen |= {members[i] for i in drawn}
        if len(members) > len(drawn):
            not_drawn[source.name] = len(members) - len(drawn)
    return [row for row in rows if row.sample.row_id in chosen]


def _drawn(identities: list[str], source: Source, share: float) -> list[int]:
    """Positions of the rows of a source that are drawn, first drawn first."""
    limit = len(identities) if source.max_rows is None else min(source.max_rows, len(identities))
    limit = max(round(limit * share), min(limit, 1))
    keys = [draw_key(f"draw {source.name}", source.sample_seed, identity) for identity in identities]
    return sorted(range(len(keys)), key=keys.__getitem__)[:limit]


def _causes(quarantine: list[Quarantined]) -> str:
    counts: dict[str, int] = {}
    for row in quarantine:
        counts[row.reason] = counts.get(row.reason, 0) + 1
    found = ", ".join(f"{reason} {number}" for reason, number in sorted(counts.items())) or "nothing was read"
    return f"add sources, or change the `pool` settings; left out: {found}"
