"""Short runs of LoRA tuning on a few rows, and gradients of single rows with respect to the LoRA parameters.

What selectors of the gradient family share. The loop is bare, without checkpoints on disk or early stopping:
a run takes some dozens of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from paser.models.tokens import Encoded
from paser.recovery.batches import TrainingRow, portions
from paser.recovery.lora import add_adapter
from paser.recovery.objective import Objective
from paser.selectors.protocol import ScoredPool
from paser.selectors.random import drawn
from paser.selectors.reading import encoded
from paser.selectors.resources import LanguageModel, Meter, Models
from paser.settings import Group, RecoverSettings

if TYPE_CHECKING:
    import numpy as np
    import torch

BETAS, EPSILON = (0.9, 0.999), 1e-8


class RunOptions(Group):
    """`share`: of the usable rows, drawn at random, that a short run trains on."""

    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05


@dataclass(frozen=True)
class Tuned:
    """A model with a LoRA adapter in training. `inner` is the model itself, `parameters` those of the adapter
    in a fixed order."""

    inner: Any
    parameters: list[torch.nn.Parameter]
    optimiser: torch.optim.Optimizer
    settings: RecoverSettings

    def moments(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Adam's first and second moment of all parameters, flat, and its steps so far."""
        import torch

        states = [self.optimiser.state[p] for p in self.parameters]
        if not all(states):
            zero = torch.zeros(sum(p.numel() for p in self.parameters))
            return zero, zero.clone(), 0
        first, second = (
            torch.cat([s[name].float().flatten() for s in states]) for name in ("exp_avg", "exp_avg_sq")
        )
        return first, second, int(states[0]["step"])

    def weights(self) -> list[torch.Tensor]:
        """A copy of the adapter's weights."""
        return [p.detach().clone() for p in self.parameters]

    def load(self, weights: Sequence[torch.Tensor]) -> None:
        import torch

        with torch.no_grad():
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.copy_(weight)


def adapted(language: LanguageModel, settings: RecoverSettings, seed: int) -> Tuned:
    """`language` with a new adapter; without dropout, so that gradients are those of the model."""
    import torch

    settings = settings.model_copy(update={"dropout": 0.0})
    torch.manual_seed(seed)
    model = add_adapter(language.model, settings)
    model.eval()
    parameters = [p for _, p in sorted(model.named_parameters()) if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=BETAS, eps=EPSILON, weight_decay=0.0
    )
    return Tuned(model.get_base_model(), parameters, optimiser, settings)


def epochs(tuned: Tuned, rows: Sequence[Encoded], count: int, meter: Meter) -> Iterator[int]:
    """Trains `count` epochs at a constant learning rate; yields the number of each when it is done."""
    import torch

    training = [TrainingRow(str(i), row) for i, row in enumerate(rows)]
    objective = Objective(packed=False, pad_id=0)
    for epoch in range(count):
        for portion in portions(training, tuned.settings, packed=False):
            tuned.optimiser.zero_grad()
            for numbers in portion.passes:
                with autocast(tuned):
                    loss = objective.sums(tuned.inner, [training[i] for i in numbers])[0]
                torch.autograd.backward(loss / portion.tokens)
                _count(meter, [rows[i] for i in numbers])
            torch.nn.utils.clip_grad_norm_(tuned.parameters, tuned.settings.max_grad_norm)
            tuned.optimiser.step()
        tuned.optimiser.zero_grad()
        yield epoch + 1


def row_gradients(tuned: Tuned, rows: Sequence[Encoded], meter: Meter) -> Iterator[torch.Tensor]:
    """The gradient of each row's mean loss a response token: flat, float32, one row a pass."""
    import torch

    objective = Objective(packed=False, pad_id=0)
    for row in rows:
        with autocast(tuned):
            loss = objective.sums(tuned.inner, [TrainingRow("", row)])[0] / len(row.response_ids)
        found = torch.autograd.grad(loss, tuned.parameters)
        _count(meter, [row])
        yield torch.cat([g.detach().float().flatten().cpu() for g in found])


def autocast(tuned: Tuned) -> Any:
    """bfloat16 arithmetic for a model in bfloat16, as in recovery; else none."""
    import torch

    dtype = tuned.inner.dtype
    return torch.autocast(tuned.inner.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def warm_up_rows(
    pool: ScoredPool, models: Models, language: LanguageModel, share: float, purpose: str, seed: int
) -> list[Encoded]:
    """Rows of a short run: a seeded draw of `share` of the usable rows, at least one."""
    positions: np.ndarray = drawn(pool, pool.usable, purpose, seed)
    return encoded(models, language.encoder, positions[: max(1, round(share * len(positions)))])


def _count(meter: Meter, rows: Sequence[Encoded]) -> None:
    tokens = sum(row.tokens for row in rows)
    meter.forward_tokens += tokens
    meter.backward_tokens += tokens
