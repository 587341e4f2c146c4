"""Token pruning: which tokens leave the loss, what is left of it, and that off changes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

import paser
from paser.artifacts import file_digests, fingerprint
from paser.errors import SettingsError
from paser.models.loading import load_causal_lm
from paser.models.packing import row_attention
from paser.models.tokens import Encoded
from paser.recovery import job, token_pruning
from paser.recovery.batches import TrainingRow, portions, predicting_states
from paser.recovery.lora import fine_tune, save_adapter
from paser.recovery.objective import Objective, Teacher
from paser.recovery.processes import read_back, written
from paser.recovery.token_pruning import Predictions, kept_tokens, misconceptions, predictions, token_pruned
from paser.settings import RecoverSettings, TokenPruningSettings, parse_settings
from paser.stages.run import run_stage
from tests import tiny

Make = Callable[..., Path]
PLAIN: dict[str, Any] = {"batch_size": 4, "micro_batch_size": 2, "learning_rate": 0.02}
ON: dict[str, Any] = {**PLAIN, "token_pruning": {"share": 0.5, "neighbours": 0.3}}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PASER_CACHE_DIR", raising=False)


def load(path: Path) -> Any:
    return load_causal_lm(path, dtype=torch.float32)


def masked(rows: Sequence[TrainingRow]) -> list[TrainingRow]:
    """The first row whole, of the others every third token left out."""
    return [rows[0]] + [
        replace(row, kept=tuple(i % 3 != 1 for i in range(len(row.encoded.response_ids)))) for row in rows[1:]
    ]


def mask(row: TrainingRow) -> Sequence[bool]:
    return row.kept or [True] * len(row.encoded.response_ids)


def response_logits(model: Any, row: TrainingRow) -> torch.Tensor:
    """Logits of the response of one row alone, through the whole model, shape (tokens, vocabulary)."""
    ids = torch.tensor([row.encoded.prompt_ids + row.encoded.response_ids])
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids).logits[0, len(row.encoded.prompt_ids) - 1 : -1]
    return logits


def token_losses(model: Any, row: TrainingRow) -> list[float]:
    logs = response_logits(model, row).log_softmax(-1)
    return [-float(logs[i, t]) for i, t in enumerate(row.encoded.response_ids)]


def slowly(losses: Sequence[float], share: float, neighbours: float) -> tuple[bool, ...]:
    ppl = [math.exp(loss) for loss in losses]
    scores = []
    for i, own in enumerate(ppl):
        around = [ppl[j] for j in (i - 1, i + 1) if 0 <= j < len(ppl)] or [own]
        scores.append((1 - neighbours) * own + neighbours * sum(around) / len(around))
    kept = [True] * len(ppl)
    for _ in range(math.floor(share * len(ppl))):
        kept[max((i for i in range(len(ppl)) if kept[i]), key=lambda i: (scores[i], -i))] = False
    return tuple(kept)


@pytest.mark.parametrize("neighbours", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.999])
def test_the_tokens_left_out_are_those_of_the_formula(share: float, neighbours: float) -> None:
    draw = np.random.default_rng(3)
    options = TokenPruningSettings(share=share, neighbours=neighbours)
    for length in (1, 2, 3, 4, 11, 40):
        losses = draw.exponential(3.0, length)
        assert kept_tokens(losses, options) == slowly(losses.tolist(), share, neighbours)


def test_of_equal_tokens_the_earlier_ones_are_left_out_and_one_token_always_stays() -> None:
    equal = np.full(6, 2.0)
    assert kept_tokens(equal, TokenPruningSettings(share=0.5)) == (False,) * 3 + (True,) * 3
    assert kept_tokens(equal, TokenPruningSettings(share=0.9999)) == (False,) * 5 + (True,)
    assert kept_tokens(equal[:1], TokenPruningSettings(share=0.9999)) == (True,)
    with pytest.raises(SettingsError, match="recover.token_pruning.share is 1"):
        parse_settings({"recover": {"token_pruning": {"share": 1.0}}}, "my.yaml")


def test_losses_beyond_what_exp_can_hold_keep_their_order() -> None:
    assert kept_tokens(np.array([900.0, 1.0, 901.0]), TokenPruningSettings(share=0.4, neighbours=0.0)) == (
        True, True, False,
    )  # fmt: skip


def test_misconceptions_have_more_loss_and_less_entropy_than_the_median_row() -> None:
    means = [(3.0, 1.0), (3.0, 5.0), (1.0, 1.0), (1.0, 5.0), (2.0, 3.0), (3.0, 3.0), (2.0, 1.0)]
    spread = np.array([-1.0, 1.0])
    rows = [Predictions(loss + spread, entropy + spread) for loss, entropy in means]
    assert misconceptions(rows) == [True, False, False, False, False, False, False]
    assert misconceptions(rows[:1]) == [False]


@pytest.mark.parametrize("packing", [True, False])
def test_predictions_are_those_of_each_row_alone(
    sparse_llama: Path, training: list[TrainingRow], packing: bool
) -> None:
    model = load(sparse_llama)
    settings = RecoverSettings.model_validate({**PLAIN, "packing": packing})
    for row, found in zip(training, predictions(model, training, settings, pad_id=2), strict=True):
        logs = response_logits(model, row).log_softmax(-1).double()
        np.testing.assert_allclose(found.loss, token_losses(model, row), rtol=1e-5)
        np.testing.assert_allclose(found.entropy, -(logs.exp() * logs).sum(-1).numpy(), rtol=1e-5)


def test_the_rows_of_a_pass_change_nothing_about_the_masks(
    sparse_llama: Path, training: list[TrainingRow]
) -> None:
    model = load(sparse_llama)
    found = [
        token_pruned(model, training, RecoverSettings.model_validate(ON | change), pad_id=2)
        for change in ({}, {"packing": False}, {"batch_size": 10, "micro_batch_size": 10}, {"max_tokens": 64})
    ]
    assert all(rows == found[0] for rows in found)
    pruned = [row for row in found[0] if row.kept is not None]
    assert 0 < len(pruned) < len(training)
    for row in pruned:
        assert row.kept == slowly(token_losses(model, row), 0.5, 0.3)
    assert [replace(row, kept=None) for row in found[0]] == training


def test_rows_without_a_response_are_left_to_those_who_complain(
    sparse_llama: Path, training: list[TrainingRow]
) -> None:
    model, settings = load(sparse_llama), RecoverSettings.model_validate(ON)
    empty = TrainingRow("r1-empty", Encoded((1, 2, 3), ()))
    among = token_pruned(model, [empty, *training], settings, pad_id=2)
    assert among == [empty, *token_pruned(model, training, settings, pad_id=2)]
    assert token_pruned(model, [empty], settings, pad_id=2) == [empty]


@pytest.mark.parametrize("packed", [True, False])
def test_tokens_left_out_are_in_neither_sum(
    sparse_llama: Path, training: list[TrainingRow], packed: bool
) -> None:
    model = load(sparse_llama)
    rows = [replace(row, weight=w) for row, w in zip(masked(training[:3]), (1.0, 0.5, 1.5), strict=True)]
    expected = plain = 0.0
    for row in rows:
        for kept, loss in zip(mask(row), token_losses(model, row), strict=True):
            if kept:
                plain += loss
                expected += row.weight * loss
    with torch.no_grad(), row_attention(model):
        if not packed:
            model.set_attn_implementation("sdpa")
        found = Objective(packed, 2).sums(model, rows).tolist()
    assert found == pytest.approx([expected, plain], rel=1e-5)
    assert expected != pytest.approx(plain, rel=1e-3)


def test_tokens_left_out_are_not_distilled(
    llama: Path, sparse_llama: Path, training: list[TrainingRow]
) -> None:
    student, original = load(sparse_llama), load(llama)
    rows = masked(training[:3])
    kl = 0.0
    for row in rows:
        log_r, log_o = (response_logits(model, row).log_softmax(-1) for model in (student, original))
        each = (log_o.exp() * (log_o - log_r)).sum(-1)
        kl += sum(float(e) for e, kept in zip(each, mask(row), strict=True) if kept)
    with torch.no_grad(), row_attention(student, original):
        found = Objective(True, 2, Teacher(original, 1.0, 1.0)).sums(student, rows)
    assert float(found[0]) == pytest.approx(kl, rel=1e-4)


def test_a_step_is_divided_by_the_tokens_that_count(
    training: list[TrainingRow], settings: RecoverSettings
) -> None:
    rows = masked(training)
    counts = [sum(mask(row)) for row in rows]
    expected = [sum(counts[begin : begin + 4]) for begin in (0, 4, 8)]
    assert [portion.tokens for portion in portions(rows, settings, packed=True)] == expected
    two = portions(rows, settings, packed=True, processes=2)
    assert [portion.tokens for portion in two] == [n for n in expected for _ in range(2)]


def trained(path: Path, rows: Sequence[TrainingRow], settings: RecoverSettings, folder: Path) -> bytes:
    adapted, _ = fine_tune(load(path), rows, settings, seed=17, pad_id=2, checkpoints=folder / "checkpoints")
    save_adapter(adapted, folder)
    return (folder / "adapter_model.safetensors").read_bytes()


def test_the_reported_loss_is_the_mean_over_the_tokens_that_count(
    sparse_llama: Path, training: list[TrainingRow], tmp_path: Path
) -> None:
    settings = RecoverSettings(batch_size=4, micro_batch_size=2, epochs=1, dropout=0.0)
    model, rows = load(sparse_llama), masked(training[:4])
    losses = [
        loss for row in rows for kept, loss in zip(mask(row), token_losses(model, row), strict=True) if kept
    ]
    _, facts = fine_tune(model, rows, settings, seed=17, pad_id=2, checkpoints=tmp_path)
    assert facts.loss_first == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_masks_that_leave_nothing_out_train_to_the_same_bytes(
    sparse_llama: Path, training: list[TrainingRow], settings: RecoverSettings, tmp_path: Path
) -> None:
    whole = [replace(row, kept=(True,) * len(row.encoded.response_ids)) for row in training]
    expected = trained(sparse_llama, training, settings, tmp_path / "none")
    assert trained(sparse_llama, whole, settings, tmp_path / "whole") == expected
    assert trained(sparse_llama, masked(training), settings, tmp_path / "masked") != expected


def test_without_masks_the_sums_are_the_bits_of_cross_entropy(
    sparse_llama: Path, training: list[TrainingRow]
) -> None:
    model, encoded = load(sparse_llama), [row.encoded for row in training[:4]]
    with torch.no_grad(), row_attention(model):
        found = Objective(True, 2).sums(model, training[:4])
        logits = model.get_output_embeddings()(predicting_states(model, encoded, packed=True, pad_id=2))
    labels = torch.tensor([t for row in encoded for t in row.response_ids])
    each = cross_entropy(logits.float(), labels, reduction="none").sum()
    assert torch.equal(found, torch.stack([each, each]))


def test_the_processes_that_train_together_get_the_masks(training: list[TrainingRow]) -> None:
    for row in [*masked(training), replace(training[0], weight=0.25)]:
        assert read_back(json.loads(json.dumps(written(row)))) == row


@pytest.mark.parametrize(("stage", "output"), [("recover", "recovered"), ("control", "control")])
def test_the_stage_says_what_it_left_out_and_the_model_is_another(
    project: Make, capsys: pytest.CaptureFixture[str], stage: str, output: str
) -> None:
    root = project(rows=10, recover=ON)
    facts = run_stage(stage, root)["facts"]
    said = capsys.readouterr().err
    changed = file_digests(root / f"data/models/{output}")["model.safetensors"]
    provenance = json.loads((root / f"data/models/{output}/provenance.json").read_text())
    dropped = facts["token_pruning"]
    assert 0 < dropped["rows"] < 10
    assert 0 < dropped["tokens"] < facts["response_tokens"]
    assert provenance["facts"]["token_pruning"] == dropped
    assert (
        f"{output}: {dropped['rows']} of 10 rows are confident errors; {dropped['tokens']} of "
        f"{facts['response_tokens']} response tokens did not count"
    ) in said

    params = yaml.safe_load((root / "params.yaml").read_text()) | {"recover": PLAIN}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    assert "token_pruning" not in run_stage(stage, root)["facts"]
    assert "did not count" not in capsys.readouterr().err
    assert file_digests(root / f"data/models/{output}")["model.safetensors"] != changed


def test_off_reads_nothing_and_rows_held_out_are_not_looked_at(
    project: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    keys: list[Any] = []
    original = token_pruning.token_pruned

    def watched(model: Any, rows: Sequence[TrainingRow], *given: Any, **named: Any) -> list[TrainingRow]:
        seen.extend(row.row_id for row in rows)
        return original(model, rows, *given, **named)

    def keyed(content: Any) -> str:
        keys.append(content)
        return fingerprint(content)

    monkeypatch.setattr(token_pruning, "token_pruned", watched)
    monkeypatch.setattr(job, "fingerprint", keyed)
    root = project(rows=10, recover=PLAIN)
    run_stage("recover", root)
    assert seen == []
    assert {len(row) for row in keys[0]["rows"]} == {3}
    stopping = {"early_stopping": {"share": 0.2, "patience": 2, "steps": 1}}
    params = yaml.safe_load((root / "params.yaml").read_text()) | {"recover": ON | stopping}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    run_stage("recover", root)
    provenance = json.loads((root / "data/models/recovered/provenance.json").read_text())
    assert seen == provenance["row_ids"]
    assert len(provenance["held_out"]) == 2
    assert {len(row) for row in keys[1]["rows"]} == {3, 4}
    assert {len(row) for row in keys[1]["held_out"]} == {2}


def test_the_python_interface_prunes_tokens_too(
    sparse_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    how = {"model": {"precision": "float32"}, "runtime": {"threads": 1}, "recover": {**ON, "epochs": 1}}
    found = paser.recover(sparse_llama, tiny.rows(10, seed=3), "new", settings=how)
    assert found.provenance["facts"]["token_pruning"]["tokens"] > 0
