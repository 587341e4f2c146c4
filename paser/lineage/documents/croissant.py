"""Croissant 1.0: the selected rows as a data set that other tools can load, with its digest."""

from __future__ import annotations

import json

from paser.artifacts import json_text
from paser.lineage.documents.facts import SELECTED, Facts

FILE = "selected.jsonl"
_TEXTS = ("row_id", "instruction", "input", "output", "source", "source_row", "license", "label")
_NUMBERS = ("cluster", "tokens")


def croissant(facts: Facts) -> str:
    """The document as text; the file it describes lies beside it."""
    import mlcroissant as mlc

    fields = [
        mlc.Field(
            id=f"rows/{name}",
            name=name,
            data_types=mlc.DataType.TEXT if name in _TEXTS else mlc.DataType.INTEGER,
            source=mlc.Source(file_object=FILE, extract=mlc.Extract(column=name)),
        )
        for name in (*_TEXTS, *_NUMBERS)
    ]
    metadata = mlc.Metadata(
        name=f"paser-selected-{facts.merkle_root[:12]}",
        description=(
            f"{facts.rows} instruction rows ({facts.tokens} tokens) in training order, selected by PASER; "
            f"Merkle root of their ids {facts.merkle_root}."
        ),
        license=facts.licenses,
        conforms_to="http://mlcommons.org/croissant/1.0",
        version="1.0.0",
        distribution=[
            mlc.FileObject(
                id=FILE,
                name=FILE,
                content_url=FILE,
                encoding_formats=["application/jsonlines"],
                sha256=facts.digests[SELECTED],
            )
        ],
        record_sets=[mlc.RecordSet(id="rows", name="rows", fields=fields)],
    )
    return json_text(json.loads(json.dumps(metadata.to_json(), default=str)))
