"""The divergences against float64, their symmetries, bounds and limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, logsumexp

from paser.method.divergence import LN2, Distribution, token_divergences

MASKED = -1e30
temperatures = st.floats(0.2, 5.0)


def logits(largest: float) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float32, (3, 9), elements=st.floats(-largest, largest, width=32))


@st.composite
def near(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two models that hardly differ, as a lightly pruned one does."""
    first = draw(logits(20.0))
    return first, first + draw(logits(2.0**-6))


@st.composite
def masked(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores of 1e4, and tokens that one model or both forbid."""
    first, second = draw(logits(1e4)), draw(logits(1e4))
    where, elsewhere = draw(arrays(bool, (3, 9))), draw(arrays(bool, (3, 9)))
    where[:, 0] = elsewhere[:, 1] = False
    return np.where(where, np.float32(MASKED), first), np.where(elsewhere, np.float32(MASKED), second)


pairs = st.one_of(st.tuples(logits(60.0), logits(60.0)), near(), masked())


def reference(a: np.ndarray, b: np.ndarray, tau: float) -> dict[str, np.ndarray]:
    """Each divergence in float64, straight from its definition."""
    log_p, log_q = (log_softmax(x.astype(np.float64) / tau, axis=-1) for x in (a, b))
    log_m = logsumexp([log_p, log_q], axis=0) - math.log(2)
    p, q = np.exp(log_p), np.exp(log_q)
    return {
        "jsd": ((p * (log_p - log_m)).sum(-1) + (q * (log_q - log_m)).sum(-1)) / 2,
        "kl": (p * (log_p - log_q)).sum(-1),
        "reverse_kl": (q * (log_q - log_p)).sum(-1),
    }


def found(a: np.ndarray, b: np.ndarray, tau: float = 1.0) -> dict[str, np.ndarray]:
    values = token_divergences(torch.from_numpy(a), torch.from_numpy(b), tau)
    return {name: value.numpy() for name, value in values._asdict().items()}


@given(pairs, temperatures)
@settings(max_examples=200, deadline=None)
def test_each_agrees_with_float64(pair: tuple[np.ndarray, np.ndarray], tau: float) -> None:
    expected, got = reference(*pair, tau), found(*pair, tau)
    np.testing.assert_allclose(got["jsd"], expected["jsd"], rtol=0, atol=1e-6)
    for name in ("kl", "reverse_kl"):
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-6, atol=1e-6, err_msg=name)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 1.0, 5.0]), st.sampled_from([1.0, 3.0, 30.0]))
@settings(max_examples=15, deadline=None)
def test_each_agrees_with_float64_on_a_whole_vocabulary(seed: int, apart: float, scale: float) -> None:
    draw = np.random.default_rng(seed)
    a = (scale * draw.standard_normal((2, 49152))).astype(np.float32)
    b = (a + apart * draw.standard_normal(a.shape)).astype(np.float32)
    expected, got = reference(a, b, 1.0), found(a, b)
    np.testing.assert_allclose(got["jsd"], expected["jsd"], rtol=0, atol=1e-6)
    for name in ("kl", "reverse_kl"):
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-6, atol=1e-6, err_msg=name)


@given(st.tuples(logits(60.0), logits(60.0)))
@settings(max_examples=40, deadline=None)
def test_agrees_with_scipy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = (np.exp(log_softmax(x.astype(np.float64), axis=-1)) for x in pair)
    expected = np.nan_to_num(jensenshannon(p, q, axis=-1) ** 2)
    np.testing.assert_allclose(found(*pair)["jsd"], expected, rtol=0, atol=1e-6)


@given(pairs)
@settings(max_examples=80, deadline=None)
def test_exchanging_the_models_keeps_jsd_and_exchanges_the_two_kl(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    there, back = found(*pair), found(*pair[::-1])
    np.testing.assert_allclose(there["jsd"], back["jsd"], rtol=0, atol=2e-7)
    np.testing.assert_allclose(there["kl"], back["reverse_kl"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(there["reverse_kl"], back["kl"], rtol=1e-6, atol=1e-6)


@given(pairs, temperatures)
@settings(max_examples=80, deadline=None)
def test_the_bounds_hold(pair: tuple[np.ndarray, np.ndarray], tau: float) -> None:
    got = found(*pair, tau)
    assert (got["jsd"] >= 0).all()
    assert (got["jsd"] <= LN2).all()
    for name in ("kl", "reverse_kl"):
        assert (got[name] >= 0).all()
        assert np.isfinite(got[name]).all()


@given(st.one_of(logits(60.0), logits(1e4)), temperatures)
@settings(max_examples=60, deadline=None)
def test_equal_logits_have_no_divergence_at_all(a: np.ndarray, tau: float) -> None:
    for values in found(a, a.copy(), tau).values():
        np.testing.assert_array_equal(values, 0.0)


@given(logits(8.0), logits(8.0))
@settings(max_examples=40, deadline=None)
def test_a_large_temperature_hides_every_difference(a: np.ndarray, b: np.ndarray) -> None:
    for values in found(a, b, 1e5).values():
        assert values.max() < 1e-6


@given(st.integers(0, 8), st.integers(0, 8), logits(8.0), logits(8.0))
@settings(max_examples=60, deadline=None)
def test_a_small_temperature_leaves_only_the_most_likely_token(
    first: int, second: int, a: np.ndarray, b: np.ndarray
) -> None:
    a[:, first], b[:, second] = 9.0, 9.0
    expected = 0.0 if first == second else LN2
    np.testing.assert_allclose(found(a, b, 0.01)["jsd"], expected, atol=1e-6)


def test_kl_is_finite_where_the_other_probability_underflows() -> None:
    a, b = np.float32([[0.0, 0.0]]), np.float32([[0.0, -5000.0]])
    got = found(a, b)
    assert got["kl"].item() == pytest.approx(2500 - LN2, rel=1e-6)
    assert got["reverse_kl"].item() == pytest.approx(LN2, rel=1e-6)
    forbidden = found(np.float32([[0.0, 0.0]]), np.float32([[0.0, MASKED]]))
    assert forbidden["kl"].item() == pytest.approx(5e29)
    assert forbidden["reverse_kl"].item() == pytest.approx(LN2, rel=1e-6)


def test_half_precision_logits_do_not_underflow() -> None:
    a = torch.linspace(-30, 30, 5000)[None]
    exact = token_divergences(a, a.flip(-1))
    half = token_divergences(a.bfloat16(), a.flip(-1).bfloat16())
    for one, other in zip(exact, half, strict=True):
        torch.testing.assert_close(one, other, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_logits_are_not_hidden(bad: float) -> None:
    a, b = torch.tensor([[bad, 0.0, 1.0], [2.0, 0.0, 1.0]]), torch.zeros(2, 3)
    for values in (*token_divergences(a, b), *token_divergences(b, a)):
        assert torch.isnan(values).tolist() == [True, False]


@given(st.one_of(logits(60.0), logits(1e4)), st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_the_loss_is_that_of_float64(a: np.ndarray, target: int) -> None:
    loss = Distribution.of(torch.from_numpy(a)).loss(torch.full((3,), target)).numpy()
    expected = -log_softmax(a.astype(np.float64), axis=-1)[:, target]
    np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=1e-6)


def test_the_logits_are_left_as_they_are() -> None:
    a, b = torch.randn(2, 50), torch.randn(2, 50)
    before = a.clone(), b.clone()
    token_divergences(a, b, 2.0)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])
