"""Divergences between two models' next-token distributions, and losses (method.md, section 2).

Everything is computed in float32 from logits of any floating type: half precision underflows in the tail
of the vocabulary and yields NaN. Each formula is written so that nothing large cancels, and as few passes
over the vocabulary as possible, because on a CPU these passes would cost as much as the models' layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

LN2 = math.log(2.0)
# Stands for 0 in quotients; float32 has all its digits above 1.2e-38.
TINY = 1e-37


class Divergences(NamedTuple):
    """Float32 tensors of shape (...), in nats; NaN where a logit is not finite.

    `jsd`: 0 (equal) to ln 2 (disjoint), symmetric. `kl` = KL(P_1 || P_2) and `reverse_kl` =
    KL(P_2 || P_1): 0 (equal) upwards, finite for finite logits.
    """

    jsd: torch.Tensor
    kl: torch.Tensor
    reverse_kl: torch.Tensor


@dataclass(frozen=True)
class Distribution:
    """softmax(logits / tau) along the last axis: log P = `shifted` - `log_norm`.

    `shifted` and `probabilities`: float32, shape (..., vocabulary), the largest of `shifted` is 0;
    `log_norm`: float64, shape (..., 1).
    """

    shifted: torch.Tensor
    probabilities: torch.Tensor
    log_norm: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, temperature: float = 1.0) -> Distribution:
        """From logits of shape (..., vocabulary), any floating type; they are left as they are."""
        import torch

        shifted = logits.to(torch.float32, copy=True)
        shifted.sub_(shifted.amax(-1, keepdim=True))
        if temperature != 1.0:
            shifted.div_(temperature)
        weights = shifted.exp()
        norm = weights.sum(-1, keepdim=True)
        return cls(shifted, weights.div_(norm), norm.double().log())

    def loss(self, target: torch.Tensor) -> torch.Tensor:
        """-log P(target), float64; `target` holds token ids and has the shape (...)."""
        return (self.log_norm - self.shifted.gather(-1, target[..., None])).squeeze(-1)


def compare(first: Distribution, second: Distribution) -> Divergences:
    """The three divergences of two distributions of the same shape.

    Notes
    -----
    With a and b the larger and the smaller of P_1 and P_2 at a token, and r = |log P_1 - log P_2| there,

        JSD = sum [(a + b) log(2 a / (a + b)) - b r] / 2

    because log(2 b / (a + b)) is the other logarithm less r. No term is negative, the logarithm lies between
    0 and log 2, and r comes from the logits, as in both KL, so a probability that underflows does no harm.
    """
    import torch

    p, q = first.probabilities, second.probabilities
    log_ratio = first.shifted - second.shifted
    log_ratio.sub_((first.log_norm - second.log_norm).float())
    product = p * log_ratio
    kl = product.sum(-1)
    reverse = -torch.mul(q, log_ratio, out=product).sum(-1)
    both = (p + q).clamp_(min=TINY)
    terms = torch.maximum(p, q).div_(both).mul_(2.0).clamp_(min=1.0).log_().mul_(both)
    smaller = torch.minimum(p, q, out=product)
    jsd = terms.sub_(smaller.mul_(log_ratio.abs_())).sum(-1) / 2
    hidden = 0.0 * (kl + reverse)  # NaN where a logit is infinite, also where its probability is 0
    return Divergences(
        (jsd + hidden).clamp(0.0, LN2), (kl + hidden).clamp(min=0.0), (reverse + hidden).clamp(min=0.0)
    )


def token_divergences(first: torch.Tensor, second: torch.Tensor, temperature: float = 1.0) -> Divergences:
    """Divergences of softmax(first / tau) and softmax(second / tau), logits of shape (..., vocabulary)."""
    return compare(Distribution.of(first, temperature), Distribution.of(second, temperature))
