from __future__ import annotations

import json
from pathlib import Path

import pytest

from paser.errors import PaserError
from paser.lineage.merkle import merkle_root
from paser.lineage.provenance import load_provenance, write_provenance

ROWS = [{"row_id": "r1-b", "tokens": 5}, {"row_id": "r1-a", "tokens": 7}]


def write(folder: Path, role: str = "recovered") -> dict[str, object]:
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "deep" / "config.json").write_text("{}", "utf-8")
    return write_provenance(
        folder, role=role, rows=ROWS, settings={"recover": {"rank": 8}}, inputs={}, seed=17, facts={}
    )


def test_provenance_names_rows_in_training_order_and_every_other_file(tmp_path: Path) -> None:
    write(tmp_path)
    found = load_provenance(tmp_path)
    assert found["row_ids"] == ["r1-b", "r1-a"]
    assert found["merkle_root"] == merkle_root(["r1-b", "r1-a"])
    assert (found["rows"], found["tokens"]) == (2, 12)
    assert set(found["files"]) == {"model.safetensors", "deep/config.json"}


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path)
    first = (tmp_path / "provenance.json").read_bytes()
    write(tmp_path)
    assert (tmp_path / "provenance.json").read_bytes() == first


def test_an_unknown_role_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PaserError, match="unknown role 'teacher'"):
        write(tmp_path, role="teacher")


def test_missing_and_unusable_provenance_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PaserError, match="is not a model folder"):
        load_provenance(tmp_path / "nowhere")
    with pytest.raises(PaserError, match=r"holds no provenance\.json.*\n.*remedy.*`paser stage recover`"):
        load_provenance(tmp_path)
    write(tmp_path)
    path = tmp_path / "provenance.json"
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**content, "version": 99}), "utf-8")
    with pytest.raises(PaserError, match="version 99"):
        load_provenance(tmp_path)
    del content["row_ids"]
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(PaserError, match="has no 'row_ids'"):
        load_provenance(tmp_path)
