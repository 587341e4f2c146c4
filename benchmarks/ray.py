"""Scoring by Ray on one and on two nodes of one core each, against the local engine with one thread."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.data import ROOT, as_sample, original_model, real_rows
from benchmarks.measure import measured
from benchmarks.scoring import pruned_model
from paser.artifacts import sha256_bytes, sha256_path
from paser.cache import Cache
from paser.models.loading import load_tokenizer
from paser.models.tokens import Encoded, SampleEncoder
from paser.progress import say
from paser.settings import Settings, parse_settings

TOKENS, BATCH_TOKENS = 24_000, 512
TITLES = {
    0: "engine local, one thread",
    1: "engine ray, one node, one actor of one thread",
    2: "engine ray, two nodes, one actor of one thread each",
}


def run() -> dict[str, Any]:
    pruned_model()
    found = {}
    for nodes in TITLES:
        found[str(nodes)] = measured("benchmarks.ray:scoring", nodes=nodes)["result"]
        say(f"  {TITLES[nodes]}: {found[str(nodes)]['seconds']:.0f} s")
    return found


def samples(max_tokens: int) -> list[Encoded]:
    """Real rows in the order of their ids, about `TOKENS` tokens in all."""
    encoder = SampleEncoder(load_tokenizer(original_model()))
    chosen: list[Encoded] = []
    tokens = 0
    for sample in sorted((as_sample(i, row) for i, row in enumerate(real_rows())), key=lambda s: s.row_id):
        encoded = encoder.encode(sample, max_tokens)
        if not encoded.cut:
            chosen.append(encoded)
            tokens += encoded.tokens
        if tokens >= TOKENS:
            break
    return chosen


def scoring(nodes: int) -> dict[str, Any]:
    """Scores the samples on `nodes` nodes (0: in this process).

    `seconds`: all of it, with starting actors and loading models (results come in bursts, so that no shorter
    time can be told from outside); `digest`: of all values, in row order.
    """
    import numpy as np

    from paser.models.workload import open_models

    paths = {"original": original_model(), "pruned": pruned_model()}
    digests = {name: sha256_path(path) for name, path in paths.items()}
    with _nodes(nodes) as runtime:
        settings = _settings(runtime)
        rows = samples(settings.score.max_tokens)
        start = time.perf_counter()
        models = open_models(paths, digests, settings, Cache.of(ROOT))
        arrivals = []
        for positions, arrays in models.groups(rows, settings.score):
            arrivals.append((time.perf_counter() - start, positions, arrays))
    order = np.argsort([p for _, positions, _ in arrivals for p in positions])
    names = sorted(set(arrivals[0][2]) - {"status"})
    values = [np.concatenate([arrays[name] for _, _, arrays in arrivals])[order] for name in names]
    return {
        "seconds": arrivals[-1][0],
        "rows": len(rows),
        "tokens": sum(row.tokens for row in rows),
        "portions": len(arrivals),
        "digest": sha256_bytes(b"".join(value.tobytes() for value in values)),
    }


def _settings(runtime: dict[str, Any]) -> Settings:
    content = {
        "model": {"precision": "bfloat16"},
        "score": {"max_tokens": 256, "batch_tokens": BATCH_TOKENS},
        "runtime": {"threads": 1, **runtime},
    }
    return parse_settings(content, "benchmark")


@contextmanager
def _nodes(count: int) -> Iterator[dict[str, Any]]:
    """So many Ray nodes of one core on this machine; yields the `runtime` settings that use them."""
    if not count:
        yield {}
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(count - 1):
        cluster.add_node(num_cpus=1)
    try:
        yield {"engine": "ray", "actors": count, "ray_address": str(cluster.address)}
    finally:
        ray.shutdown()
        cluster.shutdown()


def render(result: dict[str, Any]) -> str:
    local, one = result["0"], result["1"]
    same = len({found["digest"] for found in result.values()}) == 1
    table = "\n".join(
        f"| {title} | {found['seconds']:.0f} | {found['tokens'] / found['seconds']:,.0f} "
        f"| {one['seconds'] / found['seconds']:.2f} |"
        for title, found in ((title, result[str(nodes)]) for nodes, title in TITLES.items())
    )
    return f"""## Ray

Scoring {local["rows"]} real rows ({local["tokens"]:,} tokens) with SmolLM2-135M and the same after Wanda 50 %,
bfloat16, {BATCH_TOKENS} tokens a pass, with loading the models and starting the actors, which is much of so short a
run. The nodes are two Ray nodes of one core on one machine, so two actors use the cores that one leaves idle.
Values of all rows, to the bit: {"the same in all three" if same else "DIFFERENT"}.

| | seconds | tokens/s | against one node |
|---|--:|--:|--:|
{table}
"""  # noqa: E501
