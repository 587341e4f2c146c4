"""Recoverability: the formula against autograd, and what it says of rows."""

from __future__ import annotations

import pytest
import torch

from paser.method.divergence import Distribution
from paser.method.recoverability import recoverability


def logits(seed: int, *shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def found(original: torch.Tensor, pruned: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return recoverability(Distribution.of(original), Distribution.of(pruned), target)


def test_it_is_the_inner_product_of_both_gradients() -> None:
    """Gradients of the training loss and of KL(P_o || P_p) in the logits, by autograd."""
    original, pruned = logits(1, 5, 11).double(), logits(2, 5, 11).double()
    target = torch.tensor([0, 3, 10, 7, 7])
    expected = []
    for i in range(5):
        z = pruned[i].clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(z[None], target[i : i + 1])
        (training,) = torch.autograd.grad(loss, z)
        z = pruned[i].clone().requires_grad_()
        p = original[i].softmax(-1)
        (healing,) = torch.autograd.grad((p * (p.log() - z.log_softmax(-1))).sum(), z)
        expected.append(float(training @ healing))
    assert found(original, pruned, target).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_small_step_of_training_lowers_the_divergence_by_it() -> None:
    original, pruned = logits(3, 7).double(), logits(4, 7).double()
    target, rate = torch.tensor(2), 1e-4
    p = original.softmax(-1)

    def divergence(z: torch.Tensor) -> float:
        return float((p * (p.log() - z.log_softmax(-1))).sum())

    step = torch.nn.functional.one_hot(target, 7).double() - pruned.softmax(-1)
    gained = divergence(pruned) - divergence(pruned + rate * step)
    assert gained / rate == pytest.approx(float(found(original, pruned, target)), abs=1e-3)


def test_over_responses_of_the_original_model_it_is_a_measure_of_damage() -> None:
    original, pruned = logits(5, 9), logits(6, 9)
    p, q = original.softmax(-1), pruned.softmax(-1)
    mean = sum(float(p[y] * found(original, pruned, torch.tensor(y))) for y in range(9))
    assert mean == pytest.approx(float(((p - q) ** 2).sum()), abs=1e-6)


def test_its_sign_says_where_training_leads() -> None:
    expected, forgotten = torch.tensor([8.0, 0.0, 0.0]), torch.tensor([0.0, 8.0, 0.0])
    assert found(expected, forgotten, torch.tensor(0)) > 1.9
    assert found(expected, forgotten, torch.tensor(1)) == pytest.approx(0, abs=0.01)
    assert found(expected, expected, torch.tensor(2)) == pytest.approx(0, abs=1e-6)
    doubtful = torch.tensor([4.0, 4.0, 0.0])
    assert found(expected, doubtful, torch.tensor(1)) < -0.4


def test_half_precision_and_infinite_logits() -> None:
    original, pruned = logits(7, 6, 300).bfloat16(), logits(8, 6, 300).bfloat16()
    target = torch.arange(6)
    assert found(original, pruned, target).tolist() == pytest.approx(
        found(original.double(), pruned.double(), target).tolist(), abs=1e-5
    )
    pruned[2, 5] = float("inf")
    assert torch.isnan(found(original, pruned, target)).tolist() == [i == 2 for i in range(6)]
