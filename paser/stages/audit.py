"""Stage `audit`: collects the records and decisions behind the recovered model into `data/audit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paser.lineage.entry import write_entry

if TYPE_CHECKING:
    from paser.stages.run import Context


def run(context: Context) -> None:
    records = [path for path in context.stage.inputs if path.startswith("data/records/")]
    entry = write_entry(
        context.out("data/audit"),
        context.project,
        {path.removeprefix("data/records/").removesuffix(".json"): context.input(path) for path in records},
        {path: artefact.sha256 for path, artefact in context.inputs.items()},
    )
    context.note(
        merkle_root=entry["merkle_root"],
        rows=entry["summary"]["rows"],
        tokens=entry["summary"]["tokens"],
    )
