from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paser.errors import SourceError
from paser.pool.formats import ADAPTERS
from paser.sources.catalog import (
    FORMATS,
    ROLES,
    Source,
    contaminated,
    load_sources,
    parse_sources,
    source_from_uri,
)

ROOT = Path(__file__).parents[2]


def entries() -> list[dict[str, Any]]:
    return [
        {"name": "big", "uri": "file:big", "role": "original"},
        {"name": "mini", "uri": "file:mini", "role": "encoder"},
        {"name": "rows", "uri": "file:rows.jsonl", "role": "pool", "license": "MIT", "label": "maths"},
        {"name": "few", "uri": "file:few.jsonl", "role": "calibration", "license": "MIT", "max_rows": 8},
    ]


def test_a_valid_list_becomes_frozen_sources() -> None:
    sources = parse_sources({"sources": entries()}, "list")
    assert [source.name for source in sources] == ["big", "mini", "rows", "few"]
    assert sources[2] == Source("rows", "file:rows.jsonl", "pool", "auto", "maths", "MIT")
    assert sources[0].format is None
    assert sources[3].max_rows == 8


def test_files_are_added_to_the_uri() -> None:
    content = entries()
    content[2] |= {"uri": f"pypi:rows==1#{'0' * 64}", "files": ["a/*.json", "b.json"]}
    assert parse_sources({"sources": content}, "list")[2].uri == f"pypi:rows==1#{'0' * 64}:a/*.json,b.json"


@pytest.mark.parametrize(
    ("entry", "change", "said"),
    [
        (2, {"lable": "x"}, "unknown key 'lable'\n  remedy: did you mean 'label'"),
        (2, {"role": "pools"}, "unknown role 'pools'"),
        (2, {"format": "alpacca"}, "unknown format 'alpacca'"),
        (2, {"max_rows": 0}, "max_rows is 0"),
        (2, {"max_rows": True}, "max_rows is True"),
        (2, {"sample_seed": -1}, "sample_seed is -1"),
        (2, {"uri": "ftp:rows"}, "no known kind"),
        (2, {"name": "../rows"}, "cannot be a folder"),
        (2, {"name": "few"}, "two sources are named 'few'"),
        (2, {"files": ["a"]}, "no meaning for a file"),
        (2, {"label": 3}, "label is 3"),
        (0, {"format": "alpaca"}, "'format' has no meaning for a model"),
        (0, {"role": "encoder"}, "no source has the role 'original'"),
        (1, {"role": "original"}, "2 sources have the role 'original'|no source has the role 'encoder'"),
        (2, {"role": "evaluation"}, "no source has the role 'pool'"),
        (3, {"role": "pool"}, "no source has the role 'calibration'"),
    ],
)
def test_a_mistake_is_named_with_its_entry(entry: int, change: dict[str, Any], said: str) -> None:
    content = entries()
    content[entry] |= change
    with pytest.raises(SourceError, match=said) as caught:
        parse_sources({"sources": content}, "list")
    assert str(caught.value).startswith("list")


def test_rows_need_a_license() -> None:
    content = entries()
    del content[2]["license"]
    with pytest.raises(SourceError, match=r"source 3 \(rows\): no license"):
        parse_sources({"sources": content}, "list")


def test_a_list_that_is_missing_or_no_yaml_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        load_sources(tmp_path / "sources.yaml")
    (tmp_path / "sources.yaml").write_text("sources: [")
    with pytest.raises(SourceError, match="is not YAML"):
        load_sources(tmp_path / "sources.yaml")
    (tmp_path / "sources.yaml").write_text("sources:\n  - name: big\n    uri: file:a\n    uri: file:b\n")
    with pytest.raises(SourceError, match=r"the key 'uri' stands twice[\s\S]*line 4"):
        load_sources(tmp_path / "sources.yaml")
    (tmp_path / "sources.yaml").write_text("- a")
    with pytest.raises(SourceError, match="no list of sources"):
        load_sources(tmp_path / "sources.yaml")


def test_the_default_list_is_valid_and_flags_every_benchmark() -> None:
    sources = load_sources(ROOT / "data" / "sources.yaml")
    pool = [source for source in sources if source.role == "pool"]
    assert {source.role for source in sources} == {*ROLES} - {"evaluation"}
    assert {source.label for source in pool} == {
        "maths", "knowledge", "tool-use", "conversation", "code", "logic",
    }  # fmt: skip
    assert all(source.uri.startswith("pypi:") for source in sources)
    assert all(source.license != "unknown" for source in sources)
    assert sum(s.max_rows or 0 for s in sources if s.role == "calibration") == 64
    flagged = {source.benchmark for source in pool if source.benchmark}
    assert flagged == {"CHAMP", "MMLU", "BBH", "BFCL", "OpenAI Evals"}


def test_a_command_line_path_is_a_file_source(tmp_path: Path) -> None:
    assert source_from_uri("pool.jsonl", "pool").uri == "file:pool.jsonl"
    assert source_from_uri("hf:me/model", "original").format is None
    with pytest.raises(SourceError):
        source_from_uri("pypi:rows", "pool")


def test_contamination_is_told_by_benchmark_whatever_its_spelling() -> None:
    def source(benchmark: str | None) -> Source:
        return Source("x", "file:x", "pool", benchmark=benchmark)

    training = [source("MMLU"), source("GSM8K"), source(None)]
    assert contaminated([source("mmlu"), source("gsm-8k"), source("ARC"), source(None)], training) == [
        "gsm-8k",
        "mmlu",
    ]
    assert contaminated([source("ARC")], training) == []


@pytest.mark.parametrize(
    ("task", "found"),
    [
        ("mmlu_anatomy", ["MMLU"]),
        ("leaderboard_mmlu_pro", ["MMLU"]),
        ("truthfulqa_mc1", ["Truthful QA"]),
        ("gsm8k_cot", ["GSM-8K"]),
        ("cmmlu", []),
        ("hellaswag", []),
    ],
)
def test_a_task_of_the_harness_counts_by_its_name(task: str, found: list[str]) -> None:
    training = [
        Source(name.casefold(), "file:x", "pool", benchmark=name)
        for name in ("MMLU", "Truthful QA", "GSM-8K")
    ]
    assert contaminated([], training, [task]) == found


def test_every_format_of_the_list_has_an_adapter() -> None:
    assert set(FORMATS) == set(ADAPTERS)
