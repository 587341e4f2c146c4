"""Stage `fetch`: every source of the list, checked against its digest, in the folder of its role; and the
pruned model that `prune.external` names, if there is one. Of tasks only those that `evaluate` names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paser.artifacts import remove, write_json, write_jsonl
from paser.progress import progress, warn
from paser.sources.catalog import (
    EXTERNAL_ROLE,
    HUB,
    ROLES,
    TASK_ROLE,
    Source,
    contaminated,
    load_sources,
    source_from_uri,
)
from paser.sources.fetching import Fetched, fetch_one, write_index

if TYPE_CHECKING:
    from paser.stages.run import Context


def run(context: Context) -> None:
    listed = load_sources(context.input("data/sources.yaml"))
    wanted = {*context.settings.evaluate.tasks, *context.settings.evaluate.perplexity}
    sources = [source for source in listed if source.role != TASK_ROLE or source.name in wanted]
    listed_tasks = {source.name for source in sources}
    hub_tasks = [name for name in context.settings.evaluate.tasks if name not in listed_tasks]
    _warn_of_overlap(sources, hub_tasks)
    base = context.input("data/raw")
    fetched: dict[str, list[Fetched]] = {role: [] for role in ROLES}
    with progress("fetching", len(sources), "sources") as advance:
        for role in ROLES:
            folder = context.out(f"data/sources/{role}")
            remove(folder)
            folder.mkdir(parents=True)
            for source in (s for s in sources if s.role == role):
                fetched[role].append(fetch_one(source, base, context.cache, folder / source.name))
                advance()
            write_index(folder, role, fetched[role])
    external = _fetch_external(context)
    _fetch_prompts(context, hub_tasks)
    context.note(
        sources={role: len(entries) for role, entries in fetched.items()},
        benchmarks=sorted(
            {
                f.source.benchmark
                for role in ("pool", "calibration")
                for f in fetched[role]
                if f.source.benchmark
            }
        ),
        licenses=sorted({f.source.license for entries in fetched.values() for f in entries}),
        **external,
    )


def _fetch_prompts(context: Context, names: Sequence[str]) -> None:
    """The prompts of lm-eval's own tasks, so that rows which show them can be left out of selection."""
    if not names:
        return
    from paser.evaluation.hub import hub_prompts, require_known

    for name in names:
        require_known(name)
        folder = context.out(f"data/sources/{TASK_ROLE}") / HUB
        write_jsonl(folder / f"{name}.jsonl", hub_prompts(name))


def _fetch_external(context: Context) -> dict[str, str]:
    """The model of `prune.external` in `data/sources/pruned`, which holds a note alone without one."""
    folder, uri = context.out(f"data/sources/{EXTERNAL_ROLE}"), context.settings.prune.external
    remove(folder)
    folder.mkdir(parents=True)
    if uri is None:
        write_json(folder / "note.json", {"note": "prune.external is null: stage prune prunes the original"})
        return {}
    source = source_from_uri(uri, EXTERNAL_ROLE)
    found = fetch_one(source, context.input("data/raw"), context.cache, folder / source.name)
    write_index(folder, EXTERNAL_ROLE, [found])
    return {"external": found.resolved}


def _warn_of_overlap(sources: Sequence[Source], hub_tasks: Sequence[str]) -> None:
    """Said before hours of work, at the end of which `evaluate` would refuse."""
    evaluation = [source for source in sources if source.role in ("evaluation", TASK_ROLE)]
    training = [source for source in sources if source.role in ("pool", "calibration")]
    if overlap := contaminated(evaluation, training, hub_tasks):
        warn(
            f"items of {', '.join(overlap)} are in pool or calibration as well as in what is evaluated: "
            "`evaluate` will refuse it unless evaluate.allow_contaminated is set"
        )
