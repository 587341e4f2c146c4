"""The verbs of `paser audit`: an auditor's questions, each answered from a model's audit entry.

They are thin, like those of `paser/cli.py`, and apart from them only because they are many.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from paser.errors import PaserError
from paser.progress import console

audit = typer.Typer(help="Which rows went into a model, and is the record intact?", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Entry = Annotated[
    Path | None, typer.Option("--entry", help="Audit entry (data/audit) of a model that was copied away.")
]


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))


@audit.command()
def trace(
    model: Path,
    entry: Entry = None,
    rows: Annotated[bool, typer.Option("--rows", help="Show all rows, not only the first 10.")] = False,
    as_json: AsJson = False,
) -> None:
    """Which rows, from which sources, through which scores, went into a model.

    Example: paser audit trace data/models/recovered --rows
    """
    from paser.lineage import trace as tracing

    found = tracing.trace(model, entry)
    if as_json:
        print_json(found.as_json())
    else:
        tracing.render(found, console(), all_rows=rows)


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


@audit.command()
def prove(
    model: Path,
    row_id: Annotated[str, typer.Argument(help="A row id, or its beginning.")],
    out: Annotated[
        Path | None, typer.Option("--out", dir_okay=False, help="Write the proof to this file.")
    ] = None,
) -> None:
    """Prove that a row is among those a model was trained on, without showing any other row.

    Example: paser audit prove data/models/recovered r1-0f3a5c7e9b1d --out proof.json
    """
    from paser.artifacts import write_json
    from paser.lineage import proof as proving

    proof = proving.prove(model, row_id)
    if out is None:
        print_json(proof)
    else:
        write_json(out, proof)
        print(f"{out}: row {proof['row_id']} is row {proof['index'] + 1} of {proof['size']}")


@audit.command("check-proof")
def check_proof(
    proof: Annotated[Path, typer.Argument(dir_okay=False, help="What `paser audit prove` wrote.")],
    model: Annotated[
        Path | None, typer.Argument(help="The model, whose provenance.json states the root.")
    ] = None,
    root: Annotated[str | None, typer.Option("--root", help="The Merkle root, instead of a model.")] = None,
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
    if problem:
        print(f"the proof does not hold: {problem}")
        raise typer.Exit(1)
    place = f"row {found['index'] + 1} of the {size} rows" if size is not None else "among the rows"
    print(f"the proof holds: {found['row_id']} is {place} behind Merkle root {found['root']}")


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

    place = out or signature.default_place(model)
    content = signature.sign(model, entry or find_entry(model), place, key)
    if as_json:
        print_json(content)
    else:
        print(f"{place}: Merkle root {content['signed']['merkle_root']} signed")


def _entry_of(model: Path, entry: Path | None) -> Path:
    """The entry of a model; one that is of another model is an error."""
    from paser.artifacts import sha256_file
    from paser.lineage.entry import Entry as AuditEntry
    from paser.lineage.entry import describes, find_entry
    from paser.lineage.provenance import PROVENANCE, load_provenance

    provenance = load_provenance(model)
    found = entry or find_entry(model)
    if found is None:
        raise PaserError(f"no audit entry found for {model}", remedy="`dvc repro audit`, or give --entry")
    records = AuditEntry(found).records()
    if provenance["role"] != "recovered" or not describes(
        records, sha256_file(model / PROVENANCE), "recovered"
    ):
        raise PaserError(f"{found} is not the audit entry of {model}", remedy="give its entry with --entry")
    return found
