"""`paser evaluate` and `paser perplexity` on tiny models, as a user types them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paser.cli import app
from paser.errors import PaserError
from paser.evaluate import Wanted, evaluate_models, named_runs
from tests import tiny


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with labelled rows, a text, a task and settings."""
    monkeypatch.chdir(tmp_path)
    made = tiny.rows(24, seed=3)
    tiny.write_jsonl(tmp_path / "rows.jsonl", [{**row, "label": "ab"[i % 2]} for i, row in enumerate(made)])
    (tmp_path / "prose.txt").write_text("The otter lives near the river. " * 60, encoding="utf-8")
    quiz = [{"question": f"Number {i}?", "choices": ["one", "two"], "gold": i % 2} for i in range(5)]
    tiny.write_jsonl(tmp_path / "quiz.jsonl", quiz)
    (tmp_path / "params.yaml").write_text(
        "model: {precision: float32}\nevaluate: {bootstrap: 100, context: 48}\nruntime: {threads: 1}\n",
        "utf-8",
    )
    return tmp_path


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_models_are_compared_on_rows_tasks_and_texts(here: Path, llama: Path, sparse_llama: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra `tasks` is not installed")
    models = ["--original", str(llama), "--pruned", str(sparse_llama)]
    models += ["--model", f"mine={llama}", "--model", f"mine={sparse_llama}"]
    run(
        "evaluate", *models, "--rows", "rows.jsonl", "--text", "prose.txt", "--tasks", "choices:quiz.jsonl",
        "--limit", "4", "--windows", "3", "--params", "params.yaml", "--out", "result",
    )  # fmt: skip
    metrics = json.loads((here / "result/metrics.json").read_text(encoding="utf-8"))
    assert metrics["models"] == ["original", "pruned", "mine/1", "mine/2"]
    assert [entry["name"] for entry in metrics["capabilities"]] == ["a", "b"]
    assert metrics["overall"]["mine/1"]["fidelity_gap"]["value"] == pytest.approx(1)
    assert metrics["overall"]["mine/2"]["fidelity_gap"]["value"] == pytest.approx(0)
    assert metrics["spread"]["fidelity_gap"]["mine"]["runs"] == 2
    assert metrics["tasks"]["metrics"][0]["limit"] == "of 5"
    (text,) = metrics["perplexity"]["metrics"]
    assert text["perplexity"]["mine/1"] == text["perplexity"]["original"]
    assert "first 3 windows of 48 tokens" in text["protocol"]
    lines = list(csv.DictReader((here / "result/scoreboard.csv").open(encoding="utf-8")))
    assert [line["row"] for line in lines] == [
        "a, loss", "a, JSD", "b, loss", "b, JSD", "quiz, acc", "quiz, acc_norm", "prose, log perplexity",
    ]  # fmt: skip
    assert lines[0]["mine/1"] == lines[0]["original"]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            {"texts": ["a/x.txt", "b/x.txt.gz"]},
            r"a/x\.txt and b/x\.txt\.gz would both be 'x'.*\n.*rename one",
        ),
        (
            {"tasks": ["choices:a/x.jsonl", "gsm8k:b/x.json"]},
            r"choices:a/x\.jsonl and gsm8k:b/x\.json would both",
        ),
        (
            {"tasks": ["choices:X.JSONL"], "texts": ["X.txt"]},
            r"choices:X\.JSONL and X\.txt would both be 'X'",
        ),
        (
            {"tasks": ["arc_easy", "choices:arc_easy.jsonl"]},
            r"arc_easy and choices:arc_easy\.jsonl would both",
        ),
        ({"texts": ["x.txt", "x.txt"]}, r"x\.txt is named twice.*\n.*name it once"),
    ],
)
def test_two_files_of_one_name_are_refused_before_anything_is_read(
    here: Path, wanted: dict[str, list[str]], said: str
) -> None:
    with pytest.raises(PaserError, match=said):
        evaluate_models(None, None, ["no-such-model"], Wanted(**wanted), here / "result")


def test_an_earlier_evaluation_stays_when_the_new_one_cannot_be_written(
    here: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paser import evaluate

    words = (
        "evaluate",
        "--model",
        str(llama),
        "--rows",
        "rows.jsonl",
        "--params",
        "params.yaml",
        "--out",
        "x",
    )
    run(*words)
    before = (here / "x/metrics.json").read_bytes()

    def failing(*_: object) -> None:
        raise PaserError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "write_table", failing)
        with pytest.raises(PaserError, match="the disk is full"):
            evaluate_models(
                None, None, [str(llama)], Wanted(rows="rows.jsonl"), here / "x", here / "params.yaml"
            )
    assert (here / "x/metrics.json").read_bytes() == before
    run(*words)
    assert sorted(path.name for path in (here / "x").iterdir()) == sorted(evaluate.FILES)


def test_one_model_alone_has_losses_and_no_gaps(here: Path, llama: Path) -> None:
    shown = run("evaluate", "--model", str(llama), "--rows", "rows.jsonl", "--params", "params.yaml")
    assert "loss ↓" in shown
    assert "JSD" not in shown
    assert "gap" not in shown


def test_perplexity_stands_beside_its_protocol(here: Path, llama: Path) -> None:
    words = ("perplexity", str(llama), "prose.txt", "--params", "params.yaml")
    plain = run(*words)
    assert plain.startswith("prose.txt: perplexity ")
    assert "no bos" in plain
    assert "windows of 48 tokens, stride 48" in plain
    found = json.loads(run(*words, "--rolling", "--context", "32", "--json"))["prose.txt"]
    assert found["protocol"].startswith("lm-eval's rolling log-likelihood")


def test_names_are_told_apart() -> None:
    assert list(named_runs("o", "p", ["a=x", "b=y", "a=z", "folder/c"])) == [
        "original", "pruned", "a/1", "b", "a/2", "c",
    ]  # fmt: skip
    with pytest.raises(PaserError, match="use --pruned"):
        named_runs(None, None, ["pruned=x"])


def test_what_cannot_be_evaluated_is_refused(here: Path, llama: Path) -> None:
    with pytest.raises(PaserError, match="no model to evaluate"):
        evaluate_models(None, None, [], Wanted(), None)
    (here / "full").mkdir()
    (here / "full/mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(PaserError, match="more than an earlier evaluation"):
        evaluate_models(None, None, [str(llama)], Wanted(), here / "full")
    with pytest.raises(PaserError, match="longer than the model's context"):
        from paser.evaluate import text_perplexity

        text_perplexity(str(llama), [here / "prose.txt"], context=4096)
