"""The grid of the evidence: its cells, its draws of units and seeds, its metrics and its resuming."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evidence import analysis, cells, comparison, grid, prose, same
from benchmarks.evidence import world as worlds
from benchmarks.evidence.tables import UNKNOWN
from paser.artifacts import write_json
from paser.evaluation.paired import CLOSED, Judge, verdict
from paser.records import Sample
from paser.selectors.coverage import BY_THE_TOKEN, Covering
from paser.selectors.damage import CoverageSettings
from paser.selectors.registry import selectors
from paser.settings import SelectSettings


def test_the_grid_has_the_seeds_budgets_and_schemes_of_the_plan() -> None:
    primary = grid.primary()
    found = Counter((cell.scheme, cell.budget, cell.selector) for cell in primary)
    assert set(found.values()) == {5}
    assert len(found) == 3 * 2 * 2
    secondary = Counter(cell.name for cell in grid.secondary())
    assert {name for name, count in secondary.items() if count == 3} == {
        grid.DEFAULT,
        *grid.THREE_SEEDS,
        *grid.ABLATIONS,
    }
    assert {name for name, count in secondary.items() if count == 1} == {"full", "random, more tokens"}
    everything = list(grid.cells(grid.PARTS))
    assert {cell.selector for cell in everything} == set(selectors()) - {grid.DEFAULT}
    assert all(a != b for i, a in enumerate(everything) for b in everything[:i])


def test_the_candidate_that_was_confirmed_is_the_rule_by_its_later_name() -> None:
    chosen, options, cluster = grid.CANDIDATES[grid.DEFAULT]
    assert (chosen, cluster) == ("coverage", {})
    written = CoverageSettings.model_validate(options).model_dump()
    named = SelectSettings(selector=grid.DEFAULT).model_dump()
    assert {key: written.pop(key) for key in Covering.model_fields} == BY_THE_TOKEN.model_dump()
    for rule in (written, named):
        del rule["selector"], rule["order"]
    assert written == named


def test_a_setting_that_came_later_enters_a_key_only_where_it_is_on() -> None:
    off, on = ({"token_pruning": {"share": share, "neighbours": 0.3}} for share in (0.0, 0.5))
    assert "token_pruning" not in cells.training_settings({})
    assert cells.training_settings(off) == cells.training_settings({})
    assert cells.training_settings(on)["token_pruning"] == on["token_pruning"]
    rules = [
        cells.rule(grid.plain("coverage", [1], options={"standing": standing})[0]) for standing in (0, 0.5)
    ]
    assert "standing" not in rules[0]
    assert rules[1] == {**rules[0], "standing": 0.5}


def test_injected_rows_are_wrong_answers_and_polite_copies() -> None:
    samples = [
        Sample("s", str(i), "MIT", f"Question {i} of {label}?", "", f"Answer {i} of {label}.", label)
        for label in ("a", "b")
        for i in range(50)
    ]
    made = worlds.inject(samples, seed=1)
    assert made[:100] == samples
    extra = Counter(sample.source for sample in made[100:])
    assert extra == {"injected-low-quality": 8, "injected-duplicates": 4}
    answers = {sample.instruction: sample.output for sample in samples}
    for sample in made[100:]:
        if sample.source == "injected-low-quality":
            assert sample.output in answers.values()
            assert sample.output != answers[sample.instruction]
            assert sample.output.endswith(f"of {sample.label}.")
        else:
            known = next(text for text in answers if sample.instruction.endswith(text))
            assert sample.instruction.startswith(worlds.POLITE)
            assert sample.output == answers[known]


def test_comments_and_docstrings_do_not_change_what_code_means(tmp_path: Path) -> None:
    path = tmp_path / "paser" / "a.py"
    path.parent.mkdir()
    path.write_text('"""One."""\n\n\ndef f(x):\n    """Two."""\n    return x + 1\n')
    before = worlds.meaning(["paser"], tmp_path)
    path.write_text('"""Other."""\ndef f(x):\n    # a comment\n    return (x + 1)\n')
    assert worlds.meaning(["paser/a.py"], tmp_path) == before
    path.write_text("def f(x):\n    return x + 2\n")
    assert worlds.meaning(["paser"], tmp_path) != before


def test_the_code_that_cells_depend_on_exists() -> None:
    for path in (*cells.TRAINING, *cells.SELECTING):
        assert (worlds.PACKAGE_ROOT / path).exists(), path
    for name in selectors():
        assert cells.selecting_code(name)


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = worlds.World({name: [] for name in worlds.POOLS}, [], [], {}, {})
    for module in (cells, analysis):
        monkeypatch.setattr(module, "world", lambda: found)
    monkeypatch.setattr(worlds, "model_key", lambda scheme: scheme)
    monkeypatch.setattr(worlds, "tasks", list)
    monkeypatch.setattr(cells, "RESULTS", tmp_path)


@pytest.mark.usefixtures("small_world")
def test_no_cell_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []

    def select(cell: cells.Cell) -> dict[str, Any]:
        calls.append(("select", cell.seed))
        return {"rows": ["r1-b", "r1-a"]}

    def train(cell: cells.Cell, ids: list[str]) -> dict[str, Any]:
        calls.append(("train", cell.seed))
        return {"rows": len(ids)}

    monkeypatch.setattr(cells, "chosen_rows", select)
    monkeypatch.setattr(cells, "trained_on", train)
    cell = grid.plain("paser", [1])[0]
    assert cell.training_if_done() is None
    assert cells.done(cell) == {"rows": 2}
    again = replace(cell)
    assert again.training_if_done() == cells.done(again) == {"rows": 2}
    assert calls == [("select", 1), ("train", 1)]
    # Another selector that takes the same rows needs no training of its own; another seed or scheme does.
    cells.done(grid.plain("top-damage", [1])[0])
    assert calls[2:] == [("select", 1)]
    cells.done(grid.plain("paser", [2])[0])
    cells.done(grid.plain("paser", [1], scheme="llm-pruner-25")[0])
    assert calls[3:] == [("select", 2), ("train", 2), ("select", 1), ("train", 1)]
    # What does not look at the pruned model chooses once for all schemes, and trains in each.
    calls.clear()
    for scheme in ("wanda-50", "llm-pruner-25"):
        cells.done(grid.plain("random", [3], scheme=scheme)[0])
    assert calls == [("select", 3), ("train", 3), ("train", 3)]


@pytest.mark.usefixtures("small_world")
def test_equal_steps_choose_the_batch_by_the_rows_and_share_the_cells_of_the_default_one() -> None:
    plain, equal = grid.plain("paser", [1])[0], grid.plain("paser", [1], steps=18)[0]
    assert plain.selection_path == equal.selection_path
    assert plain.changes(180) == {}
    for rows, batch in ((80, 4), (116, 6), (141, 8), (179, 10), (198, 11), (3, 1)):
        found = cells.recover_settings(equal.changes(rows))
        assert (found.batch_size, found.batch_size % found.micro_batch_size) == (batch, 0)
    assert cells.recover_settings(equal.changes(141)) == cells.recover_settings()
    few, default = ([f"r1-{i}" for i in range(n)] for n in (80, 141))
    assert plain.training_path(default) == equal.training_path(default)
    assert plain.training_path(few) != equal.training_path(few)


@pytest.mark.usefixtures("small_world")
def test_only_seeds_that_both_sides_have_are_paired() -> None:
    for name, seeds in (("paser", (1, 2, 3)), ("random", (2, 3, 4))):
        for cell in grid.plain(name, seeds):
            rows = [f"r1-{name}-{cell.seed}"]
            write_json(cell.selection_path, {"rows": rows})
            write_json(cell.training_path(rows), {"who": name, "seed": cell.seed})
    ours, theirs = analysis.paired(*(grid.plain(n, range(1, 6)) for n in ("paser", "random")))
    assert [one["seed"] for one in ours] == [one["seed"] for one in theirs] == [2, 3]
    assert {one["who"] for one in ours} == {"paser"}


@pytest.mark.usefixtures("small_world")
@pytest.mark.parametrize("changed", [None, "paser", "training", "processor"])
def test_earlier_cells_count_only_where_later_code_makes_them_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: str | None
) -> None:
    """Two selectors share their code, and one of them alone may show that it is another. Where the processor
    is what changed, the earlier code changes with it."""
    monkeypatch.setattr(same, "EQUAL", tmp_path / "equal.json")
    monkeypatch.setattr(cells, "EQUAL", tmp_path / "equal.json")
    write_json(tmp_path / "equal.json", {"selecting-1": "selecting-1", "training-1": "training-1"})
    cells.equal_code.cache_clear()
    version = ["1"]
    monkeypatch.setattr(cells, "selecting_code", lambda name: f"selecting-{version[0]}")
    monkeypatch.setattr(cells, "training_code", lambda: f"training-{version[0]}")

    def select(cell: cells.Cell) -> dict[str, Any]:
        other = version[0] == "2" and changed in (cell.selector, "processor")
        return {"rows": ["r1-other" if other else f"r1-{cell.selector}"]}

    def train(cell: cells.Cell, ids: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {"rows": 1, "tokens": 9, "steps": 2, "loss": [1.0], "jsd": [0.1], "tasks": {}}
        return found | ({"loss": [1.1]} if version[0] == "2" and changed == "training" else {})

    monkeypatch.setattr(cells, "chosen_rows", select)
    monkeypatch.setattr(cells, "trained_on", train)
    for name in ("random", "paser"):
        cells.done(grid.plain(name, [1])[0])
    version[0] = "2"
    if changed == "processor":

        def earlier(cell: cells.Cell, order: list[str] | None, was: str) -> dict[str, Any]:
            assert was == ("selecting-1" if order is None else "training-1")
            return select(cell) if order is None else train(cell, order)

        monkeypatch.setattr(
            same, "earlier_code", lambda commit: contextlib.nullcontext(same.Earlier(earlier))
        )
    assert grid.plain("paser", [1])[0].training_if_done() is None
    same.main()
    known = cells.equal_code()
    cells.equal_code.cache_clear()
    assert known["selecting-2"] == ("selecting-2" if changed == "paser" else "selecting-1")
    if changed in (None, "processor"):
        assert known["training-2"] == "training-1"
        assert grid.plain("paser", [1])[0].training_if_done() is not None
    else:
        assert grid.plain("paser", [1])[0].training_if_done() is None
    if changed == "training":
        assert known["training-2"] == "training-2"


def test_a_sentence_of_the_reading_that_the_cells_contradict_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ahead = {"value": 0.1, "low": 0.05, "high": 0.15, "seeds": 5}
    values = {
        "a": ahead,
        "b": ahead | {"low": -0.01},
        "c": ahead | {"seeds": 1},
        "share": "7%",
        "d": UNKNOWN,
    }
    monkeypatch.setattr(prose, "told", lambda: {name: partial(values.get, name) for name in values})
    monkeypatch.setattr(prose, "READING", tmp_path / "reading.md")

    def read(sentence: str) -> str:
        prose.READING.write_text(sentence, encoding="utf-8")
        return prose.reading()

    said = read("{ahead: a}, {level: b}, {level or behind: b}, {c}, {share}, {ahead: d}")
    assert said == "+0.100 [+0.050, +0.150], +0.100 [-0.010, +0.150], " + (
        f"+0.100 [-0.010, +0.150], +0.100 [+0.050, +0.150], 7%, {UNKNOWN}"
    )
    values["a"] = ahead | {"least": 0.07}
    assert read("below {least: a}") == "below 0.070"
    for wrong in ("{behind: a}", "{level: a}", "{ahead: b}", "{ahead: c}"):
        with pytest.raises(ValueError, match=f"says '{wrong[1:-4]}'.*change the sentence"):
            read(wrong)
    with pytest.raises(ValueError, match="says 'ahead' of 'share', which is no difference"):
        read("{ahead: share}")


def trainings(*losses: list[float]) -> list[dict[str, Any]]:
    return [{"loss": loss, "jsd": [0.1] * len(loss)} for loss in losses]


def test_what_the_dense_model_gains_from_the_same_rows_is_not_healed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss of either before, and after training on one label's format and a third of what pruning took."""
    labels = ["a", "a", "b", "b"]
    dense, pruned = trainings([1.0, 1.1, 1.0, 1.1], [1.9, 2.0, 1.6, 1.7])
    top, recovered = trainings([0.2, 0.3, 1.0, 1.1], [0.8, 0.9, 1.4, 1.5])
    monkeypatch.setattr(
        comparison.cell_files, "untrained", lambda scheme: dense if scheme == worlds.DENSE else pruned
    )
    monkeypatch.setattr(comparison, "_on_same_rows", lambda name: (top, recovered))
    monkeypatch.setattr(comparison, "judge", lambda scheme: Judge(pruned, dense, labels))
    assert comparison.left_by_label(None) == pytest.approx({"a": 0.9, "b": 0.6})
    assert comparison.left_by_label("random") == pytest.approx({"a": 0.6, "b": 0.4})
    found = comparison.healed("random")
    assert found is not None
    assert found["value"] == pytest.approx(1 / 3)
    assert Judge(pruned, dense, labels).mean(CLOSED, [recovered])["value"] == pytest.approx(1.3 / 1.5)


