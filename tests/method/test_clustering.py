"""Clusters on points whose structure is known, and pools that hardly are any."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from paser.errors import PaserError
from paser.method import clustering, grouping
from paser.method.clustering import (
    Clustering,
    assign,
    cluster,
    cluster_phrases,
    modularity,
    refined,
    spectral_gap,
    symmetric_nmf,
)
from paser.method.grouping import Grouping, group
from paser.method.manifold import (
    LONGEST_TIME,
    Graph,
    Manifold,
    default_neighbours,
    diffusion_time,
    effective_dimensions,
    manifold,
    self_tuned_graph,
    spectrum,
)
from paser.settings import ClusterSettings


def blobs(
    sizes: list[int], seed: int = 0, width: int = 24, spread: float = 0.25
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((len(sizes), width))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    points = centres[labels] + spread * rng.standard_normal((len(labels), width))
    return points / np.linalg.norm(points, axis=1, keepdims=True), labels


def grouped(points: np.ndarray, new: np.ndarray | None = None, **options: object) -> Grouping:
    chosen = ClusterSettings.model_validate({"stability_runs": 0, **options})
    new = points[:0] if new is None else new
    return group(points, new, lambda rows: [f"word{i}" for i in rows], chosen, (8, 3), 17)


@pytest.mark.parametrize("name", ["diffusion", "pca", "none", "umap"])
@pytest.mark.parametrize("algorithm", ["nmf", "kmeans"])
def test_finds_known_groups_and_places_new_rows(name: str, algorithm: str) -> None:
    points, labels = blobs([60, 40, 30, 20, 50])
    kept = np.arange(len(points)) % 5 != 0
    found = grouped(points[kept], points[~kept], manifold=name, algorithm=algorithm, k=5)
    assert adjusted_rand_score(labels[kept], found.labels) > 0.95
    assert adjusted_rand_score(labels[~kept], found.new_labels) > 0.9
    sizes = np.bincount(found.labels)
    assert list(sizes) == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("rule", "name"), [("auto", "modularity"), ("gap", "gap"), ("stability", "stability")]
)
def test_k_by_each_rule_with_runner_up_gap_and_stability(rule: str, name: str) -> None:
    points, _ = blobs([60, 40, 30, 20, 50])
    found = grouped(points, k=rule, k_min=3, k_max=9, stability_runs=3).describe()
    assert found["k"] == 5
    assert found["choice"]["rule"] == name
    scores = {int(k): value for k, value in found["choice"]["scores"].items()}
    assert set(scores) <= set(range(3, 10))
    assert len(scores) > 2
    assert max(scores.values()) == scores[5]
    assert found["choice"]["runner_up"] != 5
    assert found["gap"]["k"] == 5
    assert found["gap"]["gap"] > found["gap"]["runner_up_gap"]
    assert found["stability"]["mean_ari"] > 0.9


def test_landmarks_are_clustered_and_the_other_rows_follow() -> None:
    points, labels = blobs([400, 300, 200, 100])
    whole = grouped(points, points[:50], k=4)
    found = grouped(points, points[:50], k=4, landmarks=250)
    assert whole.landmarks is None
    assert found.landmarks == 250
    assert adjusted_rand_score(labels, found.labels) > 0.98
    np.testing.assert_array_equal(found.new_labels, found.labels[:50])
    assert [entry["rows"] for entry in found.describe()["clusters"]] == [400, 300, 200, 100]


def test_a_memory_mapped_pool_gives_the_same_clusters(tmp_path: Path) -> None:
    points = blobs([80, 60, 40])[0].astype(np.float32)
    np.save(tmp_path / "e.npy", points)
    mapped = np.load(tmp_path / "e.npy", mmap_mode="r")
    np.testing.assert_array_equal(
        grouped(mapped, mapped[:5], landmarks=100).labels, grouped(points, points[:5], landmarks=100).labels
    )


@pytest.mark.slow  # compiling the search takes a minute or two
@pytest.mark.parametrize("landmarks", ["auto", 700])
def test_approximate_neighbours_give_the_clusters_of_exact_ones(landmarks: str | int) -> None:
    points, labels = blobs([600, 500, 300])
    exact = grouped(points, points[:20], k=3, search="exact", landmarks=landmarks)
    approximate = grouped(points, points[:20], k=3, search="approximate", landmarks=landmarks)
    again = grouped(points, points[:20], k=3, search="approximate", landmarks=landmarks)
    assert adjusted_rand_score(exact.labels, approximate.labels) > 0.98
    np.testing.assert_array_equal(approximate.labels, again.labels)
    assert adjusted_rand_score(labels, approximate.labels) > 0.98


def test_a_row_far_from_everything_joins_its_nearest_cluster() -> None:
    points = blobs([50, 60], spread=0.05)[0]
    found = grouped(points, points[:1] * 1000, k=2)
    assert found.new_labels.tolist() == [found.labels[0]]


def test_two_runs_agree_to_the_bit() -> None:
    points, _ = blobs([90, 70, 60, 50])
    one, other = grouped(points, points[:9]), grouped(points, points[:9])
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.new_labels, other.new_labels)
    assert one.describe() == other.describe()


def test_sparse_and_dense_eigenpairs_agree() -> None:
    points, _ = blobs([150, 100, 60])
    affinity = self_tuned_graph(points, 15).affinity
    values, vectors, regular, rho = spectrum(affinity, 6, 0.1, 3)
    scale = np.diag(1 / np.sqrt(regular))
    dense = scale @ (affinity.toarray() + rho / len(points)) @ scale
    np.testing.assert_allclose(values, np.linalg.eigvalsh(dense)[::-1][:6], atol=1e-8)
    np.testing.assert_allclose(dense @ vectors, vectors * values, atol=1e-6)
    assert values[0] == pytest.approx(1.0)


def test_affinity_formula_by_hand() -> None:
    points = np.array([[0.0], [1.0], [3.0], [3.5]])
    graph = self_tuned_graph(points, 2)
    # distance to the farthest of the two neighbours: 3, 2, 2, 2.5; median 2.25
    np.testing.assert_allclose(graph.bandwidth, [3, 2, 2, 2.5])
    assert graph.affinity[0, 1] == pytest.approx(np.exp(-1 / 6))
    assert (graph.affinity != graph.affinity.T).nnz == 0


def test_a_new_row_joins_the_cluster_to_which_its_neighbours_are_tied_most() -> None:
    """By hand on four points, the bandwidth of the new row and its three neighbours' included."""
    points = np.array([[0.0], [1.0], [4.0], [9.0]])
    graph = Graph(sparse.csr_matrix(np.zeros((4, 4))), np.array([2.0, 1.0, 1.0, 1.0]))
    space = Manifold(points, points, graph, np.asarray, np.ones(1))
    # from 2.4 with three neighbours: own s = 2.4; to 1.0, to 4.0 and to 0.0
    one, four, zero = np.exp(-(1.4**2) / 2.4), np.exp(-(1.6**2) / 2.4), np.exp(-(2.4**2) / 4.8)
    assert four < one < four + zero
    new = np.array([[2.4]])
    assert assign(Clustering(np.array([1, 0, 1, 1]), 2), space, new, 3).tolist() == [1]
    assert assign(Clustering(np.array([2, 0, 1, 1]), 3), space, new, 3).tolist() == [0]
    assert assign(Clustering(np.array([1, 0, 1, 1]), 2), space, new, 1).tolist() == [0]
    several = np.array([[2.4], [8.5], [0.9]])
    assert assign(Clustering(np.array([2, 0, 1, 1]), 3), space, several, 3).tolist() == [0, 1, 0]
    only = assign(Clustering(np.array([2, 0, 1, 1]), 3), space, several, 3, rows=np.array([2, 1]))
    assert only.tolist() == [0, 1]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_refining_raises_modularity_until_hardly_any_single_move_would(seed: int) -> None:
    draw = np.random.default_rng(seed)
    affinity = self_tuned_graph(draw.standard_normal((40, 3)), 6).affinity
    labels = draw.integers(0, 4, 40)
    found, value = refined(affinity, labels, seed)
    assert value == pytest.approx(modularity(affinity, found))
    assert value >= modularity(affinity, labels)
    assert refined(affinity, labels, seed)[0].tolist() == found.tolist()

    def gaining(at: np.ndarray) -> int:
        """Single moves that would still raise the modularity."""
        before, count = modularity(affinity, at), 0
        for row, other in itertools.product(range(40), range(int(labels.max()) + 1)):
            moved = at.copy()
            moved[row] = other
            count += modularity(affinity, moved) > before + 1e-9
        return count

    # The sweeps are limited and rows move together, so a few of the many may be left.
    assert gaining(labels) > 30
    assert gaining(found) <= gaining(labels) / 5


