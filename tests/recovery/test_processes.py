"""One training in two processes on the CPU: what it gives, and what is left when one of them ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from paser.artifacts import file_digests, read_json
from paser.errors import SettingsError, StageError
from paser.recovery.batches import TrainingRow, portions
from paser.recovery.lora import fine_tune, save_adapter
from paser.recovery.processes import Together, threads_of_each
from paser.settings import RecoverSettings
from paser.stages.run import run_stage

Make = Callable[..., Path]
TWO = {"threads": 1, "processes": 2}


def together(model: Path, checkpoints: Path, **changes: Any) -> Together:
    given: dict[str, Any] = {"processes": 2, "dtype": "float32", "device": "cpu", "threads": 1, "seed": 17}
    return Together(model=model, checkpoints=checkpoints, pad_id=2, title="recover", **{**given, **changes})


def trained(
    model: Path, rows: list[TrainingRow], settings: RecoverSettings, checkpoints: Path, processes: int
) -> tuple[dict[str, Any], Any]:
    """The adapter's weights and the facts, after training in so many processes."""
    import torch

    from paser.models.loading import load_causal_lm

    if processes > 1:
        together(model, checkpoints, processes=processes).train(rows, settings)
    adapted, facts = fine_tune(
        load_causal_lm(model, dtype=torch.float32), rows, settings, seed=17, pad_id=2, checkpoints=checkpoints
    )
    save_adapter(adapted, checkpoints.with_name(f"{checkpoints.name}-adapter"))
    return {name: p.detach() for name, p in adapted.named_parameters() if p.requires_grad}, facts


@pytest.mark.parametrize(("count", "processes"), [(10, 2), (9, 2), (9, 4), (1, 2)])
def test_a_step_has_the_same_rows_in_any_number_of_processes(
    training: list[TrainingRow], settings: RecoverSettings, count: int, processes: int
) -> None:
    rows = training[:count]
    one = portions(rows, settings, packed=True)
    many = portions(rows, settings, packed=True, processes=processes)
    assert len(many) == processes * len(one)
    for step, portion in enumerate(one):
        shares = many[step * processes : (step + 1) * processes]
        assert {share.tokens for share in shares} == {portion.tokens}
        found = [i for share in shares for part in share.passes for i in part]
        assert sorted(i for i in found if i < count) == sorted(i for part in portion.passes for i in part)
        assert all(share.passes for share in shares)


def test_threads_are_shared_out_where_none_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [threads_of_each(0, n) for n in (1, 2, 3, 16)] == [0, 4, 2, 1]
    assert threads_of_each(5, 2) == 5


def test_batches_that_cannot_be_shared_out_are_named(
    sparse_llama: Path, training: list[TrainingRow], settings: RecoverSettings, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"batch_size \(4\) is not a multiple of .*\(2\) times .*\(3\)"):
        together(sparse_llama, tmp_path, processes=3).train(training, settings)


