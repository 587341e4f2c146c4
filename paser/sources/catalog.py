"""The source list: `data/sources.yaml` as frozen sources, validated before anything is fetched.

Each entry says where a model or a set of rows comes from, in which role, in which format and under
which licence, and whether it carries items of a public benchmark.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paser.errors import SourceError
from paser.settings import read_yaml
from paser.sources.uri import FileUri, parse_uri

MODEL_ROLES = ("original", "encoder")
EXTERNAL_ROLE = "pruned"  # of `prune.external`, which stands in params.yaml and not in the source list
TASK_ROLE = "task"  # items of a task, or a text for perplexity; fetched only when `evaluate` names them
HUB = (
    ".hub"  # the folder with the prompts of tasks that lm-eval takes from the Hub; no source has such a name
)
ROLES = (*MODEL_ROLES, "pool", "calibration", "evaluation", TASK_ROLE)
REQUIRED_ROLES = ("original", "encoder", "pool", "calibration")
FORMATS = (
    "auto", "alpaca", "sharegpt", "chat", "completion",
    "champ", "mmlu-cot", "bbh-cot", "bfcl", "chatterbot", "functions", "evals",
)  # fmt: skip
TEXT_FORMAT = "text"
TASK_FORMATS = ("choices", "hellaswag", "llm-adapters", "gsm8k", "humaneval", "mbpp", TEXT_FORMAT)
_KEYS = (
    "name", "uri", "files", "role", "format", "label", "license", "benchmark",
    "max_rows", "sample_seed",
)  # fmt: skip
_ROW_KEYS = ("format", "label", "benchmark", "max_rows", "sample_seed")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Source:
    """One entry of the source list.

    `format` names the adapter that reads it (None for models), `label` the capability its rows
    show, `benchmark` the public benchmark whose items it carries. At most `max_rows` rows are drawn,
    in an order that depends on `sample_seed` and the text of the rows alone.
    """

    name: str
    uri: str
    role: str
    format: str | None = None
    label: str | None = None
    license: str = "unknown"
    benchmark: str | None = None
    max_rows: int | None = None
    sample_seed: int = 0

    @property
    def is_model(self) -> bool:
        return self.role in (*MODEL_ROLES, EXTERNAL_ROLE)

    def as_json(self) -> dict[str, Any]:
        """Name, URI and all that the later stages need, in plain types."""
        return {key: value for key, value in vars(self).items() if key != "role"}


def load_sources(path: Path) -> list[Source]:
    """Reads and validates a source list; raises `SourceError` naming entry, key, value and remedy."""
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SourceError(
            f"{path} does not exist", remedy="run in a PASER project, or copy its data/sources.yaml"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} is not YAML: {error}", remedy="correct it at that line") from error
    return parse_sources(content, str(path))


def parse_sources(content: Any, origin: str) -> list[Source]:
    """Validates a parsed source list; `origin` names it in errors."""
    if not isinstance(content, dict) or not isinstance(content.get("sources"), list):
        raise SourceError(f"{origin} has no list of sources", remedy="write `sources:` and a list below it")
    if unknown := [key for key in content if key != "sources"]:
        raise SourceError(
            f"{origin}: unknown key {unknown[0]!r} beside `sources`", remedy="remove it or move it below"
        )
    sources = [_source(entry, f"{origin}: source {n}") for n, entry in enumerate(content["sources"], 1)]
    _belong_together(sources, origin)
    return sources


def source_from_uri(
    uri: str, role: str, *, name: str | None = None, format: str = "auto", license: str = "unknown"
) -> Source:
    """A source given on the command line; a plain path counts as `file:path`."""
    if not re.match(r"(pypi|file|hf):", uri):
        uri = f"file:{uri}"
    parse_uri(uri)
    return Source(
        name=name or role,
        uri=uri,
        role=role,
        format=None if role in (*MODEL_ROLES, EXTERNAL_ROLE) else format,
        license=license,
    )


def contaminated(
    evaluation: Iterable[Source], training: Iterable[Source], tasks: Iterable[str] = ()
) -> list[str]:
    """Benchmarks that are evaluated on and whose items also stand in the training sources, sorted.

    A task of lm-eval's own has no benchmark but its name: it counts where the benchmark's words stand in
    it in a row (`mmlu_anatomy` is MMLU).
    """
    trained = {_folded(s.benchmark): s.benchmark for s in training if s.benchmark}
    found = {s.benchmark for s in evaluation if s.benchmark and _folded(s.benchmark) in trained}
    for task in tasks:
        words = [word for word in re.split(r"[\W_]+", task) if word]
        runs = {_folded("".join(words[i:j])) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
        found |= {trained[name] for name in runs & trained.keys()}
    return sorted(found)


def _folded(benchmark: str) -> str:
    return re.sub(r"[\W_]+", "", benchmark).casefold()


def _source(entry: Any, where: str) -> Source:
    if not isinstance(entry, dict):
        raise SourceError(f"{where} is {entry!r}, not a mapping", remedy="write `- name:`, `uri:`, `role:`")
    if isinstance(entry.get("name"), str):
        where = f"{where} ({entry['name']})"
    for key in entry:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(_KEYS)}"
            raise SourceError(f"{where}: unknown key {key!r}", remedy=remedy)
    name, role = _text(entry, "name", where), _text(entry, "role", where)
    if not _NAME.fullmatch(name):
        raise SourceError(
            f"{where}: name {name!r} cannot be a folder", remedy="use letters, digits, `.`, `_` and `-`"
        )
    if role not in ROLES:
        raise SourceError(f"{where}: unknown role {role!r}", remedy=f"one of {', '.join(ROLES)}")
    if role in MODEL_ROLES and (given := [key for key in _ROW_KEYS if key in entry]):
        raise SourceError(f"{where}: {given[0]!r} has no meaning for a model", remedy="remove it")
    if role in ("pool", "calibration") and "license" not in entry:
        raise SourceError(f"{where}: no license", remedy="name it, or write `license: unknown`")
    return Source(
        name=name,
        uri=_uri(entry, where),
        role=role,
        format=None if role in MODEL_ROLES else _format(entry, where),
        label=_text(entry, "label", where, None),
        license=_text(entry, "license", where, "unknown") or "unknown",
        benchmark=_text(entry, "benchmark", where, None),
        max_rows=_whole(entry, "max_rows", where, 1),
        sample_seed=_whole(entry, "sample_seed", where, 0) or 0,
    )


_REQUIRED: Any = object()


def _text(entry: dict[str, Any], key: str, where: str, default: Any = _REQUIRED) -> Any:
    value = entry.get(key, default)
    if value is _REQUIRED:
        raise SourceError(f"{where}: no {key}", remedy=f"every source needs `{key}:`")
    if value is not default and (not isinstance(value, str) or not value.strip()):
        raise SourceError(f"{where}: {key} is {value!r}, not a text", remedy="put it in quotes")
    return value


def _whole(entry: dict[str, Any], key: str, where: str, least: int) -> int | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SourceError(f"{where}: {key} is {value!r}", remedy=f"write a whole number, at least {least}")
    return value


def _format(entry: dict[str, Any], where: str) -> str:
    task = entry.get("role") == TASK_ROLE
    known = TASK_FORMATS if task else FORMATS
    name: str = _text(entry, "format", where, *([] if task else ["auto"]))
    if name not in known:
        raise SourceError(f"{where}: unknown format {name!r}", remedy=f"one of {', '.join(known)}")
    return name


def _uri(entry: dict[str, Any], where: str) -> str:
    uri: str = _text(entry, "uri", where)
    files = entry.get("files", [])
    if isinstance(files, str):
        files = [files]
    if not isinstance(files, list) or not all(isinstance(f, str) and f for f in files):
        raise SourceError(f"{where}: files is {files!r}", remedy="write a list of globs")
    if files:
        uri = f"{uri}:{','.join(files)}"
    try:
        parsed = parse_uri(uri)
    except SourceError as error:
        raise SourceError(f"{where}: {error.problem}", remedy=error.remedy) from error
    if files and isinstance(parsed, FileUri):
        raise SourceError(f"{where}: `files` has no meaning for a file: URI", remedy="name the folder alone")
    return uri


def _belong_together(sources: list[Source], origin: str) -> None:
    names: set[str] = set()
    for source in sources:
        if source.name in names:
            raise SourceError(f"{origin}: two sources are named {source.name!r}", remedy="rename one")
        names.add(source.name)
    for role in REQUIRED_ROLES:
        found = [source.name for source in sources if source.role == role]
        if not found:
            raise SourceError(
                f"{origin}: no source has the role {role!r}", remedy=f"add one with `role: {role}`"
            )
        if role in MODEL_ROLES and len(found) > 1:
            raise SourceError(
                f"{origin}: {len(found)} sources have the role {role!r}: {', '.join(found)}",
                remedy="keep one",
            )
