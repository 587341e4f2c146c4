"""Every command that README and docs show can be typed: verbs, options, targets and modules exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from paser.cli import app

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "recipes" / "README.md"]
PROGRAMS = ("paser", "dvc", "make", "python", "prefect", "pip")
ASSIGNMENT = re.compile(r"[A-Z_]+=")


def split(line: str) -> list[str]:
    """A shell line's words from its program on; empty if it runs none of PROGRAMS."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return []
    ends = [n for n, word in enumerate(words) if word in (">", ">>", "|", "&&")]
    words = words[: ends[0]] if ends else words
    while words and ASSIGNMENT.match(words[0]):
        words = words[1:]
    if words:
        words[0] = words[0].removeprefix(".venv/bin/").replace("python3", "python")
    return words if words and words[0] in PROGRAMS else []


def shown(text: str) -> Iterator[list[str]]:
    """Commands on lines of their own, in indented and fenced blocks, with continued lines joined."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        words = split(line.strip().removeprefix("$ "))
        if words and re.match(r" {4,}|(?:\$ )?(?:paser|dvc|make) ", line):
            yield words


def named(text: str) -> Iterator[list[str]]:
    """Commands within sentences and tables, which may lack arguments."""
    for code in re.findall(r"`([^`\n]+)`", text):
        if words := split(code):
            yield words


def parse(words: list[str], whole: bool) -> None:
    """Typer's own parser, without running; `whole`: required arguments must be there too."""
    command: Any = typer.main.get_command(app)
    if not words:
        return
    context = command.make_context("paser", list(words), resilient_parsing=not whole)
    rest = [*context._protected_args, *context.args]
    while hasattr(command, "commands"):
        if not rest or (rest[0].isupper() and not whole):
            return
        assert rest[0] in command.commands, f"no verb {rest[0]!r}"
        command, name, rest = command.commands[rest[0]], rest[0], rest[1:]
        known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
        known |= {"--help", "-h"}
        unknown = [word for word in rest if word.startswith("--") and word.split("=")[0] not in known]
        assert not unknown or hasattr(command, "commands"), f"{name} has no option {unknown[0]}"
        if whole:
            context = command.make_context(name, list(rest), parent=context)
            rest = [*context._protected_args, *context.args]


def check(words: list[str], whole: bool) -> None:
    program, rest = words[0], words[1:]
    if program == "paser":
        parse(rest, whole)
    elif program == "dvc" and rest and whole:
        from dvc.cli.parser import get_main_parser

        get_main_parser().parse_args(rest)
    elif program == "make":
        targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"))
        for word in rest:
            assert "=" in word or word in targets, f"no target {word!r}"
    elif program == "python" and rest[:1] == ["-m"]:
        assert importlib.util.find_spec(rest[1]), f"no module {rest[1]!r}"
    elif program == "prefect" and rest[:2] == ["deployment", "run"]:
        content = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
        deployments = {entry["name"] for entry in content["deployments"]}
        assert rest[2].split("/")[1] in deployments, f"no deployment {rest[2]!r}"
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for word in re.findall(r"\[([a-z,]+)\]", " ".join(rest)):
            assert set(word.split(",")) <= set(extras), f"no extra {word!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_on_a_page_parses(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for whole, found in ((True, shown(text)), (False, named(text))):
        for words in found:
            try:
                check(words, whole)
            except (Exception, SystemExit) as error:
                pytest.fail(f"{page.name}: {shlex.join(words)}: {error!r}")


@pytest.mark.parametrize(
    "line",
    [
        "paser selct --out x",
        "paser audit verfy data/models/recovered",
        "paser select --orignal a --pruned b --pool c --out d",
        "paser audit verify",
        "dvc metric diff",
        "make demoo",
        "python -m flows.recovr",
        "pip install 'paser[audits]'",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(line: str) -> None:
    with pytest.raises(BaseException):  # noqa: B017, PT011
        check(split(line), whole=True)


CHEAP = (
    ["paser", "result"],
    ["paser", "audit", "trace", "data/models/recovered"],
    ["paser", "audit", "verify", "data/models/recovered"],
    ["paser", "audit", "prove", "data/models/recovered", "ROW_ID"],
    ["paser", "plan", "--params"],
)


def test_the_cheap_commands_of_all_pages_run(finished: Path, tmp_path: Path) -> None:
    from paser.artifacts import read_jsonl
    from tests import project as projects

    folder = Path(shutil.copytree(finished, tmp_path / "p", symlinks=True))
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    row = read_jsonl(folder / "data/selected.jsonl")[0]["row_id"]
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    found = {tuple(words) for text in texts for words in shown(text)}
    cheap = [w for w in sorted(found) if any(list(w[: len(c)]) == c for c in CHEAP) and "--key" not in w]
    assert {words[1] for words in cheap} == {"result", "audit", "plan"}
    for words in cheap:
        projects.run(folder, *(row if word == "ROW_ID" else word for word in words))


def test_the_tutorial_can_be_followed_on_another_project(finished: Path, tmp_path: Path) -> None:
    from paser.artifacts import read_jsonl
    from tests import project as projects

    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    folder = Path(shutil.copytree(finished, tmp_path / "p", symlinks=True))
    row = read_jsonl(folder / "data/selected.jsonl")[0]["row_id"]
    commands = [words for words in shown(page) if words[0] == "paser"]
    assert len(commands) >= 6
    outputs = []
    for words in commands:
        here = [row if word.startswith("r1-") else word for word in words]
        here = [str(tmp_path / "proof.json") if word == "proof.json" else word for word in here]
        outputs.append(projects.run(folder, *here).stdout)
    ranked = ("rank", "training position", "JSD", "recoverability", "coverage")
    for label in ("role", "reason", *ranked, "loss, pruned", "found in"):
        assert re.search(rf"(?m)^ {{4}}{label}  ", page)
        assert re.search(rf"(?m)^{label}  ", outputs[0])
    assert "the proof holds" in "".join(outputs)
