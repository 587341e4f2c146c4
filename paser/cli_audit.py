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
def verify(model: Path, entry: Entry = None, as_json: AsJson = False) -> None:
    """Check every digest from the sources to the model; exit code 1 if anything does not agree.

    Example: paser audit verify data/models/recovered
    """
    from paser.lineage import verify as verifying

    checks = verifying.verify(model, entry)
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
