"""Messages name the model as its user did, never the temporary folder it was fetched to."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paser import cli
from paser.models.inspection import inspect_uri
from tests import tiny
from tests.models import foreign
from tests.models.test_shapes import cut, edit_weights


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the failing command prints to standard error."""
    monkeypatch.setattr(sys, "argv", ["paser", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    return capsys.readouterr().err


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def edit(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | values), encoding="utf-8")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "error: theirs/model.safetensors is truncated"),
    "code": (lambda m: edit(m, auto_map={"A": "b.C"}), "error: theirs/config.json asks for code"),
    "json": (lambda m: (m / "config.json").write_text("{"), "error: theirs/config.json is not JSON"),
    "two": (
        lambda m: save_file({"other": torch.zeros(1)}, m / "other.safetensors"),
        "error: theirs holds two sets of weights",
    ),
    "gptq": (
        lambda m: edit(m, quantization_config={"quant_method": "gptq"}),
        "error: theirs/config.json: wei",
    ),
    "masks": (
        lambda m: torch.save({}, m / "masks.pt"),
        "`paser models convert theirs/masks.pt OUT` applies them",
    ),
    "pickle": (
        lambda m: (m / "model.safetensors").rename(m / "model.bin"),
        "`paser models convert theirs/model.bin OUT`",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_inspect_names_the_users_file(
    name: str, llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(llama, "theirs")
    make, expected = BAD[name]
    make(Path("theirs"))
    told = command(monkeypatch, capsys, "models", "inspect", "./theirs" if name == "code" else "theirs")
    assert expected in told.replace("./theirs", "theirs")
    assert "/paser-" not in told


def test_verdicts_name_the_users_folder(llama: Path) -> None:
    shutil.copytree(llama, "theirs")
    edit_weights(Path("theirs"), cut("model.layers.0.self_attn.q_proj.weight", 12))
    found = inspect_uri("theirs")
    assert found.unfit is not None
    assert found.unfit.startswith("theirs: the layers of model.layers.0.self_attn do not fit")


def test_parts_of_base_plus_adapter_are_named_apart(
    llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(llama, "dense")
    foreign.adapter(Path("dense"), Path("lora"))
    truncate(Path("dense"))
    for given in ("dense+lora", "lora"):
        told = command(monkeypatch, capsys, "models", "inspect", given)
        assert "error: dense/model.safetensors is truncated" in told
    shutil.copytree(llama, "dense", dirs_exist_ok=True)
    weights = Path("lora/adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    told = command(monkeypatch, capsys, "models", "inspect", "dense+lora")
    assert "error: lora/adapter_model.safetensors is truncated" in told


@pytest.mark.parametrize("verb", ["damage", "select"])
def test_damage_and_select_name_the_users_file(
    verb: str, llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(llama, "theirs")
    tiny.write_jsonl(Path("pool.jsonl"), tiny.rows(9))
    truncate(Path("theirs"))
    words = ["--original", str(llama), "--pool", "pool.jsonl", "--out", "out"]
    if verb == "damage":
        words += ["--pruned", f"good one={llama}", "--pruned", "bad one=theirs"]
    else:
        words += ["--pruned", "theirs", "--encoder", str(tiny.make_encoder(Path("encoder")))]
    told = command(monkeypatch, capsys, verb, *words)
    assert "error: theirs/model.safetensors" in told
    assert "/paser-" not in told.split("error:")[1]
