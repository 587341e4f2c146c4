"""From a scored pool to selection, control and the content of `budget.json`; shared by the stage and the
command line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paser.errors import StageError
from paser.pool.contamination import Overlap, Probe
from paser.pool.dedup import NearIndex, grams, surely_far
from paser.selectors.damage import PaserSelector, ranking_of
from paser.selectors.protocol import ScoredPool, Selection, resolve_budget
from paser.selectors.random import RandomSelector
from paser.settings import SelectSettings

if TYPE_CHECKING:
    import numpy as np

Row = dict[str, Any]


def contaminated(
    prompts: Iterable[str], probes: Sequence[Probe], threshold: float, seed: int
) -> dict[int, Overlap]:
    """Positions of the prompts that equal or nearly equal a text of a probe (Jaccard similarity of word
    5-grams at least `threshold`). Without probes, none is looked at."""
    texts = [(probe, text) for probe in probes for text in probe.texts]
    if not texts:
        return {}
    index = NearIndex(threshold, seed)
    for number, (_, text) in enumerate(texts):
        index.add(str(number), text)
    known = {gram for _, text in texts for gram in grams(text)}
    found = {}
    for position, prompt in enumerate(prompts):
        if not surely_far(prompt, known, threshold) and (near := index.query(prompt)):
            probe, text = texts[int(near[0])]
            found[position] = Overlap(probe.of, probe.item, "near", text[:80])
    return found


def choose(
    pool: ScoredPool,
    settings: SelectSettings,
    seed: int,
    names: Mapping[int, str],
    embeddings: Callable[[], np.ndarray] | None = None,
) -> tuple[Selection, Selection, Row]:
    """The selection, the random control with as many training tokens, and the content of `budget.json`.

    `embeddings()`: as for `ranking_of`.
    """
    if not len(pool.usable):
        counts = sorted(Counter(pool.refusals.tolist()).items())
        reasons = ", ".join(f"{reason} {number}" for reason, number in counts)
        raise StageError(
            f"none of the {len(pool)} rows of the pool can be chosen: {reasons}",
            remedy="`nonfinite`: check the models; `no_response`: raise score.max_tokens; "
            "`contaminated`: take rows that are not the evaluation's",
        )
    budget = settings.parsed_budget
    amount, unit = resolve_budget(budget, pool)
    selection = PaserSelector(settings, ranking_of(settings, embeddings))(pool, amount, unit)
    tokens = int(pool.tokens[selection.accepted].sum())
    control = RandomSelector(seed)(pool, tokens, "tokens")
    report: Row = {
        **selection.report,
        "requested": {"text": settings.budget, "unit": budget.unit, "amount": budget.amount},
        "rows": len(selection.positions),
        "tokens": tokens,
        "control": {"rows": len(control.positions), "tokens": int(pool.tokens[control.accepted].sum())},
    }
    for entry in report["clusters"]:
        entry["name"] = names.get(entry["cluster"], f"cluster {entry['cluster']}")
    return selection, control, report


def summary(report: Mapping[str, Any], pool_rows: int) -> str:
    """One line on a selection, from the content of `budget.json`."""
    control = report["control"]
    return (
        f"{report['rows']} of {pool_rows} rows selected, {report['tokens']:,} training tokens "
        f"(control: {control['rows']} rows, {control['tokens']:,} tokens); "
        f"{report['conflicts']} refused by the concept filter ({report['rejected_share']:.0%})"
    )