def test_labels_of_the_last_test_are_told_by_their_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = ["a"] * 4 + ["b"] * 4
    dense, pruned = trainings([1.0] * 8, [2.0] * 8)
    ours, theirs = trainings(
        [1.2, 1.3, 1.2, 1.3, 1.8, 1.7, 1.8, 1.7], [1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5]
    )
    monkeypatch.setattr(comparison, "judge", lambda scheme: Judge(pruned, dense, labels))
    monkeypatch.setattr(comparison, "paired", lambda a, b: ([ours] * 3, [theirs] * 3))
    comparison.tested_by_label.cache_clear()
    found = comparison.tested_by_label("wanda-50")[CLOSED]
    comparison.tested_by_label.cache_clear()
    assert {label: round(one["value"], 3) for label, one in found.items()} == {"a": 0.25, "b": -0.25}
    assert [verdict(one) for one in found.values()] == ["ahead", "behind"]


def test_holm_counts_what_is_planned_and_not_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lead that one comparison would show is none among hundreds that are still to come."""
    dense, pruned = trainings([1.0] * 6, [2.0] * 6)
    ours, theirs = trainings([1.1, 1.2, 1.1, 1.2, 1.1, 1.2], [1.5] * 6)
    monkeypatch.setattr(comparison, "judge", lambda scheme: Judge(pruned, dense, ["a"] * 6))
    monkeypatch.setattr(comparison, "paired", lambda a, b: ([ours] * 2, [theirs] * 2) if a else ([], []))
    planned = [("one", grid.plain("paser", [1])), *((f"later {i}", []) for i in range(400))]
    (alone,) = comparison.compared_with(CLOSED, planned[:1], []).values()
    (among,) = comparison.compared_with(CLOSED, planned, []).values()
    assert (alone.verdict, among.verdict) == ("ahead", "tie")


@pytest.mark.usefixtures("small_world")
def test_a_cell_made_again_is_another_file() -> None:
    again = grid.machine()[0]
    first = replace(again, again=False)
    assert first in grid.baselines()
    assert again.selection_path != first.selection_path
    assert again.training_path(["a"]) != first.training_path(["a"])
    assert "again" not in first.as_json()


def test_damage_by_label_is_a_mean_over_rows_and_a_rate_over_tokens() -> None:
    rows = [{"row_id": name, "label": "x" if name in "ab" else name} for name in "abcd"]
    measured = {"loss_original": 1.0, "prompt_tokens": 10}
    known = {
        "a": {**measured, "jsd": 0.2, "recoverability": 1.0, "loss_pruned": 2.0, "response_tokens": 10},
        "b": {**measured, "jsd": 0.4, "recoverability": 3.0, "loss_pruned": 4.0, "response_tokens": 30},
        "c": {**measured, "jsd": None, "recoverability": None, "loss_pruned": None, "response_tokens": 0},
        "d": {**measured, "jsd": 0.5, "recoverability": 2.0, "loss_pruned": 1.5, "response_tokens": 10},
    }
    found = cells.labelled(rows, known)
    assert list(found) == ["d", "x"]
    assert found["x"] == pytest.approx(
        {
            "JSD": 0.3,
            "loss increase": 2.0,
            "recoverability": 2.0,
            "JSD a training token": (0.2 * 10 + 0.4 * 30) / 60,
            "recoverability a training token": 100 / 60,
        }
    )
