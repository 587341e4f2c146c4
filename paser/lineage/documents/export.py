"""Writes the standard documents of an audit entry into a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from paser.artifacts import staged
from paser.errors import PaserError
from paser.lineage.documents.bom import bom
from paser.lineage.documents.cards import dataset_card, model_card
from paser.lineage.documents.croissant import FILE, croissant
from paser.lineage.documents.facts import Facts, read_facts
from paser.lineage.documents.prov_json import prov

# Format -> name of the file, and what makes its text.
FORMATS: dict[str, tuple[str, Callable[[Facts], str]]] = {
    "cyclonedx": ("bom.cdx.json", bom),
    "prov": ("prov.json", prov),
    "model-card": ("model-card.md", model_card),
    "dataset-card": ("dataset-card.md", dataset_card),
    "croissant": ("croissant.json", croissant),
}


def export(entry: Path, target: Path, formats: list[str] | None = None) -> list[Path]:
    """Writes the documents (all by default) and returns their paths; Croissant brings the rows along.

    Raises `PaserError` for an unknown format and for one whose library is not installed.
    """
    unknown = sorted({*(formats or [])} - {*FORMATS})
    if unknown:
        raise PaserError(f"unknown format {unknown[0]!r}", remedy=f"one of {', '.join(FORMATS)}")
    facts = read_facts(entry)
    written = []
    for name in formats or list(FORMATS):
        file, make = FORMATS[name]
        try:
            text = make(facts)
        except ImportError as error:
            raise PaserError(
                f"format {name} needs {error.name}, which is not installed",
                remedy="pip install 'paser[audit]'",
            ) from error
        with staged(target / file) as partial:
            partial.write_text(text, encoding="utf-8")
        written.append(target / file)
        if name == "croissant":
            shutil.copyfile(entry / FILE, target / FILE)
            written.append(target / FILE)
    return written
