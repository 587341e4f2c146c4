"""Settings: the shipped file is the defaults, and every mistake is named with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paser.errors import SettingsError
from paser.settings import (
    PRUNE_OPTIONS,
    Budget,
    SelectSettings,
    Settings,
    load_settings,
    parse_settings,
    read_yaml,
    resolved,
)

ROOT = Path(__file__).parent.parent


def test_params_yaml_explains_and_equals_the_defaults() -> None:
    assert load_settings(ROOT / "params.yaml") == Settings()
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(text):
        if ":" in line and not line.lstrip().startswith("#") and line.rstrip()[-1] != ":":
            above = text[number - 1].lstrip()
            assert above.startswith("#"), f"line {number + 1} has no comment: {line}"


def test_a_selector_rules_what_is_not_given() -> None:
    for name, rule in SelectSettings.RULES.items():
        found = parse_settings({"select": {"selector": name, "policy": "auto"}}, "x").select
        assert {key: getattr(found, key) for key in rule} == rule
    chosen = {"selector": "recoverable", "strictness": 0.7, "policy": "uniform"}
    found = parse_settings({"select": chosen}, "x").select
    assert (found.strictness, found.policy, found.divergence) == (0.7, "uniform", "recoverability")
    assert Settings().select == SelectSettings()


def test_auto_is_resolved_by_the_selector_of_the_same_file() -> None:
    stated = {
        "select.selector": "recoverable",
        "select.policy": "auto",
        "select.order": "mean",
        "cluster.k": "auto",
    }
    assert resolved(stated) == stated | {"select.policy": "damage_size"}
    assert resolved({"select.policy": "damage"}) == {"select.policy": "damage"}


def test_values_of_a_time_before_selectors_had_names_are_the_papers() -> None:
    stated = {"select.policy": "auto", "select.strictness": "auto"}
    assert resolved(stated) == {"select.policy": "damage", "select.strictness": 1.0}


@pytest.mark.parametrize("scheme", PRUNE_OPTIONS)
def test_params_yaml_names_the_options_of_each_scheme_with_their_defaults(scheme: str) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    comment = " ".join(line.strip(" #") for line in text.splitlines())
    options = [
        f"{name}: {str(field.default).lower().removesuffix('.0')}"
        for name, field in PRUNE_OPTIONS[scheme].model_fields.items()
    ]
    assert not options or f"{scheme} {{{', '.join(options)}}}" in comment


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"select": {"budgt": "5%"}}, r"unknown key 'select\.budgt'[\s\S]*'select\.budget'"),
        ({"slect": {}}, r"unknown key 'slect'[\s\S]*'select'"),
        ({"cluster": {"k_min": 9, "k_max": 3}}, r"k_min \(9\) is above k_max \(3\)"),
        ({"prune": {"pattern": "2:4", "sparsity": 0.3}}, r"2:4 means a sparsity of 0\.5"),
        ({"score": {"batch_tokens": 100}}, r"batch_tokens \(100\) is below max_tokens"),
        ({"recover": {"batch_size": 8, "micro_batch_size": 3}}, "does not divide"),
        ({"recover": {"targets": []}}, "targets is empty"),
        ({"model": {"precision": "float16"}}, r"model\.precision is 'float16'"),
        ({"recover": {"rank": "8"}}, r"recover\.rank is '8'"),
        ({"recover": {"rank": 0}}, r"recover\.rank is 0"),
        ({"cluster": {"k": "many"}}, r"cluster\.k is 'many'"),
        ({"select": {"selector": ["paser"]}}, r"select\.selector is \['paser'\]"),
        ({"select": {"selector": "best"}}, r"select\.selector is 'best'[\s\S]*'paser'"),
        ({"select": {"budget": "0"}}, "budget '0'"),
        ({"select": {"budget": "-5%"}}, "more than 0|not a share"),
        ({"select": {"budget": "120%"}}, "not a share"),
        ({"select": {"budget": "120% tokens"}}, "not a share"),
        ({"select": {"budget": "10% rows"}}, "'10% rows' is not an amount"),
        ({"select": {"budget": "a lot"}}, "'a lot' is not an amount"),
        ([1, 2], "expected a mapping"),
    ],
)
def test_mistakes_are_named(content: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as found:
        parse_settings(content, "my.yaml")
    assert "my.yaml" in str(found.value)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("10%", 0.1, "share"),
        ("100 %", 1.0, "share"),
        ("120", 120, "rows"),
        (120, 120, "rows"),
        ("120 rows", 120, "rows"),
        ("20000 tokens", 20000, "tokens"),
        ("10% tokens", 0.1, "token_share"),
        ("2.5 %token", 0.025, "token_share"),
        (0.25, 0.25, "share"),
        ("0.25", 0.25, "share"),
        (1.0, 1.0, "share"),
        ("1.0", 1.0, "share"),
        (1, 1, "rows"),
        ("1", 1, "rows"),
        ("1.0 rows", 1, "rows"),
        (20.0, 20, "rows"),
        (0.00004, 0.00004, "share"),
    ],
)
def test_budget_forms(text: Any, amount: float, unit: str) -> None:
    assert Budget.parse(text) == Budget(amount, unit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["0%", "-3", 0.0, -0.5, 1.5, "101%", "1.5 rows", "-1%", "", "ten", True, "0 tokens"]
)
def test_budgets_that_make_no_sense(text: Any) -> None:
    with pytest.raises(SettingsError):
        Budget.parse(text)


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        "prune:\n  pattern: 2:4\nrecover:\n  learning_rate: 1e-4\n  rank: 010\n"
        "select:\n  budget: 0.2\nscore:\n  temperature: 1.5\n",
        encoding="utf-8",
    )
    found = load_settings(path)
    assert found.prune.pattern == "2:4"
    assert found.recover.learning_rate == 1e-4
    assert found.recover.rank == 10
    assert found.select.parsed_budget == Budget(0.2, "share")
    assert found.score.temperature == 1.5


@pytest.mark.parametrize(
    ("written", "share"),
    [("1.0", 1.0), ("0.00004", 0.00004), ("4e-5", 0.00004), ("1e-9", 1e-9), ("0.1", 0.1)],
)
def test_a_share_means_the_same_when_it_is_used_as_when_it_was_read(
    tmp_path: Path, written: str, share: float
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"select: {{budget: {written}}}\n", encoding="utf-8")
    assert load_settings(path).select.parsed_budget == Budget(share, "share")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nselect:\n  policy: uniform\nselect:\n  floor: 2\n", r"'select' stands twice(?s:.*)line 4"),
        ("select:\n  floor: 1\n  policy: uniform\n  floor: 2\n", r"'floor' stands twice(?s:.*)line 4"),
        ("select: {floor: 1, floor: 1}\n", r"'floor' stands twice(?s:.*)line 1"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=rf"params\.yaml (?s:.*){said}"):
        load_settings(path)


def test_a_merged_mapping_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("select: &s {floor: 1}\nseed: 3\n", encoding="utf-8")
    assert load_settings(path).select.floor == 1
    merged = "a: &a {floor: 1, gamma: 2}\nb: {<<: *a, floor: 5}\n"
    assert read_yaml(merged)["b"] == {"floor": 5, "gamma": 2}


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        load_settings(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("seed: [1\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="is not YAML"):
        load_settings(tmp_path / "params.yaml")
