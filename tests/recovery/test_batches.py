"""Packed rows are trained on as if each were alone, without padding, in the steps that the order says."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from paser.models.loading import load_causal_lm
from paser.models.packing import row_attention
from paser.models.tokens import Encoded
from paser.recovery.batches import Plan, TrainingRow, padded, padding_share, portions
from paser.recovery.lora import add_adapter, fine_tune, save_adapter
from paser.recovery.objective import Objective
from paser.settings import RecoverSettings
from tests import tiny


def load(path: Path) -> Any:
    return load_causal_lm(path, dtype=torch.float32)


def alone(model: Any, row: TrainingRow) -> tuple[float, Any]:
    """Sum of the response's cross-entropy by plain transformers, and the gradient of the first norm."""
    ids = torch.tensor([row.encoded.prompt_ids + row.encoded.response_ids])
    labels = ids.clone()
    labels[:, : len(row.encoded.prompt_ids)] = -100
    model.zero_grad()
    loss = model(input_ids=ids, labels=labels).loss * len(row.encoded.response_ids)
    loss.backward()
    return float(loss.detach()), model.model.layers[0].input_layernorm.weight.grad.clone()


@pytest.mark.parametrize("packed", [True, False])
def test_rows_together_have_the_loss_and_gradient_of_the_rows_alone(
    llama: Path, training: list[TrainingRow], packed: bool
) -> None:
    model = load(llama)
    single = [alone(model, row) for row in training[:5]]
    model.zero_grad()
    with row_attention(model):
        sums = Objective(packed, pad_id=2).sums(model, training[:5]) if packed else None
        if sums is not None:
            sums[0].backward()
    if sums is None:
        sums = Objective(packed, pad_id=2).sums(model, training[:5])
        sums[0].backward()
    assert float(sums[0].detach()) == pytest.approx(sum(loss for loss, _ in single), rel=1e-5)
    assert float(sums[1]) == float(sums[0].detach())
    gradient = model.model.layers[0].input_layernorm.weight.grad
    torch.testing.assert_close(gradient, sum(each for _, each in single), rtol=1e-3, atol=1e-4)


def test_a_packed_row_does_not_see_its_neighbour(llama: Path, training: list[TrainingRow]) -> None:
    model = load(llama)
    first, second = training[:2]
    changed = TrainingRow("x", Encoded(first.encoded.prompt_ids[::-1], first.encoded.response_ids))
    objective = Objective(True, pad_id=2)
    with torch.no_grad(), row_attention(model):
        own = float(objective.sums(model, [second])[1])
        beside = [
            float(objective.sums(model, [other, second])[1] - objective.sums(model, [other])[1])
            for other in (first, changed)
        ]
    assert beside == pytest.approx([own, own], rel=1e-5)


def test_a_packed_step_trains_what_single_rows_train(
    sparse_llama: Path, training: list[TrainingRow], tmp_path: Path
) -> None:
    """The loss is divided by the tokens of the whole step, so the number of passes changes nothing."""
    weights = []
    for number, changes in enumerate(
        [{}, {"micro_batch_size": 1}, {"packing": False}, {"packing": False, "micro_batch_size": 1}]
    ):
        settings = RecoverSettings.model_validate(
            {"batch_size": 4, "micro_batch_size": 4, "dropout": 0.0, "learning_rate": 5e-3, **changes}
        )
        adapted, facts = fine_tune(
            load(sparse_llama), training, settings, seed=1, pad_id=2, checkpoints=tmp_path / str(number)
        )
        weights.append({n: p.detach() for n, p in adapted.named_parameters() if p.requires_grad})
        assert facts.packed is settings.packing
        assert (facts.padding == 0) is (settings.packing or settings.micro_batch_size == 1)
    for other in weights[1:]:
        for name, values in weights[0].items():
            torch.testing.assert_close(other[name], values, rtol=1e-3, atol=1e-5)


def realistic(count: int) -> list[TrainingRow]:
    """Rows with the skewed lengths of instruction data: many short, some cut at 256 tokens."""
    rng = random.Random(1)
    rows = []
    for i in range(count):
        prompt = min(int(rng.lognormvariate(3.4, 0.6)) + 8, 200)
        response = min(int(rng.lognormvariate(3.9, 1.0)) + 1, 256 - prompt)
        rows.append(TrainingRow(str(i), Encoded((5,) * prompt, (6,) * response)))
    return rows


