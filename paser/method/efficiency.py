"""Damage per cluster and efficiency per sample (method.md, section 2), and how far two measures of
damage agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

TOP_SHARE = 0.1


def efficiency(damage: np.ndarray, prompt_tokens: np.ndarray, response_tokens: np.ndarray) -> np.ndarray:
    """IES(x, y) = damage(x, y) / log(max((|x| + |y|)^2, 3)).

    Parameters: arrays of shape (n,): damage (JSD in 0 .. ln 2, or another divergence), token counts.
    Returns float64 of shape (n,), higher is better; NaN stays NaN.
    """
    import numpy as np

    cost = np.maximum((np.asarray(prompt_tokens, float) + np.asarray(response_tokens, float)) ** 2, 3.0)
    scores: np.ndarray = np.asarray(damage, float) / np.log(cost)
    return scores


def cluster_means(values: np.ndarray, clusters: np.ndarray, count: int) -> np.ndarray:
    """Mean of the finite `values` in each of `count` clusters; 0 where a cluster has none.

    With damage as `values` this is CDS(c_k), the capability degradation score. Shape (count,). The sum is
    exact before it is rounded, so that the order of rows does not reach the last bit.
    """
    import math

    import numpy as np

    means = np.zeros(count)
    for k in range(count):
        inside = values[clusters == k]
        inside = inside[np.isfinite(inside)]
        if len(inside):
            means[k] = math.fsum(inside) / len(inside)
    return means


def agreement(columns: Mapping[str, np.ndarray]) -> dict[str, dict[str, dict[str, float | None]]]:
    """How far the rankings of rows by several measures agree, for every pair of `columns`.

    Parameters: finite arrays of one shape (n,), by name. Returns `{first: {second: {...}}}`, each pair
    once: `spearman`, the rank correlation (-1 .. 1, ties by their mean rank), and `top_overlap`, the share
    (0 .. 1) that the tenths of the rows with the highest values have in common, ties at the edge included.
    Both are None when a column is constant or has less than two rows.
    """
    import numpy as np
    from scipy.stats import rankdata

    ranks = {name: rankdata(values) for name, values in columns.items()}
    defined = {name: len(rank) > 1 and np.ptp(rank) > 0 for name, rank in ranks.items()}
    tops = {}
    for name, values in columns.items():
        if defined[name]:
            edge = len(values) - max(1, round(TOP_SHARE * len(values)))
            tops[name] = values >= np.partition(values, edge)[edge]
    result: dict[str, dict[str, dict[str, float | None]]] = {}
    for one, other in combinations(columns, 2):
        pair: dict[str, float | None] = {"spearman": None, "top_overlap": None}
        if defined[one] and defined[other]:
            shared = (tops[one] & tops[other]).sum() / max(tops[one].sum(), tops[other].sum())
            rho = np.corrcoef(ranks[one], ranks[other])[0, 1]
            pair = {"spearman": round(float(rho), 6), "top_overlap": round(float(shared), 6)}
        result.setdefault(one, {})[other] = pair
    return result
