"""Distillation, damage weights, early stopping and masked merges: what each does, and that each resumes."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from paser.artifacts import file_digests, read_jsonl, write_table
from paser.errors import SettingsError, StageError
from paser.lineage.merkle import merkle_root
from paser.models.loading import load_causal_lm
from paser.models.packing import row_attention
from paser.models.sparsity import same_zeros
from paser.models.tokens import Encoded
from paser.recovery.batches import Plan, TrainingRow
from paser.recovery.lora import Extras, add_adapter, fine_tune
from paser.recovery.masked import merged
from paser.recovery.objective import Objective, Teacher, damage_weights
from paser.recovery.stopping import Stopping, held_out_slice
from paser.settings import EarlyStoppingSettings, RecoverSettings, Settings
from paser.stages.run import run_stage

Make = Callable[..., Path]
EVERYTHING: dict[str, Any] = {
    "batch_size": 4, "micro_batch_size": 2, "checkpoint_steps": 1, "epochs": 6, "learning_rate": 0.02,
    "distill": {"weight": 0.5, "temperature": 2.0},
    "weighting": "damage",
    "early_stopping": {"share": 0.3, "patience": 2, "steps": 1},
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PASER_CACHE_DIR", raising=False)


def load(path: Path) -> Any:
    return load_causal_lm(path, dtype=torch.float32)


def total(model: Any, objective: Objective, rows: Sequence[TrainingRow]) -> tuple[float, float]:
    readers = [model, *([objective.teacher.model] if objective.teacher else [])]
    with torch.no_grad(), row_attention(*readers):
        objective_sum, plain = objective.sums(model, rows).tolist()
    return objective_sum, plain


def test_distillation_is_cross_entropy_and_kl_to_the_original(
    llama: Path, sparse_llama: Path, training: list[TrainingRow]
) -> None:
    student, original = load(sparse_llama), load(llama)
    found, plain = total(student, Objective(True, 2, Teacher(original, 0.3, 2.0)), training[:3])
    kl = entropy = 0.0
    for row in training[:3]:
        ids = torch.tensor([row.encoded.prompt_ids + row.encoded.response_ids])
        start = len(row.encoded.prompt_ids) - 1
        with torch.no_grad():
            log_r, log_o = (
                (model(input_ids=ids).logits[0, start:-1] / 2.0).log_softmax(-1)
                for model in (student, original)
            )
            log_p = student(input_ids=ids).logits[0, start:-1].log_softmax(-1)
        kl += float((log_o.exp() * (log_o - log_r)).sum())
        entropy -= float(log_p.gather(1, ids[0, start + 1 :, None]).sum())
    assert plain == pytest.approx(entropy, rel=1e-5)
    assert found == pytest.approx(0.7 * entropy + 0.3 * 4.0 * kl, rel=1e-4)


def test_a_model_that_is_its_own_teacher_has_nothing_to_learn_from_it(
    llama: Path, training: list[TrainingRow]
) -> None:
    model = load(llama)
    assert total(model, Objective(True, 2, Teacher(load(llama), 1.0, 1.0)), training)[0] == pytest.approx(
        0.0, abs=1e-3
    )


def test_weights_multiply_the_loss_of_their_sample(llama: Path, training: list[TrainingRow]) -> None:
    model, objective = load(llama), Objective(True, 2)
    alone = [total(model, objective, [row])[0] for row in training[:2]]
    rows = [TrainingRow(r.row_id, r.encoded, w) for r, w in zip(training, (0.5, 1.5), strict=False)]
    found, plain = total(model, objective, rows[:2])
    assert found == pytest.approx(0.5 * alone[0] + 1.5 * alone[1], rel=1e-5)
    assert plain == pytest.approx(sum(alone), rel=1e-5)


def test_weights_are_divergences_with_a_mean_of_one() -> None:
    weights = damage_weights([0.1, 0.2, 0.6])
    assert sum(weights) / 3 == pytest.approx(1.0)
    assert weights[2] == pytest.approx(3 * weights[1])
    assert damage_weights([0.0, 0.0]) == [1.0, 1.0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_masked_merge_keeps_the_zeros_but_is_not_what_was_trained(sparse_llama: Path, dtype: str) -> None:
    def fresh() -> Any:
        return load_causal_lm(sparse_llama, dtype=getattr(torch, dtype))

    torch.manual_seed(1)
    adapted = add_adapter(fresh(), RecoverSettings(zeros="merged", dropout=0.0))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        ids = torch.arange(5, 45)[None]
        trained = adapted.eval()(input_ids=ids).logits
        result = merged(adapted)
        assert not torch.allclose(result(input_ids=ids).logits, trained, atol=1e-3)
    pruned = fresh()
    for name, module in pruned.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            after: Any = result.get_submodule(name)
            assert not after.weight[module.weight == 0].any()
            assert (after.weight != module.weight).any()


@pytest.mark.parametrize("zeros", ["trained", "merged"])
def test_the_saved_file_has_the_zeros_of_the_pruned_model(project: Make, zeros: str) -> None:
    root = project(recover={"batch_size": 4, "zeros": zeros, "learning_rate": 0.02})
    record = run_stage("recover", root)
    assert same_zeros(root / "data/models/pruned", root / "data/models/recovered") == []
    assert (record["facts"]["masked_layers"], record["facts"]["dense_layers"]) == (14, 0)
    assert (root / "data/models/recovered/adapter/adapter_model.safetensors").exists()


def test_the_slice_is_drawn_by_seed_and_row_and_never_takes_all() -> None:
    ids = [f"r1-{i}" for i in range(40)]
    first = held_out_slice(ids, 0.25, 1)
    assert len(first) == 10
    assert {ids[i] for i in first} == {ids[::-1][i] for i in held_out_slice(ids[::-1], 0.25, 1)}
    assert first != held_out_slice(ids, 0.25, 2)
    assert held_out_slice(ids, 0.0, 1) == set()
    assert len(held_out_slice(ids[:2], 0.01, 1)) == 1
    assert held_out_slice(ids[:1], 0.5, 1) == set()


def test_stopping_waits_for_the_first_pass_and_then_for_its_patience() -> None:
    plan = Plan(rows=12, batch=4, epochs=5, warmup=0.0)
    stopping = Stopping([], EarlyStoppingSettings(share=0.1, patience=2, steps=2), plan)
    layer = torch.nn.Linear(1, 1, bias=False)
    losses, ends = iter([2.0, 1.0, 1.5, 1.1]), []
    for step in range(1, 10):
        with torch.no_grad():
            layer.weight.fill_(step)
        ends.append(stopping.after(step, lambda: next(losses), layer))
        if ends[-1]:
            break
    assert [step for step, _ in stopping.losses] == [3, 5, 7, 9]
    assert ends == [False] * 8 + [True]
    assert (stopping.best_step, stopping.best_loss) == (5, 1.0)
    stopping.restore(layer)
    assert float(layer.weight.detach()) == 5


def test_the_best_weights_come_back_and_the_held_out_rows_are_not_trained_on(
    sparse_llama: Path, training: list[TrainingRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers held out are of tokens that training never meets, so every step makes them less likely."""
    settings = RecoverSettings.model_validate(EVERYTHING | {"warmup": 0.0, "schedule": "constant"})
    rows = training[3:]
    met = {token for row in rows for token in row.encoded.response_ids}
    unmet = tuple(token for token in range(300, 600) if token not in met)[:9]
    held_out = [TrainingRow(r.row_id, Encoded(r.encoded.prompt_ids, unmet)) for r in training[:3]]
    taught: list[str] = []
    original = Objective.sums

    def watched(self: Objective, model: Any, given: Sequence[TrainingRow]) -> Any:
        taught.extend(row.row_id for row in given if torch.is_grad_enabled())
        return original(self, model, given)

    monkeypatch.setattr(Objective, "sums", watched)
    adapted, facts = fine_tune(
        load(sparse_llama), rows, settings, seed=3, pad_id=2, checkpoints=tmp_path,
        extras=Extras(load(sparse_llama), held_out),
    )  # fmt: skip
    monkeypatch.undo()
    assert {*taught} == {row.row_id for row in rows}
    stopping = facts.stopping
    assert stopping["last_step"] == facts.steps < settings.epochs * 2
    assert stopping["best_step"] <= facts.steps - 2
    model = adapted.eval().get_base_model()
    tokens = sum(len(row.encoded.response_ids) for row in held_out)
    assert total(model, Objective(True, 2), held_out)[1] / tokens == pytest.approx(
        stopping["held_out_loss_best"], abs=1e-4
    )


