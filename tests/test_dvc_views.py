"""What DVC itself shows of a finished run, and experiments by DVC."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from paser.artifacts import read_json
from tests import project as projects


@pytest.fixture
def committed(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished project with its results in git."""
    folder = Path(shutil.copytree(finished, tmp_path / "done", symlinks=True))
    projects.run(folder, "git", "config", "user.name", "A")
    projects.run(folder, "git", "config", "user.email", "a@example.org")
    projects.run(folder, "git", "add", "--all")
    projects.run(folder, "git", "commit", "-q", "-m", "a run")
    return folder


def test_dvc_shows_gaps_and_nothing_that_changes_its_name(committed: Path) -> None:
    shown = json.loads(projects.run(committed, "dvc", "metrics", "show", "--json").stdout)
    files = shown[""]["data"]
    assert list(files) == ["data/summary.json"]
    summary = files["data/summary.json"]["data"]
    assert {"gap closed", "fidelity gap", "selected"} <= set(summary)
    assert "cluster" not in summary
    table = projects.run(committed, "dvc", "metrics", "diff", "--all").stdout
    assert [line for line in table.splitlines() if "selected.rows" in line]


def test_dvc_draws_every_plot_and_the_graph(committed: Path) -> None:
    plots = json.loads(projects.run(committed, "dvc", "plots", "show", "--json").stdout)
    assert set(plots["data"]) == {"damage", "left-after-recovery", "budget", "gaps"}
    assert all(entry[0]["content"]["data"]["values"] for entry in plots["data"].values())
    chart = projects.run(committed, "dvc", "dag", "--md", "select").stdout
    assert chart.startswith("```mermaid")
    assert '"score"' in chart
    assert '"report"' not in chart
    assert "Damage of every row" in projects.run(committed, "dvc", "stage", "list").stdout


@pytest.mark.slow
def test_what_the_page_on_experiments_shows_runs(committed: Path) -> None:
    page = (projects.ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    commands = [line.split() for line in page.splitlines() if line.startswith("    dvc ")]
    views = [words for words in commands if words[:3] not in (["dvc", "exp", "run"], ["dvc", "exp", "apply"])]
    assert len(views) >= 8
    for words in views:
        projects.run(committed, *words)


@pytest.mark.slow
def test_an_experiment_runs_what_depends_on_the_key_and_keeps_its_name(committed: Path) -> None:
    done = projects.run(committed, "dvc", "exp", "run", "-n", "ten", "-S", "select.budget=10%")
    for stage in ("pool", "prune", "score"):
        assert f"Stage '{stage}' didn't change, skipping" in done.stdout
    assert "Running stage 'select'" in done.stdout
    assert read_json(committed / "data/budget.json")["requested"]["text"] == "10%"
    assert "ten" in projects.run(committed, "dvc", "exp", "list").stdout
    assert "10%" in projects.run(committed, "dvc", "params", "diff").stdout
    assert "selected.rows" in projects.run(committed, "dvc", "metrics", "diff").stdout
    wrong = projects.run(committed, "dvc", "exp", "run", "-S", "select.budget=110%", check=False)
    assert wrong.returncode
    assert (
        "choose more than 0 %" in wrong.stdout + wrong.stderr or "not a share" in wrong.stdout + wrong.stderr
    )
