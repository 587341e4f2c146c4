"""What all standard documents say about a model, read once from its audit entry.

None of them has a clock: the same entry gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paser.artifacts import read_json, sha256_file
from paser.lineage.chain import Record, artefacts
from paser.lineage.entry import ENTRY, Entry

Row = dict[str, Any]
ORIGINAL, PRUNED, RECOVERED = "data/models/original", "data/models/pruned", "data/models/recovered"
SELECTED = "data/selected.jsonl"
LIMITS = (
    "The records prove which rows were read and that nothing was altered since; that the weights were "
    "trained on those rows, only training again shows (`paser audit reproduce`).",
    "The intervals of the results cover the draw of held-out rows, not the choice of training rows or seed.",
    "Pruning and recovery were measured on the held-out rows of the same sources; other uses were not "
    "measured.",
)


@dataclass(frozen=True)
class Facts:
    """One model: counts, licences, digests by project path, settings by stage, results."""

    entry_sha256: str
    merkle_root: str
    rows: int
    tokens: int
    by_source: list[Row]
    by_license: list[Row]
    by_label: list[Row]
    benchmarks: list[str]
    digests: dict[str, str]
    settings: dict[str, Row]
    metrics: Row
    records: Mapping[str, Record]
    facts: Row
    version: str

    @property
    def licenses(self) -> list[str]:
        """Licences of the training rows, by name."""
        return sorted(row["name"] for row in self.by_license)

    @property
    def name(self) -> str:
        return f"paser-recovered-{self.merkle_root[:12]}"

    def license_of(self, source: str) -> list[str]:
        """Licences of a source's training rows."""
        return sorted({row["license"] for row in self.facts["selected"] if row["source"] == source})


def read_facts(root: Path) -> Facts:
    """Reads an audit entry; raises `PaserError` where it is none."""
    entry = Entry(root)
    content = entry.content()
    summary, records = content["summary"], entry.records()
    digests: dict[str, str] = {}
    for record in records.values():
        digests |= {a.path: a.sha256 for a in artefacts(record, "outputs")}
    recovery = records["recover"]
    return Facts(
        entry_sha256=sha256_file(root / ENTRY),
        merkle_root=content["merkle_root"],
        rows=summary["rows"],
        tokens=summary["tokens"],
        by_source=summary["by_source"],
        by_license=summary["by_license"],
        by_label=summary["by_label"],
        benchmarks=summary["benchmarks"]["trained"],
        digests=digests,
        settings=summary["settings"],
        metrics=read_json(root / "metrics.json"),
        records=records,
        facts={
            "selected": [{key: row[key] for key in ("source", "license")} for row in entry.trained()],
            "recover": recovery["facts"],
        },
        version=recovery["versions"]["paser"],
    )


def results(facts: Facts) -> list[Row]:
    """Measured values as `{model, capability, metric, value, low, high}`; loss and JSD in nats per token."""
    found: list[Row] = []
    for model, values in facts.metrics["overall"].items():
        for metric in ("loss", "jsd", "gap_closed", "fidelity_gap"):
            if (value := values.get(metric)) is not None:
                found.append(_result(model, "overall", metric, value))
    for capability in facts.metrics["capabilities"]:
        for metric in ("loss", "gap_closed"):
            for model, value in capability.get(metric, {}).items():
                if value is not None:
                    found.append(_result(model, capability["name"], metric, value))
    return found


def _result(model: str, capability: str, metric: str, value: Any) -> Row:
    interval = value if isinstance(value, dict) else {"value": value, "low": None, "high": None}
    return {
        "model": model,
        "capability": capability,
        "metric": metric,
        **{key: interval.get(key) for key in ("value", "low", "high")},
    }
