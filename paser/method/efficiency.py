"""Damage per cluster and efficiency per sample (method.md, section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def efficiency(jsd: np.ndarray, prompt_tokens: np.ndarray, response_tokens: np.ndarray) -> np.ndarray:
    """IES(x, y) = JSD(x, y) / log(max((|x| + |y|)^2, 3)).

    Parameters: arrays of shape (n,): JSD in 0 .. ln 2, token counts. Returns float64 of shape (n,),
    higher is better; NaN stays NaN.
    """
    import numpy as np

    cost = np.maximum((np.asarray(prompt_tokens, float) + np.asarray(response_tokens, float)) ** 2, 3.0)
    scores: np.ndarray = np.asarray(jsd, float) / np.log(cost)
    return scores


def cluster_means(values: np.ndarray, clusters: np.ndarray, count: int) -> np.ndarray:
    """Mean of the finite `values` in each of `count` clusters; 0 where a cluster has none.

    With JSD as `values` this is CDS(c_k), the capability degradation score. Shape (count,). Summed in
    sorted order, so that the order of rows does not reach the last bit.
    """
    import math

    import numpy as np

    means = np.zeros(count)
    for k in range(count):
        inside = values[clusters == k]
        inside = inside[np.isfinite(inside)]
        if len(inside):
            means[k] = math.fsum(np.sort(inside)) / len(inside)
    return means
