"""What is kept of computed rows: a killed run loses little, a grown table computes what is new."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paser.artifacts import write_table
from paser.cache import Cache
from paser.models import shards, workload
from paser.models.passes import FusedPass
from paser.models.shards import Arrays, run_rows
from paser.settings import Settings
from tests import tiny

Compute = Callable[[list[int]], Iterator[tuple[list[int], Arrays]]]
DIGESTS = {"original": "a", "pruned": "b"}


def ids(count: int) -> list[str]:
    return [f"r1-{hashlib.sha256(str(i).encode()).hexdigest()}" for i in range(count)]


def value_of(row_id: str) -> float:
    return int(row_id[-8:], 16) / 7


def computing(names: list[str], done: list[str], stop_after: int | None = None, step: int = 7) -> Compute:
    """Notes in `done` what it computes, last rows first, `step` rows a portion."""

    def compute(positions: list[int]) -> Iterator[tuple[list[int], Arrays]]:
        for begin in range(0, len(positions), step):
            if stop_after is not None and begin >= stop_after:
                raise KeyboardInterrupt
            part = positions[::-1][begin : begin + step]
            done.extend(names[p] for p in part)
            yield part, {"x": np.array([value_of(names[p]) for p in part]), "s": np.array(["ok"] * len(part))}

    return compute


def test_a_killed_run_resumes_with_what_was_left_and_the_same_result(tmp_path: Path) -> None:
    names, cache = ids(200), Cache(tmp_path)
    first: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_rows("work", names, {"a": 1}, computing(names, first, stop_after=140), cache)
    rest: list[str] = []
    result = run_rows("work", names, {"a": 1}, computing(names, rest), cache)
    np.testing.assert_array_equal(result["x"], [value_of(name) for name in names])
    assert len(first) == 140
    assert sorted(first + rest) == sorted(names)
    again: list[str] = []
    run_rows("work", names, {"a": 1}, computing(names, again), cache)
    assert again == []


def test_long_work_is_written_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process that is ended without notice leaves behind."""
    monkeypatch.setattr(shards, "SHARD_SECONDS", 0.0)
    names, left = ids(60), []

    def watched(positions: list[int]) -> Iterator[tuple[list[int], Arrays]]:
        for portion in computing(names, [])(positions):
            left.append(len(list((tmp_path / "work").glob("*.npz"))))
            yield portion

    run_rows("work", names, {}, watched, Cache(tmp_path))
    assert left == list(range(len(left)))


@given(st.lists(st.integers(0, 30), max_size=40), st.lists(st.integers(0, 30), min_size=1, max_size=40))
@settings(max_examples=25, deadline=None)
def test_any_table_gets_its_rows_in_order_whatever_was_kept(
    tmp_path_factory: pytest.TempPathFactory, before: list[int], now: list[int]
) -> None:
    """Also where a row stands in the table twice."""
    cache, names = Cache(tmp_path_factory.mktemp("cache")), ids(31)
    old, new = [names[i] for i in before], [names[i] for i in now]
    if old:
        run_rows("work", old, {}, computing(old, []), cache)
    done: list[str] = []
    result = run_rows("work", new, {}, computing(new, done), cache)
    np.testing.assert_array_equal(result["x"], [value_of(name) for name in new])
    assert sorted(done) == sorted({*new} - {*old})


def test_other_conditions_compute_everything_again(tmp_path: Path) -> None:
    names, done = ids(20), []
    run_rows("work", names, {"a": 1}, computing(names, []), Cache(tmp_path))
    run_rows("work", names, {"a": 2}, computing(names, done), Cache(tmp_path))
    assert sorted(done) == sorted(names)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:200] + b"\0" + b[201:], lambda b: b""]
)
def test_a_damaged_shard_is_computed_again_with_a_warning(
    tmp_path: Path, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    names, cache, done = ids(30), Cache(tmp_path), []
    run_rows("work", names[:10], {}, computing(names[:10], []), cache)
    (broken,) = (tmp_path / "work").iterdir()
    run_rows("work", names[:20], {}, computing(names[:20], []), cache)
    broken.write_bytes(damage(broken.read_bytes()))
    result = run_rows("work", names, {}, computing(names, done), cache)
    np.testing.assert_array_equal(result["x"], [value_of(name) for name in names])
    assert sorted(done) == sorted(names[:10] + names[20:])
    assert f"warning: {broken} is damaged" in capsys.readouterr().err
    run_rows("work", names, {}, computing(names, done), cache)
    assert "damaged" not in capsys.readouterr().err


def table(count: int) -> list[dict[str, object]]:
    return [
        {**row, "row_id": name, "source": "t", "source_row": "1", "license": "MIT"}
        for name, row in zip(ids(count), tiny.rows(count), strict=True)
    ]


def test_adding_a_hundredth_of_the_rows_scores_just_these_and_gives_the_same_bytes(
    llama: Path,
    sparse_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {"original": llama, "pruned": sparse_llama}
    cache, fresh = Cache(tmp_path / "kept"), Cache(tmp_path / "fresh")
    models = workload.ModelSet.load(paths, Settings(), cache)
    rows = table(202)
    scored: list[int] = []
    groups = FusedPass.groups
    monkeypatch.setattr(FusedPass, "groups", lambda self, s: scored.append(len(s)) or groups(self, s))
    workload.score_rows(rows[:200], models, DIGESTS, Settings().score, cache)
    grown = workload.score_rows(rows, models, DIGESTS, Settings().score, cache)
    assert scored == [200, 2]
    assert all(min(row["jsd"], row["kl"], row["reverse_kl"]) > 0 for row in grown)
    assert "200 of 202 rows are kept" in capsys.readouterr().err
    write_table(tmp_path / "grown.parquet", "scores", grown)
    write_table(
        tmp_path / "anew.parquet",
        "scores",
        workload.score_rows(rows, models, DIGESTS, Settings().score, fresh),
    )
    assert scored == [200, 2, 202]
    assert (tmp_path / "grown.parquet").read_bytes() == (tmp_path / "anew.parquet").read_bytes()


def test_changed_code_is_never_answered_from_the_cache(
    llama: Path, sparse_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, rows = Cache(tmp_path), table(6)
    models = workload.ModelSet.load({"original": llama, "pruned": sparse_llama}, Settings(), cache)
    workload.score_rows(rows, models, DIGESTS, Settings().score, cache)
    kept = set((tmp_path / "score").iterdir())
    workload.score_rows(rows, models, DIGESTS, Settings().score, cache)
    assert set((tmp_path / "score").iterdir()) == kept
    monkeypatch.setattr(workload, "code_digest", lambda paths: "other")
    workload.score_rows(rows, models, DIGESTS, Settings().score, cache)
    assert len(set((tmp_path / "score").iterdir())) == 2 * len(kept)
