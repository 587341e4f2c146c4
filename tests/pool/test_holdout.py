from __future__ import annotations

from paser.pool.clean import Kept
from paser.pool.holdout import Split, split
from paser.records import Sample


def row(prompt: str, label: str | None = "a", source: str = "s", output: str = "yes") -> Kept:
    return Kept(Sample(source, prompt, "MIT", prompt, "", output, label), 5)


def rows(count: int, label: str | None, source: str = "s") -> list[Kept]:
    return [
        row(f"{label} {source} question number {i} about subject {i * 7}", label, source)
        for i in range(count)
    ]


def ids(kept: list[Kept]) -> set[str]:
    return {k.sample.row_id for k in kept}


def parts(given: list[Kept], per_label: int = 3, seed: int = 1) -> Split:
    return split(given, per_label, 0.8, seed)


def test_each_label_gives_its_number_and_no_row_is_lost_or_doubled() -> None:
    given = rows(20, "a") + rows(10, "b")
    found = parts(given)
    assert [sum(k.sample.label == label for k in found.holdout) for label in "ab"] == [3, 3]
    assert ids(found.pool) | ids(found.holdout) == ids(given)
    assert not ids(found.pool) & ids(found.holdout)
    assert found.short == {}


def test_a_small_label_keeps_at_least_half_in_the_pool_and_is_reported() -> None:
    found = parts(rows(5, "a") + rows(1, "b"))
    assert [k.sample.label for k in found.holdout] == ["a", "a"]
    assert found.short == {"a": 2, "b": 0}


def test_without_labels_the_number_is_that_times_the_sources() -> None:
    given = rows(20, None, "s") + rows(20, None, "t")
    assert len(parts(given).holdout) == 6


def test_the_split_depends_on_seed_and_text_but_not_on_order() -> None:
    given = rows(40, "a")
    assert parts(given) == parts(given[::-1])
    assert ids(parts(given).holdout) != ids(parts(given, seed=2).holdout)


def test_another_label_does_not_change_which_rows_are_held_out() -> None:
    alone, together = parts(rows(40, "a")), parts(rows(40, "a") + rows(40, "b"))
    assert ids(alone.holdout) <= ids(together.holdout)


def test_rows_with_a_near_prompt_are_held_out_last() -> None:
    long = " ".join(f"w{i}" for i in range(40))
    twins = [row(f"{long} end{i}") for i in range(6)]
    lone = rows(6, "a")
    assert ids(parts(lone + twins, per_label=6).holdout) == ids(lone)


def test_a_pool_row_with_a_held_out_prompt_leaves_the_pool() -> None:
    long = " ".join(f"w{i}" for i in range(40))
    given = [
        row("Same question?", output="one"),
        row("Same question?", output="two"),
        row(f"{long} end1"),
        row(f"{long} end2"),
        row(f"{long} end3"),
    ]
    found = parts(given, per_label=1)
    prompts = {k.sample.prompt for k in found.holdout}
    assert not prompts & {k.sample.prompt for k in found.pool}
    assert len(found.pool) + len(found.holdout) + len(found.quarantined) == 5
    assert found.quarantined
    assert {q.reason for q in found.quarantined} == {"near_heldout"}
    assert {q.duplicate_of for q in found.quarantined} <= ids(found.holdout)
