"""Actors on two nodes: the same bytes, and a refusal where a node has other files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from paser.artifacts import sha256_path
from paser.cache import Cache
from paser.errors import ModelError
from paser.models.actors import Job
from paser.models.workload import ModelSet, open_models, score_rows
from paser.settings import RuntimeSettings
from tests.models.test_actors import LOCAL, portions, score, settings
from tests.models.test_shards import table

pytestmark = pytest.mark.slow
SMALL = {"score": {"max_tokens": 256, "batch_tokens": 256}}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two nodes of one core each, on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield str(cluster.address)
    ray.shutdown()
    cluster.shutdown()


class Where:
    """Which node computes a portion."""

    def __call__(self, portion: pa.Table) -> dict[str, np.ndarray]:
        import ray

        return {"node": np.array([ray.get_runtime_context().get_node_id()] * portion.num_rows)}


def on(address: str) -> RuntimeSettings:
    return settings(engine="ray", actors=2, ray_address=address).runtime


def test_two_nodes_share_the_work(address: str) -> None:
    done = list(Job(Where, {}, {}, (), on(address), threads=1).run(portions(30)))
    assert sorted(p for positions, _ in done for p in positions) == list(range(90))
    assert len({str(arrays["node"][0]) for _, arrays in done}) == 2


def test_scores_of_two_nodes_are_those_of_one_process(
    address: str, llama: Path, sparse_llama: Path, tmp_path: Path
) -> None:
    paths, rows = {"original": llama, "pruned": sparse_llama}, table(120)
    digests = {name: sha256_path(path) for name, path in paths.items()}
    local = LOCAL.model_copy(update=score(SMALL))
    spread = local.model_copy(update={"runtime": on(address)})
    here, there = Cache(tmp_path / "here"), Cache(tmp_path / "there")
    expected = score_rows(rows, ModelSet.load(paths, local, here), digests, local.score, here)
    models = open_models(paths, digests, spread, there)
    assert score_rows(rows, models, digests, spread.score, there) == expected


def test_a_node_with_other_files_is_named(address: str, llama: Path, tmp_path: Path) -> None:
    for path, message in ((llama, "is not the driver's"), (tmp_path / "missing", "has no .*missing")):
        job = Job(Where, {}, {path: "0" * 64}, (), on(address), threads=1)
        with pytest.raises(ModelError, match=message):
            list(job.run(portions(30)))
