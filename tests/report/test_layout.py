from __future__ import annotations

import numpy as np

from paser.report.layout import lay_out, sample_rows, typical_rows, within_reach


def test_few_rows_are_laid_out_by_principal_components() -> None:
    points = np.zeros((6, 5))
    points[:, 3] = np.arange(6)
    plane = lay_out(points, 1)
    assert plane.shape == (6, 2)
    np.testing.assert_allclose(np.abs(np.diff(plane[:, 0])), 1.0, atol=1e-5)
    np.testing.assert_allclose(plane[:, 1], 0.0, atol=1e-5)


def test_no_and_one_row_have_a_place() -> None:
    assert lay_out(np.zeros((0, 4)), 1).shape == (0, 2)
    assert lay_out(np.ones((1, 4)), 1).tolist() == [[0.0, 0.0]]


def test_many_rows_keep_their_neighbours_and_the_seed_decides() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.eye(8)[:2], 20, axis=0) + 0.05 * rng.normal(size=(40, 8))
    plane = lay_out(groups, 3)
    inside = np.linalg.norm(plane[:20] - plane[:20].mean(axis=0), axis=1).mean()
    between = np.linalg.norm(plane[:20].mean(axis=0) - plane[20:].mean(axis=0))
    assert between > 2 * inside
    np.testing.assert_array_equal(plane, lay_out(groups, 3))


def test_a_sample_of_rows_is_sorted_seeded_and_without_repeats() -> None:
    drawn = sample_rows(100, 30, 5)
    assert len(set(drawn.tolist())) == 30
    assert drawn.tolist() == sorted(drawn.tolist()) == sample_rows(100, 30, 5).tolist()
    assert sample_rows(20, 30, 5).tolist() == list(range(20))


def test_a_far_group_is_drawn_at_the_edge_and_moves_no_other() -> None:
    near = np.random.default_rng(0).uniform(size=(99, 2))
    plane = within_reach(np.vstack([near, [[-50.0, 50.0]]]))
    np.testing.assert_array_equal(plane[:99], near)
    assert -0.6 < plane[99, 0] < 0 < 1 < plane[99, 1] < 1.6


def test_the_rows_nearest_to_a_clusters_mean_are_its_typical_ones() -> None:
    points = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.5, 0.5], [0, 1]], dtype=np.float32)
    assert typical_rows(points, [0, 0, 1, 1, 1], 2) == {0: [0, 1], 1: [2, 4]}
    assert typical_rows(points, [0, 0, 1, 1, 1], 9)[0] == [0, 1]