def test_packing_wastes_less_than_five_percent_on_realistic_lengths() -> None:
    rows, settings = realistic(1000), RecoverSettings(batch_size=64, micro_batch_size=8)
    lengths = [row.encoded.tokens for row in rows]

    def passes(packed: bool) -> list[tuple[int, ...]]:
        return [part for portion in portions(rows, settings, packed=packed) for part in portion.passes]

    assert padding_share(passes(True), lengths, packed=True) < 0.05
    assert len(passes(True)) < 0.7 * len(passes(False))
    in_order = [range(begin, min(begin + 8, 1000)) for begin in range(0, 1000, 8)]
    assert padding_share(in_order, lengths, packed=False) > 0.3
    assert padding_share(passes(False), lengths, packed=False) < 0.12


def test_a_pass_stays_within_its_tokens_and_every_row_has_one() -> None:
    rows, settings = realistic(203), RecoverSettings(batch_size=16, micro_batch_size=4)
    steps = portions(rows, settings, packed=True)
    assert sorted(i for step in steps for part in step.passes for i in part) == list(range(203))
    assert all(sum(rows[i].encoded.tokens for i in part) <= 4 * 256 for step in steps for part in step.passes)
    for number, step in enumerate(steps):
        inside = {i for part in step.passes for i in part}
        assert inside == set(range(16 * number, min(16 * (number + 1), 203)))
        assert step.tokens == sum(len(rows[i].encoded.response_ids) for i in inside)


def test_a_model_that_cannot_read_packed_rows_gets_padded_batches(
    training: list[TrainingRow], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    torch.manual_seed(0)
    model = GPTBigCodeForCausalLM(
        GPTBigCodeConfig(vocab_size=700, n_positions=512, n_embd=32, n_layer=2, n_head=4)
    ).eval()
    settings = RecoverSettings(targets=("c_attn",), batch_size=4, micro_batch_size=2, epochs=1)
    model.set_attn_implementation("eager")
    _, facts = fine_tune(model, training, settings, seed=1, pad_id=2, checkpoints=tmp_path)
    assert not facts.packed
    assert "batches are padded" in capsys.readouterr().err


def test_padding_stands_on_the_right_and_is_masked() -> None:
    inputs = padded([[5, 6, 7], [9]], pad_id=2)
    assert inputs["input_ids"].tolist() == [[5, 6, 7], [9, 2, 2]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(("rows", "steps"), [(1, 2), (4, 2), (5, 4), (10, 6)])
def test_plan_counts_steps(settings: RecoverSettings, rows: int, steps: int) -> None:
    plan = Plan.of(rows, settings)
    assert plan.steps == steps
    assert plan.rows_done(plan.steps) == 2 * rows
    assert plan.rows_done(plan.steps_per_epoch) == rows


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 0), (0.1, 1), (1.0, 6), (4, 4), (100, 6)])
def test_warm_up_is_a_share_or_a_number_of_steps(warmup: float, steps: int) -> None:
    settings = RecoverSettings.model_validate({"batch_size": 4, "warmup": warmup})
    assert Plan.of(10, settings).warmup_steps == steps


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_every_schedule_trains(
    llama: Path, training: list[TrainingRow], tmp_path: Path, schedule: str
) -> None:
    settings = RecoverSettings.model_validate({"schedule": schedule, "epochs": 3, "learning_rate": 5e-3})
    adapted, facts = fine_tune(load(llama), training, settings, seed=1, pad_id=2, checkpoints=tmp_path)
    assert facts.loss_last < facts.loss_first
    save_adapter(adapted, tmp_path / "adapter")


def test_other_families_pack_too(tmp_path: Path) -> None:
    path = tiny.make_family(tmp_path / "qwen", "qwen2")
    rows = [TrainingRow(str(i), encoded) for i, encoded in enumerate(tiny.calibration(path, 4))]
    model = load(path)
    single = sum(alone(model, row)[0] for row in rows)
    adapted = add_adapter(model, RecoverSettings())
    with torch.no_grad(), row_attention(adapted.get_base_model()):
        found = float(Objective(True, 2).sums(adapted.get_base_model(), rows)[1])
    assert found == pytest.approx(single, rel=1e-4)
