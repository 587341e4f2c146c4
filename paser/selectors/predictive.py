"""Predictive strength, after PreSelect: rows whose losses rank models as the models' ability does."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from paser.errors import StageError
from paser.selectors.filling import Scored, by_id
from paser.selectors.protocol import ScoredPool
from paser.selectors.reading import encoded, read
from paser.selectors.resources import Meter, Models
from paser.selectors.training import RunOptions, adapted, epochs, warm_up_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

_FEATURES = 2**16


class PreselectOptions(RunOptions):
    """`checkpoints`: of a short run, whose models stand between the pruned and the original one. `edge`: the
    share of rows with the highest strength, and of those with the lowest, that the scorer learns from."""

    checkpoints: Annotated[int, Field(ge=1, le=100)] = 3
    edge: Annotated[float, Field(gt=0.0, le=0.5)] = 0.3


def preselect(
    pool: ScoredPool,
    models: Models,
    losses: Sequence[np.ndarray],
    options: PreselectOptions,
    seed: int,
    meter: Meter,
) -> Scored:
    """Score of a linear classifier of word n-grams, fitted on this pool to tell rows of high strength from
    rows of low strength (Shum et al. 2025, arXiv 2503.00808). Any sign, higher is stronger.

    `losses`: known ones, of the original and the pruned model, each (n,). Ability is the mean loss on
    the usable rows, lower is abler.
    """
    import numpy as np

    rows = by_id(pool)
    language = models.pruned()
    tuned = adapted(language, models.recover, seed)
    warm = warm_up_rows(pool, models, language, options.share, "preselect", seed)
    samples = encoded(models, language.encoder, rows)
    table = [np.asarray(known, dtype=float)[rows] for known in losses]
    for _ in epochs(tuned, warm, options.checkpoints, meter):
        table.append(read(tuned.inner, samples, meter).loss)
    strength = predictive_strength(np.stack(table))
    scores = fitted_scores(list(pool.texts(rows)), strength, options.edge)
    facts = {"models": len(table), "strength": round(float(strength.mean()), 6)}
    return Scored.at(rows, scores, pool, facts)


def predictive_strength(losses: np.ndarray) -> np.ndarray:
    """The share of pairs of models that a row's losses rank as their mean losses do, 0 .. 1, shape (rows,).

    `losses`: (models, rows). A tie on a row counts as not ranked.
    """
    import numpy as np

    able = losses.mean(axis=1)
    pairs = [(a, b) if able[a] < able[b] else (b, a) for a, b in combinations(range(len(losses)), 2)]
    agreed: np.ndarray = np.mean([losses[better] < losses[worse] for better, worse in pairs], axis=0)
    return agreed


def fitted_scores(texts: list[str], strength: np.ndarray, edge: float) -> np.ndarray:
    """Decision values of the classifier for every text, shape (rows,).

    Raises StageError where all rows are equally strong, so that there is nothing to learn.
    """
    import numpy as np
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    if not np.ptp(strength) > 0:
        raise StageError(
            "all rows have the same predictive strength", remedy="take more rows, or another selector"
        )
    size = max(1, round(edge * len(texts)))
    order = np.argsort(-strength, kind="stable")
    chosen = np.concatenate([order[:size], order[-size:]])
    features = HashingVectorizer(n_features=_FEATURES, ngram_range=(1, 2)).transform(texts)
    labels = np.repeat([1, 0], size)
    found: np.ndarray = (
        LogisticRegression(max_iter=1000).fit(features[chosen], labels).decision_function(features)
    )
    return found
