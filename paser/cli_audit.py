"""The verbs of `paser audit`: an auditor's questions, each answered from a model's audit entry.

They are thin, like those of `paser/cli.py`, and apart from them only because they are many.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paser.errors import PaserError
from paser.progress import console, say, warn

if TYPE_CHECKING:
    from paser.lineage.catalogue import Catalogue
    from paser.lineage.impact import Withdrawal

audit = typer.Typer(help="Which rows went into a model, and is the record intact?", no_args_is_help=True)
catalogue = typer.Typer(help="Every model that was audited, in one index.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Entry = Annotated[
    Path | None, typer.Option("--entry", help="Audit entry (data/audit) of a model that was copied away.")
]
Model = Annotated[str, typer.Argument(help="A model's folder, or the beginning of its id in the catalogue.")]
Project = Annotated[Path, typer.Option("--project", help="Folder with params.yaml and dvc.yaml.")]
Where = Annotated[
    Path | None,
    typer.Option("--catalogue", help="Catalogue folder; else PASER_CATALOGUE_DIR, else .paser/catalogue."),
]
Rows = Annotated[list[str] | None, typer.Option("--row", help="A row id, its beginning, or SOURCE:PLACE.")]
Sources = Annotated[list[str] | None, typer.Option("--source", help="A source's name.")]
Licenses = Annotated[list[str] | None, typer.Option("--license", help="A licence as sources name it.")]
Texts = Annotated[
    list[str] | None,
    typer.Option("--text", help="A text, a JSON row, or @PATH of a file with one; wherever it is found."),
]
HERE = Path(".")
LISTED, LISTED_JSON = 50, 10_000  # lines of `find` where --limit is not given
NO = 3  # exit code: the question was answered with no


def print_json(value: Any) -> None:
    """As JSON; where standard output is not UTF-8, in escapes, so that no character is replaced."""
    unicode = (sys.stdout.encoding or "utf-8").lower().replace("_", "-") in ("utf-8", "utf8")
    print(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=not unicode))


def open_catalogue(project: Path, where: Path | None) -> Catalogue:
    """The catalogue, with the project's entry taken in; an entry that is altered is warned of, not taken."""
    from paser.lineage.catalogue import Catalogue, sync

    found = Catalogue.of(project.resolve(), where)
    try:
        done = sync(project.resolve(), found)
    except (PaserError, OSError) as error:
        warn(f"data/audit was not taken into the catalogue: {error}")
    else:
        if done is not None and done[1]:
            say(f"model {done[0][:12]} taken into the catalogue {found.root}")
    return found


