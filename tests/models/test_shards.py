"""Shards and batches are pure functions of content; a killed run does only what was left."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paser.cache import Cache
from paser.models.shards import SHARD_ROWS, batches, run_shards, shards
from tests import tiny


def ids(count: int) -> list[str]:
    return [f"r1-{hashlib.sha256(str(i).encode()).hexdigest()}" for i in range(count)]


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(16, 2000))
def test_batches_hold_every_row_once_within_the_limit(lengths: list[int], limit: int) -> None:
    groups = batches(lengths, limit)
    assert sorted(p for g in groups for p in g) == list(range(len(lengths)))
    assert all(len(g) == 1 or max(lengths[p] for p in g) * len(g) <= limit for g in groups)


@pytest.mark.parametrize("count", [1, 31, 33, 500])
def test_shards_hold_every_row_once_whatever_the_order(count: int) -> None:
    names = ids(count)
    plan = shards(names)
    assert sorted(p for s in plan for p in s) == list(range(count))
    assert len(plan) <= max(1, 4 * count / SHARD_ROWS)
    turned = names[::-1]
    assert [[names[p] for p in s] for s in plan] == [[turned[p] for p in s] for s in shards(turned)]


def test_a_killed_run_resumes_with_what_was_left_and_the_same_result(tmp_path: Path) -> None:
    names, cache = ids(200), Cache(tmp_path)
    done: list[int] = []

    def compute(positions: list[int]) -> dict[str, np.ndarray]:
        if len(done) >= 150:
            raise KeyboardInterrupt
        done.extend(positions)
        return {"x": np.array(positions) * 2.0}

    with pytest.raises(KeyboardInterrupt):
        run_shards("work", names, {"a": 1}, compute, cache)
    first = list(done)
    done.clear()
    result = run_shards("work", names, {"a": 1}, compute, cache)
    np.testing.assert_array_equal(result["x"], np.arange(200) * 2.0)
    assert sorted(first + done) == list(range(200))
    done.clear()
    run_shards("work", names, {"a": 1}, compute, cache)
    assert done == []
    run_shards("work", names[:20], {"a": 2}, compute, cache)
    assert sorted(done) == list(range(20))


def test_changed_code_is_never_answered_from_the_cache(
    llama: Path, sparse_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paser.models import workload
    from paser.settings import Settings

    cache = Cache(tmp_path)
    models = workload.ModelSet.load({"original": llama, "pruned": sparse_llama}, Settings(), cache)
    rows = [
        {**row, "row_id": name, "source": "t", "source_row": "1", "license": "MIT", "output": row["output"]}
        for name, row in zip(ids(6), tiny.rows(6), strict=True)
    ]
    digests = {"original": "a", "pruned": "b"}
    workload.score_rows(rows, models, digests, Settings().score, cache)
    kept = set((tmp_path / "score").iterdir())
    workload.score_rows(rows, models, digests, Settings().score, cache)
    assert set((tmp_path / "score").iterdir()) == kept
    monkeypatch.setattr(workload, "code_digest", lambda paths: "other")
    workload.score_rows(rows, models, digests, Settings().score, cache)
    assert len(set((tmp_path / "score").iterdir())) == 2 * len(kept)


def test_nothing_half_written_stays_under_a_final_name(tmp_path: Path) -> None:
    class Unwritable:
        def __array__(self) -> np.ndarray:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        run_shards("work", ids(3), {}, lambda p: {"x": Unwritable()}, Cache(tmp_path))  # type: ignore[dict-item]
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
