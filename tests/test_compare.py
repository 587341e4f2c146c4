"""`paser compare`: selectors on a finished project, at equal tokens, cell by cell."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from paser import compare as comparing
from paser.artifacts import read_json, read_rows
from paser.cli import app
from paser.compare import Study, compare, tokens_of
from paser.errors import PaserError, SettingsError
from paser.settings import Budget
from tests.selectors.scored import pool

NAMES = ("random", "paser", "el2n")


@pytest.fixture(scope="module")
def compared(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("comparison")
    return out, compare(finished, NAMES, 2, "1500 tokens", out)


def test_every_selector_spends_the_same_tokens_on_usable_rows(
    finished: Path, compared: tuple[Path, dict[str, Any]]
) -> None:
    out, found = compared
    cells = [read_json(path) for path in (out / "cells").glob("*.json") if "before" not in path.name]
    assert {(cell["selector"], cell["seed"]) for cell in cells} == {(n, s) for n in NAMES for s in (1, 2)}
    known = {row["row_id"]: row for row in read_rows(finished / "data/pool.parquet", "pool")}
    for cell in cells:
        assert 1400 < cell["tokens"] <= 1500
        assert set(cell["rows"]) <= set(known)
        assert len(cell["loss"]) == len(read_rows(finished / "data/holdout.parquet", "pool"))
    by_seed = [{tuple(sorted(c["rows"])) for c in cells if c["selector"] == name} for name in NAMES]
    assert [len(chosen) for chosen in by_seed] == [2, 2, 2], "each seed draws rows of its own"
    assert found["selectors"]["el2n"]["cost"]["backward_tokens"] > 0
    assert found["selectors"]["random"]["cost"]["forward_tokens"] == 0


def test_differences_are_those_of_the_means_and_the_first_has_none(
    compared: tuple[Path, dict[str, Any]],
) -> None:
    _, found = compared
    first, *others = (found["selectors"][name] for name in NAMES)
    assert "fidelity gap, minus random" not in first
    for other in others:
        difference = other["fidelity gap, minus random"]
        expected = other["fidelity gap"]["value"] - first["fidelity gap"]["value"]
        assert difference["value"] == pytest.approx(expected)
        assert difference["seeds"] == 2
        assert difference["holm"] >= difference["p"]


def test_what_was_done_is_not_done_again_and_more_is_added(
    finished: Path, compared: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, found = compared
    made: list[tuple[str, int]] = []

    def noted(study: Study, name: str, seed: int) -> Any:
        made.append((name, seed))
        raise PaserError("stop here", remedy="none")

    monkeypatch.setattr(comparing, "_made", noted)
    assert compare(finished, NAMES, 2, "1500 tokens", out) == found
    assert made == []
    with pytest.raises(PaserError, match="stop here"):
        compare(finished, ("random", "longest"), 2, "1500 tokens", out)
    assert made == [("longest", 1)]
    with pytest.raises(PaserError, match="stop here"):
        compare(finished, NAMES, 2, "1600 tokens", out)
    assert made[1:] == [("random", 1)]


def test_the_command_shows_a_table_and_json(finished: Path, compared: tuple[Path, dict[str, Any]]) -> None:
    out, found = compared
    asked = [*NAMES, "--project", str(finished), "--seeds", "2", "--budget", "1500 tokens", "--out", str(out)]
    shown = CliRunner().invoke(app, ["compare", *asked], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "minus random" in shown.stdout
    assert "2 seeds, 1,500 training tokens each" in shown.stdout
    as_json = CliRunner().invoke(app, ["compare", *asked, "--json"], catch_exceptions=False)
    assert json.loads(as_json.stdout) == json.loads(json.dumps(found))


def test_mistakes_are_named(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="two selectors"):
        compare(finished, ("random",), 1, None, tmp_path)
    with pytest.raises(SettingsError, match=r"unknown selector 'best'(?s:.*)random, full"):
        compare(finished, ("random", "best"), 1, None, tmp_path)
    (tmp_path / "params.yaml").write_text("seed: 1\n", encoding="utf-8")
    with pytest.raises(PaserError, match=r"pool\.parquet does not exist(?s:.*)dvc repro"):
        compare(tmp_path, ("random", "paser"), 1, None, tmp_path)
    with pytest.raises(SettingsError, match=r"less needs models\.targets"):
        compare(finished, ("random", "less"), 1, "1500 tokens", tmp_path / "out")
    assert not (tmp_path / "out").exists(), "what is missing is said before anything is trained"


def test_one_seed_and_a_name_given_twice(finished: Path, compared: tuple[Path, dict[str, Any]]) -> None:
    out, _ = compared
    found = compare(finished, ("random", "random", "paser"), 1, "1500 tokens", out)
    assert list(found["selectors"]) == ["random", "paser"]
    difference = found["selectors"]["paser"]["fidelity gap, minus random"]
    assert difference["sd"] is None
    assert difference["seeds"] == 1
    (line,) = [
        line
        for line in _text(found).split("fidelity gap (95 %")[1].split("gap closed (95 %")[0].splitlines()
        if " paser " in line
    ]
    assert "one seed" in line
    assert line.split("│")[-3].strip() == "", "no p-value rests on one seed"


def test_a_budget_of_rows_or_a_share_becomes_tokens_of_the_draw() -> None:
    rows = pool(100)
    there = int(rows.tokens.sum())
    assert tokens_of(Budget.parse("700 tokens"), rows) == 700
    for share in ("10%", "10% tokens"):
        assert tokens_of(Budget.parse(share), rows) == int(0.1 * 0.8 * there)
    assert tokens_of(Budget.parse("20"), rows) == pytest.approx(20 * there / 100, abs=1)
    assert tokens_of(Budget.parse("100"), rows) == int(0.8 * there)


def test_a_part_of_a_pool_keeps_what_belongs_to_its_rows() -> None:
    from dataclasses import replace

    rows = replace(pool(9), contaminated={2: "two", 7: "seven"})
    part = rows.part(np.array([7, 3, 8]))
    assert part.row_ids == [rows.row_ids[i] for i in (7, 3, 8)]
    assert part.contaminated == {0: "seven"}
    assert part.texts(np.array([0, 2])) == rows.texts(np.array([7, 8]))
    assert part.damage.tolist() == rows.damage[[7, 3, 8]].tolist()
    assert part.usable.tolist() == [1, 2]


def test_what_is_not_at_equal_cost_says_so(compared: tuple[Path, dict[str, Any]]) -> None:
    _, found = compared
    greedy = {**found["selectors"]["paser"], "tokens": 4000.0}
    shown = _text({**found, "selectors": {**found["selectors"], "paser": greedy}})
    assert "paser was trained on 4,000 tokens: not at equal cost" in shown
    assert "random was trained on" not in shown


def test_a_budget_that_takes_everything_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"takes all of a draw .*whatever the selector"):
        compare(finished, NAMES, 1, "9000000 tokens", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("budget", ["0.01%", "0.00004"])
def test_a_budget_below_one_token_is_refused(finished: Path, tmp_path: Path, budget: str) -> None:
    with pytest.raises(SettingsError, match=rf"a budget of {budget} is less than one of(?s:.*)a larger one"):
        compare(finished, NAMES, 1, budget, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_label_without_divergence_is_listed_and_the_report_is_written(
    finished: Path, compared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    label = _without_divergence(finished, compared[0], tmp_path, lambda row: row["label"])
    found = compare(finished, NAMES, 2, "1500 tokens", tmp_path)
    assert read_json(tmp_path / "report.json") == json.loads(json.dumps(found))
    assert label in found["undamaged"]
    for entry in found["selectors"].values():
        assert sorted(entry["by_label"]["fidelity gap"]) == [
            name for name in found["labels"] if name != label
        ]
        assert label not in entry["by_label"]["gap closed"]
    assert label in _text(found).split("Without damage")[1]


def test_a_pruned_model_without_any_divergence_is_refused_before_training(
    finished: Path, compared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _without_divergence(finished, compared[0], tmp_path, lambda row: "")
    with pytest.raises(PaserError, match=r"is 0 on all \d+ held-out rows(?s:.*)prune"):
        compare(finished, ("random", "longest"), 1, "1500 tokens", tmp_path)


def _without_divergence(project: Path, made: Path, out: Path, group: Callable[[Any], str]) -> str:
    """Copies cells, with JSD 0 before recovery for all held-out rows of the first row's group."""
    shutil.copytree(made / "cells", out / "cells")
    (path,) = (out / "cells").glob("before-*.json")
    before, rows = read_json(path), read_rows(project / "data/holdout.parquet", "pool")
    label = group(rows[0])
    jsd = [0.0 if group(row) == label else value for row, value in zip(rows, before["jsd"], strict=True)]
    path.write_text(json.dumps(before | {"jsd": jsd}), encoding="utf-8")
    return label


def test_a_stopped_comparison_has_a_report_of_the_seeds_before(
    finished: Path, compared: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(compared[0] / "cells", tmp_path / "cells")

    def stopped(study: Study, name: str, seed: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "_made", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare(finished, NAMES, 3, "1500 tokens", tmp_path)
    assert read_json(tmp_path / "report.json")["seeds"] == 2


def test_cells_lie_in_the_project_wherever_the_command_is_given(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def untrained(study: Study, out: Path) -> None:
        asked.append(out)
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "_untrained", untrained)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        compare(finished, NAMES, 1, "1500 tokens")
    assert asked == [finished / "data/comparison"]


def _text(found: dict[str, Any]) -> str:
    shown = Console(width=200, record=True, file=io.StringIO())
    shown.print(comparing.table(found))
    return shown.export_text()
