"""Training on a two-layer model: what is learnt from, in which order, and what a killed run leaves."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from paser.errors import StageError
from paser.models.tokens import Encoded
from paser.recovery.batches import TrainingRow
from paser.recovery.checkpoints import SEAL, newest_complete, seal
from paser.recovery.lora import fine_tune, save_adapter
from paser.recovery.objective import Objective
from paser.settings import RecoverSettings


def load(path: Path, dtype: str = "float32") -> Any:
    import torch

    from paser.models.loading import load_causal_lm

    return load_causal_lm(path, dtype=getattr(torch, dtype))


def train(
    path: Path, rows: list[TrainingRow], settings: RecoverSettings, checkpoints: Path, **extra: Any
) -> Any:
    return fine_tune(load(path), rows, settings, seed=17, pad_id=2, checkpoints=checkpoints, **extra)


def adapter_bytes(adapted: Any, directory: Path) -> bytes:
    save_adapter(adapted, directory)
    return (directory / "adapter_model.safetensors").read_bytes()


def test_training_lowers_the_loss_and_the_facts_say_what_was_done(
    sparse_llama: Path, training: list[TrainingRow], settings: RecoverSettings, tmp_path: Path
) -> None:
    more = settings.model_copy(update={"epochs": 8, "learning_rate": 3e-2})
    _, facts = train(sparse_llama, training, more, tmp_path)
    assert facts.loss_last < facts.loss_first - 0.1
    assert facts.loss_first < math.log(600) + 0.5
    assert (facts.rows, facts.epochs, facts.steps) == (10, 8, 24)
    assert (facts.masked_layers, facts.dense_layers) == (14, 0)
    assert facts.response_tokens == sum(len(row.encoded.response_ids) for row in training)


def test_each_step_has_the_next_rows_in_the_order_given(
    sparse_llama: Path,
    training: list[TrainingRow],
    settings: RecoverSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    original = Objective.sums

    def watched(self: Objective, model: Any, rows: Sequence[TrainingRow]) -> Any:
        seen.extend(row.row_id for row in rows)
        return original(self, model, rows)

    monkeypatch.setattr(Objective, "sums", watched)
    train(sparse_llama, training, settings, tmp_path)
    ids = [row.row_id for row in training]
    steps = [set(ids[:4]), set(ids[4:8]), set(ids[8:])]
    assert [set(seen[b:e]) for b, e in ((0, 4), (4, 8), (8, 10))] == steps
    assert seen[:10] == seen[10:]


def test_the_order_of_the_rows_matters(
    sparse_llama: Path, training: list[TrainingRow], settings: RecoverSettings, tmp_path: Path
) -> None:
    forward, _ = train(sparse_llama, training, settings, tmp_path / "a")
    backward, _ = train(sparse_llama, training[::-1], settings, tmp_path / "b")
    assert adapter_bytes(forward, tmp_path / "fa") != adapter_bytes(backward, tmp_path / "ba")


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("rows_before", [7, 11, 15, 19])
def test_a_killed_run_resumes_to_the_same_bytes(
    sparse_llama: Path,
    training: list[TrainingRow],
    settings: RecoverSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rows_before: int,
) -> None:
    whole, facts = train(sparse_llama, training, settings, tmp_path / "whole")
    expected = adapter_bytes(whole, tmp_path / "expected")
    seen, original = 0, Objective.sums

    def killing(self: Objective, model: Any, rows: Sequence[TrainingRow]) -> Any:
        nonlocal seen
        seen += len(rows)
        if seen > rows_before:
            raise Killed
        return original(self, model, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "sums", killing)
        with pytest.raises(Killed):
            train(sparse_llama, training, settings, tmp_path / "killed")
    # A checkpoint that the kill cut short: newer, but without its seal.
    half = tmp_path / "killed/checkpoint-99"
    half.mkdir(parents=True)
    (half / "adapter_model.safetensors").write_bytes(b"half")

    resumed, resumed_facts = train(sparse_llama, training, settings, tmp_path / "killed")
    assert adapter_bytes(resumed, tmp_path / "found") == expected
    assert resumed_facts == facts
    assert ("resuming after" in capsys.readouterr().err) is (rows_before >= 8)


def test_a_run_killed_after_its_last_step_trains_no_more(
    sparse_llama: Path,
    training: list[TrainingRow],
    settings: RecoverSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, facts = train(sparse_llama, training, settings, tmp_path / "run")

    def never(*_: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(Objective, "sums", never)
    second, second_facts = train(sparse_llama, training, settings, tmp_path / "run")
    assert adapter_bytes(second, tmp_path / "b") == adapter_bytes(first, tmp_path / "a")
    assert second_facts == facts


def aged(checkpoint: Path) -> None:
    """As if nothing in it had changed for a day."""
    for path in (*checkpoint.iterdir(), checkpoint):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 86400))


def test_an_altered_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    for step in (2, 10):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "adapter_model.safetensors").write_bytes(b"weights")
        seal(checkpoint)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10/adapter_model.safetensors").write_bytes(b"Weights")
    aged(tmp_path / "checkpoint-10")
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-2"
    (tmp_path / "checkpoint-2" / SEAL).unlink()
    aged(tmp_path / "checkpoint-2")
    assert newest_complete(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_another_run_may_be_writing_is_left_to_it(tmp_path: Path) -> None:
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/optimizer.pt").write_bytes(b"some")
    seal(tmp_path / "checkpoint-2")
    aged(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4/adapter_model.safetensors").write_bytes(b"half")
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-2"
    assert (tmp_path / "checkpoint-4/optimizer.pt").exists()


def test_a_loss_that_is_not_finite_names_step_and_rows(
    llama: Path, training: list[TrainingRow], settings: RecoverSettings, tmp_path: Path
) -> None:
    """One token's embedding is broken, so the row that has it, and no other, has no finite loss."""
    import torch

    others = {t for row in training[:6] for t in row.encoded.prompt_ids + row.encoded.response_ids}
    token = next(t for t in training[6].encoded.prompt_ids if t not in others)
    model = load(llama)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # else every row would meet the token
    with torch.no_grad():
        model.get_input_embeddings().weight[token, 0] = float("inf")
    with pytest.raises(StageError, match="loss is not finite at optimiser step 2 of 6") as caught:
        fine_tune(model, training, settings, seed=17, pad_id=2, checkpoints=tmp_path)
    assert training[6].row_id in str(caught.value)
    assert not any(row.row_id in str(caught.value) for row in training[:4])


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(
    sparse_llama: Path, training: list[TrainingRow], settings: RecoverSettings, tmp_path: Path
) -> None:
    import torch

    class Exploding(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0] * float("inf")

    model = load(sparse_llama)
    model.model.norm.register_forward_hook(lambda _m, _i, output: Exploding.apply(output))
    with pytest.raises(StageError, match="gradient is not finite at optimiser step 1") as caught:
        fine_tune(model, training, settings, seed=1, pad_id=2, checkpoints=tmp_path)
    assert all(row.row_id in str(caught.value) for row in training[:4])


