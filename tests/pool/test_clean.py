from __future__ import annotations

from pathlib import Path

import pytest

from paser.errors import SourceError
from paser.pool.clean import Kept, Quarantined, Withdrawals, check, normalised, read_withdrawals
from paser.records import Sample

HEADER = "kind,value,reason,date\n"


def sample(instruction: str = "Ask", output: str = "Answer", **more: str) -> Sample:
    fields = {"source": "s", "source_row": "f:1", "license": "MIT", "input": ""} | more
    return Sample(instruction=instruction, output=output, **fields)


def reason(given: Sample, withdrawals: Withdrawals | None = None, tokens: int = 5) -> str | None:
    found = check(normalised(given), withdrawals or Withdrawals({}), lambda _: tokens, 10)
    return None if isinstance(found, Kept) else found.reason


def test_a_good_row_is_kept_with_its_length() -> None:
    assert check(sample(), Withdrawals({}), lambda _: 10, 10) == Kept(sample(), 10)


def test_white_space_alone_is_empty() -> None:
    assert reason(sample(output=" \r\n\t")) == "empty_response"
    assert reason(sample(instruction="\n")) == "empty_prompt"
    assert reason(sample(instruction="", input="only input")) is None


def test_a_long_row_says_how_long_it_is() -> None:
    found = check(sample(), Withdrawals({}), lambda _: 11, 10)
    assert isinstance(found, Quarantined)
    assert (found.reason, found.detail) == ("too_long", "11 tokens")


def test_each_kind_of_withdrawal_takes_its_rows(tmp_path: Path) -> None:
    row = sample()
    digest = row.row_id.removeprefix("r1-")
    path = tmp_path / "withdrawn.csv"
    for line in (
        f"row,{row.row_id}",
        "row,s:f:1",
        f"text,{row.row_id}",
        f"text,{digest}",
        "source,s",
        "license,MIT",
    ):
        path.write_text(f'{HEADER}{line},"asked, by mail",2026-01-31\n')
        withdrawals = read_withdrawals(path)
        assert reason(row, withdrawals) == "withdrawn"
        found = check(row, withdrawals, lambda _: 1, 10)
        assert isinstance(found, Quarantined)
        assert "asked, by mail" in found.detail
        assert reason(sample("Other", source="t", source_row="f:2", license="BSD"), withdrawals) is None


def test_a_header_alone_withdraws_nothing(tmp_path: Path) -> None:
    (tmp_path / "withdrawn.csv").write_text(HEADER)
    assert read_withdrawals(tmp_path / "withdrawn.csv") == Withdrawals({})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "line 1: the header is None"),
        ("kind,value\n", "line 1: the header is"),
        (f"{HEADER}row,a,b\n", "line 2: 3 fields"),
        (f"{HEADER}\nrows,a,b,2026-01-01\n", "line 3: unknown kind 'rows'"),
        (f"{HEADER}row,,b,2026-01-01\n", "line 2: value or reason is empty"),
        (f"{HEADER}row,a,b,1 May\n", "line 2: date '1 May'"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "withdrawn.csv").write_text(content)
    with pytest.raises(SourceError, match=said):
        read_withdrawals(tmp_path / "withdrawn.csv")
