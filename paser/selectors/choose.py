"""From the pool's tables to selection, control and their output rows; shared by the stage and the
command line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from paser.errors import StageError
from paser.pool.dedup import NearIndex
from paser.records import draw_key, row_to_sample
from paser.selectors.damage import PaserSelector
from paser.selectors.protocol import ScoredRow, Selection, resolve_budget
from paser.selectors.random import RandomSelector
from paser.settings import SelectSettings

Row = dict[str, Any]


def contaminated(
    prompts: dict[str, str], evaluation: Sequence[str], threshold: float, seed: int
) -> dict[str, str]:
    """Row ids whose prompt equals or nearly equals an evaluation prompt, with that prompt's beginning."""
    if not evaluation:
        return {}
    index = NearIndex(threshold, seed)
    for number, prompt in enumerate(evaluation):
        index.add(str(number), prompt)
    found = {}
    for row_id, prompt in prompts.items():
        if near := index.query(prompt):
            found[row_id] = repr(evaluation[int(near[0])][:80])
    return found


def scored_rows(
    pool: Sequence[Row], clusters: Sequence[Row], scores: Sequence[Row], near: dict[str, str]
) -> list[ScoredRow]:
    """Joins the three tables by row id, in pool order; a row missing from one of them is an error."""
    cluster_of = {row["row_id"]: row["cluster"] for row in clusters if row["split"] == "pool"}
    score_of = {row["row_id"]: row for row in scores}
    result = []
    for row in pool:
        row_id = row["row_id"]
        for table, known in (("clusters.parquet", cluster_of), ("scores.parquet", score_of)):
            if row_id not in known:
                raise StageError(
                    f"row {row_id} of pool.parquet is missing in {table}", remedy="`dvc repro select`"
                )
        score, sample = score_of[row_id], row_to_sample(row)
        both = score["loss_pruned"] is not None and score["loss_original"] is not None
        result.append(
            ScoredRow(
                row_id=row_id,
                text=f"{sample.prompt}\n{sample.output}",
                cluster=cluster_of[row_id],
                status=score["status"],
                jsd=score["jsd"],
                loss_increase=score["loss_pruned"] - score["loss_original"] if both else None,
                prompt_tokens=score["prompt_tokens"],
                response_tokens=score["response_tokens"],
                contaminated=near.get(row_id),
            )
        )
    return result


def choose(
    rows: Sequence[ScoredRow], settings: SelectSettings, seed: int, names: Mapping[int, str]
) -> tuple[Selection, Selection, Row]:
    """The selection, the random control with as many training tokens, and the content of `budget.json`."""
    if all(row.refusal for row in rows):
        counts = Counter(row.refusal[0] for row in rows if row.refusal)
        reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(counts.items()))
        raise StageError(
            f"none of the {len(rows)} rows of the pool can be chosen: {reasons}",
            remedy="`nonfinite`: check the models; `no_response`: raise score.max_tokens; "
            "`contaminated`: take rows that are not the evaluation's",
        )
    budget = settings.parsed_budget
    amount, unit = resolve_budget(budget, rows)
    selection = PaserSelector(settings)(rows, amount, unit)
    tokens = sum(rows[i].tokens for i in selection.accepted)
    control = RandomSelector(seed)(rows, tokens, "tokens")
    report: Row = {
        **selection.report,
        "requested": {"text": settings.budget, "unit": budget.unit, "amount": budget.amount},
        "rows": len(selection.accepted),
        "tokens": tokens,
        "control": {
            "rows": len(control.accepted),
            "tokens": sum(rows[i].tokens for i in control.accepted),
        },
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


def decision_rows(rows: Sequence[ScoredRow], selection: Selection) -> list[Row]:
    """`decisions.parquet`: every row of the pool."""
    return [
        {
            "row_id": row.row_id,
            "cluster": row.cluster,
            "jsd": row.jsd,
            "ies": decided.ies,
            "rank": decided.rank,
            "decision": decided.decision,
            "reason": decided.reason,
            "detail": decided.detail,
        }
        for row, decided in zip(rows, selection.decisions, strict=True)
    ]


def training_rows(
    pool: Sequence[Row], rows: Sequence[ScoredRow], selection: Selection, seed: int
) -> list[Row]:
    """The accepted rows in training order: shuffled by seed, so that clusters mix in each batch."""
    order = sorted(selection.accepted, key=lambda i: draw_key("order", seed, rows[i].row_id))
    kept = ("row_id", "instruction", "input", "output", "source", "source_row", "license", "label")
    return [
        {name: pool[i][name] for name in kept} | {"cluster": rows[i].cluster, "tokens": rows[i].tokens}
        for i in order
    ]
