"""Pages that the code writes: navigation, commands, settings and terms, none of them typed twice.

A page has a line `<!-- written by: NAME -->`; before Sphinx reads the page, the Markdown of that writer takes
the line's place, so that it is checked like everything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).parent.parent.parent

# The order of the site. A page that does not exist is left out; one that is not named goes to a last group.
NAVIGATION: dict[str, tuple[str, ...]] = {
    "Learn": ("tutorial", "method", "terms"),
    "How to": (
        "own-data",
        "own-model",
        "pruning",
        "selectors",
        "recovery",
        "evaluation",
        "experiments",
        "report",
        "explore",
        "python",
        "gpus",
        "prefect",
        "workers",
        "audit",
    ),
    "Reference": (
        "pipeline",
        "cli",
        "reference/commands",
        "reference/settings",
        "reference/modules/modules",
    ),
    "About": ("limits", "evidence", "benchmarks", "recipes", "decisions/index", "changelog"),
}
TITLES = {"reference/modules/modules": "Modules"}
REACHED_OTHERWISE = ("index", "decisions/", "reference/modules/")
PAGES_OF_FILES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "recipes/README.md": "recipes.md"}
PLACE = re.compile(r"<!-- written by: ([a-z]+) -->")
KEY = re.compile(r"( *)([a-z_]+):(?: +(.*))?$")


def navigation(pages: Iterable[str]) -> Iterator[str]:
    """The tables of contents: named pages that exist in their groups, all others in a last one."""
    found = set(pages)
    groups = {title: [page for page in named if page in found] for title, named in NAVIGATION.items()}
    listed = {page for named in groups.values() for page in named}
    groups["More"] = sorted(page for page in found - listed if not page.startswith(REACHED_OTHERWISE))
    for title, named in groups.items():
        if named:
            yield from (
                "```{toctree}",
                ":hidden:",
                f":caption: {title}",
                "",
                *(f"{TITLES[page]} <{page}>" if page in TITLES else page for page in named),
                "```",
                "",
            )


def commands() -> Iterator[str]:
    """Every verb with its arguments and options, by typer's own writer of documents."""
    import typer
    from typer.cli import get_docs_for_click

    from paser.cli import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="paser")
    for line in text.split("\n")[1:]:
        yield re.sub(r"^(#{2,}) `(.*)`$", r"\1 \2", line).replace("```console", "```text")


def settings(text: str) -> Iterator[str]:
    """Every key of params.yaml (`text`) with its default and its comment there, a heading for each group."""
    comment: list[str] = []
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        bare = line.strip()
        if bare.startswith("#"):
            comment.append(bare.removeprefix("#").strip())
            continue
        if match := KEY.match(line):
            indent, name, value = len(match[1]), match[2], match[3]
            path = [(depth, key) for depth, key in path if depth < indent] + [(indent, name)]
            key = ".".join(key for _, key in path)
            yield from ("", f"{'##' if indent == 0 else '###'} {key}", "")
            if value is not None:
                yield from (f"Default: `{value}`", "")
            yield escaped("\n".join(comment))
            yield ""
        comment = []


def included(path: Path) -> Iterator[str]:
    """A Markdown file outside this folder; links to what has no page here become the name of the file."""

    def link(match: re.Match[str]) -> str:
        shown, target = match[1], match[2]
        aim, hash_sign, anchor = target.partition("#")
        if ":" in target or not aim:
            return match[0]
        inside = (path.parent / aim).resolve().relative_to(ROOT).as_posix()
        if inside in PAGES_OF_FILES:
            return f"[{shown}]({PAGES_OF_FILES[inside]}{hash_sign}{anchor})"
        if inside.startswith("docs/"):
            return f"[{shown}]({inside.removeprefix('docs/')}{hash_sign}{anchor})"
        return f"`{inside}`"

    for line in path.read_text(encoding="utf-8").split("\n"):
        yield re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, line)


def escaped(text: str) -> str:
    """Plain text of a comment as Markdown that shows the same characters."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([\\*_{}\[\]<>|$])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def terms() -> Iterator[str]:
    """The report's glossary."""
    from paser.report.glossary import GLOSSARY

    for term in GLOSSARY:
        yield from (f"({term.key})=", f"## {term.name}", "", term.text, "")


def as_restructured_text(lines: list[str]) -> list[str]:
    """A docstring, which is plain text: its characters are shown as they are, and so are lines of a list."""
    shown: list[str] = []
    for paragraph in "\n".join(lines).split("\n\n"):
        block = [line for line in paragraph.split("\n") if line.strip() and line.strip("- ")]
        kept = len(block) < len(paragraph.split("\n")) or any(line.startswith(" ") for line in block)
        prefix = "| " if kept else ""
        for whole in re.findall(r"(?:[^`\n]|`[^`]*`|`)+", "\n".join(block)):
            parts = " ".join(whole.split("\n")).split("`")
            parts[::2] = [re.sub(r"[|*\\]|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
            parts[1::2] = [f"\\ `{part}`\\ " for part in parts[1::2]]  # whatever stands beside them
            shown.append(prefix + "".join(parts).removesuffix("\\ "))
        shown.append("")
    return shown


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    writers: dict[str, Callable[[], Iterator[str]]] = {
        "navigation": lambda: navigation(app.env.found_docs),
        "commands": commands,
        "settings": lambda: settings((ROOT / "params.yaml").read_text(encoding="utf-8")),
        "terms": terms,
        "readme": lambda: included(ROOT / "README.md"),
        "changelog": lambda: included(ROOT / "CHANGELOG.md"),
        "recipes": lambda: included(ROOT / "recipes" / "README.md"),
    }

    def fill(_app: Sphinx, _page: str, source: list[str]) -> None:
        source[0] = PLACE.sub(lambda match: "\n".join(writers[match[1]]()), source[0])

    def docstring(
        _app: Sphinx, _kind: str, _name: str, _what: object, _options: object, lines: list[str]
    ) -> None:
        lines[:] = as_restructured_text(lines)

    def written(app: Sphinx, env: BuildEnvironment, *_: object) -> list[str]:
        """Pages that are read again at every build: what their markers stand for may have changed."""
        texts = {page: env.doc2path(page).read_text(encoding="utf-8") for page in env.found_docs}
        return [page for page, text in texts.items() if PLACE.search(text)]

    app.connect("env-get-outdated", written)
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", docstring)
    return {"parallel_read_safe": True}
