"""Adapters: one small reader for each format of instruction data, behind one protocol.

A reader yields drafts, in file order, and never repairs or drops a row: what is unusable is refused
here with file, line and remedy, or quarantined later with a reason.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from paser.artifacts import files_below
from paser.errors import SourceError
from paser.pool.documents import (
    Document,
    is_records,
    read_json_text,
    read_records,
    read_text,
    read_yaml,
    require_characters,
    shown,
)
from paser.records import Sample
from paser.sources.catalog import Source


@dataclass(frozen=True)
class Draft:
    """One row as its file has it; `row` is its place. Label and licence, if given, beat the source's."""

    row: str
    instruction: str
    input: str
    output: str
    label: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class File:
    """A file of a source and its name in row ids and errors."""

    path: Path
    name: str


class Adapter(Protocol):
    """Reads a source's files, given in a fixed order, into drafts."""

    def __call__(self, files: Sequence[File]) -> Iterator[Draft]: ...


def read_source(folder: Path, source: Source) -> Iterator[Sample]:
    """The samples of a fetched source in file order, not yet normalised.

    Raises `SourceError` for a malformed row, an unknown shape, a source without rows, and one in
    which no row has a response.
    """
    files = [File(path, path.relative_to(folder).as_posix()) for path in files_below(folder)]
    adapter = ADAPTERS[source.format or "auto"]
    rows = answered = 0
    try:
        for draft in adapter(files):
            for key, value in vars(draft).items():
                require_characters(value or "", key, draft.row)
            rows += 1
            answered += bool(draft.output.strip())
            yield Sample(
                source=source.name,
                source_row=draft.row,
                license=draft.license or source.license,
                instruction=draft.instruction,
                input=draft.input,
                output=draft.output,
                label=draft.label or source.label,
                benchmark=source.benchmark,
            )
    except SourceError as error:
        raise SourceError(f"source {source.name}: {error.problem}", remedy=error.remedy) from error
    if not answered:
        found = f"{rows} rows, none of them with a response" if rows else "no rows"
        raise SourceError(
            f"source {source.name} ({source.uri}) has {found}",
            remedy="check `format` and `files` in the source list; a row needs a response to learn from",
        )


# Common shapes, one object a row


def _records(files: Sequence[File]) -> Iterator[Document]:
    usable = [file for file in files if is_records(file.path)]
    if not usable:
        names = ", ".join(file.name for file in files[:5]) or "nothing"
        raise SourceError(f"no JSON, JSON Lines or Parquet file, only {names}", remedy="name such a file")
    for file in usable:
        yield from read_records(file.path, file.name)


def _object(document: Document) -> dict[str, Any]:
    if not isinstance(document.value, dict):
        raise SourceError(
            f"{document.where}: expected an object, found {shown(document.value)}", remedy="write {...} a row"
        )
    return document.value


def _field(row: Mapping[str, Any], key: str, where: str, *, optional: bool = False) -> str:
    """A text; null counts as empty, which is quarantined later."""
    if key not in row and not optional:
        raise SourceError(
            f"{where}: no {key!r}, only {', '.join(map(repr, row)) or 'nothing'}",
            remedy="name the right `format` in the source list, or mend the row",
        )
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise SourceError(f"{where}: {key!r} is {shown(value)}, not a text", remedy="write it as a text")
    require_characters(value, key, where)
    return value


def _alpaca_row(document: Document) -> Draft:
    row, where = _object(document), document.where
    texts = _field(row, "instruction", where), _field(row, "input", where, optional=True)
    return Draft(document.row, *texts, _field(row, "output", where), *_label_and_license(row, where))


def _completion_row(document: Document) -> Draft:
    row, where = _object(document), document.where
    texts = _field(row, "prompt", where), "", _field(row, "completion", where)
    return Draft(document.row, *texts, *_label_and_license(row, where))


