"""Files are complete or absent, digests stable, tables of the declared shape, the cache bounded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from paser import artifacts
from paser.cache import Cache
from paser.errors import PaserError
from paser.records import Sample, normalise, row_id, row_to_sample, sample_to_row


def test_row_id_is_the_same_for_equal_texts_and_for_no_others() -> None:
    known = row_id("Add", "1 2", "3")
    assert known == "r1-89d9db10175c6e88403c47a012d60c3b29fccb747fa8b1d9d1edf40d7eb3b77a"
    assert row_id("Add\r\n", " 1 2", "3 ") == known
    assert row_id("e\u0301", "", "x") == row_id("\u00e9", "", "x")
    assert row_id("Add 1", "2", "3") != known
    assert row_id("Add\x1f1 2", "", "3") != row_id("Add", "1 2", "3")
    assert normalise(" a\x1fb\r") == "ab"


def test_sample_survives_the_table(tmp_path: Path) -> None:
    sample = Sample("s", "7", "MIT", "Do it", "", "Done", label="x", benchmark=None)
    row = sample_to_row(sample, tokens=5)
    artifacts.write_table(tmp_path / "p.parquet", "pool", [row])
    back = artifacts.read_rows(tmp_path / "p.parquet", "pool")
    assert row_to_sample(back[0]) == sample
    assert back[0]["row_id"] == sample.row_id
    first = (tmp_path / "p.parquet").read_bytes()
    artifacts.write_table(tmp_path / "p.parquet", "pool", [row])
    assert (tmp_path / "p.parquet").read_bytes() == first


def test_tables_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PaserError, match="'extra'"):
        artifacts.write_table(tmp_path / "c.parquet", "clusters", [{"row_id": "a", "extra": 1}])
    artifacts.write_table(
        tmp_path / "c.parquet", "clusters", [{"row_id": "a", "split": "pool", "cluster": 1}]
    )
    with pytest.raises(PaserError, match="has no column 'jsd'"):
        artifacts.read_rows(tmp_path / "c.parquet", "scores")
    (tmp_path / "bad.parquet").write_bytes(b"nonsense")
    with pytest.raises(PaserError, match="not a parquet file"):
        artifacts.read_rows(tmp_path / "bad.parquet", "scores")


def test_staged_writes_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with artifacts.staged(target) as partial:
        partial.write_text("one", encoding="utf-8")
        assert not target.exists()
    with pytest.raises(ValueError, match="stop"), artifacts.staged(target) as partial:
        partial.write_text("two", encoding="utf-8")
        raise ValueError("stop")
    assert target.read_text(encoding="utf-8") == "one"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_tree_digest_sees_names_bytes_and_nothing_else(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "b.txt").write_text("b", encoding="utf-8")
        (tmp_path / name / "a.txt").write_text("a", encoding="utf-8")
    assert artifacts.sha256_path(tmp_path / "one") == artifacts.sha256_path(tmp_path / "two")
    (tmp_path / "two" / "a.txt").rename(tmp_path / "two" / "c.txt")
    assert artifacts.sha256_path(tmp_path / "one") != artifacts.sha256_path(tmp_path / "two")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"),
        OSError(28, "No space left on device"),
    ],
)
def test_a_full_disk_is_told_whoever_reports_it(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(PaserError, match=r"no space left[\s\S]*free some space"),
        artifacts.staged(tmp_path / "x"),
    ):
        raise error
    with pytest.raises(RuntimeError, match="something else"), artifacts.staged(tmp_path / "x"):
        raise RuntimeError("something else")


def test_arrays_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(PaserError, match="not a plain array"):
        artifacts.read_array(tmp_path / "x.npy")


def test_fingerprints_refuse_what_has_no_stable_form() -> None:
    assert artifacts.fingerprint({"a": 1, "b": [2]}) == artifacts.fingerprint({"b": [2], "a": 1})
    with pytest.raises(TypeError):
        artifacts.fingerprint({"a": object()})
    with pytest.raises(ValueError, match="JSON"):
        artifacts.fingerprint({"a": float("nan")})


def test_json_must_be_json(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{", encoding="utf-8")
    with pytest.raises(PaserError, match="is not JSON"):
        artifacts.read_json(tmp_path / "x.json")
    with pytest.raises(PaserError, match="does not exist"):
        artifacts.read_json(tmp_path / "y.json")


def test_the_cache_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    assert cache.prune(0) == []
    for age, name in ((300, "old"), (200, "middle"), (100, "new")):
        entry = cache.entry("room", name)
        entry.write_bytes(b"x" * 1000)
        stamp = entry.stat().st_mtime - age
        os.utime(entry, (stamp, stamp))
    assert cache.size() == 3000
    assert cache.prune(2000) == ["room/old"]
    cache.entry("room", "middle")  # used again: now the newest
    assert cache.prune(1000) == ["room/new"]
