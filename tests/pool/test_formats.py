"""Every adapter keeps the same contract; each subclass gives a small file of its format."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from paser.errors import SourceError
from paser.pool.documents import shown
from paser.pool.formats import read_source
from paser.records import Sample
from paser.sources.catalog import Source

Files = dict[str, str]


def read(folder: Path, files: dict[str, str | bytes], format: str, **more: Any) -> list[Sample]:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_source(folder, Source("rows", "file:rows", "pool", format, license="MIT", **more)))


def lines(*rows: Any) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


class Contract:
    """What every format promises. `good` has at least two rows, the first of which is `first`."""

    format: str
    good: Files
    first: tuple[str, str, str]
    places: list[str]
    malformed: Files
    said: str
    unanswered: Files

    def test_rows_come_in_file_order_each_with_its_place(self, tmp_path: Path) -> None:
        samples = read(tmp_path, {**self.good}, self.format)
        assert (samples[0].instruction, samples[0].input, samples[0].output) == self.first
        assert [sample.source_row for sample in samples] == self.places
        assert {(sample.source, sample.license) for sample in samples} == {("rows", "MIT")}

    def test_two_readings_are_the_same(self, tmp_path: Path) -> None:
        assert read(tmp_path, {**self.good}, self.format) == read(tmp_path, {}, self.format)

    def test_label_and_benchmark_come_from_the_source(self, tmp_path: Path) -> None:
        samples = read(tmp_path, {**self.good}, self.format, label="maths", benchmark="X")
        assert {(sample.label, sample.benchmark) for sample in samples} == {("maths", "X")}

    def test_a_malformed_file_is_named_with_the_place(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=self.said) as caught:
            read(tmp_path, {**self.malformed}, self.format)
        assert str(caught.value).startswith("source rows: ")
        assert "remedy" in str(caught.value)

    def test_an_empty_file_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="source rows"):
            read(tmp_path, dict.fromkeys(self.good, ""), self.format)

    def test_no_responses_at_all_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="none of them with a response"):
            read(tmp_path, {**self.unanswered}, self.format)


class TestAlpaca(Contract):
    format = "alpaca"
    good: ClassVar = {
        "a.jsonl": lines(
            {"instruction": "Add.", "input": "1, 2", "output": "3"}, {"instruction": "Hi", "output": ""}
        )
    }
    first = ("Add.", "1, 2", "3")
    places: ClassVar = ["a.jsonl:1", "a.jsonl:2"]
    malformed: ClassVar = {"a.jsonl": lines({"instruction": "Add.", "output": "3"}) + '{"instruction": \n'}
    said = r"a\.jsonl, line 2: not JSON"
    unanswered: ClassVar = {"a.jsonl": lines({"instruction": "a", "output": " "})}


class TestShareGpt(Contract):
    format = "sharegpt"
    good: ClassVar = {
        "a.json": json.dumps(
            [
                {
                    "conversations": [
                        {"from": "system", "value": "Be kind."},
                        {"from": "human", "value": "Hello"},
                        {"from": "gpt", "value": "Hi"},
                        {"from": "human", "value": "More"},
                    ]
                },
                {"conversations": [{"from": "human", "value": "Alone"}]},
            ]
        )
    }
    first = ("Hello", "", "Hi")
    places: ClassVar = ["a.json:[0]", "a.json:[1]"]
    malformed: ClassVar = {"a.json": json.dumps([{"conversations": [{"from": "human", "value": 3}]}])}
    said = r"a\.json, row \[0\], turn 1: 'value' is '3', not a text"
    unanswered: ClassVar = {"a.json": json.dumps([{"conversations": [{"from": "human", "value": "a"}]}])}


class TestChat(Contract):
    format = "chat"
    good: ClassVar = {
        "a.jsonl": lines(
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
            {"messages": [{"role": "user", "content": "Q2"}, {"role": "tool", "content": "A2"}]},
        )
    }
    first = ("Q", "", "A")
    places: ClassVar = ["a.jsonl:1", "a.jsonl:2"]
    malformed: ClassVar = {"a.jsonl": lines({"messages": "Q"})}
    said = r"a\.jsonl, line 1: 'messages' is 'Q', not a list of turns"
    unanswered: ClassVar = {"a.jsonl": lines({"messages": []})}


class TestCompletion(Contract):
    format = "completion"
    good: ClassVar = {"a.jsonl": lines({"prompt": "Q", "completion": "A"}, {"prompt": "", "completion": "B"})}
    first = ("Q", "", "A")
    places: ClassVar = ["a.jsonl:1", "a.jsonl:2"]
    malformed: ClassVar = {"a.jsonl": lines({"prompt": "Q", "answer": "A"})}
    said = r"a\.jsonl, line 1: no 'completion', only 'prompt', 'answer'"
    unanswered: ClassVar = {"a.jsonl": lines({"prompt": "Q", "completion": None})}


class TestAuto(Contract):
    format = "auto"
    good: ClassVar = {
        "a.jsonl": lines({"instruction": "Add.", "output": "3"}),
        "b.jsonl": lines({"prompt": "Q", "completion": "A"}),
    }
    first = ("Add.", "", "3")
    places: ClassVar = ["a.jsonl:1", "b.jsonl:1"]
    malformed: ClassVar = {"a.jsonl": lines({"question": "Q", "answer": "A"})}
    said = r"a\.jsonl, line 1: unknown shape, with the keys 'question', 'answer'"
    unanswered: ClassVar = {"a.jsonl": lines({"prompt": "Q", "completion": ""})}


class TestChamp(Contract):
    format = "champ"
    good: ClassVar = {
        "v0.json": json.dumps(
            {
                "problems": {
                    "P_1": {
                        "_text": "Find x.",
                        "_answer": "2",
                        "solution": {"steps": [{"_text": "x+1=3."}, {"_text": "So x=2."}]},
                    },
                    "P_2": {"_text": "Find y.", "_answer": "?", "solution": {"steps": []}},
                }
            }
        )
    }
    first = ("Find x.", "", "x+1=3.\nSo x=2.\nAnswer: 2")
    places: ClassVar = ["v0.json:P_1", "v0.json:P_2"]
    malformed: ClassVar = {"v0.json": json.dumps({"problems": {"P_1": {"_text": "Find x."}}})}
    said = r"v0\.json, problem P_1: no 'solution'"
    unanswered: ClassVar = {
        "v0.json": json.dumps({"problems": {"P": {"_text": "a", "_answer": "b", "solution": {"steps": []}}}})
    }


class TestMmluCot(Contract):
    format = "mmlu-cot"
    good: ClassVar = {
        "cot.json": json.dumps(
            {
                "law": "About law.\n\nQ: First?\n(A) x (B) y\nA: Let's think step by step. Because. (A).\n\n"
                "Q: Second?\nA: Let's think step by step. So.\nLine two.\n\n"
            }
        )
    }
    first = ("First?\n(A) x (B) y", "", "Because. (A).")
    places: ClassVar = ["cot.json:law/1", "cot.json:law/2"]
    malformed: ClassVar = {"cot.json": json.dumps({"law": "x\n\nQ: First?\nA: Yes."})}
    said = r"cot\.json, law, question 1: no chain of thought"
    unanswered: ClassVar = {"cot.json": json.dumps({"law": "\n\nQ: a\nA: Let's think step by step. "})}


class TestBbhCot(Contract):
    format = "bbh-cot"
    good: ClassVar = {
        "a.yaml": "fewshot_config:\n  samples:\n  - {input: 1 + 1 is, target: It is 2.}\n"
        "  - {input: not True is, target: False}\n"
    }
    first = ("1 + 1 is", "", "It is 2.")
    places: ClassVar = ["a.yaml:1", "a.yaml:2"]
    malformed: ClassVar = {"a.yaml": "group: bbh\n"}
    said = r"a\.yaml: no fewshot_config\.samples"
    unanswered: ClassVar = {"a.yaml": "fewshot_config:\n  samples:\n  - {input: a, target: ''}\n"}


def question(key: str, text: str) -> dict[str, Any]:
    function = {"name": "f", "parameters": {"type": "dict", "properties": {}}}
    return {"id": key, "question": [[{"role": "user", "content": text}]], "function": [function]}


class TestBfcl(Contract):
    format = "bfcl"
    good: ClassVar = {
        "q.json": lines(question("q_0", "Hypotenuse?"), question("q_1", "Unanswered?")),
        "possible_answer/q.json": lines(
            {
                "id": "q_0",
                "ground_truth": [
                    {"f": {"x": [4, 5], "unit": ["", "cm"], "note": [""], "at": [{"city": ["Rome"]}]}}
                ],
            }
        ),
    }
    first = (
        "Hypotenuse?",
        "Answer with a JSON list of calls to these functions:\n"
        '[{"name": "f", "parameters": {"type": "dict", "properties": {}}}]',
        '[{"name": "f", "arguments": {"x": 4, "at": {"city": "Rome"}}}]',
    )
    places: ClassVar = ["q.json:q_0", "q.json:q_1"]
    malformed: ClassVar = {"q.json": lines({"id": "q_0", "question": [["a"], ["b"]], "function": []})}
    said = r"q\.json, line 1: q_0 is not a single-turn question"
    unanswered: ClassVar = {"q.json": lines(question("q_0", "Anyone?"))}


class TestChatterbot(Contract):
    format = "chatterbot"
    good: ClassVar = {
        "a.yml": "conversations:\n- - When?\n  - 1963\n  - Sure?\n  - Yes\n- - Alone\n- Loose\n",
    }
    first = ("When?", "", "1963")
    places: ClassVar = ["a.yml:1.1", "a.yml:1.2", "a.yml:1.3", "a.yml:2.1", "a.yml:3.1"]
    malformed: ClassVar = {"a.yml": "conversations:\n- - fine\n - not: [closed\n"}
    said = r"a\.yml, line 3: not YAML"
    unanswered: ClassVar = {"a.yml": "conversations:\n- - Alone\n"}

    def test_a_turn_stays_the_text_it_is_written_as(self, tmp_path: Path) -> None:
        assert [s.output for s in read(tmp_path, {**self.good}, "chatterbot")] == [
            "1963",
            "Sure?",
            "Yes",
            "",
            "",
        ]


class TestFunctions(Contract):
    format = "functions"
    good: ClassVar = {
        "a.py": "raise RuntimeError('imported')\n\n"
        "def add(a, b: int = 1) -> int:\n"
        '    """Add *b* to :func:`pow`\n    of *a*.\n\n    >>> add(1)\n    2\n    """\n\n'
        "    # the sum\n    return a + b\n\n"
        "def _hidden(a):\n    'Hidden.'\n    return a\n\n"
        "def bare(a):\n    return a\n\n"
        "def stub(a):\n    'Only words.'\n\n"
        "def twice(a):\n    'Double it.'\n    return 2 * a\n"
    }
    first = (
        "Write a Python function `add(a, b: int=1) -> int`.\n\nAdd *b* to `pow` of *a*.",
        "",
        "def add(a, b: int = 1) -> int:\n    # the sum\n    return a + b",
    )
    places: ClassVar = ["a.py:add", "a.py:twice"]
    malformed: ClassVar = {"a.py": "x = 1\ndef f(:\n"}
    said = r"a\.py, line 2: not Python"
    test_no_responses_at_all_is_an_error = None  # a function always has a source


class TestEvals(Contract):
    format = "evals"
    good: ClassVar = {
        "a.jsonl": lines(
            {
                "input": [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "1+1?"}],
                "ideal": ["2", "two"],
            },
            {"input": "2+2?", "ideal": "4"},
        )
    }
    first = ("Be brief.\n\n1+1?", "", "2")
    places: ClassVar = ["a.jsonl:1", "a.jsonl:2"]
    malformed: ClassVar = {"a.jsonl": lines({"input": "1+1?", "ideal": 2})}
    said = r"a\.jsonl, line 1: 'ideal' is '2', not a text"
    unanswered: ClassVar = {"a.jsonl": lines({"input": "a"})}


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("alpaca", {"instruction": "a", "output": "b"}),
        ("completion", {"prompt": "a", "completion": "b"}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
        ("chat", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        ("auto", {"prompt": "a", "completion": "b"}),
    ],
)
def test_a_row_may_carry_its_own_label_and_license(tmp_path: Path, format: str, text: dict[str, Any]) -> None:
    row = {**text, "label": "code", "license": "CC0-1.0"}
    (sample,) = read(tmp_path, {"a.jsonl": lines(row)}, format, label="maths")
    assert (sample.instruction, sample.output) == ("a", "b")
    assert (sample.label, sample.license) == ("code", "CC0-1.0")


def test_packed_and_list_and_parquet_files_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"instruction": f"a{i}", "output": "b"} for i in range(3)]
    packed = gzip.compress(lines(*rows).encode())
    listed = "\ufeff" + json.dumps(rows, indent=1)
    (tmp_path / "columns").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "columns" / "a.parquet")
    found = [
        read(tmp_path / "packed", {"a.jsonl.gz": packed}, "auto"),
        read(tmp_path / "list", {"a.json": listed}, "auto"),
        read(tmp_path / "columns", {}, "auto"),
    ]
    assert [[sample.instruction for sample in samples] for samples in found] == [["a0", "a1", "a2"]] * 3
    assert found[2][1].source_row == "a.parquet:[1]"


def test_upper_case_suffixes_are_the_same_formats(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"instruction": f"a{i}", "output": "b"} for i in range(3)]
    packed = gzip.compress(lines(*rows).encode())
    (tmp_path / "columns").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "columns" / "A.PARQUET")
    found = [
        read(tmp_path / "plain", {"A.JSONL": lines(*rows)}, "auto"),
        read(tmp_path / "packed", {"A.JSONL.GZ": packed}, "auto"),
        read(tmp_path / "columns", {}, "auto"),
    ]
    assert [[sample.instruction for sample in samples] for samples in found] == [["a0", "a1", "a2"]] * 3


def test_a_broken_parquet_file_is_named_with_the_row(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"instruction": f"a{i:05}", "output": "b"} for i in range(70_000)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, compression="none", use_dictionary=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"a69999", b"a\xff\xff999"))
    with pytest.raises(SourceError, match=r"a\.parquet, row \[65536\] or one after it: not to be read"):
        read(tmp_path, {}, "auto")
    path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    with pytest.raises(SourceError, match=r"a\.parquet, row \[0\] or one after it: not to be read"):
        read(tmp_path, {}, "auto")


DEEP = f"{'[' * 30_000}{']' * 30_000}"


@pytest.mark.parametrize(
    ("format", "files", "said"),
    [
        (
            "auto",
            {"a.jsonl": f'{{"instruction": "a", "output": "b"}}\n{DEEP}\n'},
            r"a\.jsonl, line 2: not JSON \(maximum recursion",
        ),
        (
            "auto",
            {"a.jsonl": f'{{"instruction": "a", "output": {"1" * 5000}}}\n'},
            r"a\.jsonl, line 1: not JSON \(Exceeds",
        ),
        ("auto", {"a.json": DEEP}, r"a\.json cannot be read as JSON: maximum recursion"),
        ("auto", {"a.json": f"[{'1' * 5000}]"}, r"a\.json cannot be read as JSON: Exceeds"),
        ("bbh-cot", {"a.yaml": DEEP}, r"a\.yaml cannot be read as YAML: maximum recursion"),
        ("bbh-cot", {"a.yaml": "fewshot_config: none"}, r"a\.yaml: no fewshot_config\.samples"),
        (
            "bbh-cot",
            {"a.yaml": "fewshot_config: {samples: [input]}"},
            r"a\.yaml, sample 1: expected a mapping",
        ),
        (
            "champ",
            {"a.json": '{"problems": {"P": {"_text": 5, "_answer": 1, "solution": {"steps": []}}}}'},
            r"problem P: '_text' is '5', not a text",
        ),
        (
            "bfcl",
            {"possible_answer/a.json": '{"id": "q"}'},
            r"possible_answer/a\.json, line 1: 'ground_truth' is 'null'",
        ),
        ("functions", {"a.py": f"x = {DEEP}"}, r"a\.py, line 1: not Python"),
    ],
)
def test_odd_content_is_refused_with_its_place(
    tmp_path: Path, format: str, files: dict[str, str | bytes], said: str
) -> None:
    with pytest.raises(SourceError, match=said):
        read(tmp_path, files, format)


@pytest.mark.parametrize("call", [{"f": 5}, {"f": {"x": 5}}, {"f": {}, "g": {}}, "f"])
def test_an_answer_of_another_shape_is_named_with_its_question(tmp_path: Path, call: Any) -> None:
    answers = {"possible_answer/q.json": lines({"id": "q_0", "ground_truth": [call]})}
    with pytest.raises(SourceError, match=r"q\.json, line 1: answer .* is not one call"):
        read(tmp_path, {"q.json": lines(question("q_0", "Hypotenuse?")), **answers}, "bfcl")


def test_a_deeply_nested_value_can_be_named(tmp_path: Path) -> None:
    nested: Any = "x"
    for _ in range(50_000):
        nested = [nested]
    assert shown(nested) == "'a deeply nested value'"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", '[{"instruction": "a",\n "output": }]', r"a\.json, line 2: not JSON"),
        ("a.jsonl", b'{"instruction": "a", "output": "b"}\n{"instruction": "\xff"}\n', "line 2: byte 0xff"),
        ("a.jsonl", "\n \n", r"a\.jsonl is empty"),
        ("a.jsonl", "[]", "has no rows"),
        ("a.jsonl", '"text"\n', "expected an object, found 'text'"),
        ("a.jsonl.gz", b"\x1f\x8bbroken", "not a whole gzip file"),
        ("a.parquet", b"PAR?", "not a Parquet file"),
        ("a.txt", "hello", r"no JSON, JSON Lines or Parquet file, only a\.txt"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    with pytest.raises(SourceError, match=said):
        read(tmp_path, {name: content}, "auto")


@pytest.mark.parametrize(
    ("format", "text", "said"),
    [
        ("alpaca", r'{"instruction": "a", "output": "cut \ud83d"}', r"a\.jsonl, line 2: 'output' holds"),
        ("alpaca", r'{"instruction": "\udE00", "output": "a"}', r"a\.jsonl, line 2: 'instruction' holds"),
        ("completion", r'{"prompt": "a", "completion": "\ud83d"}', r"a\.jsonl, line 2: 'completion' holds"),
        (
            "chat",
            r'{"messages": [{"role": "user", "content": "\ud83d"}]}',
            r"a\.jsonl, line 2, turn 1: 'content' holds",
        ),
    ],
)
def test_half_a_surrogate_pair_is_refused_with_line_and_key(
    tmp_path: Path, format: str, text: str, said: str
) -> None:
    good = {
        "alpaca": lines({"instruction": "a", "output": "b"}),
        "completion": lines({"prompt": "a", "completion": "b"}),
        "chat": lines({"messages": []}),
    }
    with pytest.raises(SourceError, match=said) as caught:
        read(tmp_path, {"a.jsonl": good[format] + text}, format)
    assert "half of a surrogate pair" in str(caught.value)
    assert "write the whole pair" in str(caught.value)
    str(caught.value).encode("utf-8")


def test_half_a_surrogate_pair_is_found_in_formats_of_their_own_too(tmp_path: Path) -> None:
    champ = (
        r'{"problems": {"P": {"_text": "\ud83d", "_answer": "2", "solution": {"steps": [{"_text": "x"}]}}}}'
    )
    with pytest.raises(SourceError, match=r"v0\.json, problem P: '_text' holds"):
        read(tmp_path / "champ", {"v0.json": champ}, "champ")
    code = r"def f(a):" + "\n    'Half \\ud83d.'\n    return a\n"
    with pytest.raises(SourceError, match=r"a\.py:f: 'instruction' holds"):
        read(tmp_path / "functions", {"a.py": code}, "functions")


def test_a_whole_surrogate_pair_and_half_a_pair_in_an_unread_key_are_fine(tmp_path: Path) -> None:
    text = r'{"instruction": "\ud83d\ude00", "output": "b", "note": "\ud83d"}'
    (sample,) = read(tmp_path, {"a.jsonl": text}, "alpaca")
    assert sample.instruction == "\N{GRINNING FACE}"
    assert sample.row_id.startswith("r1-")
