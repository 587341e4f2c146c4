"""The command line: instant help, plain errors, and selection on anyone's models and data."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from paser.artifacts import read_json, read_jsonl, read_rows, sha256_path
from paser.cli import app
from tests import project as projects
from tests import tiny

HEAVY = ("torch", "transformers", "pandas", "numpy", "sklearn", "pyarrow", "dvc", "matplotlib", "pydantic")


def paser(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return projects.run(folder, "paser", *words, check=False)


def test_help_imports_nothing_heavy_and_lists_the_verbs(tmp_path: Path) -> None:
    code = f"import sys, paser.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    help_ = paser(tmp_path, "--help").stdout
    for verb in ("demo", "select", "damage", "models", "stage", "result", "audit", "cache"):
        assert f"\n  {verb} " in help_
    assert paser(tmp_path, "version").stdout.strip()


def commands(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    children = getattr(command, "commands", None)
    if children is None:
        return {path: command}
    return {k: v for name, child in children.items() for k, v in commands(child, (*path, name)).items()}


def test_the_help_of_every_verb_shows_an_example_that_is_one() -> None:
    known = commands(typer.main.get_command(app))
    for path, command in known.items():
        examples = re.findall(r"Example: paser ([^`]+?)(?:\n\n|$)", command.help or "")
        assert examples, path
        for example in examples:
            words = shlex.split(example)
            assert tuple(words[: len(path)]) == path
            context = command.make_context(path[-1], words[len(path) :], resilient_parsing=False)
            assert context.params is not None


def test_exit_codes_are_documented_in_help_and_page(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs/cli.md").read_text(encoding="utf-8")
    help_ = paser(tmp_path, "--help").stdout
    for code in ("0", "1", "2", "3", "130"):
        assert re.search(rf"(?m)^    {code} ", help_)
        assert f"| {code} |" in page


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_generated_for_each_shell(tmp_path: Path, shell: str) -> None:
    done = subprocess.run(
        ["paser"], cwd=tmp_path, env=projects.ENVIRONMENT | {"_PASER_COMPLETE": f"source_{shell}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert f"_PASER_COMPLETE=complete_{shell}" in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash on this machine")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("paser aud", ["audit"]),
        ("paser audit ver", ["verify"]),
        ("paser select --orig", ["--original"]),
        ("paser cache ", ["info", "prune"]),
    ],
)
def test_bash_completes(tmp_path: Path, line: str, expected: list[str]) -> None:
    script = (
        'source <(_PASER_COMPLETE=source_bash paser); IFS=" "; read -ra COMP_WORDS <<< "$1"; '
        '[ "${1: -1}" = " " ] && COMP_WORDS+=(""); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); '
        '_paser_completion paser; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", line], cwd=tmp_path, env=projects.ENVIRONMENT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == expected


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        ("PermissionError(13, 'Permission denied', 'x.json')", "check that the path exists"),
        ("MemoryError()", "`paser plan` says what a run needs"),
        ("ZeroDivisionError('by zero')", "ZeroDivisionError: by zero"),
    ],
)
def test_what_nobody_foresaw_is_two_lines_too(tmp_path: Path, raised: str, shown: str) -> None:
    code = (
        "import sys, paser.stages.run as r\n"
        f"def stop(*_): raise {raised}\n"
        "r.run_stage = stop\n"
        "sys.argv = ['paser', *sys.argv[1:], 'stage', 'score']\n"
        "from paser.cli import main\nmain()"
    )

    def run(*more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *more], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        return done.stderr

    assert shown in run()
    assert "remedy:" in run()
    assert len(run().splitlines()) == 2
    assert "Traceback" in run("--debug")


@pytest.fixture(scope="module")
def offer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("offer")
    tiny.write_jsonl(folder / "pool.jsonl", tiny.rows(120))
    small = "model: {precision: float32}\ncluster: {k: 3, stability_runs: 0}\nruntime: {threads: 1}\n"
    (folder / "small.yaml").write_text(small, encoding="utf-8")
    return folder


def selection(folder: Path, dense: Path, pruned: Path, encoder: Path, out: str, *more: str) -> list[str]:
    return [
        "select", "--original", str(dense), "--pruned", str(pruned), "--pool", "pool.jsonl",
        "--encoder", f"file:{encoder}", "--params", "small.yaml", "--out", out, *more,
    ]  # fmt: skip


def test_select_alone(offer: Path, llama: Path, sparse_llama: Path, encoder: Path) -> None:
    done = paser(offer, *selection(offer, llama, sparse_llama, encoder, "picked", "--budget", "25%"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "picked/selected.jsonl"
    rows = read_jsonl(offer / "picked/selected.jsonl")
    decisions = read_rows(offer / "picked/decisions.parquet", "decisions")
    assert len(decisions) == 120
    assert len(rows) == 30 == read_json(offer / "picked/budget.json")["spent"]
    assert {d["row_id"] for d in decisions if d["decision"] == "accepted"} == {r["row_id"] for r in rows}
    record = read_json(offer / "picked/selection.json")
    assert record["models"]["pruned"] == {"given": str(sparse_llama), "sha256": sha256_path(sparse_llama)}
    assert record["encoder"] == {"sha256": sha256_path(encoder)}
    assert record["settings"]["select"]["budget"] == "25%"
    assert record["settings"]["cluster"]["k"] == 3
    again = paser(offer, *selection(offer, llama, sparse_llama, encoder, "picked"))
    assert again.returncode == 1
    assert "picked exists and is not empty" in again.stderr


def test_what_is_evaluated_is_not_selected(
    offer: Path, llama: Path, sparse_llama: Path, encoder: Path
) -> None:
    held = [row | {"output": "another answer"} for row in tiny.rows(120)[:4]]
    tiny.write_jsonl(offer / "first.jsonl", held[:2])
    tiny.write_jsonl(offer / "second.jsonl", [{"prompt": held[3]["instruction"], "completion": "no"}])
    words = selection(offer, llama, sparse_llama, encoder, "clean", "--budget", "100%", "--json")
    done = paser(offer, *words, "--evaluation", "first.jsonl", "--evaluation", "second.jsonl")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["out"] == "clean"
    decisions = read_rows(offer / "clean/decisions.parquet", "decisions")
    refused = {d["row_id"]: d["detail"] for d in decisions if d["reason"] == "contaminated"}
    assert report["rejected"]["contaminated"] == len(refused) >= 3
    assert {detail.split(" of ")[1].split(":")[0] for detail in refused.values()} == {
        "first.jsonl", "second.jsonl",
    }  # fmt: skip
    texts = {row["instruction"] + row["input"] for row in read_jsonl(offer / "clean/selected.jsonl")}
    assert not texts & {row["instruction"] + row["input"] for row in (*held[:2], held[3])}
    assert read_json(offer / "clean/contamination.json")["selected"] == 0
    missing = paser(
        offer, *selection(offer, llama, sparse_llama, encoder, "none"), "--evaluation", "no.jsonl"
    )
    assert missing.returncode == 1
    assert "no.jsonl does not exist" in missing.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--budget", "0"], "budget '0' is not a positive"),
        (["--budget", "-5%"], "not a share of the pool"),
        (["--budget", "150%"], "at most 100 %"),
        (["--pool", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--pruned", "nowhere"], "nowhere does not exist"),
    ],
)
def test_mistakes_end_with_a_message_and_no_trace(
    offer: Path, llama: Path, sparse_llama: Path, encoder: Path, changes: list[str], message: str
) -> None:
    done = paser(offer, *selection(offer, llama, sparse_llama, encoder, "none", *changes))
    assert done.returncode == 1
    assert message in done.stderr
    assert "remedy:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (offer / "none").exists()


def test_a_budget_above_the_pool_takes_what_there_is(
    offer: Path, llama: Path, sparse_llama: Path, encoder: Path
) -> None:
    done = paser(offer, *selection(offer, llama, sparse_llama, encoder, "all", "--budget", "5000"))
    assert done.returncode == 0, done.stderr
    assert "larger than the pool" in done.stderr
    decisions = read_rows(offer / "all/decisions.parquet", "decisions")
    assert {d["reason"] for d in decisions if d["decision"] == "rejected"} <= {"conflict"}
    assert {d["reason"] for d in decisions if d["decision"] == "accepted"} == {"selected"}


def test_the_budget_of_the_settings_file_holds_unless_one_is_given(
    offer: Path, llama: Path, sparse_llama: Path, encoder: Path
) -> None:
    text = (offer / "small.yaml").read_text(encoding="utf-8") + "select: {budget: '7'}\n"
    (offer / "seven.yaml").write_text(text, encoding="utf-8")
    words = selection(offer, llama, sparse_llama, encoder, "seven")
    words[words.index("small.yaml")] = "seven.yaml"
    assert paser(offer, *words).returncode == 0
    assert len(read_jsonl(offer / "seven/selected.jsonl")) == 7
    here = paser(offer, *selection(offer, llama, sparse_llama, encoder, "."))
    assert here.returncode == 1
    assert "working directory" in here.stderr


def test_models_with_different_vocabularies(offer: Path, llama: Path, encoder: Path, tmp_path: Path) -> None:
    other = tiny.make_llama(tmp_path / "other", tokenizer=tiny.make_tokenizer(extra=("<|extra|>",)))
    done = paser(offer, *selection(offer, llama, other, encoder, "none"))
    assert done.returncode == 1
    assert "different vocabularies" in done.stderr


def test_a_model_without_chat_template_gets_a_plain_one_and_says_so(
    offer: Path, encoder: Path, tmp_path: Path
) -> None:
    plain = tiny.make_llama(tmp_path / "plain", tokenizer=tiny.make_tokenizer(chat=False))
    pruned = tiny.make_sparse(plain, tmp_path / "sparse")
    done = paser(offer, *selection(offer, plain, pruned, encoder, "plain", "--budget", "10"))
    assert done.returncode == 0, done.stderr
    assert "no chat template" in done.stderr


def test_a_pickled_checkpoint_is_refused(offer: Path, llama: Path, encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "pickled")
    (tmp_path / "pickled/model.safetensors").rename(tmp_path / "pickled/pytorch_model.bin")
    done = paser(offer, *selection(offer, llama, tmp_path / "pickled", encoder, "none"))
    assert done.returncode == 1
    assert "pickle" in done.stderr


def test_infinite_logits_reject_the_rows_and_the_run_goes_on(
    offer: Path, llama: Path, encoder: Path, tmp_path: Path
) -> None:
    import torch

    from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm

    broken, tokenizer = load_causal_lm(llama, dtype=torch.float32), load_tokenizer(llama)
    token = tokenizer.encode(" otter", add_special_tokens=False)[-1]
    with torch.no_grad():
        broken.get_input_embeddings().weight[token] = float("inf")
    broken.config.tie_word_embeddings = False
    broken.lm_head.weight = torch.nn.Parameter(
        load_causal_lm(llama, dtype=torch.float32).get_input_embeddings().weight.detach().clone()
    )
    save_causal_lm(broken, tokenizer, tmp_path / "broken")
    done = paser(offer, *selection(offer, llama, tmp_path / "broken", encoder, "broken", "--budget", "10"))
    assert done.returncode == 0, done.stderr
    decisions = read_rows(offer / "broken/decisions.parquet", "decisions")
    refused = [d for d in decisions if d["reason"] == "nonfinite"]
    assert 0 < len(refused) < 120
    assert all(d["decision"] == "rejected" for d in refused)


def test_stage_errors_name_stage_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("seed: 1\n", encoding="utf-8")
    done = paser(tmp_path, "stage", "score")
    assert done.returncode == 1
    assert "needs data/pool.parquet" in done.stderr
    assert "dvc repro score" in done.stderr
    assert paser(tmp_path, "stage", "scores").stderr.startswith("error: unknown stage")


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    code = (
        "import sys, paser.stages.run as r\n"
        "def stop(*_): raise KeyboardInterrupt\n"
        "r.run_stage = stop\n"
        "sys.argv = ['paser', 'stage', 'score']\n"
        "from paser.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert "run the same command again" in done.stderr


def test_a_wrong_option_is_a_usage_error(tmp_path: Path) -> None:
    done = paser(tmp_path, "stage", "--nonsense")
    assert done.returncode == 2
    assert "No such option" in done.stderr


def test_debug_shows_the_trace(tmp_path: Path) -> None:
    assert "Traceback" in paser(tmp_path, "--debug", "stage", "scores").stderr


def test_cache_verbs(tmp_path: Path) -> None:
    (tmp_path / ".paser/cache/score").mkdir(parents=True)
    (tmp_path / ".paser/cache/score/a.npz").write_bytes(b"x" * 2_000_000)
    assert "0.00 GB" in paser(tmp_path, "cache", "info").stdout
    assert json.loads(paser(tmp_path, "cache", "info", "--json").stdout)["bytes"] == 2_000_000
    assert paser(tmp_path, "cache", "prune").stdout.strip() == "1 entries removed"
    assert not list((tmp_path / ".paser/cache/score").iterdir())
    assert json.loads(paser(tmp_path, "cache", "prune", "--json").stdout) == {"removed": []}


def test_result_as_json(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/metrics.json").write_text('{"models": []}', encoding="utf-8")
    assert json.loads(paser(tmp_path, "result", "--json").stdout) == {"models": []}
    (tmp_path / "data/metrics.json").unlink()
    assert "does not exist" in paser(tmp_path, "result").stderr
