"""JSD against a float64 reference, its bounds and limits."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon

from paser.method.divergence import LN2, token_jsd

logits = arrays(np.float32, (3, 7), elements=st.floats(-60, 60, width=32))


@given(logits, logits, st.floats(0.2, 5.0))
@settings(max_examples=60, deadline=None)
def test_agrees_with_scipy_in_float64(a: np.ndarray, b: np.ndarray, tau: float) -> None:
    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp((x.astype(np.float64) - x.max(-1, keepdims=True)) / tau)
        return e / e.sum(-1, keepdims=True)

    reference = [jensenshannon(p, q) ** 2 for p, q in zip(softmax(a), softmax(b), strict=True)]
    found = token_jsd(torch.from_numpy(a), torch.from_numpy(b), tau).numpy()
    np.testing.assert_allclose(found, np.nan_to_num(reference), atol=2e-6)


@given(logits, logits)
@settings(max_examples=40, deadline=None)
def test_symmetric_and_bounded(a: np.ndarray, b: np.ndarray) -> None:
    one, other = torch.from_numpy(a), torch.from_numpy(b)
    there, back = token_jsd(one, other), token_jsd(other, one)
    torch.testing.assert_close(there, back, atol=2e-6, rtol=0)
    assert (there >= 0).all()
    assert (there <= LN2).all()


def test_equal_is_zero_and_disjoint_is_ln_2() -> None:
    equal = torch.tensor([[5.0, -3.0, 0.5]])
    assert token_jsd(equal, equal).item() < 1e-6
    far, other = torch.tensor([[1e4, 0.0, 0.0]]), torch.tensor([[0.0, 1e4, 0.0]])
    assert math.isclose(token_jsd(far, other).item(), LN2, rel_tol=1e-6)


def test_high_temperature_hides_the_difference() -> None:
    a, b = torch.tensor([[4.0, 0.0, -2.0]]), torch.tensor([[-1.0, 3.0, 0.0]])
    assert token_jsd(a, b, 100.0).item() < 1e-3 < token_jsd(a, b, 1.0).item()


def test_half_precision_logits_do_not_underflow() -> None:
    a = torch.linspace(-30, 30, 5000)[None]
    exact, half = token_jsd(a, a.flip(-1)), token_jsd(a.bfloat16(), a.flip(-1).bfloat16())
    assert torch.isfinite(half).all()
    torch.testing.assert_close(exact, half, atol=0.02, rtol=0)


def test_non_finite_logits_are_not_hidden() -> None:
    a = torch.tensor([[float("nan"), 0.0], [float("inf"), 0.0], [1.0, 0.0]])
    found = token_jsd(a, torch.zeros_like(a))
    assert torch.isfinite(found).tolist() == [False, False, True]
