from __future__ import annotations

import sys
from pathlib import Path

import pytest

from paser.stages.run import run_stage

sys.path.append(str(Path(__file__).parent.parent / "lineage"))
from synthetic_project import NAMES, build, sample

HOSTILE = "<script>alert(1)</script>"


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
