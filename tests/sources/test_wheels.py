from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from paser.artifacts import files_below
from paser.cache import Cache
from paser.errors import SourceError
from paser.sources.uri import PypiUri
from paser.sources.wheels import cached_wheel, extract

from .conftest import Index

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


def test_what_a_killed_download_left_is_no_wheel_and_is_cleared(index: Index, cache: Cache) -> None:
    digest = index.add("demo_rows", FILES)
    left = cache.root / "wheels" / f"{digest}.download-1"
    left.mkdir(parents=True)
    (left / "demo_rows-1.0-py3-none-any.whl").write_bytes(b"half")
    entry = cached_wheel(uri(digest), cache)
    assert zipfile.is_zipfile(entry)
    assert list(entry.parent.iterdir()) == [entry]


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
