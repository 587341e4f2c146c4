"""Scored pools for tests, from plain lists."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from paser.selectors.protocol import ScoredPool


def pool(count: int = 90, seed: int = 0) -> ScoredPool:
    """Three clusters of rising damage; no two rows share a concept."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        jsd = (0.05, 0.1, 0.3)[i % 3] * (0.5 + rng.random())
        rows.append((jsd, rng.randrange(20, 60), rng.randrange(5, 90)))
    return ScoredPool(
        row_ids=[f"r1-{i:064x}" for i in range(count)],
        texts=texts([f"topic{i} with detail{i}" for i in range(count)]),
        clusters=np.arange(count) % 3,
        status=np.full(count, "ok", dtype=object),
        divergences={
            "jsd": np.array([row[0] for row in rows]),
            "delta_loss": np.full(count, 0.1),
            "recoverability": np.array([row[0] * rng.uniform(-0.2, 1.0) for row in rows]),
        },
        prompt_tokens=np.array([row[1] for row in rows], dtype=np.int64),
        response_tokens=np.array([row[2] for row in rows], dtype=np.int64),
    )


def texts(lines: Sequence[str]) -> Any:
    return lambda positions: [lines[i] for i in positions]


def part(scored: ScoredPool, positions: Sequence[int]) -> ScoredPool:
    """These rows, in this order."""
    return scored.part(np.asarray(positions, dtype=np.int64))


def changed(scored: ScoredPool, status: Mapping[int, str]) -> ScoredPool:
    """Rows with another status have no divergence, as the scorer leaves them."""
    now, jsd = scored.status.copy(), scored.divergences["jsd"].copy()
    for position, word in status.items():
        now[position], jsd[position] = word, np.nan
    return replace(scored, status=now, divergences={**scored.divergences, "jsd": jsd})
