from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from paser.artifacts import write_json
from paser.stages.run import run_stage

sys.path.append(str(Path(__file__).parent.parent / "lineage"))
from synthetic_project import NAMES, build, sample

HOSTILE = "<script>alert(1)</script>"
SWEEP = """\
cell,state,tokens,fidelity_gap_recovered,gap_closed_recovered,fidelity_gap_control,gap_closed_control
select.budget=5%,Completed,5000,0.1,0.2,0.08,0.1
select.budget=20%,Completed,20000,0.3,0.6,0.25,
select.budget=90%,Failed,,,,,
"""


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose report has run, with markup in an instruction, a label's source and a cluster name."""
    row = sample("code", 500, "pool")
    row |= {"instruction": f'{HOSTILE} & "quotes"', "source": "<b>bold</b>", "row_id": "r1-" + "e" * 64}
    names = (f"$x$ {HOSTILE}", *NAMES[1:])
    root = build(tmp_path_factory.mktemp("reported") / "project", per_label=2, names=names, pool_rows=[row])
    run_stage("audit", root)
    run_stage("report", root)
    return root


def task(name: str, better: str = "higher", **more: Any) -> dict[str, Any]:
    """A line of the scoreboard."""
    values = {m: {"value": v, "stderr": 0.02} for m, v in zip(MODELS, (0.6, 0.4, 0.5, 0.45), strict=True)}
    gaps = {m: {"value": 0.5, "low": 0.4, "high": 0.6} for m in ("recovered", "control")}
    line = {"section": "task", "name": name, "metric": "acc", "better": better, "units": 100, "limit": ""}
    return {**line, "no_gap": None, "values": values, "gap_closed": gaps, **more}


MODELS = ("original", "pruned", "recovered", "control")


@pytest.fixture(scope="session")
def reported_in_full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with tasks and a sweep as well, and markup wherever it may come from data."""
    row = sample("code", 500, "pool") | {"instruction": f'{HOSTILE} & "quotes"', "row_id": "r1-" + "e" * 64}
    names = (f"$x$ {HOSTILE}", *NAMES[1:])
    root = build(tmp_path_factory.mktemp("full") / "project", per_label=2, names=names, pool_rows=[row])
    (root / "sweep.csv").write_text(SWEEP, "utf-8")
    settings = (root / "params.yaml").read_text("utf-8")
    changed = settings.replace("{map_rows: 400}", "{map_rows: 400, sweep: sweep.csv}")
    (root / "params.yaml").write_text(changed, "utf-8")
    missing = {"values": {"original": {"value": 3.1}}, "no_gap": "no gap: no damage", "gap_closed": {}}
    write_json(
        root / "data/scoreboard.json",
        [
            task("hellaswag-100"),
            task("<img src=x onerror=alert(2)>"),
            task("wiki", "lower", section="text", metric="log perplexity", **missing),
        ],
    )
    run_stage("audit", root)
    run_stage("report", root)
    return root
