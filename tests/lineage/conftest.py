from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from paser.stages.run import run_stage

sys.path.append(str(Path(__file__).parent))
from synthetic_project import build


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stages up to `audit` have run; copy it before altering it."""
    root = build(tmp_path_factory.mktemp("finished") / "project")
    run_stage("audit", root)
    return root


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "project"))
