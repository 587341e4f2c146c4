"""The budget adds up exactly, under the caps, whatever the numbering."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paser.errors import SettingsError
from paser.method.budget import POLICIES, allocate, distance_from_uniform, policy_weights

problem = st.integers(1, 9).flatmap(
    lambda k: st.tuples(
        st.lists(st.floats(0, 10), min_size=k, max_size=k),
        st.lists(st.integers(0, 50), min_size=k, max_size=k),
        st.integers(0, 300),
        st.integers(0, 4),
    )
)


@given(problem)
def test_spends_exactly_what_caps_allow(case: tuple[list[float], list[int], int, int]) -> None:
    weights, caps, total, floor = case
    given_ = allocate(total, weights, caps, [f"c{k}" for k in range(len(caps))], [floor] * len(caps))
    assert sum(given_) == min(total, sum(caps))
    assert all(0 <= g <= cap for g, cap in zip(given_, caps, strict=True))
    if floor * len(caps) <= total:
        assert all(g >= min(floor, cap) for g, cap in zip(given_, caps, strict=True))


@given(problem, st.randoms(use_true_random=False))
def test_numbering_does_not_matter(case: tuple[list[float], list[int], int, int], rng: object) -> None:
    weights, caps, total, floor = case
    names = [f"c{k}" for k in range(len(caps))]
    plain = dict(zip(names, allocate(total, weights, caps, names, [floor] * len(caps)), strict=True))
    order = list(range(len(caps)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    mixed = allocate(
        total,
        [weights[i] for i in order],
        [caps[i] for i in order],
        [names[i] for i in order],
        [floor] * len(caps),
    )
    assert {names[i]: amount for i, amount in zip(order, mixed, strict=True)} == plain


def test_largest_remainders_by_hand() -> None:
    # shares of 10: 4.5, 3.3, 2.2 -> 4, 3, 2 and the one left to the largest remainder
    assert allocate(10, [0.45, 0.33, 0.22], [99, 99, 99], ["a", "b", "c"]) == [5, 3, 2]
    # the first has only 2: the other 8 are divided 3 : 2 -> 4.8, 3.2
    assert allocate(10, [0.5, 0.3, 0.2], [2, 10, 10], ["a", "b", "c"]) == [2, 5, 3]


def test_weight_zero_gets_only_what_others_cannot_take() -> None:
    assert allocate(6, [1.0, 0.0], [10, 10], ["a", "b"]) == [6, 0]
    assert allocate(16, [1.0, 0.0], [10, 10], ["a", "b"]) == [10, 6]


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(SettingsError):
        allocate(-1, [1.0], [1], ["a"])
    with pytest.raises(SettingsError):
        allocate(1, [float("nan")], [1], ["a"])


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("damage", [0.2, 0.3, 0.5]),
        ("damage_size", [0.02 / 0.16, 0.09 / 0.16, 0.05 / 0.16]),
        ("damage_power", [0.04 / 0.38, 0.09 / 0.38, 0.25 / 0.38]),
        ("delta_loss", [0.0, 0.25, 0.75]),
        ("uniform", [1 / 3, 1 / 3, 1 / 3]),
        ("proportional", [0.2, 0.6, 0.2]),
    ],
)
def test_policies_by_hand(policy: str, expected: list[float]) -> None:
    cds, sizes, loss = np.array([0.2, 0.3, 0.5]), np.array([10, 30, 10]), np.array([-0.3, 0.5, 1.5])
    np.testing.assert_allclose(policy_weights(policy, cds, sizes, loss, 2.0), expected)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_empty_clusters_get_nothing_and_no_damage_means_uniform(policy: str) -> None:
    zero = np.zeros(3)
    weights = policy_weights(policy, zero, np.array([4, 0, 4]), zero, 2.0)
    assert weights[1] == 0
    np.testing.assert_allclose(weights.sum(), 1)


def test_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="damage_size"):
        policy_weights("damge", np.ones(1), np.ones(1), np.ones(1), 1.0)


def test_distance_from_uniform() -> None:
    assert distance_from_uniform([5, 5]) == 0
    assert distance_from_uniform([10, 0]) == pytest.approx(0.5)
    assert distance_from_uniform([]) == 0