@audit.command()
def trace(
    model: Model,
    entry: Entry = None,
    rows: Annotated[bool, typer.Option("--rows", help="Show all rows, not only the first 10.")] = False,
    project: Project = HERE,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Which rows, from which sources, through which scores, went into a model.

    Example: paser audit trace data/models/recovered --rows
    """
    from paser.lineage import trace as tracing
    from paser.lineage.query import locate

    folder, found_entry = locate(model, entry, open_catalogue(project, where))
    found = tracing.trace(folder, found_entry, None if rows or as_json else tracing.SHOWN_ROWS)
    if as_json:
        print_json(found.as_json())
    else:
        tracing.render(found, console(), all_rows=rows)


@audit.command()
def why(
    model: Model,
    row: Annotated[str, typer.Argument(help="A row id or its beginning; with --text, a text or @PATH.")],
    text: Annotated[
        bool, typer.Option("--text", help="ROW is a text: a prompt, a response, a JSON row.")
    ] = False,
    entry: Entry = None,
    project: Project = HERE,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Why a row was taken or left: role, score, rank, cluster, reason, and what it clashed with.

    Exit code 3 when the model's run never read the row.

    Example: paser audit why data/models/recovered r1-0f3a5c7e9b1d
    """
    from paser.lineage import why as explaining
    from paser.lineage.query import locate, read_text

    folder, found_entry = locate(model, entry, open_catalogue(project, where))
    found = explaining.why(folder, found_entry, read_text(row) if text else row)
    if as_json:
        print_json({"model": model, "rows": found})
    else:
        explaining.render(found, console())
        if not found:
            print(f"{model}: its run never read this row")
    if not found:
        raise typer.Exit(NO)


@audit.command()
def find(
    query: Annotated[str, typer.Argument(help="What to look for; a text may be @PATH of a file.")],
    text: Annotated[
        bool, typer.Option("--text", help="A prompt, a response or a JSON row, exactly.")
    ] = False,
    row: Annotated[bool, typer.Option("--row", help="A row id or its beginning.")] = False,
    source: Annotated[bool, typer.Option("--source", help="A source's name.")] = False,
    license: Annotated[bool, typer.Option("--license", help="A licence as sources name it.")] = False,
    near: Annotated[bool, typer.Option("--near", help="Like --text, and whatever resembles it.")] = False,
    similarity: Annotated[
        float, typer.Option(help="With --near: least Jaccard similarity of word 5-grams, 0 to 1.")
    ] = 0.75,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help=f"Rows listed, at most; {LISTED:,}, or {LISTED_JSON:,} with --json."),
    ] = None,
    project: Project = HERE,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Which models of the catalogue contain a row, text, source or licence, and in which role.

    Without a flag the query is a row id, a known source, a known licence, or else a text. Whatever is not
    listed is counted. Exit code 3 when no model contains it.

    Example: paser audit find "Write a function that splits a list" --near
    """
    from paser.lineage import find as finding

    flags = {"text": text, "row": row, "source": source, "license": license, "near": near}
    chosen = [name for name, given in flags.items() if given]
    if len(chosen) > 1:
        raise PaserError(f"--{chosen[0]} and --{chosen[1]} at once", remedy="ask one question at a time")
    known = open_catalogue(project, where)
    kind: Any = chosen[0] if chosen else finding.guess(query, known)
    found = finding.find(known, query, kind, similarity, limit or (LISTED_JSON if as_json else LISTED))
    named = kind in ("source", "license")
    similar = finding.known_names(known, kind, query) if named and not found.models else []
    if as_json:
        print_json({"kind": kind, "query": query, **vars(found), "similar_names": similar})
    else:
        finding.render(found, kind, query, console())
        if similar:
            print(f"known names like it: {', '.join(similar)}")
    if not found.models:
        raise typer.Exit(NO)


@audit.command()
def impact(
    row: Rows = None,
    source: Sources = None,
    license: Licenses = None,
    text: Texts = None,
    project: Project = HERE,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """What withdrawing rows would mean: which models must be retrained, pruned or evaluated again.

    Nothing is changed. Exit code 3 when no model read any of the rows.

    Example: paser audit impact --source chatterbot --license GPL-3.0-only
    """
    from paser.lineage import impact as weighing

    known = open_catalogue(project, where)
    wanted = _withdrawals(known, row, source, license, text)
    found = weighing.impact(known, wanted)
    if as_json:
        print_json({"withdrawals": [vars(item) for item in wanted], "models": found})
    else:
        weighing.render(found, console())
    if not found:
        raise typer.Exit(NO)


@audit.command()
def withdraw(
    reason: Annotated[str, typer.Option(help="Why, for whoever reads the file in a year.")],
    row: Rows = None,
    source: Sources = None,
    license: Licenses = None,
    text: Texts = None,
    date: Annotated[str | None, typer.Option(help="YYYY-MM-DD; today by default.")] = None,
    project: Project = HERE,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Withdraw rows for ever: adds them to data/withdrawn.csv, and shows what it means.

    The next `dvc repro` leaves them out, with the reason, in quarantine. A second time is an error.

    Example: paser audit withdraw --source chatterbot --reason "the customer asked for it"
    """
    from datetime import UTC, datetime

    from paser.lineage import impact as weighing
    from paser.lineage import withdraw as recording

    known = open_catalogue(project, where)
    wanted = _withdrawals(known, row, source, license, text)
    day = date or datetime.now(UTC).date().isoformat()
    path = project / recording.FILE
    unmatched = recording.unmatched(project, known, wanted)
    recording.withdraw(path, wanted, reason, day)
    for item in unmatched:
        warn(
            f"{item.kind} {item.value} matches no row of the pool nor of any model in {known.root}; the "
            "withdrawal holds for later pools. Is it spelled right?"
        )
    found = weighing.impact(known, wanted)
    if as_json:
        lines = [{**vars(item), "reason": reason, "date": day} for item in wanted]
        print_json({"withdrawn": lines, "models": found})
        return
    for item in wanted:
        print(f"{path}: {item.kind} {item.value} is withdrawn")
    weighing.render(found, console())
    print("commit the file, then `dvc repro` honours it")


def _withdrawals(known: Catalogue, *given: list[str] | None) -> list[Withdrawal]:
    from paser.lineage.withdraw import resolve

    kinds = ("row", "source", "license", "text")
    found = [
        item
        for kind, values in zip(kinds, given, strict=True)
        for value in values or ()
        for item in resolve(known, kind, value)
    ]
    if not found:
        raise PaserError(
            "nothing to withdraw was given", remedy="give --row, --source, --license or --text, once or more"
        )
    return list(dict.fromkeys(found))


