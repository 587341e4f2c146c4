from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paser.errors import SourceError
from paser.pool.build import Built, Rows, Rules, build, read_sources
from paser.pool.clean import Withdrawals
from paser.records import Sample
from paser.sources.catalog import Source
from paser.sources.fetching import Fetched, write_index
from tests.tiny import write_jsonl

RULES = Rules(
    count=lambda sample: len(sample.output.split()),
    max_tokens=50,
    near_duplicate=0.8,
    holdout_per_label=2,
    share=1.0,
    seed=1,
    withdrawals=Withdrawals({}),
)
LONG = " ".join(f"word{i}" for i in range(40))


def source(name: str, texts: list[tuple[str, str]], label: str | None = "a", **more: Any) -> Rows:
    entry = Source(name, f"file:{name}", "pool", "auto", label=label, license=f"L-{name}", **more)
    return Rows(
        entry,
        [
            Sample(name, str(i), entry.license, prompt, "", output, label, entry.benchmark)
            for i, (prompt, output) in enumerate(texts)
        ],
    )


def many(count: int, tag: str = "q") -> list[tuple[str, str]]:
    return [(f"{tag} {i} of subject {i * 3}?", f"{tag} answer {i}") for i in range(count)]


CALIBRATION = [source("cal", many(4, "cal"))]


def built(*pool: Rows, calibration: list[Rows] | None = None, **changes: Any) -> Built:
    return build(pool, calibration or CALIBRATION, replace(RULES, **changes))


def reasons(found: Built) -> dict[str, int]:
    return dict(Counter(row.reason for row in found.quarantine))


def test_every_row_ends_in_one_table_or_in_the_count_of_rows_not_drawn() -> None:
    texts = [*many(20), ("q?", ""), ("", "a"), ("long", "x " * 51), many(1)[0]]
    found = built(source("s", texts, max_rows=15))
    tables = len(found.pool) + len(found.holdout) + len(found.calibration) + len(found.quarantine)
    assert tables + sum(found.not_drawn.values()) == len(texts) + 4
    assert reasons(found) == {"empty_response": 1, "empty_prompt": 1, "too_long": 1, "duplicate": 1}
    assert found.not_drawn == {"s": 5}
    assert (len(found.pool), len(found.holdout), len(found.calibration)) == (13, 2, 4)


def test_a_copy_becomes_an_occurrence_of_the_first_and_is_quarantined() -> None:
    found = built(source("s", many(8)), source("t", [*many(1), *many(8, "t")]), holdout_per_label=1)
    kept = {row.sample.row_id: row.sample for row in found.pool + found.holdout}
    (copy,) = (row for row in found.quarantine if row.reason == "duplicate")
    first = kept[copy.duplicate_of or ""]
    assert (first.source, copy.sample.source) == ("s", "t")
    assert [(o.source, o.source_row, o.license) for o in first.occurrences] == [
        ("s", "0", "L-s"),
        ("t", "0", "L-t"),
    ]


def test_white_space_and_unicode_form_do_not_hide_a_copy() -> None:
    found = built(source("s", [("café\r\nbar?", "yes"), (" café\nbar? ", "yes"), *many(4)]))
    assert reasons(found) == {"duplicate": 1}


def test_a_near_copy_is_left_out_with_the_row_that_stands_for_it() -> None:
    found = built(source("s", [(LONG, "one"), (LONG, "two"), *many(4)]), holdout_per_label=1)
    (near,) = found.quarantine
    assert near.reason == "near_duplicate"
    assert "Jaccard 0.9" in near.detail
    assert near.duplicate_of in {row.sample.row_id for row in found.pool + found.holdout}


def test_rows_that_differ_in_a_number_are_two_rows() -> None:
    found = built(source("s", [("Add 2 and 3.", "5"), ("Add 2 and 4.", "6"), *many(4)]))
    assert found.quarantine == []


def test_a_pool_row_equal_or_near_to_calibration_leaves_the_pool() -> None:
    calibration = [source("cal", [("Same?", "yes"), (LONG, "one")])]
    found = built(source("s", [("Same?", "yes"), (LONG, "two"), *many(8)]), calibration=calibration)
    assert reasons(found) == {"in_calibration": 2}
    calibrated = {row.sample.row_id for row in found.calibration}
    assert {row.duplicate_of for row in found.quarantine} == calibrated
    assert not calibrated & {row.sample.row_id for row in found.pool + found.holdout}


