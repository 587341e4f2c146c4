"""Questions to the pool's table, small and large."""

from __future__ import annotations

import time

import pyarrow as pa
import pytest

from paser.errors import PaserError
from paser.explore.rows import PAGE, Question, Rows


def rows(
    count: int, jsd: list[float | None], cluster: list[int], decision: list[str], texts: list[str]
) -> Rows:
    ids = [f"r1-{n:064d}" for n in range(count)]
    plain = ["x"] * count
    pool = pa.table(
        {
            "row_id": ids, "source": plain, "source_row": plain, "license": plain, "instruction": texts,
            "input": pa.array([None] * count, pa.string()), "output": [f"answer {n}" for n in range(count)],
            "label": plain, "benchmark": pa.array([None] * count, pa.string()), "tokens": list(range(count)),
        }
    )  # fmt: skip
    scores = pa.table(
        {
            "row_id": ids, "jsd": pa.array(jsd, pa.float64()), "loss_original": [1.0] * count,
            "loss_pruned": [1.0 + n for n in range(count)], "status": ["ok"] * count,
        }
    )  # fmt: skip
    decisions = pa.table(
        {
            "row_id": ids[::-1], "cluster": cluster[::-1], "ies": [0.1] * count, "rank": list(range(count)),
            "decision": decision[::-1], "reason": ["budget"] * count, "detail": [""] * count,
        }
    )  # fmt: skip
    return Rows(pool, scores, decisions)


@pytest.fixture
def few() -> Rows:
    return rows(
        5,
        [0.2, None, 0.5, float("nan"), 0.2],
        [0, 0, 1, 1, 0],
        ["accepted", "rejected", "rejected", "rejected", "accepted"],
        ["Sort a LIST", "Name a bird", "100% of (a|b)", "Ärger", "sort it"],
    )


def found(table: Rows, **asked: str) -> list[int]:
    return [row["tokens"] for row in table.page(Question.of(asked)).rows]


def test_the_most_damaged_come_first_and_those_without_a_score_last(few: Rows) -> None:
    assert found(few) == [2, 0, 4, 1, 3]
    assert found(few, order="least") == [0, 4, 2, 1, 3]
    assert found(few, order="loss") == [4, 3, 2, 1, 0]
    assert found(few, order="pool") == [0, 1, 2, 3, 4]


def test_search_takes_text_as_it_stands_in_any_case(few: Rows) -> None:
    assert found(few, text="SORT", order="pool") == [0, 4]
    assert found(few, text="(a|b)") == [2]
    assert found(few, text="ärger") == [3]
    assert found(few, text="answer 1") == [1]
    assert found(few, text=f"r1-{2:064d}"[:67]) == [2]
    assert found(few, text="nothing of that") == []


def test_filters_narrow_together_and_columns_are_joined_by_row_id(few: Rows) -> None:
    assert found(few, cluster="1", order="pool") == [2, 3]
    assert found(few, cluster="0", decision="accepted", text="it") == [4]
    assert few.choices("cluster") == [0, 1]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"order": "jsd; drop"}, "order='jsd; drop' is unknown"),
        ({"page": "0"}, "page='0' is no page"),
        ({"page": "²"}, "page='²' is no page"),
        ({"cluster": "x"}, "cluster='x' is no cluster"),
    ],
)
def test_what_makes_no_sense_is_an_error_with_its_remedy(asked: dict[str, str], message: str) -> None:
    with pytest.raises(PaserError, match=message):
        Question.of(asked)


def test_an_address_holds_what_differs_from_the_beginning() -> None:
    question = Question.of({"text": "a&b", "cluster": "3", "page": "2"})
    assert question.address(page=1) == "text=a%26b&cluster=3"
    assert Question().address() == ""


def test_a_hundred_thousand_rows_are_paged_and_each_page_is_quick() -> None:
    count = 100_000
    table = rows(
        count,
        [n / count for n in range(count)],
        [n % 7 for n in range(count)],
        ["rejected"] * count,
        [f"Write about subject {n} at some length. {'word ' * 60}" for n in range(count)],
    )
    began = time.process_time()
    first = table.page(Question())
    last = table.page(Question.of({"page": "999999"}))
    searched = table.page(Question.of({"text": "subject 4711 at", "cluster": "0"}))
    assert time.process_time() - began < 5.0
    assert (len(first.rows), first.found, first.pages) == (PAGE, count, count // PAGE)
    assert first.rows[0]["tokens"] == count - 1
    assert last.rows[-1]["tokens"] == 0
    assert [row["tokens"] for row in searched.rows] == [4711]
