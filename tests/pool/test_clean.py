from __future__ import annotations

from pathlib import Path

import pytest

from paser.errors import SourceError
from paser.pool.clean import Kept, Quarantined, Withdrawals, check, normalised, read_withdrawals
from paser.records import Sample

HEADER = "kind,value,reason,date\n"
ID = f"r1-{'0a' * 32}"


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


@pytest.mark.parametrize("kind", ["row", "text"])
def test_ids_in_upper_case_are_the_same_ids(tmp_path: Path, kind: str) -> None:
    path, row = tmp_path / "withdrawn.csv", sample()
    path.write_text(f"{HEADER}{kind},{row.row_id.upper()},asked,2026-01-31\n")
    assert reason(row, read_withdrawals(path)) == "withdrawn"
    if kind == "text":
        path.write_text(f"{HEADER}text,{row.row_id[3:].upper()},asked,2026-01-31\n")
        assert reason(row, read_withdrawals(path)) == "withdrawn"


def test_a_place_stays_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "withdrawn.csv"
    path.write_text(f"{HEADER}row,S:F:1,asked,2026-01-31\n")
    assert reason(sample(source="S", source_row="F:1"), read_withdrawals(path)) == "withdrawn"
    assert reason(sample(), read_withdrawals(path)) is None


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\n"])
def test_a_reason_may_hold_what_splits_lines_elsewhere(tmp_path: Path, inside: str) -> None:
    path = tmp_path / "withdrawn.csv"
    path.write_text(
        f'{HEADER}source,s,"one{inside}two",2026-01-31\nsource,t,b,2026-01-31\n', encoding="utf-8"
    )
    assert read_withdrawals(path).reasons == {("source", "s"): f"one{inside}two", ("source", "t"): "b"}


def test_what_no_withdrawn_row_has_is_told() -> None:
    row, other = sample(), sample("Other", source="t")
    reasons = {
        ("source", "s"): "a", ("row", row.row_id): "b", ("row", "s:f:1"): "c", ("license", "GPL"): "d",
        ("text", other.row_id): "e",
    }  # fmt: skip
    withdrawals = Withdrawals(reasons)
    left = [found for s in (row,) if isinstance(found := check(s, withdrawals, lambda _: 1, 10), Quarantined)]
    assert withdrawals.unmet(left) == ["license GPL", f"text {other.row_id}"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "line 1: the header is None"),
        ("kind,value\n", "line 1: the header is"),
        (f"{HEADER}row,a,b\n", "line 2: 3 fields"),
        (f"{HEADER}\nrows,a,b,2026-01-01\n", "line 3: unknown kind 'rows'"),
        (f"{HEADER}row,,b,2026-01-01\n", "line 2: value or reason is empty"),
        (f"{HEADER}row,a,b,1 May\n", "line 2: date '1 May'"),
        (f'{HEADER}source,s,"one\ntwo",2026-01-01\nrow,a,b,1 May\n', "line 4: date '1 May'"),
        (f'{HEADER}source,s,b,2026-01-01\nrow,a,"b,1 May\nc",d,e\n', "line 3: 5 fields"),
        (
            f"{HEADER}row,{ID[:-1]},b,2026-01-01\n",
            f"line 2: row '{ID[:-1]}' is neither a row id nor SOURCE:PLACE",
        ),
        (f"{HEADER}row,{ID}0,b,2026-01-01\n", "line 2: row 'r1-"),
        (f"{HEADER}row,{ID[3:]},b,2026-01-01\n", "line 2: row '0a"),
        (f"{HEADER}row,r2-{ID[3:]},b,2026-01-01\n", "line 2: row 'r2-"),
        (f"{HEADER}row,s:,b,2026-01-01\n", "line 2: row 's:'"),
        (f"{HEADER}text,{ID[:-1]}g,b,2026-01-01\n", f"line 2: text '{ID[:-1]}g' is no row id"),
        (f"{HEADER}text,{ID[3:12]},b,2026-01-01\n", "line 2: text '0a0a0a0a0' is no row id"),
        (f"{HEADER}text,s:f:1,b,2026-01-01\n", "line 2: text 's:f:1' is no row id"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "withdrawn.csv").write_text(content)
    with pytest.raises(SourceError, match=said):
        read_withdrawals(tmp_path / "withdrawn.csv")
