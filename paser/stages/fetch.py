"""Stage `fetch`: every source of the list, checked against its digest, in the folder of its role; and the
pruned model that `prune.external` names, if there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paser.artifacts import remove, write_json
from paser.progress import progress, warn
from paser.sources.catalog import EXTERNAL_ROLE, ROLES, Source, contaminated, load_sources, source_from_uri
from paser.sources.fetching import Fetched, fetch_one, write_index

if TYPE_CHECKING:
    from paser.stages.run import Context


def run(context: Context) -> None:
    sources = load_sources(context.input("data/sources.yaml"))
    _warn_of_overlap(sources)
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


def _warn_of_overlap(sources: list[Source]) -> None:
    """Said before hours of work, at the end of which `evaluate` would refuse."""
    evaluation = [source for source in sources if source.role == "evaluation"]
    training = [source for source in sources if source.role in ("pool", "calibration")]
    if overlap := contaminated(evaluation, training):
        warn(
            f"items of {', '.join(overlap)} are in pool or calibration as well as in an evaluation source: "
            "`evaluate` will refuse it unless evaluate.allow_contaminated is set"
        )
