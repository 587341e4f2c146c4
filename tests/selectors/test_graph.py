"""The concept graph of a finished selection, rebuilt from its files."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import networkx
import pytest

from paser.artifacts import write_batches, write_json, write_jsonl
from paser.errors import PaserError
from paser.method.selection import Outcome
from paser.selectors.choose import choose
from paser.selectors.damage import PaserSettings, decide, measure, ranking_of
from paser.selectors.graph import read_graph, write_graphml
from paser.selectors.protocol import ScoredPool, resolve_budget
from paser.selectors.tables import decision_batches
from tests.selectors.scored import pool, texts

SETTINGS = PaserSettings(budget="6000 tokens", concepts=5, phrase_words=2)


def clashing(count: int, seed: int) -> tuple[ScoredPool, list[str]]:
    """Rows of a few concepts each, out of a small vocabulary."""
    rng = random.Random(seed)
    words = [f"{a} {b}" for a in ("red", "green", "blue") for b in ("fox", "owl", "jay", "elk", "bee")]
    words += [f"word{i}" for i in range(30)]
    lines = [", ".join(rng.sample(words, rng.randrange(1, 4))) for _ in range(count)]
    return replace(pool(count, seed), texts=texts([f"{line}\n" for line in lines])), lines


def write(folder: Path, scored: ScoredPool, lines: list[str], settings: PaserSettings) -> Outcome:
    """What stage `select` writes; returns what its algorithm held in memory."""
    selection, _, report = choose(scored, settings, 1, {})
    rows = [
        {"row_id": scored.row_ids[i], "instruction": lines[i], "input": "", "output": ""}
        for i in selection.positions
    ]
    write_batches(folder / "decisions.parquet", "decisions", decision_batches(scored, selection))
    write_jsonl(folder / "selected.jsonl", rows)
    write_json(folder / "budget.json", report)
    amount, unit = resolve_budget(settings.parsed_budget, scored)
    measured = measure(scored, settings, ranking_of(settings)(scored, amount, unit))
    return decide(scored, measured, settings, amount, unit)


@pytest.mark.parametrize(
    ("budget", "tours"),
    [
        ("4000 tokens", {"re-spread", "re-spread, round 2"}),
        ("6000 tokens", {"re-spread", "strictness 0.25", "strictness 0.25, round 2", "strictness 0.0"}),
        ("70%", {"allocation", "strictness 0.0"}),
    ],
)
def test_the_graph_is_that_of_the_run(tmp_path: Path, budget: str, tours: set[str]) -> None:
    """Over some seeds, so that every way in which a row is accepted occurs."""
    seen = set()
    for seed in range(12):
        scored, lines = clashing(120, seed)
        outcome = write(tmp_path, scored, lines, SETTINGS.model_copy(update={"budget": budget}))
        seen |= {str(outcome.step_names[step]) for step in outcome.steps[outcome.accepted]}
        assert read_graph(tmp_path).concepts == outcome.graph.concepts
    assert tours <= seen


@pytest.mark.parametrize(
    ("folder", "option"), [("picked", "--selection=picked"), ("mine/data", "--project=mine")]
)
def test_graphml_holds_who_introduced_a_concept_and_how_many_carry_it(
    tmp_path: Path, folder: str, option: str
) -> None:
    scored, lines = clashing(120, 3)
    graph = write(tmp_path / folder, scored, lines, SETTINGS).graph
    done = subprocess.run(
        [sys.executable, "-m", "paser", "concepts", "out.graphml", option],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"out.graphml: {len(graph)} concepts\n"
    found = networkx.read_graphml(tmp_path / "out.graphml")
    assert {n: (d["introduced_by"], d["samples"]) for n, d in found.nodes.items()} == {
        name: (concept.introduced_by, concept.samples) for name, concept in graph.concepts.items()
    }
    for name, concept in graph.concepts.items():
        assert {other: found.edges[name, other]["samples"] for other in found[name]} == concept.joined


def test_a_folder_without_a_selection_is_an_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "paser", "concepts", "out.graphml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "data/budget.json does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    scored, lines = clashing(120, 3)
    write(tmp_path, scored, lines, SETTINGS)
    for name in ("a", "b"):
        write_graphml(tmp_path / name, read_graph(tmp_path))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_files_of_two_selections_are_told_apart(tmp_path: Path) -> None:
    scored, lines = clashing(120, 3)
    write(tmp_path, scored, lines, SETTINGS)
    write_jsonl(tmp_path / "selected.jsonl", [])
    with pytest.raises(PaserError, match=r"row r1-\w+ is accepted .* missing in selected\.jsonl"):
        read_graph(tmp_path)
