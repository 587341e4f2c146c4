"""The budget adds up exactly, under the caps, whatever the numbering."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paser.errors import SettingsError
from paser.method.budget import POLICIES, allocate, distance_from_uniform, policy_weights

Case = tuple[list[float], list[int], int, list[int]]

weights_of = st.one_of(st.just(0.0), st.floats(0, 10), st.floats(0, 1e300), st.floats(0, 1e-300))
problem = st.integers(1, 9).flatmap(
    lambda k: st.tuples(
        st.lists(weights_of, min_size=k, max_size=k),
        st.lists(st.integers(0, 50), min_size=k, max_size=k),
        st.integers(0, 300),
        st.lists(st.integers(0, 9), min_size=k, max_size=k),
    )
)


def named(count: int) -> list[str]:
    return [f"c{k}" for k in range(count)]


@given(problem)
def test_spends_exactly_what_caps_allow(case: Case) -> None:
    weights, caps, total, floors = case
    amounts = allocate(total, weights, caps, named(len(caps)), floors)
    assert sum(amounts) == min(total, sum(caps))
    assert all(0 <= amount <= cap for amount, cap in zip(amounts, caps, strict=True))
    least = [min(floor, cap) for floor, cap in zip(floors, caps, strict=True)]
    if sum(least) <= total:
        assert all(amount >= low for amount, low in zip(amounts, least, strict=True))
    else:
        assert all(amount <= low for amount, low in zip(amounts, least, strict=True))


@given(problem, st.randoms(use_true_random=False))
def test_numbering_does_not_matter(case: Case, rng: object) -> None:
    weights, caps, total, floors = case
    names = named(len(caps))
    plain = dict(zip(names, allocate(total, weights, caps, names, floors), strict=True))
    order = list(range(len(caps)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    weights, caps, floors = ([values[i] for i in order] for values in (weights, caps, floors))
    shuffled = [names[i] for i in order]
    assert dict(zip(shuffled, allocate(total, weights, caps, shuffled, floors), strict=True)) == plain


@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.integers(0, 50), st.integers(0, 9)), min_size=1, max_size=8),
    st.integers(0, 300),
)
def test_amounts_are_the_bounded_shares_to_less_than_one(
    clusters: list[tuple[float, int, int]], total: int
) -> None:
    """Against a bisection for the level at which the bounded shares add up to the budget."""
    weights, caps, floors = (np.array(column) for column in zip(*clusters, strict=True))
    floors = np.minimum(floors, caps)
    total = int(min(max(total, floors.sum()), caps.sum()))
    below, above = 0.0, 1e5
    for _ in range(200):
        level = (below + above) / 2
        short = np.clip(level * weights, floors, caps).sum() < total
        below, above = (level, above) if short else (below, level)
    shares = np.clip(above * weights, floors, caps)
    amounts = allocate(total, weights.tolist(), caps.tolist(), named(len(caps)), floors.tolist())
    assert np.abs(np.array(amounts) - shares).max() < 1 + 1e-6


@given(problem)
def test_more_weight_and_more_room_never_means_less(case: Case) -> None:
    weights, caps, total, floors = case
    amounts = allocate(total, weights, caps, named(len(caps)), floors)
    if sum(map(min, floors, caps)) > total:
        return
    for i in range(len(caps)):
        for j in range(len(caps)):
            if weights[i] > weights[j] and caps[i] >= caps[j] and floors[i] >= floors[j]:
                assert amounts[i] >= amounts[j]


@given(problem)
def test_a_floor_that_does_not_bind_changes_nothing(case: Case) -> None:
    weights, caps, total, _ = case
    plain = allocate(total, weights, caps, named(len(caps)))
    lower = [max(amount - 1, 0) for amount in plain]
    assert allocate(total, weights, caps, named(len(caps)), lower) == plain


def test_largest_remainders_by_hand() -> None:
    # shares of 10: 4.5, 3.3, 2.2 -> 4, 3, 2 and the one left to the largest remainder
    assert allocate(10, [0.45, 0.33, 0.22], [99, 99, 99], ["a", "b", "c"]) == [5, 3, 2]
    # the first has only 2: the other 8 are divided 3 : 2 -> 4.8, 3.2
    assert allocate(10, [0.5, 0.3, 0.2], [2, 10, 10], ["a", "b", "c"]) == [2, 5, 3]
    # the last one's share of 2 is below its floor of 4: the other 6 are divided 5 : 3 -> 3.75, 2.25
    assert allocate(10, [0.5, 0.3, 0.2], [99, 99, 99], ["a", "b", "c"], [1, 1, 4]) == [4, 2, 4]
    # floors that ask for more than there is are served evenly
    assert allocate(4, [0.5, 0.3, 0.2], [99, 99, 99], ["a", "b", "c"], [9, 9, 1]) == [2, 1, 1]


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
        ("damage_rate", [0.64, 0.36, 0.0]),
        ("delta_loss", [0.0, 0.25, 0.75]),
        ("uniform", [1 / 3, 1 / 3, 1 / 3]),
        ("proportional", [0.2, 0.6, 0.2]),
    ],
)
def test_policies_by_hand(policy: str, expected: list[float]) -> None:
    cds, sizes, loss = np.array([0.2, 0.3, 0.5]), np.array([10, 30, 10]), np.array([-0.3, 0.5, 1.5])
    rates = np.array([0.04, 0.03, -0.01])
    np.testing.assert_allclose(policy_weights(policy, cds, sizes, loss, rates, 2.0), expected)


def test_a_cluster_that_lost_nothing_counts_as_undamaged() -> None:
    cds, sizes = np.array([-0.4, 0.1, 0.3]), np.array([10, 10, 10])
    for policy in ("damage", "damage_size"):
        np.testing.assert_allclose(policy_weights(policy, cds, sizes, cds, cds, 2.0), [0, 0.25, 0.75])
    np.testing.assert_allclose(policy_weights("damage_power", cds, sizes, cds, cds, 0.5)[0], 0)


damages = st.floats(-2, 2)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@given(
    st.lists(st.tuples(damages, st.integers(0, 99), damages, damages), min_size=1, max_size=8),
    st.floats(0, 9),
)
def test_every_policy_gives_shares(
    policy: str, clusters: list[tuple[float, int, float, float]], gamma: float
) -> None:
    cds, sizes, loss, rates = (np.array(column, dtype=float) for column in zip(*clusters, strict=True))
    weights = policy_weights(policy, cds, sizes, loss, rates, gamma)
    assert (weights >= 0).all()
    assert (weights[sizes == 0] == 0).all()
    assert weights.sum() == pytest.approx(1 if sizes.any() else 0)
    same = (sizes[:, None] == sizes) & (loss[:, None] == loss) & (rates[:, None] == rates)
    unequal = (cds[:, None] > cds) & same
    assert (weights[:, None] - weights >= -1e-12)[unequal].all()


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_empty_clusters_get_nothing_and_no_damage_means_uniform(policy: str) -> None:
    zero = np.zeros(3)
    weights = policy_weights(policy, zero, np.array([4, 0, 4]), zero, zero, 2.0)
    assert weights[1] == 0
    np.testing.assert_allclose(weights.sum(), 1)


@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e300])
@pytest.mark.parametrize("gamma", [1.0, 2.0, 50.0, 100.0])
def test_powers_that_floats_do_not_hold_are_no_uniform_division(scale: float, gamma: float) -> None:
    cds, sizes = np.array([1e-5, 2e-5, 1.9e-5, np.nan]) * scale, np.array([5, 5, 5, 0])
    weights = policy_weights("damage_power", cds, sizes, cds, cds, gamma)
    ratios = np.array([0.5, 1.0, 0.95, 0.0]) ** gamma
    np.testing.assert_allclose(weights, ratios / ratios.sum(), rtol=1e-12)


def test_powers_that_floats_hold_are_not_touched() -> None:
    cds, sizes = np.array([0.0123, 0.3, 0.047]), np.array([3, 4, 5])
    for gamma in (0.5, 1.0, 2.0, 3.7):
        weights = policy_weights("damage_power", cds, sizes, cds, cds, gamma)
        assert weights.tolist() == (cds**gamma / (cds**gamma).sum()).tolist()


def test_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="damage_size"):
        policy_weights("damge", np.ones(1), np.ones(1), np.ones(1), np.ones(1), 1.0)


def test_distance_from_uniform() -> None:
    assert distance_from_uniform([5, 5]) == 0
    assert distance_from_uniform([10, 0]) == pytest.approx(0.5)
    assert distance_from_uniform([]) == 0
