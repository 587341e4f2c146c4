"""What a run shows in Prefect's UI: tables of stages and of damage and budget, the report, progress."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

SHORT = 12


@dataclass
class ProgressShown:
    """The progress file of a running stage as a progress artifact; silent while the server is away."""

    stage: str
    path: Path
    artifact: UUID | None = None
    shown: float = field(default=-1.0)

    def update(self) -> None:
        try:
            state = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return
        percent = round(min(100.0, 100.0 * state["done"] / state["total"]), 1) if state["total"] else 0.0
        if (abs(percent - self.shown) < 1.0 and percent != 100.0) or percent == self.shown:
            return
        text = f"{state['title']}: {state['done']:,.0f} of {state['total']:,.0f} {state['unit']}"
        if state["left"] is not None:
            text += f", {state['left']:.0f} s left"
        try:
            if self.artifact is None:
                made: Any = create_progress_artifact(percent, key=f"progress-{self.stage}", description=text)
                self.artifact = made
            else:
                update_progress_artifact(self.artifact, progress=percent, description=text)
            self.shown = percent
        except httpx.HTTPError as error:
            get_run_logger().debug("progress of %s is not shown: %s", self.stage, error)


def stage_rows(project: Path, states: Mapping[str, tuple[str, float]]) -> list[dict[str, Any]]:
    """One line a stage: state, seconds of this run, rows and SHA-256 of what it wrote, from its record."""
    lines = []
    for name, (state, seconds) in states.items():
        done = state in ("Cached", "Restored", "Completed")
        outputs = _read(project / f"data/records/{name}.json").get("outputs", []) if done else []
        lines.append(
            {
                "stage": name,
                "state": state,
                "seconds": round(seconds, 1),
                "rows": ", ".join(f"{_name(o)} {o['rows']:,}" for o in outputs if o.get("rows") is not None),
                "sha256": ", ".join(f"{_name(o)} {o['sha256'][:SHORT]}" for o in outputs),
            }
        )
    return lines


def damage_rows(project: Path) -> list[dict[str, Any]]:
    """One line a capability: divergence of the pruned model, and what recovery and control closed of it."""
    lines = []
    for found in _read(project / "data/metrics.json").get("capabilities", []):
        line = {
            "capability": found["name"],
            "held-out rows": found["rows"],
            **{f"JSD {model}": _number(value) for model, value in found["jsd"].items()},
        }
        for model in ("recovered", "control"):
            for measure in ("fidelity_gap", "gap_closed"):
                point = (found.get(measure) or {}).get(model) or {}
                line[f"{measure.replace('_', ' ')} {model}"] = _number(point.get("value"))
        lines.append(line)
    return lines


def budget_rows(project: Path) -> list[dict[str, Any]]:
    """One line a cluster: its mean divergence, and the budget it was given and spent."""
    return [
        {
            "cluster": f"{found['cluster']} · {found['name']}",
            "mean JSD": _number(found["cds"]),
            **{key: found[key] for key in ("allocated", "spent", "accepted")},
        }
        for found in _read(project / "data/budget.json").get("clusters", [])
    ]


def show(project: Path, stages: list[dict[str, Any]], about: str) -> None:
    """Makes the artifacts of a run from what is there."""
    create_table_artifact(stages, key="stages", description=f"Stages of {about}")
    tables: Iterable[tuple[str, list[dict[str, Any]], str]] = (
        ("damage", damage_rows(project), "Damage by capability, and what was won back"),
        ("budget", budget_rows(project), "Budget by cluster"),
    )
    for key, rows, description in tables:
        if rows:
            create_table_artifact(rows, key=key, description=f"{description}; {about}")
    report = project / "data/report/index.html"
    if report.exists():
        create_link_artifact(
            report.as_uri(), key="report", link_text=str(report), description=f"Report of {about}"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return content


def _name(output: Mapping[str, Any]) -> str:
    return Path(output["path"]).name


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
