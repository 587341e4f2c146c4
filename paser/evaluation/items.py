"""The items of a task from local files, one small reader for each format, as the documents that lm-eval asks.

Prompts follow lm-eval's own task of the same kind as closely as the file allows; `notes` say where it does
not, because a number from another prompt is another number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paser.artifacts import files_below
from paser.errors import SourceError
from paser.pool.contamination import Probe
from paser.pool.documents import Document, is_records, read_records, shown
from paser.sources.catalog import Source

CHOICES, CLOZE, NUMBER, FUNCTION, PROGRAM = "choices", "cloze", "number", "function", "program"
CODE = (FUNCTION, PROGRAM)


@dataclass(frozen=True)
class Items:
    """A task's documents, in file order. All have `item` (its place) and `probes` (its prompt in each form in
    which a training row may have it), and by `kind`:

    choices: `query`, `choices`, `gold` (index). cloze: `contexts`, `ending`, `gold`. number: `query`,
    `target`. function (HumanEval): `prompt`, `test`, `entry_point`. program (MBPP): `text`, `code`,
    `tests`; `examples` are then shown before each.
    """

    kind: str
    documents: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()
    examples: tuple[Mapping[str, Any], ...] = field(default=())

    def __len__(self) -> int:
        return len(self.documents)

    def probes(self, of: str) -> list[Probe]:
        """What contamination is looked for by."""
        return [Probe(of, document["item"], tuple(document["probes"])) for document in self.documents]


def read_items(folder: Path, source: Source) -> Items:
    """The items of a fetched source with `role: task`; raises `SourceError` naming file, row and remedy."""
    files = [path for path in files_below(folder) if is_records(path)]
    documents = [d for path in files for d in read_records(path, path.relative_to(folder).as_posix())]
    if not documents:
        raise SourceError(f"task {source.name}: no items", remedy="name JSON or JSON Lines files")
    for document in documents:
        if not isinstance(document.value, dict):
            raise SourceError(
                f"{document.where}: {shown(document.value)} is no object", remedy="mend the row"
            )
    return READERS[source.format or ""](documents)


def _value(document: Document, *keys: str) -> Any:
    """The value of the first of these keys that the row has."""
    for key in keys:
        if document.value.get(key) is not None:
            return document.value[key]
    raise SourceError(
        f"{document.where}: no {' or '.join(map(repr, keys))}, only {', '.join(map(repr, document.value))}",
        remedy="name the right `format` in the source list",
    )


def _text(document: Document, *keys: str) -> str:
    value = _value(document, *keys)
    if not isinstance(value, str):
        raise SourceError(
            f"{document.where}: {keys[0]!r} is {shown(value)}, not a text", remedy="mend the row"
        )
    return value


def _texts(document: Document, *keys: str) -> list[str]:
    value = _value(document, *keys)
    if not isinstance(value, list) or not value or not all(isinstance(entry, str) for entry in value):
        raise SourceError(
            f"{document.where}: {keys[0]!r} is {shown(value)}, not a list of texts", remedy="mend the row"
        )
    return value


def _gold(document: Document, choices: Sequence[str], *keys: str) -> int:
    value = _value(document, *keys)
    if isinstance(value, str) and not value.isdigit() and value in choices:
        return choices.index(value)
    if isinstance(value, bool) or not str(value).isdigit() or not 0 <= int(value) < len(choices):
        raise SourceError(
            f"{document.where}: {shown(value)} is no choice of {len(choices)}",
            remedy="write the index of the right choice, from 0",
        )
    return int(value)


def _choice(document: Document, query: str, choices: list[str], gold: int, *probes: str) -> dict[str, Any]:
    return {
        "item": document.row,
        "query": query,
        "choices": choices,
        "gold": gold,
        "probes": [*probes, query],
    }


def _choices(documents: Sequence[Document]) -> Items:
    """`question`, `choices`, and the index of the right one (`gold`, `expected_index`, `label` or
    `answer`)."""
    found = []
    for document in documents:
        question, choices = _text(document, "question", "query"), _texts(document, "choices", "endings")
        gold = _gold(document, choices, "gold", "expected_index", "label", "answer")
        found.append(_choice(document, f"Question: {question}\nAnswer:", choices, gold, question))
    return Items(CHOICES, tuple(found), ("prompt `Question: ... Answer:`, no examples before it",))


def _hellaswag(documents: Sequence[Document]) -> Items:
    """The Hub's columns, or `ctx` in one piece with `expected_index`."""
    found, whole = [], False
    for document in documents:
        row = document.value
        if row.get("ctx_a") is not None:
            context = f"{row['ctx_a']} {_text(document, 'ctx_b').capitalize()}"
        else:
            context, whole = _text(document, "ctx"), True
        query = _plain(f"{_text(document, 'activity_label')}: {context}")
        endings = [_plain(ending) for ending in _texts(document, "endings")]
        gold = _gold(document, endings, "label", "expected_index")
        found.append(_choice(document, query, endings, gold, context))
    note = "contexts in one piece: the second sentence's first letter stays as it is in the file"
    return Items(CHOICES, tuple(found), (note,) if whole else ())


