"""What `paser select` leaves in its folder when something goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paser import standalone
from paser.errors import PaserError
from paser.standalone import Picked, select_rows
from tests import tiny


def test_what_was_put_into_the_folder_meanwhile_is_not_replaced(
    tmp_path: Path, llama: Path, sparse_llama: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_jsonl(tmp_path / "pool.jsonl", tiny.rows(3))
    out = tmp_path / "out"

    def picks(*_: Any) -> Picked:
        out.mkdir()
        (out / "mine.txt").write_text("mine", encoding="utf-8")
        return Picked([], [], [], {}, [], derived=None, record={})  # type: ignore[arg-type]

    monkeypatch.setattr(standalone, "pick", picks)
    with pytest.raises(PaserError, match="out exists and is not empty"):
        select_rows(str(llama), str(sparse_llama), "pool.jsonl", "20%", out, encoder=str(encoder))
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_a_selection_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "budget.json").write_text("{}", encoding="utf-8")
    broken = Picked([{"no such column": 1}], [], [], {}, [], derived=None, record={})  # type: ignore[arg-type]
    with pytest.raises(PaserError, match="no such column"):
        broken.write(out)
    assert [path.name for path in out.iterdir()] == ["budget.json"]
