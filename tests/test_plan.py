"""A plan comes from settings and a config.json alone, and says what later turns out."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paser.artifacts import read_json, write_json, write_table
from paser.cli import app
from paser.errors import PaserError
from paser.plan import Pool, chosen, estimate, pool_of, size_of
from paser.records import Sample, sample_to_row
from paser.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SEVEN = ROOT / "recipes/models/llama-7b"
TARGETS = Settings().recover.targets


def plan(*words: str) -> dict[str, Any]:
    found = CliRunner().invoke(app, ["plan", *words, "--json"])
    assert found.exit_code == 0, f"{found.output} {found.exception}"
    content: dict[str, Any] = json.loads(found.output)
    return content


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("model", ["llama-7b", "llama-13b"])
def test_every_recipe_validates_and_plans(recipe: Path, model: str) -> None:
    settings = load_settings(recipe)
    rows, share = (52_002, 0.2) if recipe.stem.startswith("alpaca") else (2_585_615, 0.04)
    found = plan(
        "--params", str(recipe), "--model", str(ROOT / "recipes/models" / model), "--rows", str(rows),
        "--row-tokens", "110", "--tflops", "312",
    )  # fmt: skip
    assert found["selected_rows"] == int(share * rows)
    assert found["steps"] > settings.recover.warmup == 100
    assert (settings.recover.rank, settings.recover.alpha, settings.recover.max_tokens) == (8, 16.0, 256)
    assert 0 < found["seconds"] < 30 * 24 * 3600
    assert found["memory"] > 2 * found["model"]["linear"]
    assert found["disk"] > 4 * found["model"]["linear"]


def test_there_is_a_recipe_for_each_scheme_and_pool_of_the_paper() -> None:
    found = {
        (p.stem.split("-")[0], s.prune.scheme, s.prune.sparsity, s.prune.pattern)
        for p in RECIPES
        for s in [load_settings(p)]
    }
    assert found == {
        (pool, *scheme)
        for pool in ("alpaca", "lamini")
        for scheme in (
            ("llm-pruner", 0.25, "unstructured"), ("slicegpt", 0.25, "unstructured"),
            ("wanda", 0.5, "2:4"), ("sparsegpt", 0.5, "unstructured"),
        )
    }  # fmt: skip


def test_the_commands_of_the_page_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines = (ROOT / "recipes/README.md").read_text(encoding="utf-8").splitlines()
    commands = [line.strip() for line in lines if line.startswith("    paser ")]
    assert len(commands) == 2
    for command in commands:
        found = CliRunner().invoke(app, shlex.split(command)[1:])
        assert found.exit_code == 0, found.output
        assert "in all:" in found.output


def test_the_model_of_a_config_is_counted_exactly() -> None:
    size = size_of(SEVEN, TARGETS, 8)
    assert size.parameters == 6_738_415_616
    assert size.adapter == 19_988_480
    assert size.linear == size.adapted == 32 * (4 * 4096**2 + 3 * 4096 * 11008)


def test_a_plan_agrees_with_what_a_run_did(llama: Path) -> None:
    """Tokens, steps and the size of the adapter of a real training, and the bytes of its model."""
    import torch

    from paser.models.loading import load_causal_lm
    from paser.recovery.lora import add_adapter

    settings = Settings.model_validate({"model": {"precision": "float32"}, "select": {"budget": "10 rows"}})
    size = size_of(llama, TARGETS, settings.recover.rank)
    adapted = add_adapter(load_causal_lm(llama, dtype=torch.float32), settings.recover)
    assert size.adapter == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    found = estimate(settings, size, Pool(100, 40.0), 1.0)
    costs = {cost.stage: cost for cost in found.costs}
    assert costs["recover"].tokens == 2 * 10 * 40
    assert found.steps == 2 * 2
    assert costs["score"].tokens == 2 * 100 * 40
    weights = (llama / "model.safetensors").stat().st_size
    assert costs["recover"].disk == pytest.approx(weights + 4 * size.adapter, rel=0.05)


def test_what_costs_more_is_planned_to_cost_more() -> None:
    size, pool = size_of(SEVEN, TARGETS, 8), Pool(1000, 100.0)

    def recover(**changes: Any) -> Any:
        settings = Settings.model_validate({"recover": changes})
        return next(c for c in estimate(settings, size, pool, 100.0).costs if c.stage == "recover")

    plain = recover()
    assert recover(distill={"weight": 0.5}).seconds > plain.seconds
    assert recover(distill={"weight": 0.5}).memory > plain.memory
    assert recover(token_pruning={"share": 0.5}).tokens == 3 / 2 * plain.tokens
    assert plain.seconds < recover(token_pruning={"share": 0.5}).seconds < 1.5 * plain.seconds
    assert recover(zeros="merged").memory < plain.memory
    assert recover(epochs=4).seconds == pytest.approx(2 * plain.seconds)
    off = Settings.model_validate({"control": {"enabled": False}})
    assert "control" not in {cost.stage for cost in estimate(off, size, pool, 100.0).costs}


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("20%", (200, 20_000)),
        ("50", (50, 5_000)),
        ("3000 tokens", (30, 3_000)),
        ("4% tokens", (40, 4_000)),
        ("5000 rows", (1000, 100_000)),
    ],
)
def test_the_budget_is_counted_as_select_does(budget: str, expected: tuple[int, int]) -> None:
    settings = Settings.model_validate({"select": {"budget": budget}})
    assert chosen(settings, Pool(1000, 100.0)) == expected


def test_what_does_not_fit_is_marked() -> None:
    words = [
        "plan", "--params", str(RECIPES[0]), "--model", str(SEVEN), "--rows", "1000", "--tflops", "100",
        "--memory", "8",
    ]  # fmt: skip
    found = CliRunner().invoke(app, words)
    assert "does not fit 8 GB" in found.output


def test_without_a_pool_it_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("seed: 1\n", encoding="utf-8")
    found = CliRunner().invoke(app, ["plan", "--project", str(tmp_path), "--model", str(SEVEN)])
    assert isinstance(found.exception, PaserError)
    assert "give --rows" in str(found.exception)
    found = CliRunner().invoke(app, ["plan", "--project", str(tmp_path), "--rows", "10", "--tflops", "1"])
    assert "has no config.json" in str(found.exception)


def test_rows_of_a_project_are_counted_not_assumed(tmp_path: Path) -> None:
    def table(name: str, count: int) -> None:
        rows = [
            sample_to_row(Sample("s", str(i), "MIT", f"{name} {i}", "", "answer"), tokens=10 * (i + 1))
            for i in range(count)
        ]
        write_table(tmp_path / "data" / f"{name}.parquet", "pool", rows)

    (tmp_path / "data").mkdir()
    table("pool", 3)
    assert pool_of(tmp_path) == Pool(3, 20.0)
    table("calibration", 2)
    table("holdout", 5)
    assert pool_of(tmp_path) == Pool(3, 20.0, calibration=2, held_out=5)


def test_what_an_earlier_run_took_stands_beside_the_estimate(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "params.yaml").write_text("seed: 1\n", encoding="utf-8")
    rows = [sample_to_row(Sample("s", "1", "MIT", "ask", "", "answer"), tokens=10)]
    write_table(tmp_path / "data/pool.parquet", "pool", rows)
    for stage, seconds in (("score", 75.2), ("select", 2.0), ("report", 9.0)):
        write_json(tmp_path / f"data/records/{stage}.run.json", {"stage": stage, "seconds": seconds})
    words = ["plan", "--project", str(tmp_path), "--tflops", "1"]
    shutil.copytree(llama, tmp_path / "data/models/original")
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.exception
    lines = {line.split("│")[1].strip(): line for line in found.output.splitlines() if line.count("│") > 3}
    assert "1 min 15 s" in lines["score"]
    assert "11 s" in lines["pool, cluster, select, audit, report"]
    assert " - " in lines["recover"]
    with_rows = CliRunner().invoke(app, [*words, "--rows", "50"]).output
    assert "last run" not in with_rows


def test_a_small_run_is_mostly_starting_and_a_large_one_is_not(llama: Path) -> None:
    tiny = estimate(Settings(), size_of(llama, TARGETS, 8), Pool(90, 40.0, 64, 86), 0.5)
    assert sum(cost.overhead for cost in tiny.costs) > 0.9 * tiny.seconds
    assert 12 * 2 < tiny.seconds < 12 * 10
    large = estimate(Settings(), size_of(SEVEN, TARGETS, 8), Pool(52_002, 110.0), 100.0)
    assert sum(cost.seconds for cost in large.costs) > 0.5 * large.seconds


def test_recipes_hold_the_models_numbers_only() -> None:
    for folder in (ROOT / "recipes/models").iterdir():
        assert [path.name for path in folder.iterdir()] == ["config.json"]
        assert read_json(folder / "config.json")["model_type"] == "llama"