def test_no_change_of_the_pool_changes_the_calibration_rows() -> None:
    calibration = [source("cal", many(30), max_rows=5)]
    first = built(source("s", many(40)), calibration=calibration)
    second = built(
        source("t", many(12, "t"), max_rows=6), calibration=calibration, share=0.5, holdout_per_label=1
    )
    assert first.calibration == second.calibration
    assert len(first.calibration) == 5


def test_the_draw_is_by_text_and_seed_not_by_position() -> None:
    def drawn(texts: list[tuple[str, str]], seed: int) -> set[str]:
        found = built(source("s", texts, max_rows=10, sample_seed=seed))
        return {row.sample.row_id for row in found.pool + found.holdout}

    assert drawn(many(40), 0) == drawn(many(40)[::-1], 0)
    assert drawn(many(40), 0) != drawn(many(40), 1)


def test_the_share_is_taken_of_each_source() -> None:
    found = built(source("s", many(40), max_rows=20), source("t", many(10, "t")), share=0.5)
    counts = Counter(row.sample.source for row in found.pool + found.holdout)
    assert counts == {"s": 10, "t": 5}
    assert found.not_drawn == {"s": 30, "t": 5}


def test_a_withdrawn_row_lends_its_text_to_no_other() -> None:
    withdrawals = Withdrawals({("source", "s"): "asked for"})
    found = built(source("s", many(4)), source("t", many(4)), withdrawals=withdrawals)
    assert reasons(found) == {"withdrawn": 4}
    assert {row.sample.source for row in found.pool + found.holdout} == {"t"}
    assert all(len(row.sample.occurrences) == 1 for row in found.pool + found.holdout)


def test_tables_are_sorted_by_row_id_and_two_builds_agree() -> None:
    found, again = (built(source("s", many(30)), source("t", many(30, "t"))) for _ in range(2))
    assert found == again
    for rows in (found.pool, found.holdout, found.calibration):
        identities = [row.sample.row_id for row in rows]
        assert identities == sorted(identities)


def test_a_pool_with_nothing_usable_says_why() -> None:
    with pytest.raises(SourceError, match="no row is left for the pool") as caught:
        built(source("s", [("a", "x " * 60), ("b", "")]))
    assert "empty_response 1, too_long 1" in str(caught.value)
    with pytest.raises(SourceError, match="no row is left for calibration"):
        built(source("s", many(4)), calibration=[source("cal", [("a", "")])])


def fetched(folder: Path, rows: list[dict[str, str]], **more: Any) -> Path:
    """A folder as `fetch` leaves it, with one evaluation source."""
    entry = Source("asked", "file:asked.jsonl", "evaluation", "alpaca", **more)
    write_jsonl(folder / "evaluation" / "asked" / "asked.jsonl", rows)
    write_index(folder / "evaluation", "evaluation", [Fetched(entry, "sha256:0", {})])
    return folder


def test_evaluation_rows_are_drawn_like_those_of_the_pool(tmp_path: Path) -> None:
    rows = [{"instruction": prompt, "output": answer} for prompt, answer in many(40)]

    def drawn(name: str, given: list[dict[str, str]], **more: Any) -> list[str]:
        return [s.instruction for s in read_sources(fetched(tmp_path / name, given, **more), "evaluation")]

    first = drawn("first", rows, max_rows=10)
    assert len(first) == 10
    assert first == [row["instruction"] for row in rows if row["instruction"] in first]
    assert set(drawn("turned", rows[::-1], max_rows=10)) == set(first)
    assert set(drawn("other", rows, max_rows=10, sample_seed=1)) != set(first)
    assert len(drawn("whole", rows)) == 40
    calibration = [source("asked", many(40), max_rows=10)]
    same = built(source("s", many(8, "s")), calibration=calibration).calibration
    assert {row.sample.instruction for row in same} == set(first)


def test_evaluation_rows_without_prompt_or_response_are_counted_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"instruction": "a", "output": "b"},
        {"instruction": " ", "output": "b"},
        {"instruction": "a", "output": "\n"},
        {"instruction": "", "input": "c", "output": "d"},
    ]
    samples = read_sources(fetched(tmp_path, rows, max_rows=2), "evaluation")
    assert [sample.source_row for sample in samples] == ["asked.jsonl:1", "asked.jsonl:4"]
    said = "source asked: 2 of 4 rows have no prompt or no response and are left out"
    assert f"warning: {said}\n" in capsys.readouterr().err