def _sharegpt_row(document: Document) -> Draft:
    names = {"human": "prompt", "user": "prompt", "gpt": "answer", "assistant": "answer", "chatgpt": "answer"}
    return _first_exchange(document, "conversations", "from", "value", names)


def _chat_row(document: Document) -> Draft:
    names = {"user": "prompt", "assistant": "answer"}
    return _first_exchange(document, "messages", "role", "content", names)


def _first_exchange(document: Document, key: str, speaker: str, text: str, names: Mapping[str, str]) -> Draft:
    """The first prompt of a conversation and the answer right after it; system turns are skipped."""
    row, where = _object(document), document.where
    turns = row.get(key)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise SourceError(f"{where}: {key!r} is {shown(turns)}, not a list of turns", remedy="mend the row")
    prompt = answer = ""
    for number, turn in enumerate(turns, 1):
        place = f"{where}, turn {number}"
        kind = names.get(_field(turn, speaker, place))
        if kind == "prompt" and not prompt:
            prompt = _field(turn, text, place)
        elif kind == "answer" and prompt:
            answer = _field(turn, text, place)
            break
        elif prompt:
            break
    return Draft(document.row, prompt, "", answer, *_label_and_license(row, where))


def _label_and_license(row: Mapping[str, Any], where: str) -> tuple[str | None, str | None]:
    """What a row says of itself beside its text, in every format."""
    label, license = (_field(row, key, where, optional=True) or None for key in ("label", "license"))
    return label, license


def _one_by_one(read: Callable[[Document], Draft]) -> Adapter:
    def adapter(files: Sequence[File]) -> Iterator[Draft]:
        return (read(document) for document in _records(files))

    return adapter


_SHAPES: tuple[tuple[str, frozenset[str], Callable[[Document], Draft]], ...] = (
    ("alpaca", frozenset({"instruction", "output"}), _alpaca_row),
    ("sharegpt", frozenset({"conversations"}), _sharegpt_row),
    ("chat", frozenset({"messages"}), _chat_row),
    ("completion", frozenset({"prompt", "completion"}), _completion_row),
)


def _auto(files: Sequence[File]) -> Iterator[Draft]:
    """Alpaca, ShareGPT, chat or completion, told by the keys of a file's first row."""
    file: str | None = None
    read: Callable[[Document], Draft] = _alpaca_row
    for document in _records(files):
        if document.file != file:
            file, read = document.file, _shape(document)
        yield read(document)


def _shape(document: Document) -> Callable[[Document], Draft]:
    row = _object(document)
    for _, keys, read in _SHAPES:
        if keys <= row.keys():
            return read
    known = "; ".join(f"{name}: {', '.join(sorted(keys))}" for name, keys, _ in _SHAPES)
    raise SourceError(
        f"{document.where}: unknown shape, with the keys {', '.join(map(repr, row)) or '(none)'}",
        remedy=f"known shapes are {known}; or name a `format`",
    )


# Formats of the default's packages


def _champ(files: Sequence[File]) -> Iterator[Draft]:
    """CHAMP: competition problems; the response is the annotated solution and the answer."""
    for file in files:
        content = read_json_text(read_text(file.path, file.name), file.name)
        problems = content.get("problems") if isinstance(content, dict) else None
        if not isinstance(problems, dict):
            raise SourceError(f"{file.name}: no mapping of 'problems'", remedy="name CHAMP's v0.json")
        for key, problem in problems.items():
            where = f"{file.name}, problem {key}"
            try:
                steps = [step["_text"] for step in problem["solution"]["steps"]]
                lines = [*steps, f"Answer: {problem['_answer']}"] if steps else []
                yield Draft(f"{file.name}:{key}", _field(problem, "_text", where), "", "\n".join(lines))
            except (KeyError, TypeError) as error:
                raise SourceError(f"{where}: no {error}", remedy="name CHAMP's v0.json") from error


_COT = re.compile(r"\A(?P<question>.*?)\nA:\s*Let's think step by step\.\s*(?P<answer>.*)\Z", re.DOTALL)


