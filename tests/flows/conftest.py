"""One Prefect server a test run, in a home of its own, and small DVC projects for flows to work on."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests import project as projects

# Read when prefect is imported.
HOME = tempfile.mkdtemp(prefix="paser-prefect-")
os.environ |= {
    "PREFECT_HOME": HOME,
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "DO_NOT_TRACK": "1",
}
for name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
    os.environ.pop(name, None)

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a running server's API; flows called in this process use it."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        url = str(PREFECT_API_URL.value())
        yield url
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> Path:
    """A copy of the tiny project after `dvc repro`."""
    return Path(shutil.copytree(finished, tmp_path / "done", symlinks=True))


@pytest.fixture
def toy(tmp_path: Path) -> Make:
    """Makes a DVC project of shell commands: `toy(a={"cmd": ..., "deps": [...], "outs": [...]})`."""

    def make(**stages: dict[str, object]) -> Path:
        folder = tmp_path / "toy"
        folder.mkdir()
        (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
        (folder / "source.txt").write_text("source\n")
        (folder / "other.txt").write_text("other\n")
        (folder / "params.yaml").write_text("seed: 1\n")
        projects.run(folder, "git", "init", "-q")
        projects.run(folder, "dvc", "init", "-q")
        return folder

    return make
