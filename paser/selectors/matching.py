"""Gradient matching to a target set, after LESS: rows whose Adam step would lower the targets' loss."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from paser.selectors.filling import Scored, by_id
from paser.selectors.protocol import ScoredPool
from paser.selectors.reading import encoded
from paser.selectors.resources import Meter, Models
from paser.selectors.training import (
    BETAS,
    EPSILON,
    RunOptions,
    adapted,
    epochs,
    row_gradients,
    warm_up_rows,
)

if TYPE_CHECKING:
    import torch


class LessOptions(RunOptions):
    """`checkpoints`: after so many epochs of one short run gradients are taken. `dimensions` of the random
    projection."""

    checkpoints: Annotated[int, Field(ge=2, le=100)] = 2
    dimensions: Annotated[int, Field(ge=8, le=1_000_000)] = 4096


def less(pool: ScoredPool, models: Models, options: LessOptions, seed: int, meter: Meter) -> Scored:
    """max over target groups of sum_i eta_i cos(P Gamma(z; theta_i), P g_i(targets)) (Xia et al. 2024, arXiv
    2402.04333): Gamma the Adam step on a row at checkpoint i, g_i the mean gradient of a group, P a random
    projection. Groups are the labels of `models.targets`; targets without a label are one group.
    """
    import numpy as np
    import torch

    rows = by_id(pool)
    language = models.pruned()
    tuned = adapted(language, models.recover, seed)
    warm = warm_up_rows(pool, models, language, options.share, "less", seed)
    groups = defaultdict(list)
    for sample in models.targets:
        groups[sample.label or ""].append(language.encoder.encode(sample, models.max_tokens))
    samples = encoded(models, language.encoder, rows)
    totals = np.zeros((len(rows), len(groups)))
    sketch = Sketch(sum(p.numel() for p in tuned.parameters), options.dimensions, seed)
    for _ in epochs(tuned, warm, options.checkpoints, meter):
        wanted = []
        for name in sorted(groups):
            members = [row for row in groups[name] if row.response_ids]
            mean = sum(row_gradients(tuned, members, meter), torch.zeros(sketch.size)) / len(members)
            wanted.append(unit(sketch(mean)))
        targets = torch.stack(wanted)
        first, second, steps = tuned.moments()
        for number, gradient in enumerate(row_gradients(tuned, samples, meter)):
            step = unit(sketch(adam_step(gradient, first, second, steps)))
            totals[number] += tuned.settings.learning_rate * (targets @ step).numpy()
    facts = {"checkpoints": options.checkpoints, "targets": {n: len(groups[n]) for n in groups}}
    return Scored.at(rows, totals.max(axis=1), pool, facts)


def adam_step(gradient: torch.Tensor, first: torch.Tensor, second: torch.Tensor, steps: int) -> torch.Tensor:
    """The direction of Adam's next step with this gradient, from its moments after `steps` steps."""
    mean = (BETAS[0] * first + (1 - BETAS[0]) * gradient) / (1 - BETAS[0] ** (steps + 1))
    square = (BETAS[1] * second + (1 - BETAS[1]) * gradient**2) / (1 - BETAS[1] ** (steps + 1))
    return mean / (square.sqrt() + EPSILON)


class Sketch:
    """A sparse random projection of `size` numbers to `dimensions`: each goes, with a random sign, to one
    random place (Charikar et al. 2002). Inner products are kept in expectation."""

    def __init__(self, size: int, dimensions: int, seed: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(seed)
        self.size, self.dimensions = size, dimensions
        self.place = torch.randint(dimensions, (size,), generator=generator)
        self.sign = torch.randint(2, (size,), generator=generator).float() * 2 - 1

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.zeros(self.dimensions).index_add_(0, self.place, self.sign * vector)


def unit(vector: torch.Tensor) -> torch.Tensor:
    """`vector` with length 1; zeros stay."""
    scaled: torch.Tensor = vector / vector.norm().clamp(min=1e-12)
    return scaled