def test_more_processes_than_gpus_is_an_error(
    sparse_llama: Path, training: list[TrainingRow], settings: RecoverSettings, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="runtime.processes is 2, but torch sees 0 GPUs"):
        together(sparse_llama, tmp_path, device="cuda").train(training, settings)


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, 9])
def test_without_dropout_two_processes_train_what_one_trains(
    sparse_llama: Path,
    training: list[TrainingRow],
    settings: RecoverSettings,
    tmp_path: Path,
    count: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Up to rounding: gradients are summed in another order. 9 rows leave an uneven last step."""
    import torch

    plain = settings.model_copy(update={"dropout": 0.0})
    one, facts = trained(sparse_llama, training[:count], plain, tmp_path / "one", 1)
    capfd.readouterr()
    two, facts_of_two = trained(sparse_llama, training[:count], plain, tmp_path / "two", 2)
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-4, atol=1e-6)
    assert facts_of_two.steps == facts.steps
    assert facts_of_two.loss_first == pytest.approx(facts.loss_first, abs=1e-5)
    assert facts_of_two.loss_last == pytest.approx(facts.loss_last, abs=1e-5)
    out, err = capfd.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if not line.startswith("  recover: ")] == []


@pytest.mark.slow
def test_with_dropout_two_processes_repeat_themselves(
    sparse_llama: Path, training: list[TrainingRow], settings: RecoverSettings, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        trained(sparse_llama, training, settings, tmp_path / name, 2)
    assert file_digests(tmp_path / "a-adapter") == file_digests(tmp_path / "b-adapter")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_told_by_the_stage(
    llama: Path, training: list[TrainingRow], settings: RecoverSettings, tmp_path: Path
) -> None:
    import torch

    from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm

    model = load_causal_lm(llama, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    save_causal_lm(model, load_tokenizer(llama), tmp_path / "broken")
    with pytest.raises(StageError, match="loss is not finite at optimiser step 1 of 6") as caught:
        together(tmp_path / "broken", tmp_path / "checkpoints").train(training, settings)
    assert "lower recover.learning_rate" in str(caught.value)


def workers(parent: int) -> list[psutil.Process]:
    """The training processes below `parent`, by rank."""
    found = [
        process
        for process in psutil.Process(parent).children(recursive=True)
        if "paser.recovery.worker" in process.cmdline()
    ]
    return sorted(found, key=lambda process: process.environ()["RANK"])


@pytest.mark.slow
def test_one_process_that_is_killed_ends_the_training_with_a_clear_error(
    sparse_llama: Path, training: list[TrainingRow], settings: RecoverSettings, tmp_path: Path
) -> None:
    long = settings.model_copy(update={"epochs": 900})
    killed: list[psutil.Process] = []

    def kill() -> None:
        while not list(tmp_path.glob("checkpoint-*/complete.json")):
            time.sleep(0.05)
        killed.extend(workers(os.getpid()))
        killed[1].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(StageError, match=r"training in 2 processes stopped: [\s\S]*goes on from the last"):
        together(sparse_llama, tmp_path).train(training, long)
    killer.join()
    assert len(killed) == 2
    assert not any(process.is_running() for process in killed)


@pytest.mark.slow
def test_a_killed_stage_ends_its_processes_and_goes_on_to_the_same_bytes(
    project: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    root = project(
        recover={"batch_size": 4, "micro_batch_size": 2, "checkpoint_steps": 1, "epochs": 40}, runtime=TWO
    )
    stage = subprocess.Popen([sys.executable, "-m", "paser", "stage", "recover"], cwd=root)
    while not list(root.glob(".paser/cache/recover/*/checkpoint-*/complete.json")):
        assert stage.poll() is None
        time.sleep(0.05)
    below = psutil.Process(stage.pid).children(recursive=True)
    assert len(workers(stage.pid)) == 2
    stage.kill()
    stage.wait()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert alive == []
    capfd.readouterr()
    record = run_stage("recover", root)
    assert "resuming after" in capfd.readouterr().err
    assert record["facts"]["processes"] == 2
    resumed = file_digests(root / "data/models/recovered")
    assert read_json(root / "data/models/recovered/provenance.json")["role"] == "recovered"
    run_stage("recover", root)
    assert file_digests(root / "data/models/recovered") == resumed


@pytest.mark.slow
def test_every_option_works_in_two_processes(project: Make) -> None:
    options = {
        "batch_size": 4, "micro_batch_size": 2, "checkpoint_steps": 1, "epochs": 4, "learning_rate": 0.02,
        "distill": {"weight": 0.5}, "weighting": "damage",
        "early_stopping": {"share": 0.3, "patience": 2, "steps": 1},
    }  # fmt: skip
    root = project(recover=options, runtime=TWO)
    facts = run_stage("recover", root)["facts"]
    assert facts["processes"] == 2
    assert facts["early_stopping"]["held_out_rows"] == 2
    assert facts["early_stopping"]["best_step"] >= 1
    first = file_digests(root / "data/models/recovered")
    run_stage("recover", root)
    assert file_digests(root / "data/models/recovered") == first
