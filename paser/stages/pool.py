"""Stage `pool`: the fetched rows as pool, held-out, calibration and quarantine tables.

All but quarantine are sorted by row id, so that the order says nothing about the source.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from paser.artifacts import write_table
from paser.models.loading import load_tokenizer
from paser.models.tokens import SampleEncoder
from paser.pool.build import Built, Rules, build, kept_rows, quarantine_rows, read_rows
from paser.pool.clean import Kept, read_withdrawals
from paser.pool.policy import policy_of
from paser.progress import progress, say, warn
from paser.sources.fetching import read_index

if TYPE_CHECKING:
    from paser.stages.run import Context


def run(context: Context) -> None:
    pool_dir = context.input("data/sources/pool")
    calibration_dir = context.input("data/sources/calibration")
    settings = context.settings.pool
    encoder = SampleEncoder(load_tokenizer(context.input("data/sources/original")))
    rules = Rules(
        count=encoder.count,
        max_tokens=settings.max_tokens,
        near_duplicate=settings.near_duplicate,
        holdout_per_label=settings.holdout_per_label,
        share=settings.share,
        seed=context.settings.seed,
        withdrawals=read_withdrawals(context.input("data/withdrawn.csv")),
        policy=policy_of(context.settings.policy),
    )
    sources = len(read_index(pool_dir)) + len(read_index(calibration_dir))
    with progress("reading", sources, "sources") as advance:
        built = build(
            read_rows(pool_dir.parent, "pool"),
            read_rows(calibration_dir.parent, "calibration"),
            rules,
            advance,
        )
    for table, rows in (
        ("pool", built.pool),
        ("holdout", built.holdout),
        ("calibration", built.calibration),
    ):
        write_table(context.out(f"data/{table}.parquet"), "pool", kept_rows(rows))
    write_table(context.out("data/quarantine.parquet"), "quarantine", quarantine_rows(built.quarantine))
    if unmet := rules.withdrawals.unmet(built.quarantine):
        warn(
            f"data/withdrawn.csv: {_listed(unmet)} names no row that was read; check how it is written, "
            "unless it is meant for rows to come"
        )
    context.note(template=encoder.template, **_counts(built))
    if encoder.template == "plain":
        warn("the tokenizer has no chat template; a plain one with headings is used")
    _show(built)


def _counts(built: Built) -> dict[str, object]:
    return {
        "rows": {
            "pool": len(built.pool),
            "holdout": len(built.holdout),
            "calibration": len(built.calibration),
            "quarantine": len(built.quarantine),
        },
        "tokens": sum(row.tokens for row in built.pool),
        "pool_by_label": _by_label(built.pool),
        "holdout_by_label": _by_label(built.holdout),
        "quarantine_by_reason": dict(sorted(Counter(row.reason for row in built.quarantine).items())),
        "not_drawn_by_source": dict(sorted(built.not_drawn.items())),
        "holdout_short": built.short,
    }


def _listed(values: list[str], most: int = 5) -> str:
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")


def _by_label(rows: list[Kept]) -> dict[str, int]:
    return dict(sorted(Counter(row.sample.label or "(no label)" for row in rows).items()))


def _show(built: Built) -> None:
    pool, holdout = _by_label(built.pool), _by_label(built.holdout)
    say(f"  {'label':<20} {'pool':>7} {'held out':>9}")
    for label in sorted({*pool, *holdout}):
        say(f"  {label:<20} {pool.get(label, 0):>7,} {holdout.get(label, 0):>9,}")
    say(f"  {'in all':<20} {len(built.pool):>7,} {len(built.holdout):>9,}")
    reasons = Counter(row.reason for row in built.quarantine)
    listed = ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common())
    say(f"  calibration {len(built.calibration):,}")
    say(f"  quarantine {len(built.quarantine):,}: {listed or 'none'}")
    if built.not_drawn:
        say(f"  not drawn (above max_rows or pool.share): {sum(built.not_drawn.values()):,} rows")
    for label, number in sorted(built.short.items()):
        warn(f"{label} has too few rows: only {number} are held out, so that at least half stay in the pool")
