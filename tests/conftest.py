"""Tiny real models, made once a run."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests import project as projects
from tests import tiny

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2`, processes share the tests by file; flows stay together: they share a Prefect server."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "flows" if nodeid.startswith("tests/flows/") else str(super()._split_scope(nodeid))

    return ByFile(config, log)


@pytest.fixture
def dead() -> str:
    """What the names of a process on this host that is gone end with."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return f"{socket.gethostname()}-{process.pid}"


@pytest.fixture
def alive() -> Iterator[str]:
    """The same of one that runs."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield f"{socket.gethostname()}-{process.pid}"
        process.kill()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with a chat template."""
    return tiny.make_llama(tmp_path_factory.mktemp("models") / "dense")


@pytest.fixture(scope="session")
def sparse_llama(llama: Path) -> Path:
    """The same with half of each linear layer's weights zero."""
    return tiny.make_sparse(llama, llama.with_name("sparse"))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer sentence encoder."""
    return tiny.make_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="session")
def after_repro(tmp_path_factory: pytest.TempPathFactory, llama: Path, encoder: Path) -> Iterator[Path]:
    """A project after `dvc repro`; whoever alters it works on a copy (checked at the end).

    It is made once: processes that share the tests each have a copy of it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            made = projects.make_project(tmp_path_factory.mktemp("project") / "p", llama, encoder)
            projects.run(made, "dvc", "repro")
            made.rename(shared)
    folder = Path(shutil.copytree(shared, tmp_path_factory.mktemp("finished") / "p", symlinks=True))
    before = _contents(folder)
    yield folder
    assert _contents(folder) == before, "a test altered the project that all tests share"


@pytest.fixture(scope="session")
def finished(after_repro: Path) -> Path:
    """The same, but for tests/lineage, whose own is synthetic."""
    return after_repro


def _contents(folder: Path) -> set[tuple[str, int]]:
    """The project's files with their sizes, without what every question may leave behind (caches, locks)."""
    kept = (path for top in ("data", ".paser") for path in (folder / top).rglob("*") if path.is_file())
    own = ((str(path.relative_to(folder)), path.stat().st_size) for path in kept)
    return {(name, size) for name, size in own if not name.startswith(".paser/cache/")}
