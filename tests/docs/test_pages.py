"""`make docs`: what the code writes into pages, and the site as a whole."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from paser.report.glossary import GLOSSARY

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "docs" / "_extension"))
pages = importlib.import_module("paser_pages")


def test_every_setting_has_an_entry_with_default_and_comment() -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    written = "\n".join(pages.settings(text))

    def keys(content: dict[str, object], before: str = "") -> list[str]:
        found = []
        for name, value in content.items():
            inner = isinstance(value, dict) and value
            found += keys(value, f"{before}{name}.") if inner else [before + name]  # type: ignore[arg-type]
        return found

    for key in keys(yaml.safe_load(text)):
        assert re.search(rf"(?m)^##+ {re.escape(key)}\n\nDefault: `.+`\n\n\S", written), key


def test_a_comment_shows_its_own_characters() -> None:
    found = "\n".join(pages.settings("a:\n  # one | two_three *x*\n  b: 1\n"))
    assert "one \\| two\\_three \\*x\\*" in found
    assert "### a.b" in found


def test_every_verb_and_option_is_in_the_reference() -> None:
    import typer

    from paser.cli import app

    written = "\n".join(pages.commands())

    def walk(command: object, name: str) -> None:
        assert re.search(rf"(?m)^#+ {re.escape(name)}$", written) or name == "paser", name
        for child, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{name} {child}")

    walk(typer.main.get_command(app), "paser")
    assert "--budget" in written


def test_navigation_leaves_out_what_is_missing_and_finds_what_is_new() -> None:
    written = "\n".join(pages.navigation({"index", "tutorial", "brand-new", "decisions/0001-a"}))
    assert ":caption: Learn\n\ntutorial\n```" in written
    assert ":caption: More\n\nbrand-new\n```" in written
    assert "own-data" not in written
    assert "0001" not in written


def test_links_of_the_readme_lead_to_pages(tmp_path: Path) -> None:
    written = "\n".join(pages.included(ROOT / "README.md"))
    assert "](method.md)" in written
    assert "](changelog.md)" in written
    assert "](docs/" not in written


def test_docstrings_show_their_own_characters_and_lines() -> None:
    found = pages.as_restructured_text(["|x| and `a|b`", "", "Parameters", "-----", "n : so", "    many"])
    assert found == ["\\|x\\| and \\ `a|b`", "", "| Parameters", "| n : so", "|     many", ""]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    copy = tmp_path / "clone"
    for name in ("docs", "paser", "recipes"):
        ignored = shutil.ignore_patterns("__pycache__", "modules")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("README.md", "CHANGELOG.md", "params.yaml"):
        shutil.copy(ROOT / name, copy / name)
    site = tmp_path / "site"

    def build() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", copy / "docs", site]
        return subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)

    done = build()
    assert done.returncode == 0, done.stderr
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//|<link[^>]+rel=\"(?:stylesheet|icon|preload|preconnect)\""
        r"[^>]+href=\"(?:https?:)?//|<link[^>]+href=\"(?:https?:)?//[^>]+rel=\"(?:stylesheet|icon|preload)"
    )
    for page in site.rglob("*.html"):
        assert not loaded.search(page.read_text(encoding="utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()[^;)]*//[a-z]", sheet.read_text(encoding="utf-8")), sheet
    terms = (site / "terms.html").read_text(encoding="utf-8")
    assert all(f'id="{term.key}"' in terms for term in GLOSSARY)
    assert "paser.method.budget" in (site / "reference/modules/paser.method.html").read_text(encoding="utf-8")

    page = copy / "docs" / "limits.md"
    with page.open("a", encoding="utf-8") as end:
        end.write("\n[gone](method.md#no-such-part)\n")
    broken = build()
    assert broken.returncode == 1
    assert "no-such-part" in broken.stderr