def test_unknown_targets_are_named(
    sparse_llama: Path, training: list[TrainingRow], settings: RecoverSettings, tmp_path: Path
) -> None:
    wrong = settings.model_copy(update={"targets": ("q_proj", "Wqkv", "c_attn")})
    with pytest.raises(StageError, match=r"Wqkv, c_attn\n.*down_proj.*v_proj"):
        train(sparse_llama, training, wrong, tmp_path)


def test_a_row_without_room_for_a_response_is_named(
    sparse_llama: Path, settings: RecoverSettings, tmp_path: Path
) -> None:
    row = TrainingRow("r1-abc", Encoded((1, 2, 3), (), cut=True))
    with pytest.raises(StageError, match=r"row r1-abc has no response token within 256 tokens"):
        train(sparse_llama, [row], settings, tmp_path)


def test_no_row_is_a_clear_error(sparse_llama: Path, settings: RecoverSettings, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no row to train on"):
        train(sparse_llama, [], settings, tmp_path)


def test_float16_is_refused(
    sparse_llama: Path, training: list[TrainingRow], settings: RecoverSettings, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match="float16"):
        fine_tune(load(sparse_llama, "float16"), training, settings, seed=1, pad_id=2, checkpoints=tmp_path)


def test_bfloat16_weights_are_trained_with_a_float32_adapter(
    sparse_llama: Path, training: list[TrainingRow], settings: RecoverSettings, tmp_path: Path
) -> None:
    import torch

    adapted, facts = fine_tune(
        load(sparse_llama, "bfloat16"), training, settings, seed=17, pad_id=2, checkpoints=tmp_path
    )
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in adapted.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert facts.loss_last < facts.loss_first


def test_nothing_of_the_trainer_is_printed(
    sparse_llama: Path,
    training: list[TrainingRow],
    settings: RecoverSettings,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("paser.progress.LINE_SECONDS", 0.0)
    train(sparse_llama, training, settings, tmp_path, title="learn")
    out, err = capfd.readouterr()
    assert out == ""
    assert all(line.startswith("  learn: ") for line in err.splitlines())
    assert "20/20 rows" in err


def test_the_saved_adapter_is_read_by_peft_and_names_no_path(
    sparse_llama: Path, training: list[TrainingRow], settings: RecoverSettings, tmp_path: Path
) -> None:
    from peft import PeftModel

    adapted, _ = train(sparse_llama, training, settings, tmp_path / "checkpoints")
    save_adapter(adapted, tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert str(sparse_llama) not in (tmp_path / "adapter/adapter_config.json").read_text()
    PeftModel.from_pretrained(load(sparse_llama), tmp_path / "adapter")
