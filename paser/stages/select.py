"""Stage `select`: the rows that repair the damage within the budget, and a random control beside them."""

from __future__ import annotations

from paser.artifacts import write_batches, write_json, write_jsonl
from paser.progress import say, warn
from paser.selectors.choose import summary
from paser.selectors.derive import derive, read_inputs
from paser.stages.run import Context


def run(context: Context) -> None:
    found = derive(read_inputs(context.input), context.settings)
    write_batches(context.out("data/decisions.parquet"), "decisions", found.decisions())
    write_jsonl(context.out("data/selected.jsonl"), found.selected())
    write_jsonl(context.out("data/control.jsonl"), found.random())
    report = found.report
    write_json(context.out("data/budget.json"), report)
    overlap = found.contamination()
    write_json(context.out("data/contamination.json"), overlap)
    context.note(rows=report["rows"], tokens=report["tokens"], unspent=report["unspent"])
    say(f"  {summary(report, len(found.pool))}")
    if overlap["overlapping"]:
        fate = f"{overlap['selected']} of them selected" if overlap["selected"] else "not selected"
        say(f"  {overlap['overlapping']} rows overlap what is evaluated (data/contamination.json): {fate}")
    if report["unspent"]:
        warn(f"{report['unspent']} {report['unit']} of the budget are unspent: {report['cause']}")