def test_refining_leaves_a_graph_without_links_alone() -> None:
    labels = np.array([0, 1, 1])
    found, value = refined(sparse.csr_matrix((3, 3)), labels, 0)
    assert (found.tolist(), value) == ([0, 1, 1], 0.0)


def test_of_nearly_equal_modularities_the_largest_k_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    points, _ = blobs([60, 60, 60])
    values = {2: 0.5, 3: 0.7, 4: 0.6970, 5: 0.6960, 6: 0.4}
    monkeypatch.setattr(grouping._Run, "_modularity", lambda self, k: (k, values[k]))
    run = grouping._Run(points, ClusterSettings(k_min=2, k_max=6, stability_runs=0), 0)
    choice = run.choose()
    assert (choice.k, choice.rule, choice.runner_up) == (4, "modularity", 3)


def test_the_time_leaves_as_many_dimensions_as_wanted() -> None:
    values = np.linspace(0.99, 0.6, 40)
    time = diffusion_time(values, 8.0)
    weights = values ** (2 * time)
    weights /= weights.sum()
    assert np.exp(-(weights * np.log(weights)).sum()) == pytest.approx(8.0, abs=0.01)
    assert effective_dimensions(values, 0.0) == pytest.approx(40)
    assert diffusion_time(values[:5], 8.0) == 1.0
    assert diffusion_time(np.ones(30), 8.0) == LONGEST_TIME


