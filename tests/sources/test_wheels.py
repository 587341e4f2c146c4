from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

import pytest

from paser.artifacts import files_below
from paser.cache import Cache
from paser.errors import PaserError, SourceError
from paser.sources.uri import PypiUri
from paser.sources.wheels import cached_wheel, extract

from .conftest import Index

WHEEL = "demo_rows-1.0-py3-none-any.whl"

FILES = {
    "demo_rows/__init__.py": "raise RuntimeError('imported')",
    "demo_rows/data/a.json": "[1]",
    "demo_rows/data/more/b.json": "[2]",
}


def uri(digest: str, *globs: str, version: str = "1.0") -> PypiUri:
    return PypiUri("demo_rows", version, digest, globs or ("demo_rows/data/**",))


def test_only_the_named_files_are_taken_out_and_nothing_is_imported(
    index: Index, cache: Cache, tmp_path: Path
) -> None:
    wanted = uri(index.add("demo_rows", FILES))
    extract(cached_wheel(wanted, cache), wanted, tmp_path / "out")
    found = {p.relative_to(tmp_path / "out").as_posix(): p.read_text() for p in files_below(tmp_path / "out")}
    assert found == {"a.json": "[1]", "more/b.json": "[2]"}
    assert "demo_rows" not in sys.modules


def test_a_second_fetch_needs_no_index(index: Index, cache: Cache) -> None:
    wanted = uri(index.add("demo_rows", FILES))
    first = cached_wheel(wanted, cache)
    for wheel in index.folder.iterdir():
        wheel.unlink()
    assert cached_wheel(wanted, cache) == first


def test_an_altered_wheel_in_the_cache_is_fetched_again(
    index: Index, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = uri(index.add("demo_rows", FILES))
    entry = cached_wheel(wanted, cache)
    right = entry.read_bytes()
    entry.write_bytes(right[:-1] + b"!")
    assert cached_wheel(wanted, cache).read_bytes() == right
    assert "altered" in capsys.readouterr().err


def test_a_wrong_digest_is_refused_with_both_and_nothing_is_kept(index: Index, cache: Cache) -> None:
    found = index.add("demo_rows", FILES)
    with pytest.raises(SourceError) as caught:
        cached_wheel(uri("0" * 64), cache)
    assert found in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert list((cache.root / "wheels").iterdir()) == []


def test_a_failing_download_names_package_and_remedy(index: Index, cache: Cache) -> None:
    with pytest.raises(SourceError, match=r"could not download demo_rows==9\.9: .*9\.9") as caught:
        cached_wheel(uri("0" * 64, version="9.9"), cache)
    assert "network" in str(caught.value)
    assert list((cache.root / "wheels").iterdir()) == []


def test_what_a_killed_download_left_is_no_wheel_and_is_cleared(
    index: Index, cache: Cache, dead: str, alive: str
) -> None:
    """What another run is downloading now is left to it."""
    digest = index.add("demo_rows", FILES)
    left, other = (cache.root / "wheels" / f"{digest}.download-{end}" for end in (dead, alive))
    for folder in (left, other):
        folder.mkdir(parents=True)
        (folder / "demo_rows-1.0-py3-none-any.whl").write_bytes(b"half")
    entry = cached_wheel(uri(digest), cache)
    assert zipfile.is_zipfile(entry)
    assert sorted(entry.parent.iterdir()) == [entry, other]


class HalfIndex:
    """A package index on this machine that sends half of a wheel, then breaks off, or waits."""

    def __init__(self, wheel: bytes) -> None:
        self.half_sent, self.go_on = threading.Event(), threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = wheel if self.path.endswith(".whl") else f'<a href="{WHEEL}">x</a>'.encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html" if body != wheel else "application/zip")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if body == wheel:
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    index.half_sent.set()
                    index.go_on.wait(60)
                    self.close_connection = True
                else:
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def half(index: Index, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[HalfIndex, str]]:
    """An index that breaks off, set for pip, and the digest of its wheel."""
    digest = index.add("demo_rows", FILES | {"demo_rows/data/big.txt": "0123456789" * 100_000})
    made = HalfIndex((index.folder / WHEEL).read_bytes())
    for key in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("PIP_FIND_LINKS", made.url)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_RESUME_RETRIES", "0")
    yield made, digest
    made.close()


def test_a_download_that_breaks_off_leaves_nothing_and_can_be_repeated(
    half: tuple[HalfIndex, str], index: Index, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, digest = half
    broken.go_on.set()
    with pytest.raises(SourceError, match=r"could not download demo_rows==1\.0") as caught:
        cached_wheel(uri(digest), cache)
    assert broken.half_sent.is_set()
    assert "run the same command again" in str(caught.value)
    assert list((cache.root / "wheels").iterdir()) == []
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.folder))
    assert zipfile.is_zipfile(cached_wheel(uri(digest), cache))


def test_a_killed_download_leaves_nothing_under_the_final_name(
    half: tuple[HalfIndex, str], index: Index, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled, digest = half
    code = (
        "import sys; from pathlib import Path; from paser.cache import Cache; "
        "from paser.sources.uri import PypiUri; from paser.sources.wheels import cached_wheel; "
        "cached_wheel(PypiUri('demo_rows', '1.0', sys.argv[2], ('**',)), Cache(Path(sys.argv[1])))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(cache.root), digest], start_new_session=True, stderr=subprocess.PIPE
    )
    try:
        assert stalled.half_sent.wait(60)
        assert child.poll() is None
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    assert not (cache.root / "wheels" / digest).exists()
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.folder))
    entry = cached_wheel(uri(digest), cache)
    assert zipfile.is_zipfile(entry)
    assert list(entry.parent.iterdir()) == [entry]


def test_a_full_disk_while_extracting_is_said_with_the_file(
    index: Index, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: IO[bytes], stream: IO[bytes], length: int = 0) -> None:
        stream.write(source.read(2))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    wanted = uri(index.add("demo_rows", FILES))
    wheel = cached_wheel(wanted, cache)
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(PaserError, match=r"no space left on the disk while writing .*a\.json") as caught:
        extract(wheel, wanted, tmp_path / "out")
    assert "free some space" in str(caught.value)


def test_a_glob_that_matches_nothing_is_named(index: Index, cache: Cache, tmp_path: Path) -> None:
    wanted = uri(index.add("demo_rows", FILES), "demo_rows/data/a.json", "demo_rows/none/*.json")
    with pytest.raises(SourceError, match=r"no file that matches 'demo_rows/none/\*\.json'"):
        extract(cached_wheel(wanted, cache), wanted, tmp_path / "out")


@pytest.mark.parametrize("name", ["demo_rows/../../evil.json", "/evil.json", "demo_rows/..\\evil.json"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    wheel = tmp_path / "demo.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("demo_rows/good.json", "[]")
        archive.writestr(zipfile.ZipInfo(name), "[]")
    with pytest.raises(SourceError, match="unsafe path"):
        extract(wheel, uri("0" * 64, "**"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wheel_that_is_no_archive_is_said(tmp_path: Path) -> None:
    (tmp_path / "demo.whl").write_bytes(b"not a zip")
    with pytest.raises(SourceError, match="not a readable wheel"):
        extract(tmp_path / "demo.whl", uri("0" * 64), tmp_path / "out")
