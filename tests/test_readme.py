"""What README and docs tell a user to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import typer
import yaml

from paser.cli import app
from paser.settings import Settings
from paser.stages.graph import STAGES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def verbs(command: click.Command, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found = {path} if path else set()
    for name, child in getattr(command, "commands", {}).items():
        found |= verbs(child, (*path, name))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_links_and_settings_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = verbs(typer.main.get_command(app))
    for words in re.findall(r"(?m)(?:^ {4}|`)paser ((?:[a-z][a-z-]* ?)+)", text):
        parts = tuple(words.split())
        assert parts[:1] in known, f"{page.name}: paser {words}"
        if parts[0] in ("audit", "cache", "models"):
            assert parts[:2] in known, f"{page.name}: paser {words}"
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    for target in re.findall(r"(?:^ {4}|`)make ([a-z-]+)", text, flags=re.MULTILINE):
        assert target in targets, f"{page.name}: make {target}"
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / link).exists(), f"{page.name}: {link}"
    for key in re.findall(r"`([a-z]+\.(?!parquet|json|csv)[a-z_]+)(?:: [^`]*)?`", text):
        group, _, leaf = key.partition(".")
        if group in Settings.model_fields and hasattr(
            Settings.model_fields[group].annotation, "model_fields"
        ):
            assert leaf in Settings.model_fields[group].annotation.model_fields, f"{page.name}: {key}"  # type: ignore[union-attr]


def test_the_makefile_and_ci_run_what_the_readme_says() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme
    assert "make test" in readme
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_stage_stands_in_the_pipeline_page() -> None:
    page = (ROOT / "docs" / "pipeline.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in STAGES)


def test_every_benchmark_in_the_source_list_is_named_in_the_readme() -> None:
    content = yaml.safe_load((ROOT / "data" / "sources.yaml").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in {s["benchmark"] for s in content["sources"] if "benchmark" in s}:
        assert name in readme
