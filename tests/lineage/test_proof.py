from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paser.artifacts import read_json, write_json
from paser.cli import app
from paser.errors import PaserError

RUN = CliRunner()


@pytest.fixture
def model(finished: Path, tmp_path: Path) -> Path:
    """A model that was copied away alone: no project, no audit entry."""
    return Path(shutil.copytree(finished / "data/models/recovered", tmp_path / "deployed"))


def ids(model: Path) -> list[str]:
    return list(read_json(model / "provenance.json")["row_ids"])


def proof_of(model: Path, row: str) -> dict[str, Any]:
    result = RUN.invoke(app, ["audit", "prove", str(model), row])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def check(path: Path, *against: str) -> tuple[int, str]:
    result = RUN.invoke(app, ["audit", "check-proof", str(path), *against])
    return result.exit_code, result.stdout


def test_every_row_is_proved_from_the_model_folder_and_checked_with_the_root_alone(
    model: Path, tmp_path: Path
) -> None:
    root = read_json(model / "provenance.json")["merkle_root"]
    path = tmp_path / "proof.json"
    for number, row_id in enumerate(ids(model), 1):
        result = RUN.invoke(app, ["audit", "prove", str(model), row_id, "--out", str(path)])
        assert result.exit_code == 0, result.output
        assert read_json(path) == proof_of(model, row_id)
        code, text = check(path, str(model))
        assert (code, f"row {number} of the {len(ids(model))} rows" in text) == (0, True)
        assert check(path, "--root", root)[0] == 0


def test_scripts_get_json_from_prove_and_from_check_proof(model: Path, tmp_path: Path) -> None:
    path, row = tmp_path / "proof.json", ids(model)[1]
    made = RUN.invoke(app, ["audit", "prove", str(model), row, "--out", str(path), "--json"])
    assert json.loads(made.stdout) == read_json(path) == proof_of(model, row)
    code, text = check(path, str(model), "--json")
    told = json.loads(text)
    assert (code, told["holds"], told["row_id"], told["rows"]) == (0, True, row, len(ids(model)))
    code, text = check(path, "--root", "0" * 64, "--json")
    told = json.loads(text)
    assert (code, told["holds"], told["rows"]) == (1, False, None)
    assert "not for 0000" in told["problem"]


def test_a_proof_holds_no_other_row(model: Path) -> None:
    row, *others = ids(model)
    proof = proof_of(model, row)
    assert set(proof) == {"version", "row_id", "index", "size", "root", "proof"}
    text = json.dumps(proof)
    assert not any(other in text or other.removeprefix("r1-") in text for other in others)
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in proof["proof"])


def test_the_beginning_of_a_row_id_is_enough(model: Path) -> None:
    assert proof_of(model, ids(model)[2][:15])["row_id"] == ids(model)[2]
    assert proof_of(model, ids(model)[2][:15].upper()) == proof_of(model, ids(model)[2])


@pytest.mark.parametrize("row", ["r1-" + "0" * 64, "r1-", ""])
def test_an_unknown_row_is_an_error(model: Path, row: str) -> None:
    result = RUN.invoke(app, ["audit", "prove", str(model), row])
    assert result.exit_code == 1
    assert isinstance(result.exception, PaserError)
    assert "is not among the" in str(result.exception)


def test_a_provenance_with_another_row_proves_nothing(model: Path) -> None:
    content = read_json(model / "provenance.json")
    content["row_ids"][1] = "r1-" + "0" * 64
    write_json(model / "provenance.json", content)
    result = RUN.invoke(app, ["audit", "prove", str(model), ids(model)[0]])
    assert "its row ids give" in str(result.exception)


@pytest.mark.parametrize(
    "edit",
    [
        {"row_id": "r1-" + "0" * 64},
        {"index": 1},
        {"index": -1},
        {"size": 4},
        {"root": "0" * 64},
        {"proof": []},
        {"proof": ["zz"]},
    ],
    ids=str,
)
def test_an_altered_proof_does_not_hold_and_a_sentence_says_why(
    model: Path, tmp_path: Path, edit: dict[str, Any]
) -> None:
    path = tmp_path / "proof.json"
    write_json(path, {**proof_of(model, ids(model)[0]), **edit})
    code, text = check(path, str(model))
    assert code == 1
    assert text.startswith("the proof does not hold: ")


def test_a_proof_against_another_root_does_not_hold(model: Path, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    write_json(path, proof_of(model, ids(model)[0]))
    for against in (("--root", "1" * 64), (str(finished / "data/models/control"),)):
        code, text = check(path, *against)
        assert (code, "not for" in text) == (1, True)


def test_a_file_that_is_no_proof_and_no_root_or_two_are_errors(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    good = proof_of(model, ids(model)[0])
    for content in ([], {}, {**good, "version": 2}, {**good, "index": "0"}, {**good, "proof": [1]}):
        write_json(path, content)
        result = RUN.invoke(app, ["audit", "check-proof", str(path), str(model)])
        assert isinstance(result.exception, PaserError), content
    write_json(path, good)
    for against in ([], [str(model), "--root", good["root"]]):
        result = RUN.invoke(app, ["audit", "check-proof", str(path), *against])
        assert isinstance(result.exception, PaserError)
        assert result.exit_code == 1


def test_a_folder_is_never_overwritten_by_a_proof(model: Path) -> None:
    result = RUN.invoke(app, ["audit", "prove", str(model), ids(model)[0], "--out", str(model)])
    assert result.exit_code == 2
    assert (model / "model.safetensors").exists()
