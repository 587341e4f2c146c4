"""Jensen-Shannon divergence between two models' next-token distributions (method.md, section 2).

Everything is computed in log space and float32 whatever the models' number type: half precision
underflows in the tail of the vocabulary and yields NaN.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LN2 = math.log(2.0)


def token_jsd(first: torch.Tensor, second: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """JSD of softmax(first / tau) and softmax(second / tau) along the last axis.

    Parameters
    ----------
    first, second : logits of shape (..., vocabulary), any floating type
    temperature : tau > 0

    Returns
    -------
    float32 tensor of shape (...), natural log, 0 (equal) to ln 2 (disjoint); NaN where a logit is not
    finite.

    Notes
    -----
    With d = log P_2 - log P_1 and M = (P_1 + P_2) / 2, log M - log P_1 = softplus(d) - ln 2, so
    KL(P_1 || M) = ln 2 - sum P_1 softplus(d) and KL(P_2 || M) = ln 2 - sum P_2 softplus(-d).
    """
    log_first = (first.float() / temperature).log_softmax(-1)
    log_second = (second.float() / temperature).log_softmax(-1)
    return jsd_from_log_probabilities(log_first, log_second)


def jsd_from_log_probabilities(log_first: torch.Tensor, log_second: torch.Tensor) -> torch.Tensor:
    """`token_jsd` on log-probabilities that are at hand already, float32, shape (..., vocabulary)."""
    import torch.nn.functional as functional

    difference = log_second - log_first
    plus = functional.softplus(difference)
    first = (log_first.exp() * plus).sum(-1)
    second = (log_second.exp() * (plus - difference)).sum(-1)
    return (LN2 - (first + second) / 2).clamp(0.0, LN2)
