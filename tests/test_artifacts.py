"""Files are complete or absent, digests stable, tables of the declared shape, the cache bounded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from paser import artifacts
from paser.cache import Cache
from paser.errors import PaserError
from paser.lineage.record import code_digest
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


def test_a_file_hidden_in_a_folder_for_bytecode_is_seen_except_beside_code(tmp_path: Path) -> None:
    data, code = tmp_path / "model", tmp_path / "paser/models"
    for folder in (data, code):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}", encoding="utf-8")
    (code / "__init__.py").touch()
    before = artifacts.sha256_path(data), code_digest(("paser/models",), tmp_path)
    for folder in (data / "inner", code / "inner"):
        (folder / "__pycache__").mkdir(parents=True)
        (folder / "__pycache__/hidden.safetensors").write_bytes(b"weights")
    assert "inner/__pycache__/hidden.safetensors" in artifacts.file_digests(data)
    assert artifacts.sha256_path(data) != before[0]
    assert code_digest(("paser/models",), tmp_path) == before[1]


def test_a_link_to_a_folder_is_refused_and_one_to_a_file_counts_as_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.txt").write_text("a", encoding="utf-8")
    (folder / "b.txt").symlink_to("a.txt")
    assert artifacts.file_digests(folder).keys() == {"a.txt", "b.txt"}
    (folder / "again").symlink_to(folder)
    with pytest.raises(PaserError, match=r"model/again is a link to a folder[\s\S]*put the folder itself"):
        artifacts.sha256_path(folder)


def test_two_lists_of_files_never_have_one_digest(tmp_path: Path) -> None:
    one, two = artifacts.sha256_bytes(b"one"), artifacts.sha256_bytes(b"two")
    assert artifacts.tree_digest({"a": one, "b": two}) != artifacts.tree_digest({"a": two, "b": one})
    with pytest.raises(PaserError, match=r"name 'a\\n.*  b' has a line break[\s\S]*rename the file"):
        artifacts.tree_digest({f"a\n{two}  b": one})
    (tmp_path / "a\nb").touch()
    with pytest.raises(PaserError, match=r"'a\\nb' has a line break"):
        artifacts.sha256_path(tmp_path)


def _folder(path: Path, text: str) -> None:
    path.mkdir()
    (path / "a.txt").write_text(text, encoding="utf-8")


def test_a_swap_that_fails_keeps_old_and_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    target = tmp_path / "model"
    _folder(target, "old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupted)
        with artifacts.staged(target) as partial:
            _folder(partial, "new")
    assert (target / "a.txt").read_text(encoding="utf-8") == "old"
    assert (partial / "a.txt").read_text(encoding="utf-8") == "new"
    with artifacts.staged(target) as partial:
        _folder(partial, "newer")
    assert (target / "a.txt").read_text(encoding="utf-8") == "newer"
    assert os.listdir(tmp_path) == ["model"]


KILLED = """
import os, signal, sys
from pathlib import Path
from paser import artifacts
target = Path(sys.argv[1])
with artifacts.staged(target) as partial:
    partial.mkdir()
    (partial / "a.txt").write_text("new", encoding="utf-8")
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_kill_in_the_middle_of_a_swap_the_next_run_has_the_old_again(tmp_path: Path) -> None:
    target = tmp_path / "model"
    _folder(target, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    texts = sorted(path.read_text(encoding="utf-8") for path in tmp_path.rglob("a.txt"))
    assert texts == ["new", "old"]
    with pytest.raises(ValueError, match="stop"), artifacts.staged(target):
        raise ValueError("stop")
    assert os.listdir(tmp_path) == ["model"]
    assert (target / "a.txt").read_text(encoding="utf-8") == "old"


def test_a_folder_can_take_the_place_of_a_file_and_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old", encoding="utf-8")
    _folder(tmp_path / "elsewhere", "kept")
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("file", "link"):
        with artifacts.staged(tmp_path / name) as partial:
            _folder(partial, "new")
        assert (tmp_path / name / "a.txt").read_text(encoding="utf-8") == "new"
    assert (tmp_path / "elsewhere/a.txt").read_text(encoding="utf-8") == "kept"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "file", "link"]


def test_only_what_dead_processes_of_this_host_left_is_removed(tmp_path: Path, dead: str, alive: str) -> None:
    number = dead.rpartition("-")[2]
    names = [f"a.txt.partial-{end}" for end in (dead, alive, f"elsewhere-{number}")]
    names += [f"a.txt.partial-{number}", f"b.txt.partial-{dead}"]
    for name in names:
        (tmp_path / name).write_text("half", encoding="utf-8")
    with artifacts.staged(tmp_path / "a.txt") as partial:
        partial.write_text("whole", encoding="utf-8")
    assert sorted(os.listdir(tmp_path)) == sorted(["a.txt", names[1], names[2], names[4]])


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


def test_what_was_used_recently_can_be_spared(tmp_path: Path) -> None:
    """Also a folder that was made long ago and in which someone still writes."""
    cache, old = Cache(tmp_path), time.time() - 7200
    for name in ("unused", "written"):
        _folder(cache.entry("room", name), "x" * 1000)
    for path in (*(tmp_path / "room").iterdir(), tmp_path / "room/unused/a.txt"):
        os.utime(path, (old, old))
    assert cache.prune(0, spare_seconds=3600) == ["room/unused"]
    assert cache.size() == 1000
    assert cache.prune(0) == ["room/written"]


def test_pruning_goes_on_when_others_remove_entries_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanishes(path: Path) -> None:
        artifacts.remove(path)
        raise FileNotFoundError(path)

    cache = Cache(tmp_path)
    for name in ("a", "b"):
        _folder(cache.entry("room", name), "x")
    (tmp_path / "room/gone").symlink_to("nowhere")  # listed, and not there when it is looked at
    monkeypatch.setattr("paser.cache.remove", vanishes)
    assert cache.size() == 2
    assert sorted(cache.prune(0)) == ["room/a", "room/b"]
