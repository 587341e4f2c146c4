"""The damage profile: ranked by divergence, with the same resamples for every scheme."""

from __future__ import annotations

import numpy as np
import pytest

from paser.evaluation.damage import COLUMNS, OVERALL, damage_profile, long_rows
from paser.evaluation.gap import Measured
from paser.report.figures import damage_by_scheme


def measured(name: str, rows: int, jsd: dict[str, float], increase: dict[str, float]) -> Measured:
    rng = np.random.default_rng(len(name))
    noise = rng.normal(0, 0.01, rows)
    noise -= noise.mean()
    loss = {"original": np.full(rows, 2.0)} | {m: 2.0 + v + noise for m, v in increase.items()}
    return Measured(name, loss, {m: v + noise for m, v in jsd.items()})


@pytest.fixture
def capabilities() -> list[Measured]:
    return [
        measured("code", 40, {"a": 0.1, "b": 0.3}, {"a": 0.5, "b": 0.9}),
        measured("logic", 30, {"a": 0.2, "b": 0.2}, {"a": -0.1, "b": 0.4}),
        measured("chat", 20, {"a": 0.05, "b": 0.1}, {"a": 0.1, "b": 0.2}),
    ]


def test_capabilities_are_ranked_in_each_scheme_and_over_all(capabilities: list[Measured]) -> None:
    profile = damage_profile(capabilities, ["a", "b"], 200, seed=1)
    assert [entry["name"] for entry in profile["capabilities"]] == ["code", "logic", "chat"]
    ranks = {entry["name"]: entry["schemes"]["a"]["rank"] for entry in profile["capabilities"]}
    assert ranks == {"logic": 1, "code": 2, "chat": 3}
    code = profile["capabilities"][0]["schemes"]["b"]
    assert code["jsd"]["value"] == pytest.approx(0.3)
    assert code["loss_increase"]["value"] == pytest.approx(0.9)
    assert code["jsd"]["low"] < 0.3 < code["jsd"]["high"]
    assert profile["overall"]["a"]["jsd"]["value"] == pytest.approx((0.1 + 0.2 + 0.05) / 3)
    logic = profile["capabilities"][1]["schemes"]["a"]["loss_increase"]
    assert logic["high"] < 0


def test_a_scheme_beside_another_has_the_numbers_it_has_alone(capabilities: list[Measured]) -> None:
    both = damage_profile(capabilities, ["a", "b"], 200, seed=1)
    alone = damage_profile(capabilities, ["a"], 200, seed=1)
    found = {entry["name"]: entry["schemes"]["a"] for entry in both["capabilities"]}
    assert found == {entry["name"]: entry["schemes"]["a"] for entry in alone["capabilities"]}
    assert both["overall"]["a"] == alone["overall"]["a"]


def test_long_rows_go_from_the_most_damaged_to_the_mean(capabilities: list[Measured]) -> None:
    rows = long_rows(damage_profile(capabilities, ["a", "b"], 200, seed=1))
    assert [row["capability"] for row in rows[:4]] == ["logic", "code", "chat", OVERALL]
    assert all(tuple(row) == COLUMNS for row in rows)
    assert rows[3]["rows"] == 90


def test_the_figure_is_the_same_bytes_and_names_every_scheme(capabilities: list[Measured]) -> None:
    profile = damage_profile(capabilities, ["a", "b"], 200, seed=1)
    svg, png = damage_by_scheme(profile)
    assert (svg, png) == damage_by_scheme(profile)
    assert png.startswith(b"\x89PNG")
    for text in ("code", "logic", "chat", "JSD to the original"):
        assert f">{text}" in svg
    assert "var(" not in svg
