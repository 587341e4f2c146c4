"""Other values for keys of params.yaml, as flows take them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from flows import recover as module
from flows.workspace import override
from paser.errors import SettingsError
from paser.settings import Settings, parse_settings, read_yaml

ROOT = Path(__file__).parent.parent.parent
TEXT = """\
recover: {rank: 4, distill: {weight: 0.2, temperature: 3.0}}
prune: {scheme: sparsegpt, options: {block_size: 64, dampening: 0.1}}
"""


def settings(changes: dict[str, Any], text: str = TEXT) -> Settings:
    return parse_settings(read_yaml(override(text, changes)), "test")


@pytest.mark.parametrize(
    "changes",
    [
        {"recover.distill.weight": 0.5},
        {"recover.distill": {"weight": 0.5}},
        {"recover": {"distill.weight": 0.5}},
        {"recover": {"distill": {"weight": 0.5}}},
        {"recover": {}, "recover.distill": {}, "recover.distill.weight": 0.5},
    ],
)
def test_a_key_changes_and_its_neighbours_do_not(changes: dict[str, Any]) -> None:
    found = settings(changes)
    assert found.recover.distill.model_dump() == {"weight": 0.5, "temperature": 3.0}
    assert found.recover.rank == 4


def test_every_key_of_params_yaml_can_be_given_by_dots_or_as_a_mapping() -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    content = read_yaml(text)

    def dotted(found: dict[str, Any], above: str = "") -> dict[str, Any]:
        keys: dict[str, Any] = {}
        for key, value in found.items():
            inside = isinstance(value, dict) and value
            keys |= dotted(value, f"{above}{key}.") if inside else {f"{above}{key}": value}
        return keys

    assert read_yaml(override("", dotted(content))) == content
    assert read_yaml(override("", content)) == content
    assert read_yaml(override(text, content)) == content


def test_a_value_that_is_a_mapping_is_replaced_as_a_whole_and_its_keys_one_by_one() -> None:
    other = settings({"prune.scheme": "gblm", "prune.options": {"alpha": 5.0}})
    assert other.prune.options == {"alpha": 5.0}
    same = settings({"prune.options.dampening": 0.5})
    assert same.prune.options == {"block_size": 64, "dampening": 0.5}
    assert settings({"prune": {"options": {}}}).prune.options == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recover.distill.wait": 0.5}, "unknown key 'recover.distill.wait'"),
        ({"recover": {"distil": {"weight": 0.5}}}, "unknown key 'recover.distil'"),
        ({"seed.more": 1}, "seed is {'more': 1}"),
        ({"recover": 3}, "recover is 3"),
        ({"recover.distill.weight": 2.0}, "recover.distill.weight is 2.0"),
    ],
)
def test_a_wrong_key_or_value_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(changes)
    assert said in str(caught.value)


def called(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The exit code of `python -m flows.recover WORDS`."""
    monkeypatch.setattr(sys, "argv", ["flows.recover", *words])
    with pytest.raises(SystemExit) as ended:
        module.main()
    return ended.value.code


@pytest.mark.parametrize("words", [["--help"], ["force=true", "-h"]])
def test_help_says_how_it_is_called(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(words, monkeypatch) == 0
    usage = capsys.readouterr().out
    assert usage.startswith("usage: python -m flows.recover [KEY=VALUE ...]")
    for name in module.recover.parameters.properties:
        assert f"  {name}=" in usage or f"'{name}=" in usage


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("score", "'score' is not `key=value`"),
        ("select.budget=20%", "overrides={select.budget: 20%}"),
        ("target=[score]", "no parameter 'target'"),
        ("targets=[score", "'targets=[score' has no YAML"),
    ],
)
def test_a_word_that_is_no_parameter_is_refused_with_the_usage(
    word: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = str(called([word], monkeypatch))
    assert said in message
    assert "usage: python -m flows.recover" in message
