"""Recovers the pruned model on random rows with the same number of training tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paser.stages.run import Context

OUTPUT = "data/models/control"


def run(context: Context) -> None:
    from paser.artifacts import write_json
    from paser.lineage.record import code_digest
    from paser.recovery.job import recover_model

    if not context.settings.control.enabled:
        write_json(context.out(OUTPUT) / "note.json", {"note": "control.enabled is false"})
        context.note(enabled=False)
        return
    recover_model(
        context,
        role="control",
        selection="data/control.jsonl",
        output=OUTPUT,
        code=code_digest(("paser/models", "paser/recovery")),
    )