def _mmlu_cot(files: Sequence[File]) -> Iterator[Draft]:
    """lm-eval's chain-of-thought prompts: `Q: ... A: Let's think step by step. ...` by subject."""
    for file in files:
        subjects = read_json_text(read_text(file.path, file.name), file.name)
        if not isinstance(subjects, dict):
            raise SourceError(f"{file.name}: not a mapping of subjects", remedy="name _cot_prompts.json")
        for subject, prompts in subjects.items():
            for number, block in enumerate(re.split(r"(?:\A|\n\n)Q: ", str(prompts))[1:], 1):
                match = _COT.match(block)
                if not match:
                    raise SourceError(
                        f"{file.name}, {subject}, question {number}: no chain of thought in {shown(block)}",
                        remedy="name lm-eval's mmlu/flan_cot_fewshot/_cot_prompts.json",
                    )
                yield Draft(f"{file.name}:{subject}/{number}", match["question"], "", match["answer"])


def _bbh_cot(files: Sequence[File]) -> Iterator[Draft]:
    """lm-eval's BIG-Bench Hard tasks: the worked few-shot samples of each YAML file."""
    for file in files:
        task = read_yaml(file.path, file.name)
        config = task.get("fewshot_config") if isinstance(task, dict) else None
        samples = config.get("samples") if isinstance(config, dict) else None
        if not isinstance(samples, list):
            raise SourceError(
                f"{file.name}: no fewshot_config.samples", remedy="leave the file out of `files`"
            )
        for number, sample in enumerate(samples, 1):
            where = f"{file.name}, sample {number}"
            if not isinstance(sample, dict):
                raise SourceError(
                    f"{where}: expected a mapping, found {shown(sample)}", remedy="write `input` and `target`"
                )
            yield Draft(
                f"{file.name}:{number}", _field(sample, "input", where), "", _field(sample, "target", where)
            )


_CALLS = "Answer with a JSON list of calls to these functions:"


def _bfcl(files: Sequence[File]) -> Iterator[Draft]:
    """Berkeley Function-Calling Leaderboard: questions, matched by id with `possible_answer/` files.

    The response is a JSON list of calls, each argument with its first acceptable value; an argument
    that may be left out (its first or only acceptable value is empty) is left out.
    """
    answers: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        if "possible_answer/" in file.name:
            for document in read_records(file.path, file.name):
                row = _object(document)
                calls = row.get("ground_truth")
                if not isinstance(calls, list):
                    raise SourceError(
                        f"{document.where}: 'ground_truth' is {shown(calls)}, not a list of calls",
                        remedy="leave the file out",
                    )
                answers[_field(row, "id", document.where)] = calls
    for file in files:
        if "possible_answer/" in file.name:
            continue
        for document in read_records(file.path, file.name):
            row, where = _object(document), document.where
            key = _field(row, "id", where)
            try:
                (turn,) = row["question"]
                asked = "\n\n".join(message["content"] for message in turn)
                documentation = _compact(row["function"])
            except (KeyError, TypeError, ValueError) as error:
                raise SourceError(
                    f"{where}: {key} is not a single-turn question with functions",
                    remedy="leave the file out",
                ) from error
            calls = [_call(call, where) for call in answers.get(key, [])]
            yield Draft(
                f"{file.name}:{key}", asked, f"{_CALLS}\n{documentation}", _compact(calls) if calls else ""
            )


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def _call(call: Any, where: str) -> dict[str, Any]:
    try:
        ((name, arguments),) = call.items()
        return {"name": name, "arguments": _arguments(arguments)}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"{where}: answer {shown(call)} is not one call", remedy="leave the file out"
        ) from error


def _arguments(acceptable: Mapping[str, list[Any]]) -> dict[str, Any]:
    chosen = {key: values[0] for key, values in acceptable.items() if values and values[0] != ""}
    return {key: _nested(value) for key, value in chosen.items()}


