"""The worker image, as far as it can be checked without a GPU and without Docker."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def script() -> Any:
    """The script that writes constraints-cuda.txt."""
    spec = importlib.util.spec_from_file_location("constraints_cuda", ROOT / ".ci/constraints_cuda.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    sources = [word for line in re.findall(r"(?m)^COPY (.*)$", DOCKERFILE) for word in line.split()[:-1]]
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split() if line[0] == "!"
    }
    assert {"pyproject.toml", "constraints-cuda.txt", "paser"} <= set(sources) == kept
    for source in sources:
        assert (ROOT / source).exists(), source
    links = [path for path in (ROOT / "paser").rglob("*") if path.is_symlink()]
    assert {path.resolve().relative_to(ROOT).as_posix() for path in links} <= set(sources)
    for needed in (PROJECT["readme"], *PROJECT["license-files"]):
        assert needed in sources


def test_the_image_installs_extras_and_runs_a_command_that_exist() -> None:
    (extras,) = re.findall(r"pip install --constraint constraints-cuda.txt '\.\[([a-z,]+)\]'", DOCKERFILE)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    (command,) = re.findall(r'(?m)^CMD \["(\w+)"', DOCKERFILE)
    assert command in PROJECT["scripts"]
    major, minor = re.findall(r"(?m)^FROM python:(\d+)\.(\d+)", DOCKERFILE)[0]
    assert PROJECT["requires-python"] == f">={major}.{minor}"


def test_the_image_says_that_it_was_never_run() -> None:
    assert "NOT RUN" in DOCKERFILE
    assert "never installed on a machine with a GPU" in (ROOT / "constraints-cuda.txt").read_text()


def test_constraints_for_cuda_are_the_others_and_torchs_companions(script: Any) -> None:
    plain, cuda = (script.pins(ROOT / name) for name in ("constraints.txt", "constraints-cuda.txt"))
    assert {name: cuda.get(name) for name in plain} == plain
    added = set(cuda) - set(plain)
    assert {"triton", "nvidia-nccl-cu13", "nvidia-cudnn-cu13"} <= added
    assert all(name == "triton" or name.startswith(("nvidia-", "cuda-")) for name in added)


def test_every_package_that_the_image_asks_for_is_pinned(script: Any) -> None:
    pinned = script.pins(ROOT / "constraints-cuda.txt")
    asked = [*PROJECT["dependencies"]]
    for extra in ("flows", "ray"):
        asked += PROJECT["optional-dependencies"][extra]
    names = {script.normalised(re.split(r"[<>=\[;]", line)[0].strip()) for line in asked}
    assert names - set(pinned) == {"pip"}


@pytest.mark.slow
def test_pip_resolves_to_exactly_these_versions(script: Any) -> None:
    """Whatever build of torch pip finds here."""
    pinned = script.pins(ROOT / "constraints-cuda.txt")
    found = script.resolved(ROOT / "constraints-cuda.txt")
    for name in ("paser", "pip", "setuptools"):
        found.pop(name, None)
    assert {name: version.partition("+")[0] for name, version in found.items()} == {
        name: pinned.get(name) for name in found
    }
    assert "torch" in found