def test_provenance_lists_the_held_out_rows_apart(project: Make) -> None:
    root = project(recover=EVERYTHING)
    record = run_stage("recover", root)
    provenance = json.loads((root / "data/models/recovered/provenance.json").read_text())
    selected = [row["row_id"] for row in read_jsonl(root / "data/selected.jsonl")]
    held_out = provenance["held_out"]
    assert len(held_out) == 2
    assert provenance["row_ids"] == [row_id for row_id in selected if row_id not in held_out]
    assert provenance["merkle_root"] == merkle_root(provenance["row_ids"])
    assert (provenance["rows"], provenance["tokens"]) == (4, 4 * 40)
    assert record["facts"]["early_stopping"]["held_out_rows"] == 2
    assert {*provenance["inputs"]} == {
        "data/models/pruned", "data/models/original", "data/scores.parquet", "data/selected.jsonl",
    }  # fmt: skip
    assert provenance["settings"]["recover"]["distill"] == {"weight": 0.5, "temperature": 2.0}
    assert same_zeros(root / "data/models/pruned", root / "data/models/recovered") == []


@pytest.mark.parametrize("option", ["distill", "weighting", "early_stopping"])
def test_each_option_changes_the_model(project: Make, option: str) -> None:
    plain = {key: EVERYTHING[key] for key in ("batch_size", "micro_batch_size", "epochs", "learning_rate")}
    root = project(recover=plain | {option: EVERYTHING[option]})
    run_stage("recover", root)
    changed = file_digests(root / "data/models/recovered")["model.safetensors"]
    content = json.loads(json.dumps({"model": {"precision": "float32"}, "runtime": {"threads": 1}}))
    (root / "params.yaml").write_text(json.dumps(content | {"recover": plain}), encoding="utf-8")
    run_stage("recover", root)
    assert file_digests(root / "data/models/recovered")["model.safetensors"] != changed


