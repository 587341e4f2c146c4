"""Instruction Mining: a linear rule that predicts the loss after training from indicators of the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paser.method.neighbours import NeighbourIndex
from paser.selectors.filling import Scored, by_id
from paser.selectors.protocol import ScoredPool

if TYPE_CHECKING:
    import numpy as np

# log L = 1.0694 - 0.1498 Rew + 8.257e-5 Len - 0.9350 Knn_6
LENGTH, KNN, NEIGHBOUR = 8.257e-5, -0.9350, 6


def instruction_mining(pool: ScoredPool, embeddings: np.ndarray) -> Scored:
    """Minus the predicted log loss of the rule of Cao et al. 2023 (arXiv 2307.06290, first version) without
    its constant and its reward term: `Len` response tokens, `Knn_6` the Euclidean distance to the 6th nearest
    row by embedding (the farthest one in a smaller pool)."""
    import numpy as np

    rows = by_id(pool)
    distance = np.zeros(len(rows))
    if len(rows) > 1:
        distances, _ = NeighbourIndex(embeddings[rows].astype(np.float64)).among(NEIGHBOUR)
        distance = distances[:, -1]
    predicted = LENGTH * pool.response_tokens[rows] + KNN * distance
    return Scored.at(rows, -predicted, pool, {"left_out": ["Rew"]})
