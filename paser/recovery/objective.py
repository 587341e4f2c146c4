"""What training minimises: cross-entropy of the responses, sample weights, and the original model's word.

Sums over response tokens, not means, so that passes of different sizes add up to the loss of their step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paser.errors import ModelError
from paser.recovery.batches import TrainingRow, predicting_states

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Teacher:
    """The original model; `weight` (0 .. 1) is its share of the loss, `temperature` of both softmaxes."""

    model: PreTrainedModel
    weight: float
    temperature: float


@dataclass(frozen=True)
class Objective:
    """The loss of rows that share a forward pass; `packed` as in `predicting_states`."""

    packed: bool
    pad_id: int
    teacher: Teacher | None = None

    def sums(self, model: Any, rows: Sequence[TrainingRow]) -> torch.Tensor:
        """`(objective, cross_entropy)`, shape (2,), float32: sums over the response tokens, in nats.

        With token weights w, P_o the teacher's distribution and P_r that of `model` at temperature T, the
        objective is sum w ((1 - a) CE + a T^2 KL(P_o || P_r)) (Hinton et al., 2015); without a teacher a is
        0. The cross-entropy is plain, for people to compare. Tokens that a row does not keep are in neither
        sum. Only positions that predict a response token reach the vocabulary projection.
        """
        import torch
        from torch.nn.functional import cross_entropy, kl_div, log_softmax

        encoded = [row.encoded for row in rows]
        states = predicting_states(model, encoded, packed=self.packed, pad_id=self.pad_id)
        logits = model.get_output_embeddings()(states).float()
        labels = torch.tensor([t for row in encoded for t in row.response_ids], dtype=torch.long)
        each = cross_entropy(logits, labels.to(logits.device), reduction="none")
        objective = each
        if self.teacher is not None:
            share, tau = self.teacher.weight, self.teacher.temperature
            target = self._teacher_logits(rows, logits)
            divergence = kl_div(
                log_softmax(logits / tau, dim=-1),
                log_softmax(target / tau, dim=-1),
                reduction="none",
                log_target=True,
            ).sum(dim=-1)
            objective = (1 - share) * each + share * tau**2 * divergence
        if any(row.weight != 1.0 for row in rows):
            weights = torch.tensor([row.weight for row in rows for _ in row.encoded.response_ids])
            objective = objective * weights.to(objective)
        if any(row.kept is not None for row in rows):
            kept = torch.tensor([k for row in rows for k in row.kept or [True] * row.counted]).to(each)
            objective, each = objective * kept, each * kept
        return torch.stack([objective.sum(), each.sum().detach()])

    def _teacher_logits(self, rows: Sequence[TrainingRow], like: torch.Tensor) -> torch.Tensor:
        import torch

        assert self.teacher is not None
        original: Any = self.teacher.model
        with torch.no_grad():
            states = predicting_states(
                original, [row.encoded for row in rows], packed=self.packed, pad_id=self.pad_id
            )
            logits: torch.Tensor = original.get_output_embeddings()(states).float()
        if logits.shape != like.shape:
            raise ModelError(
                f"the original model has a vocabulary of {logits.shape[-1]}, the pruned one of "
                f"{like.shape[-1]}: their distributions cannot be compared",
                remedy="set recover.distill.weight: 0",
            )
        return logits


def damage_weights(divergences: Sequence[float]) -> list[float]:
    """Weights of samples from their divergences (0 or more): divided by their mean, so that their mean is 1.

    All are 1 where no sample has any divergence.
    """
    mean = sum(divergences) / len(divergences)
    return [value / mean if mean else 1.0 for value in divergences]