def test_modularity_agrees_with_networkx() -> None:
    points, labels = blobs([40, 30, 20], spread=0.6)
    affinity = self_tuned_graph(points, 8).affinity
    graph = networkx.from_scipy_sparse_array(affinity)
    groups = [set(np.flatnonzero(labels == k).tolist()) for k in range(3)]
    assert modularity(affinity, labels) == pytest.approx(networkx.community.modularity(graph, groups))


def test_of_several_starts_the_one_with_the_highest_modularity_is_kept() -> None:
    points = np.random.default_rng(0).standard_normal((150, 6))
    space = manifold(
        "diffusion", points, neighbours=8, dimensions=8, eigenvalues=9, time=None, regularisation=0.1, seed=0
    )
    graph = space.graph.affinity
    single = [modularity(graph, cluster("nmf", space, 6, start, restarts=1).labels) for start in range(8)]
    assert min(single) < max(single)
    assert modularity(graph, cluster("nmf", space, 6, 0, restarts=8).labels) == pytest.approx(max(single))


def test_nmf_reseeds_an_empty_column() -> None:
    points, labels = blobs([50, 50, 50], spread=0.1)
    affinity = self_tuned_graph(points, 10).affinity
    start = np.where(labels == 2, 1, labels)
    start[0] = 2
    factor = symmetric_nmf(affinity, start, seed=1)
    assert set(factor.argmax(axis=1)) == {0, 1, 2}
    assert (factor >= 0).all()