def _nested(value: Any) -> Any:
    if isinstance(value, dict) and all(isinstance(inner, list) for inner in value.values()):
        return _arguments(value)
    if isinstance(value, list):
        return [_nested(inner) for inner in value]
    return value


def _chatterbot(files: Sequence[File]) -> Iterator[Draft]:
    """ChatterBot's YAML conversations: each turn is the prompt of the next; a lone turn has no response."""
    for file in files:
        content = read_yaml(file.path, file.name)
        conversations = content.get("conversations") if isinstance(content, dict) else None
        if not isinstance(conversations, list):
            raise SourceError(
                f"{file.name}: no list of 'conversations'", remedy="leave the file out of `files`"
            )
        for number, turns in enumerate(conversations, 1):
            if isinstance(turns, str):
                turns = [turns]
            if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
                raise SourceError(
                    f"{file.name}, conversation {number}: {shown(turns)} is not a list of texts",
                    remedy="mend it",
                )
            if len(turns) == 1:
                turns = [*turns, ""]
            for turn, (prompt, answer) in enumerate(pairwise(turns), 1):
                yield Draft(f"{file.name}:{number}.{turn}", prompt, "", answer)


def _functions(files: Sequence[File]) -> Iterator[Draft]:
    """Documented public functions at the top level of Python files, parsed and never imported.

    The instruction gives signature and first paragraph of the docstring; the response is the source
    without the docstring.
    """
    for file in files:
        text = read_text(file.path, file.name)
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", None) or 1
            raise SourceError(
                f"{file.name}, line {line}: not Python: {error}", remedy="leave it out"
            ) from error
        lines = text.splitlines()
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                draft = _function(node, lines, file.name)
                if draft:
                    yield draft


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str], name: str) -> Draft | None:
    documentation = ast.get_docstring(node)
    summary = _summary(documentation or "")
    if not summary or len(node.body) < 2:
        return None
    docstring = node.body[0]
    first, last = docstring.lineno - 1, docstring.end_lineno or docstring.lineno
    body = [*lines[node.lineno - 1 : first], *_strip_blank(lines[last : node.end_lineno])]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    signature = f"{node.name}({ast.unparse(node.args)}){returns}"
    return Draft(
        f"{name}:{node.name}", f"Write a Python function `{signature}`.\n\n{summary}", "", "\n".join(body)
    )


def _summary(documentation: str) -> str:
    """The first paragraph in one line, with Sphinx roles reduced to the names they mark up."""
    paragraph = inspect.cleandoc(documentation).split("\n\n")[0]
    line = " ".join(paragraph.split())
    if line.startswith((">>>", ":", "..")):
        return ""
    line = re.sub(r":[\w:]+:`~?([^`<]*?)(?:\s*<[^`>]*>)?`", r"`\1`", line)
    return line.replace("``", "`")


def _strip_blank(lines: list[str]) -> list[str]:
    while lines and not lines[0].strip():
        lines = lines[1:]
    return lines


def _evals(files: Sequence[File]) -> Iterator[Draft]:
    """OpenAI Evals: `input` is a text or chat messages, `ideal` the answer (the first of a list)."""
    for document in _records(files):
        row, where = _object(document), document.where
        turns = row.get("input")
        if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
            prompt = "\n\n".join(_field(turn, "content", where).strip() for turn in turns)
        else:
            prompt = _field(row, "input", where)
        ideal = row.get("ideal")
        if isinstance(ideal, list) and ideal:
            ideal = ideal[0]
        yield Draft(document.row, prompt, "", _field({"ideal": ideal}, "ideal", where))


ADAPTERS: dict[str, Adapter] = {
    "auto": _auto,
    **{name: _one_by_one(read) for name, _, read in _SHAPES},
    "champ": _champ,
    "mmlu-cot": _mmlu_cot,
    "bbh-cot": _bbh_cot,
    "bfcl": _bfcl,
    "chatterbot": _chatterbot,
    "functions": _functions,
    "evals": _evals,
}
