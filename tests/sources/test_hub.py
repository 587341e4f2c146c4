"""The Hub's client against a cache on disk, in its offline mode; the Hub itself is never asked."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants

from paser.artifacts import files_below
from paser.errors import PaserError, SourceError
from paser.sources.hub import fetch_repository, wanted
from paser.sources.uri import HfUri

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as the client lays it out, with one model at one commit."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--me--tiny"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "modeling_tiny.py", "README.md"):
        (snapshot / name).write_text(name)
    return tmp_path / "hub"


def test_a_branch_is_resolved_to_a_commit_and_warned_about(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = fetch_repository(HfUri("me/tiny", "main"), tmp_path / "out", model=True, cache_dir=hub)
    assert commit == COMMIT
    assert f"hf:me/tiny@{COMMIT}" in capsys.readouterr().err


def test_a_commit_is_fetched_without_warning_and_without_pickles_or_code(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch_repository(HfUri("me/tiny", COMMIT), tmp_path / "out", model=True, cache_dir=hub)
    assert [p.name for p in files_below(tmp_path / "out")] == ["config.json", "model.safetensors"]
    assert "warning" not in capsys.readouterr().err


def test_a_glob_narrows_the_files(hub: Path, tmp_path: Path) -> None:
    fetch_repository(HfUri("me/tiny", COMMIT, ("*.json",)), tmp_path / "out", model=True, cache_dir=hub)
    assert [p.name for p in files_below(tmp_path / "out")] == ["config.json"]


def test_a_repository_with_nothing_usable_is_said(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no files of a usable kind"):
        fetch_repository(HfUri("me/tiny", COMMIT, ("*.bin",)), tmp_path / "out", model=True, cache_dir=hub)


def test_without_network_and_cache_the_error_says_so(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not in the local cache and the Hub cannot be reached"):
        fetch_repository(HfUri("me/other", "main"), tmp_path / "out", model=True, cache_dir=hub)


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


@pytest.mark.parametrize(
    "error",
    [
        httpx.ReadError("connection reset by peer\nmore"),
        httpx.ConnectError(""),
        httpx.RemoteProtocolError("peer closed connection"),
        httpx.ReadTimeout("timed out"),
    ],
)
def test_an_interrupted_download_says_how_to_go_on(
    error: httpx.HTTPError, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing(monkeypatch, error)
    with pytest.raises(SourceError) as caught:
        fetch_repository(HfUri("me/tiny", COMMIT), tmp_path / "out", model=True)
    reason = str(error).partition("\n")[0] or "ConnectError"
    assert caught.value.problem == f"hf:me/tiny@{COMMIT}: the download was interrupted: {reason}"
    assert caught.value.remedy == "run the same command again; finished files are kept"


def test_a_refusal_of_the_hub_is_no_interruption(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    response = httpx.Response(404, request=httpx.Request("GET", "https://hub.invalid/me/tiny"))
    failing(monkeypatch, huggingface_hub.errors.RepositoryNotFoundError("404: not found", response=response))
    with pytest.raises(SourceError, match="cannot be fetched: 404: not found") as caught:
        fetch_repository(HfUri("me/tiny", COMMIT), tmp_path / "out", model=True)
    assert "check owner, name and revision" in str(caught.value)


def test_a_full_disk_during_a_download_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(PaserError, match=r"no space left on the disk while writing .*hub"):
        fetch_repository(HfUri("me/tiny", COMMIT), tmp_path / "out", model=True, cache_dir=tmp_path / "hub")


@pytest.mark.parametrize(
    ("name", "model", "data"),
    [
        ("model-00001-of-00002.safetensors", True, False),
        ("tokenizer.json", True, True),
        ("1_Pooling/config.json", True, True),
        ("pytorch_model.bin", False, False),
        ("model.pt", False, False),
        ("modeling_x.py", False, False),
        ("data/train.jsonl.gz", False, True),
        ("data/train.parquet", False, True),
    ],
)
def test_which_files_are_fetched(name: str, model: bool, data: bool) -> None:
    assert wanted(name, model=True) is model
    assert wanted(name, model=False) is data
