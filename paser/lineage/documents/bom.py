"""CycloneDX ML-BOM 1.6: the model, what it was made from, and its model card.

The library writes and validates the document; the model card and the data components' details, which its
objects do not have, are added to its JSON.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from paser.artifacts import json_text
from paser.errors import PaserError
from paser.lineage.documents.facts import (
    LIMITS,
    ORIGINAL,
    PRUNED,
    RECOVERED,
    SELECTED,
    Facts,
    results,
)

MODEL, BASE, PRUNED_REF, SELECTION = "model", "model-original", "model-pruned", "selected-rows"


def bom(facts: Facts) -> str:
    """The document as text, validated; its serial number follows from the entry."""
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import DisjunctiveLicense
    from cyclonedx.output.json import JsonV1Dot6

    def hashed(path: str) -> list[HashType]:
        return [HashType(alg=HashAlgorithm.SHA_256, content=facts.digests[path])]

    def model(name: str, ref: str, path: str) -> Component:
        return Component(
            name=name, type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref=ref, hashes=hashed(path)
        )

    recovered = model(facts.name, MODEL, RECOVERED)
    original, pruned = model("original", BASE, ORIGINAL), model("pruned", PRUNED_REF, PRUNED)
    selection = Component(
        name="selected rows",
        type=ComponentType.DATA,
        bom_ref=SELECTION,
        hashes=hashed(SELECTED),
        properties=[
            Property(name="paser:merkle_root", value=facts.merkle_root),
            Property(name="paser:rows", value=str(facts.rows)),
            Property(name="paser:tokens", value=str(facts.tokens)),
        ],
    )
    sources = [
        Component(
            name=source["name"],
            type=ComponentType.DATA,
            bom_ref=f"source-{source['name']}",
            licenses=[DisjunctiveLicense(name=license) for license in facts.license_of(source["name"])],
            properties=[
                Property(name="paser:rows", value=str(source["rows"])),
                Property(name="paser:tokens", value=str(source["tokens"])),
            ],
        )
        for source in facts.by_source
    ]
    document = Bom(
        components=[original, pruned, selection, *sources],
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"paser:{facts.entry_sha256}"),
    )
    document.metadata.component = recovered
    document.metadata.tools.components.add(
        Component(name="paser", version=facts.version, type=ComponentType.APPLICATION)
    )
    document.register_dependency(recovered, [pruned, selection])
    document.register_dependency(pruned, [original])
    document.register_dependency(selection, sources)
    content = json.loads(JsonV1Dot6(document).output_as_string())
    del content["metadata"]["timestamp"]
    content["metadata"]["component"]["modelCard"] = _model_card(facts)
    for component in content["components"]:
        if component["type"] == "data":
            kind = {"type": "dataset", "name": component["name"]}
            if component["bom-ref"] != SELECTION:
                kind["description"] = "a source of the pool, as far as its rows were selected"
            component["data"] = [kind]
    text = json_text(content)
    validate(text)
    return text


def validate(text: str) -> None:
    """Raises `PaserError` where a text is no CycloneDX 1.6 document, by the library's strict validator."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        raise PaserError(f"the bill of materials is not valid CycloneDX 1.6: {problem}")


def _model_card(facts: Facts) -> dict[str, Any]:
    prune, metrics = facts.settings["prune"]["prune"], []
    for found in results(facts):
        if found["model"] != "recovered":
            continue
        metric = {"type": found["metric"], "value": repr(found["value"]), "slice": found["capability"]}
        if found["low"] is not None:
            metric["confidenceInterval"] = {
                "lowerBound": repr(found["low"]),
                "upperBound": repr(found["high"]),
            }
        metrics.append(metric)
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "text-generation",
            "datasets": [{"ref": SELECTION}],
        },
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "considerations": {"technicalLimitations": list(LIMITS)},
        "properties": [
            {"name": "paser:merkle_root", "value": facts.merkle_root},
            {"name": "paser:entry_sha256", "value": facts.entry_sha256},
            *({"name": f"paser:prune.{key}", "value": str(value)} for key, value in sorted(prune.items())),
        ],
    }