def _plain(text: str) -> str:
    """WikiHow's marks out of a text, as lm-eval does it."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


_CHOOSE = re.compile(r"(?:^|\s)(?:Answer|Solution|Option|Ending)(\d): ")


def _adapters(documents: Sequence[Document]) -> Items:
    """LLM-Adapters' commonsense files: questions inside an instruction, with `answer` as `answer3`, `true`,
    ..."""
    made = [_adapter(document) for document in documents]
    kinds = {kind for kind, _, _ in made}
    if len(kinds) > 1:
        raise SourceError(
            f"{documents[0].file} mixes {' and '.join(sorted(kinds))} items", remedy="one task a source"
        )
    return Items(kinds.pop(), tuple(item for _, item, _ in made), tuple(sorted({n for _, _, n in made if n})))


def _adapter(document: Document) -> tuple[str, dict[str, Any], str]:
    instruction, answer = _text(document, "instruction"), _text(document, "answer")
    body = instruction.split("Answer format:")[0]
    if answer in ("true", "false"):
        question = body.split("question:", 1)[-1].strip()
        query = f"Question: {question.rstrip('?')}?\nAnswer:"
        item = _choice(document, query, ["no", "yes"], int(answer == "true"), question, instruction)
        return CHOICES, item, "yes-no questions without their passage: not comparable with published BoolQ"
    asked, *parts = _CHOOSE.split(body)
    choices = [part.strip() for part in parts[1::2]]
    match = re.fullmatch(r"(?:answer|solution|option|ending)(\d)", answer)
    if not match or not choices or not 1 <= int(match[1]) <= len(choices):
        raise SourceError(
            f"{document.where}: answer {answer!r} to {len(choices)} choices", remedy="name another format"
        )
    gold = int(match[1]) - 1
    question = asked.split(":", 1)[-1].strip()
    if answer.startswith("option") and question.count("_") == 1:
        before, after = question.split("_")
        return CLOZE, {
            "item": document.row,
            "contexts": [f"{before}{choice}" for choice in choices],
            "ending": after.strip(),
            "gold": gold,
            "probes": [question, *(f"{before}{choice}{after}" for choice in choices), instruction],
        }, ""  # fmt: skip
    item = _choice(document, f"Question: {question}\nAnswer:", choices, gold, question, instruction)
    return CHOICES, item, ""


def _gsm8k(documents: Sequence[Document]) -> Items:
    found = []
    for document in documents:
        question = _text(document, "question", "prompt")
        answer = _text(document, "answer", "upstream_answer")
        query = f"Question: {question}\nAnswer:"
        found.append(
            {"item": document.row, "query": query, "target": answer, "probes": [question, query]}
        )  # fmt: skip
    return Items(NUMBER, tuple(found), ("no worked examples before the question (lm-eval's gsm8k has five)",))


def _humaneval(documents: Sequence[Document]) -> Items:
    found = []
    for document in documents:
        prompt = _text(document, "prompt")
        row = {key: _text(document, key) for key in ("test", "entry_point")}
        found.append({"item": document.row, "prompt": prompt, "probes": [prompt], **row})
    return Items(FUNCTION, tuple(found))


# The benchmark's own split: tasks 11 to 510 are the test, and 2, 3 and 4 are shown as examples.
_MBPP_EXAMPLES, _MBPP_TEST = (2, 3, 4), range(11, 511)


def _mbpp(documents: Sequence[Document]) -> Items:
    found, examples = [], []
    for number, document in enumerate(documents, 1):
        tests = _texts(document, "test_list")
        text = _text(document, "text", "prompt")
        item = {"item": document.row, "text": text, "code": _text(document, "code"),
                "tests": "\n".join(tests),
                "probes": [text, f"{text}\n{tests[0]}"]}  # fmt: skip
        task = int(document.value.get("task_id", number))
        if task in _MBPP_EXAMPLES:
            examples.append(item)
        elif task in _MBPP_TEST:
            found.append(item)
    if not found or len(examples) < len(_MBPP_EXAMPLES):
        raise SourceError(
            f"{documents[0].file}: MBPP needs its tasks 2, 3, 4 and some of 11 to 510 (`task_id`)",
            remedy="take the whole file",
        )
    return Items(PROGRAM, tuple(found), (), tuple(examples))


READERS: dict[str, Callable[[Sequence[Document]], Items]] = {
    "choices": _choices,
    "hellaswag": _hellaswag,
    "llm-adapters": _adapters,
    "gsm8k": _gsm8k,
    "humaneval": _humaneval,
    "mbpp": _mbpp,
}