def test_nmf_goes_on_after_a_re_seed() -> None:
    """Two groups start as one and a column is empty: re-seeded, it must grow into the missing group."""
    points, labels = blobs([60, 60, 60, 60], spread=0.15)
    affinity = self_tuned_graph(points, 10).affinity
    found = symmetric_nmf(affinity, np.where(labels == 2, 1, labels), seed=1).argmax(axis=1)
    assert adjusted_rand_score(labels, found) > 0.9


def test_nmf_goes_on_when_a_column_empties_late(monkeypatch: pytest.MonkeyPatch) -> None:
    points, labels = blobs([60, 60, 60], spread=0.15)
    calls = []
    reseed = clustering._reseed

    def empties(factor: np.ndarray, *rest: Any) -> bool:
        calls.append(len(calls))
        if len(calls) == 3:
            factor[:, 2] = 0.0
        return reseed(factor, *rest)

    monkeypatch.setattr(clustering, "_reseed", empties)
    found = symmetric_nmf(self_tuned_graph(points, 10).affinity, labels, seed=1).argmax(axis=1)
    assert len(calls) > 6
    assert adjusted_rand_score(labels, found) > 0.9


def test_nmf_approximates_a_block_matrix() -> None:
    blocks = np.kron(np.eye(2), np.ones((5, 5))) - np.eye(10)
    start = np.array([0, 0, 0, 1, 0, 1, 1, 1, 0, 1])
    factor = symmetric_nmf(sparse.csr_matrix(blocks), start, seed=0)
    labels = factor.argmax(axis=1)
    assert len(set(labels[:5])) == 1
    assert len(set(labels[5:])) == 1
    assert labels[0] != labels[9]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 11])
@pytest.mark.parametrize("name", ["diffusion", "pca", "none"])
def test_tiny_pools_work(count: int, name: str) -> None:
    points = blobs([count])[0]
    found = grouped(points, points[:1], manifold=name)
    assert len(found.labels) == count
    assert found.new_labels.tolist() == [found.labels[0]] or count > 1
    assert found.describe()["k"] >= 1


@pytest.mark.parametrize("algorithm", ["nmf", "kmeans"])
def test_equal_rows_and_disconnected_graphs_work(algorithm: str) -> None:
    equal = np.tile(blobs([1])[0], (30, 1))
    assert set(grouped(equal, algorithm=algorithm).labels) <= set(range(16))
    rng = np.random.default_rng(1)
    apart = np.repeat(np.eye(8)[[0, 3]] * [[1], [-1]], 20, axis=0) + 1e-6 * rng.standard_normal((40, 8))
    found = grouped(apart, algorithm=algorithm, k=2)
    assert adjusted_rand_score(np.repeat([0, 1], 20), found.labels) == 1.0


def test_more_clusters_than_rows_is_an_error_with_a_remedy() -> None:
    with pytest.raises(PaserError, match=r"9 clusters were asked for, but the pool has 5 rows[\s\S]*remedy"):
        grouped(blobs([5])[0], k=9)


def test_gap_by_hand() -> None:
    gap = spectral_gap(np.array([1.0, 0.9, 0.85, 0.5, 0.45, 0.1]), 2, 5)
    assert (gap.k, gap.runner_up) == (3, 5)
    assert gap.gap == pytest.approx(0.35)
    with pytest.raises(PaserError, match="too small"):
        spectral_gap(np.array([1.0, 0.5]), 4, 8)


def test_neighbours_grow_with_the_pool() -> None:
    assert [default_neighbours(n) for n in (50, 10_000, 1_000_000)] == [10, 30, 30]


def test_cluster_phrases_tell_clusters_apart() -> None:
    phrases = [["sum", "shared"], ["sum", "shared"], ["fox", "shared"], ["fox", "shared"]]
    assert [p[0] for p in cluster_phrases(phrases, [0, 0, 1, 1], 2)] == ["sum", "fox"]
