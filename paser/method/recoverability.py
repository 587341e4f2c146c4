"""How far training on a row leads back to the original model, before any training (docs/method.md).

Damage says how far the pruned model has gone; a row repairs it only as far as its response is what the
original model would say. A yes or no that neither model expects shows much damage and teaches a format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paser.method.divergence import Distribution

if TYPE_CHECKING:
    import torch


def recoverability(original: Distribution, pruned: Distribution, target: torch.Tensor) -> torch.Tensor:
    """Inner product of two gradients in the pruned model's logits z, of shape (...), float32; -1/2 .. 2.

    With P_o, P_p the distributions (temperature 1) and y the target, training on y descends
    grad_z (-log P_p(y)) = P_p - e_y, and going back to the original descends grad_z KL(P_o || P_p) =
    P_p - P_o. To first order a step of training with rate r lowers that divergence by r times

        (P_p - e_y) . (P_p - P_o) = |P_p|^2 - P_p . P_o + P_o(y) - P_p(y)

    Above 0 training on y heals, below 0 it leads away. Over y drawn from P_o its mean is |P_p - P_o|^2, so
    that on responses of the original model it is a measure of damage; on others it may be less or more. NaN
    where a logit is not finite.
    """
    import torch

    p, q = original.probabilities, pruned.probabilities
    gain = (p.gather(-1, target[..., None]) - q.gather(-1, target[..., None])).squeeze(-1)
    found: torch.Tensor = gain + torch.linalg.vecdot(q, q) - torch.linalg.vecdot(q, p)
    return found
