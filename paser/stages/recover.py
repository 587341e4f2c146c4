"""Recovers the pruned model on the selected rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paser.stages.run import Context


def run(context: Context) -> None:
    from paser.lineage.record import code_digest
    from paser.recovery.job import recover_model

    recover_model(
        context,
        role="recovered",
        selection="data/selected.jsonl",
        output="data/models/recovered",
        code=code_digest(("paser/models", "paser/recovery")),
    )
