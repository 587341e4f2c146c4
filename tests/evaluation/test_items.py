"""Items of each format as lm-eval will ask them, and complaints that name the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paser.errors import SourceError
from paser.evaluation.items import READERS, Items, read_items
from paser.pool.dedup import words
from paser.sources.catalog import TASK_FORMATS, TEXT_FORMAT, Source


def items(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Items:
    folder.mkdir(exist_ok=True)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_items(folder, Source("t", "file:a.jsonl", "task", kind))


MBPP = [
    {
        "task_id": i,
        "text": f"Write function {i}.",
        "code": f"def f{i}(): return {i}",
        "test_list": [f"assert f{i}() == {i}"],
    }
    for i in (2, 3, 4, 11, 12, 511)
]
CHOOSE = "Please choose the correct answer to the question: "
ROWS: dict[str, list[dict[str, Any]]] = {
    "choices": [{"question": "Where?", "choices": ["here", "there"], "expected_index": 1}],
    "hellaswag": [{"activity_label": "Tea", "ctx": "A pot boils. she", "endings": ["a", "b"], "label": "0"}],
    "llm-adapters": [{"instruction": f"{CHOOSE}Why? Answer1: A. Answer2: B.", "answer": "answer2"}],
    "gsm8k": [{"question": "2 + 2?", "answer": "4 is it\n#### 4"}],
    "humaneval": [{"prompt": "def f():\n", "test": "def check(f): pass", "entry_point": "f"}],
    "mbpp": MBPP,
}  # fmt: skip


def test_every_format_has_a_reader() -> None:
    assert set(READERS) | {TEXT_FORMAT} == set(TASK_FORMATS)


@pytest.mark.parametrize("kind", sorted(ROWS))
def test_every_item_has_a_place_and_its_prompt_to_be_looked_for(tmp_path: Path, kind: str) -> None:
    found = items(tmp_path, kind, ROWS[kind])
    assert len(found) == len(found.probes("task t")) >= 1
    for document, probe in zip(found.documents, found.probes("task t"), strict=True):
        assert document["item"].startswith("a.jsonl:")
        assert probe.of == "task t"
        assert all(words(text) for text in probe.texts)


@pytest.mark.parametrize("kind", sorted(ROWS))
def test_a_row_of_another_format_is_refused_with_its_place(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SourceError, match=r"a\.jsonl"):
        items(tmp_path, kind, [{"nothing": 1}])


def test_llm_adapters_questions_lose_their_instruction(tmp_path: Path) -> None:
    four = {
        "instruction": f"{CHOOSE}Which is hot?\n\nAnswer1: Ice. Answer2: Fire. Answer3: Snow.\n\n"
        "Answer format: answer1/answer2/answer3",
        "answer": "answer2",
    }
    (item,) = items(tmp_path, "llm-adapters", [four]).documents
    assert item["query"] == "Question: Which is hot?\nAnswer:"
    assert item["choices"] == ["Ice.", "Fire.", "Snow."]
    assert item["gold"] == 1
    assert four["instruction"] in item["probes"]


def test_llm_adapters_yes_no_and_solutions(tmp_path: Path) -> None:
    asked = "Please answer the following question with true or false, question: is ice cold?"
    yes = {"instruction": f"{asked}\n\nAnswer format: true/false", "answer": "true"}
    found = items(tmp_path, "llm-adapters", [yes])
    assert found.documents[0]["query"] == "Question: is ice cold?\nAnswer:"
    assert found.documents[0]["choices"][found.documents[0]["gold"]] == "yes"
    assert "not comparable" in found.notes[0]
    asked = "Please choose the correct solution to the question: Open a jar."
    body = f"{asked}\n\nSolution1: Twist the lid.\n\nSolution2: Eat it.\n\nAnswer format: solution1/solution2"
    (item,) = items(tmp_path, "llm-adapters", [{"instruction": body, "answer": "solution1"}]).documents
    assert item["query"] == "Question: Open a jar.\nAnswer:"
    assert item["choices"] == ["Twist the lid.", "Eat it."]


def test_winogrande_asks_which_name_makes_the_ending_likelier(tmp_path: Path) -> None:
    asked = "Please choose the correct answer to fill in the blank to complete the given sentence: "
    options = "Option1: Sarah Option2: Maria Answer format: option1/option2"
    body = f"{asked}Sarah beat Maria so _ was glad.\n\n{options}"
    found = items(tmp_path, "llm-adapters", [{"instruction": body, "answer": "option1"}])
    assert found.kind == "cloze"
    assert found.documents[0]["contexts"] == ["Sarah beat Maria so Sarah", "Sarah beat Maria so Maria"]
    assert (found.documents[0]["ending"], found.documents[0]["gold"]) == ("was glad.", 0)


def test_hellaswag_joins_its_contexts_as_the_harness_does(tmp_path: Path) -> None:
    row = {
        "activity_label": "Making tea",
        "ctx_a": "A pot boils.",
        "ctx_b": "she",
        "endings": ["pours [step] it.", "runs."],
        "label": 0,
    }
    found = items(tmp_path, "hellaswag", [row])
    assert found.documents[0]["query"] == "Making tea: A pot boils. She"
    assert found.documents[0]["choices"] == ["pours it.", "runs."]
    assert found.notes == ()


def test_mbpp_keeps_to_its_own_split(tmp_path: Path) -> None:
    found = items(tmp_path, "mbpp", MBPP)
    assert [document["text"] for document in found.documents] == ["Write function 11.", "Write function 12."]
    assert [example["code"] for example in found.examples] == [row["code"] for row in MBPP[:3]]
    with pytest.raises(SourceError, match="tasks 2, 3, 4"):
        items(tmp_path, "mbpp", MBPP[3:])


@pytest.mark.parametrize("gold", [2, "third", True, None])
def test_a_right_choice_that_is_none_is_refused(tmp_path: Path, gold: Any) -> None:
    with pytest.raises(SourceError, match=r"a\.jsonl, line 1"):
        items(tmp_path, "choices", [{"question": "q", "choices": ["a", "b"], "gold": gold}])