def test_a_row_without_a_score_cannot_be_weighted(project: Make) -> None:
    root = project(recover={"weighting": "damage"})
    write_table(root / "data/scores.parquet", "scores", [])
    with pytest.raises(StageError, match=r"row r1-\w+ has no finite score in .*scores.parquet"):
        run_stage("recover", root)


def test_one_row_cannot_be_held_out(project: Make) -> None:
    root = project(rows=1, recover={"early_stopping": {"share": 0.5}})
    with pytest.raises(StageError, match="has one row: none can be held out"):
        run_stage("recover", root)


def test_early_stopping_with_one_pass_is_a_contradiction() -> None:
    with pytest.raises(ValueError, match=r"early_stopping.share is 0.1, but epochs is 1"):
        Settings.model_validate({"recover": {"epochs": 1, "early_stopping": {"share": 0.1}}})


@pytest.mark.parametrize(("name", "install"), [("tensorboard", r"'paser\[track\]'"), ("wandb", "wandb")])
def test_a_reporter_that_is_not_installed_names_what_to_install(
    project: Make, monkeypatch: pytest.MonkeyPatch, name: str, install: str
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == name else find(n))
    root = project(recover={"report_to": name})
    with pytest.raises(SettingsError, match=rf"{name} is not installed\n.*pip install {install}"):
        run_stage("recover", root)


def test_tensorboard_gets_the_curves_and_the_model_stays_the_same(project: Make) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    root = project(recover=EVERYTHING)
    run_stage("recover", root)
    plain = file_digests(root / "data/models/recovered")["model.safetensors"]
    content = json.loads(json.dumps({"model": {"precision": "float32"}, "runtime": {"threads": 1}}))
    content["recover"] = EVERYTHING | {"report_to": "tensorboard"}
    (root / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    record = run_stage("recover", root)
    assert file_digests(root / "data/models/recovered")["model.safetensors"] == plain
    (logs,) = (root / ".paser/logs").iterdir()
    events = reading.EventAccumulator(str(logs))
    events.Reload()
    assert len(events.Scalars("train/loss")) == record["facts"]["steps"]
    assert {"train/learning_rate", "train/grad_norm", "eval/loss"} <= set(events.Tags()["scalars"])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["defaults", "everything on"])
def test_kill_9_at_any_step_gives_the_same_bytes(project: Make, options: dict[str, Any]) -> None:
    """A chain of kills: the stage is killed as the checkpoint of each step appears, then goes on."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["peft", "transformers.trainer", "paser.recovery.job"])
    plain = {"batch_size": 2, "micro_batch_size": 1, "checkpoint_steps": 1, "epochs": 3}
    root = project(recover=plain | options)
    facts = run_stage("recover", root)["facts"]
    expected = file_digests(root / "data/models/recovered")
    killed = 0
    for step in range(1, facts["steps"] + 1):
        stage = processes.Process(target=run_stage, args=("recover", root))
        stage.start()
        while stage.is_alive() and not list(root.glob(f".paser/cache/recover/*/checkpoint-{step}")):
            time.sleep(0.002)
        stage.kill()
        stage.join()
        killed += stage.exitcode == -signal.SIGKILL
    assert killed >= facts["steps"] - 1
    assert run_stage("recover", root)["facts"] == facts
    assert file_digests(root / "data/models/recovered") == expected
