"""`paser damage` on anyone's models and rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from paser.damage_profile import FILES, named_models, profile_damage, write_profile
from paser.errors import ModelError, PaserError
from tests import tiny

SMALL = "model: {precision: float32}\ncluster: {k: 3, stability_runs: 0}\nruntime: {threads: 1}\n"


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.write_jsonl(tmp_path / "pool.jsonl", tiny.rows(45))
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    return tmp_path


def test_two_schemes_by_label(
    offer: Path, llama: Path, sparse_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mild = tiny.make_sparse(llama, offer / "mild", share=0.1)
    models = [f"half={sparse_llama}", f"mild={mild}"]
    out = offer / "damage"
    profile = profile_damage(str(llama), models, "pool.jsonl", out, params=offer / "small.yaml")
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert profile["capability_kind"] == "label"
    assert {entry["name"] for entry in profile["capabilities"]} == {"sums", "animals", "recipes"}
    assert sum(entry["rows"] for entry in profile["capabilities"]) == 45
    for entry in profile["capabilities"]:
        assert 0 < entry["schemes"]["mild"]["jsd"]["value"] < entry["schemes"]["half"]["jsd"]["value"] < 0.694
    assert json.loads((out / "damage.json").read_text(encoding="utf-8")) == profile
    with (out / "damage.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["scheme"] for row in rows] == ["half"] * 4 + ["mild"] * 4
    before = (out / "damage.csv").read_bytes()
    with pytest.raises(TypeError):
        write_profile(out, {**profile, "seed": object()})  # fails while it writes
    assert (out / "damage.csv").read_bytes() == before
    capsys.readouterr()
    profile_damage(str(llama), models, "pool.jsonl", out, params=offer / "small.yaml")
    assert (out / "damage.csv").read_bytes() == before
    assert capsys.readouterr().err.count("45 of 45 rows are kept from an earlier run") == 2


def test_rows_without_labels_are_clustered(
    offer: Path, llama: Path, sparse_llama: Path, encoder: Path
) -> None:
    plain = [{key: value for key, value in row.items() if key != "label"} for row in tiny.rows(45)]
    tiny.write_jsonl(offer / "plain.jsonl", plain)
    profile = profile_damage(
        str(llama), [str(sparse_llama)], "plain.jsonl", offer / "out",
        encoder=str(encoder), params=offer / "small.yaml",
    )  # fmt: skip
    assert profile["capability_kind"] == "cluster"
    assert len(profile["capabilities"]) == 3
    assert profile["schemes"] == ["sparse"]


def test_other_vocabularies_and_folders_in_use_are_refused(offer: Path, llama: Path) -> None:
    other = tiny.make_llama(offer / "other", tokenizer=tiny.make_tokenizer(extra=("<|extra|>",)))
    with pytest.raises(ModelError, match="different vocabularies"):
        profile_damage(str(llama), [str(other)], "pool.jsonl", offer / "out", params=offer / "small.yaml")
    with pytest.raises(PaserError, match="holds more than an earlier profile"):
        profile_damage(str(llama), [str(other)], "pool.jsonl", other)


def test_rows_that_the_policy_refuses_are_not_measured(
    offer: Path, llama: Path, sparse_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tiny.rows(30)
    rows[0]["output"] += " Write to someone@example.org."
    rows[1]["license"] = "CC-BY-NC-4.0"
    tiny.write_jsonl(offer / "personal.jsonl", rows)
    policy = "policy: {personal: [email], licenses_refused: [CC-BY-NC-*]}\n"
    (offer / "policy.yaml").write_text(SMALL + policy, encoding="utf-8")
    found = profile_damage(
        str(llama), [str(sparse_llama)], "personal.jsonl", offer / "out", params=offer / "policy.yaml"
    )
    assert found["rows"] == 28
    assert "2 rows are left out: license 1, pattern 1" in capsys.readouterr().err


def test_names_of_pruned_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    found = named_models(["wanda 2:4=./x", "./pruned/half/", "a=b", "pypi:p==1.0#ff:m/**", "hf:o/name@main"])
    assert found == {
        "wanda 2:4": "./x",
        "half": "./pruned/half/",
        "a=b": "a=b",
        "p==1.0": "pypi:p==1.0#ff:m/**",
        "name": "hf:o/name@main",
    }
    with pytest.raises(PaserError, match="the name 'x' is taken"):
        named_models(["x=./a", "./x"])
