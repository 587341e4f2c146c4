"""Which project a flow works on: the one named, else `PASER_PROJECT`, else the clone it is installed from."""

from __future__ import annotations

import os
from pathlib import Path

from flows.errors import FlowError

VARIABLE = "PASER_PROJECT"


def find_project(named: str | None = None) -> Path:
    """The project's folder, absolute; raises `FlowError` where there is no `dvc.yaml`."""
    folder = Path(named or os.environ.get(VARIABLE) or Path(__file__).parent.parent).expanduser().resolve()
    if not (folder / "dvc.yaml").is_file():
        raise FlowError(
            f"{folder} is no PASER project: it has no dvc.yaml",
            remedy=f"name the clone in the flow's parameter `project` or in {VARIABLE}",
        )
    return folder