@audit.command()
def diff(
    a: Annotated[str, typer.Argument(help="A model, an audit entry, or a folder of `paser select`.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    project: Project = HERE,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Rows in and out between two selections or models, by cluster and reason; settings that differ.

    Exit code 3 when they differ.

    Example: paser audit diff 3f9a1c77d2e0 data/models/recovered
    """
    from paser.lineage import diff as comparing

    known = open_catalogue(project, where)
    sides = comparing.read_side(a, known), comparing.read_side(b, known)
    for side in sides:
        if not side.settings:
            warn(f"{side.name} records no settings, so none were compared")
    found = comparing.diff(*sides)
    if as_json:
        print_json(found)
    else:
        comparing.render(found, console())
    if comparing.differs(found):
        raise typer.Exit(NO)


@audit.command()
def verify(
    model: Path,
    entry: Entry = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also make the selection again from the recorded scores.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option("--key", dir_okay=False, help="Public key (PEM) of who signed the model.")
    ] = None,
    signature: Annotated[
        Path | None, typer.Option("--signature", dir_okay=False, help="Default: beside the model.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every digest from the sources to the model; exit code 1 if anything does not agree.

    Example: paser audit verify data/models/recovered --deep
    """
    from paser.lineage import verify as verifying

    checks = verifying.verify(model, entry, deep=deep, key=key, signature=signature)
    if as_json:
        print_json(verifying.as_json(checks))
    else:
        verifying.render(checks, console())
    if not verifying.passed(checks):
        raise typer.Exit(1)
    open_catalogue(HERE, None)  # not before, because nothing ever leaves it


@audit.command()
def prove(
    model: Path,
    row_id: Annotated[str, typer.Argument(help="A row id, or its beginning.")],
    out: Annotated[
        Path | None, typer.Option("--out", dir_okay=False, help="Write the proof to this file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove that a row is among those a model was trained on, without showing any other row.

    Example: paser audit prove data/models/recovered r1-0f3a5c7e9b1d --out proof.json
    """
    from paser.artifacts import write_json
    from paser.lineage import proof as proving

    open_catalogue(HERE, None)
    proof = proving.prove(model, row_id)
    if out is not None:
        write_json(out, proof)
    if as_json or out is None:
        print_json(proof)
    else:
        print(f"{out}: row {proof['row_id']} is row {proof['index'] + 1} of {proof['size']}")


@audit.command("check-proof")
def check_proof(
    proof: Annotated[Path, typer.Argument(dir_okay=False, help="What `paser audit prove` wrote.")],
    model: Annotated[
        Path | None, typer.Argument(help="The model, whose provenance.json states the root.")
    ] = None,
    root: Annotated[str | None, typer.Option("--root", help="The Merkle root, instead of a model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a proof against a model's Merkle root alone; exit code 1 if it does not hold.

    Example: paser audit check-proof proof.json data/models/recovered
    """
    from paser.lineage import proof as proving
    from paser.lineage.provenance import load_provenance

    if (model is None) == (root is None):
        raise PaserError("a proof is checked against one root", remedy="give the model's folder, or --root")
    found, size = proving.load_proof(proof), None
    if model is not None:
        provenance = load_provenance(model)
        root, size = provenance["merkle_root"], provenance["rows"]
    problem = proving.why_not(found, str(root).strip().lower(), size)
    if as_json:
        row = {key: found[key] for key in ("row_id", "index", "root")}
        print_json({"holds": problem is None, "problem": problem, "rows": size, **row})
        if problem:
            raise typer.Exit(1)
        return
    if problem:
        print(f"the proof does not hold: {problem}")
        raise typer.Exit(1)
    place = f"row {found['index'] + 1} of the {size} rows" if size is not None else "among the rows"
    print(f"the proof holds: {found['row_id']} is {place} behind Merkle root {found['root']}")


@catalogue.command("sync")
def catalogue_sync(project: Project = HERE, where: Where = None, as_json: AsJson = False) -> None:
    """Take the project's data/audit into the catalogue; nothing happens if it is there.

    Example: paser catalogue sync
    """
    from paser.lineage.catalogue import Catalogue, sync

    found = Catalogue.of(project.resolve(), where)
    done = sync(project.resolve(), found)
    if done is None:
        raise PaserError(
            f"{project / 'data' / 'audit'} holds no audit entry",
            remedy="`dvc repro audit` writes it; `dvc checkout` restores it",
        )
    if as_json:
        print_json({"catalogue": str(found.root), "model": done[0], "added": done[1]})
    else:
        print(f"{found.root}: model {done[0][:12]} {'added' if done[1] else 'is there already'}")


@catalogue.command("list")
def catalogue_list(project: Project = HERE, where: Where = None, as_json: AsJson = False) -> None:
    """Every model of the catalogue.

    Example: paser catalogue list
    """
    known = open_catalogue(project, where)
    models = known.models()
    if as_json:
        print_json([model.as_json() for model in models])
        return
    from rich.table import Table

    table = Table(title=f"Models in {known.root}", title_justify="left")
    for name in ("id", "added", "Merkle root", "commit"):
        table.add_column(name, no_wrap=True)
    for name in ("rows", "tokens", "rejected", "held out", "calibrated", "quarantined"):
        table.add_column(name, justify="right")
    for model in models:
        table.add_row(
            model.id[:12],
            model.added[:16].replace("T", " "),
            model.merkle_root[:12],
            (model.commit or "-")[:10],
            f"{model.rows:,}",
            f"{model.tokens:,}",
            *(f"{model.roles[role]:,}" for role in ("rejected", "held_out", "calibrated", "quarantined")),
        )
    console().print(table)


@catalogue.command("rebuild")
def catalogue_rebuild(project: Project = HERE, where: Where = None, as_json: AsJson = False) -> None:
    """Fill the catalogue from the git history of dvc.lock, out of DVC's cache and remote.

    Exit code 3 when an entry could not be had; it is listed with the reason.

    Example: paser catalogue rebuild
    """
    from paser.lineage.history import LOCK, rebuild

    known = open_catalogue(project, where)
    found = rebuild(project.resolve(), known)
    if as_json:
        print_json([item.as_json() for item in found])
    else:
        for item in found:
            print(f"{item.commit[:10]} {item.digest or LOCK}: {item.state} {item.detail}")
        states = [item.state for item in found]
        counts = ", ".join(f"{states.count(state)} {state}" for state in ("added", "known", "missing"))
        print(f"{len(found)} entries in the history of dvc.lock: {counts}")
    if any(item.state == "missing" for item in found):
        raise typer.Exit(NO)


@audit.command()
def reproduce(
    model: Path,
    out: Annotated[
        Path, typer.Option("--out", file_okay=False, help="New folder for the model that is trained again.")
    ] = Path("reproduced"),
    entry: Entry = None,
    as_json: AsJson = False,
) -> None:
    """Train the model again from its record and compare the weights; exit code 1 if they differ.

    Example: paser audit reproduce data/models/recovered --out /tmp/again
    """
    from paser.lineage import reproduce as again

    open_catalogue(HERE, None)
    found = again.reproduce(model, out, entry)
    if as_json:
        print_json(found.as_json())
    else:
        for file in found.files:
            print(f"{'same   ' if file.same else 'DIFFERS'} {file.file} {file.found or 'missing'}")
        for difference in found.differences:
            print(f"not as recorded: {difference}")
        if not found.same:
            print(f"largest change of a weight: {found.largest_change}; {found.may_differ}")
        print(f"{'the same bytes' if found.same else 'NOT the same bytes'} as {found.model}, in {found.out}")
    if not found.same:
        raise typer.Exit(1)


@audit.command()
def export(
    model: Path,
    target: Annotated[Path, typer.Argument(file_okay=False, help="Folder for the documents.")],
    format: Annotated[
        list[str] | None,
        typer.Option(
            "--format", help="cyclonedx, prov, model-card, dataset-card or croissant; all by default."
        ),
    ] = None,
    entry: Entry = None,
    as_json: AsJson = False,
) -> None:
    """Write standard documents about a model: bill of materials, provenance, cards, data set.

    Example: paser audit export data/models/recovered documents --format cyclonedx
    """
    from paser.lineage.documents.export import export as write_documents

    open_catalogue(HERE, None)
    written = [str(path) for path in write_documents(_entry_of(model, entry), target, format)]
    if as_json:
        print_json(written)
    else:
        print("\n".join(written))


@audit.command()
def sign(
    model: Path,
    key: Annotated[
        Path | None,
        typer.Option("--key", dir_okay=False, help="Private Ed25519 key (PEM); or in PASER_SIGNING_KEY."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", dir_okay=False, help="Default: beside the model.")
    ] = None,
    entry: Entry = None,
    as_json: AsJson = False,
) -> None:
    """Sign a model's proof, so that nobody without the key can rewrite it unseen.

    Example: paser audit sign data/models/recovered --key ~/keys/release.pem
    """
    from paser.lineage import signature
    from paser.lineage.entry import find_entry

    open_catalogue(HERE, None)
    place = out or signature.default_place(model)
    content = signature.sign(model, entry or find_entry(model), place, key)
    if as_json:
        print_json(content)
    else:
        print(f"{place}: Merkle root {content['signed']['merkle_root']} signed")


def _entry_of(model: Path, entry: Path | None) -> Path:
    """The entry of a recovered model; a control has no documents of its own."""
    from paser.lineage.provenance import load_provenance
    from paser.lineage.trace import entry_of

    provenance = load_provenance(model)
    if provenance["role"] == "control":
        raise PaserError(
            f"{model} is a control: its audit entry describes the recovered model",
            remedy="give the recovered model's folder",
        )
    return entry_of(model, entry, provenance).root
