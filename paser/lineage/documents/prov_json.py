"""W3C PROV-JSON: every artefact of the chain as an entity, every stage as an activity, PASER as the agent."""

from __future__ import annotations

import json
from typing import Any

from paser.artifacts import json_text
from paser.lineage.chain import artefacts, chain_order
from paser.lineage.documents.facts import Facts

NAMESPACE = "urn:paser:"


def prov(facts: Facts) -> str:
    """The document as text. An entity is a path with a digest, so the same path read with other bytes than
    were written is another entity."""
    from prov.model import ProvDocument

    document = ProvDocument()
    document.add_namespace("paser", NAMESPACE)
    agent = document.agent("paser:paser", {"prov:type": "prov:SoftwareAgent", "paser:version": facts.version})
    entities: dict[str, Any] = {}

    def entity(artefact: Any) -> Any:
        name = f"paser:{artefact.path.replace('/', '.')}-{artefact.sha256[:16]}"
        if name not in entities:
            known = {"paser:path": artefact.path, "paser:sha256": artefact.sha256}
            if artefact.rows is not None:
                known["paser:rows"] = artefact.rows
            entities[name] = document.entity(name, known)
        return entities[name]

    for stage in chain_order(facts.records):
        record = facts.records[stage]
        activity = document.activity(
            f"paser:stage-{stage}",
            other_attributes={
                "paser:code": record["code"],
                "paser:seed": record["seed"],
                "paser:params": json.dumps(record["params"], sort_keys=True),
            },
        )
        document.wasAssociatedWith(activity, agent)
        read = [entity(artefact) for artefact in artefacts(record, "inputs")]
        for one in read:
            document.used(activity, one)
        for artefact in artefacts(record, "outputs"):
            written = entity(artefact)
            document.wasGeneratedBy(written, activity)
            for one in read:
                document.wasDerivedFrom(written, one)
    return json_text(json.loads(document.serialize(format="json") or "{}"))
