"""Tiny real models, made once a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import project as projects
from tests import tiny

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


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
def finished(tmp_path_factory: pytest.TempPathFactory, llama: Path, encoder: Path) -> Path:
    """A project after `dvc repro`; whoever alters it works on a copy, or puts everything back."""
    folder = projects.make_project(tmp_path_factory.mktemp("project") / "p", llama, encoder)
    projects.run(folder, "dvc", "repro")
    return folder
