"""Influence on a small surrogate, and effort of the model itself, after DEALRec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from paser.selectors.filling import by_id
from paser.selectors.protocol import ScoredPool
from paser.selectors.random import drawn
from paser.selectors.reading import encoded
from paser.selectors.resources import Meter, Models
from paser.selectors.training import adapted, row_gradients
from paser.settings import Group, Positive

if TYPE_CHECKING:
    import numpy as np


class InfluenceOptions(Group):
    """`effort`: weight of effort beside influence (lambda). `groups`: how many strata of equal width the
    scores are divided into. `ridge`: penalty of the surrogate."""

    effort: Annotated[float, Field(ge=0.0, le=100.0)] = 0.5
    groups: Annotated[int, Field(ge=1, le=1000)] = 50
    ridge: Positive = 0.01


def influence_effort(
    pool: ScoredPool,
    models: Models,
    embeddings: np.ndarray,
    loss: np.ndarray,
    options: InfluenceOptions,
    seed: int,
    meter: Meter,
) -> np.ndarray:
    """Positions in the order of the coverage-enhanced choice of Lin et al. 2024 (arXiv 2401.17197).

    Score = influence on a surrogate + lambda x effort, both scaled to 0 .. 1. The surrogate is a ridge
    regression from embeddings to `loss`, the pruned model's own (n,). Effort is the norm of the gradient of a
    row's mean loss by the LoRA parameters. Strata of equal width take turns, the smallest first, each in a
    seeded random order.
    """
    import numpy as np

    rows = by_id(pool)
    language = models.pruned()
    tuned = adapted(language, models.recover, seed)
    samples = encoded(models, language.encoder, rows)
    effort = np.array([float(g.norm()) for g in row_gradients(tuned, samples, meter)])
    influence = removal_influence(embeddings[rows].astype(np.float64), loss[rows], options.ridge)
    score = _scaled(influence) + options.effort * _scaled(effort)
    stratum = np.minimum((_scaled(score) * options.groups).astype(int), options.groups - 1)
    place = {int(position): i for i, position in enumerate(drawn(pool, rows, "influence-effort", seed))}
    draw = np.array([place[int(position)] for position in rows])
    turn = np.zeros(len(rows), dtype=int)
    size = np.bincount(stratum, minlength=options.groups)
    for k in np.unique(stratum):
        inside = np.flatnonzero(stratum == k)
        turn[inside[np.argsort(draw[inside])]] = np.arange(len(inside))
    order: np.ndarray = rows[np.lexsort((stratum, size[stratum], turn))]
    return order


def removal_influence(points: np.ndarray, target: np.ndarray, ridge: float) -> np.ndarray:
    """How much the mean loss of a ridge regression rises when a row is removed, by influence functions:
    (1/n) g^T H^-1 g_s, with g the mean gradient, g_s that of row s, H the Hessian. Shape (n,)."""
    import numpy as np

    count, width = points.shape
    hessian = points.T @ points / count + ridge * np.eye(width)
    weights = np.linalg.solve(hessian, points.T @ target / count)
    gradients = (points @ weights - target)[:, None] * points
    found: np.ndarray = gradients @ np.linalg.solve(hessian, gradients.mean(axis=0)) / count
    return found


def _scaled(values: np.ndarray) -> np.ndarray:
    """To 0 .. 1 by minimum and maximum; all 0 where they are equal."""
    import numpy as np

    width = float(np.ptp(values))
    scaled: np.ndarray = (values - values.min()) / (width if width > 0 else 1.0)
    return scaled
