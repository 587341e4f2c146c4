"""Early stopping: rows held out of training say when to stop, and which weights were the best.

The best weights and everything the decision rests on travel in each checkpoint, so a run that was killed
stops at the same step as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import read_json, write_json
from paser.records import draw_key
from paser.recovery.batches import Plan, TrainingRow
from paser.settings import EarlyStoppingSettings

if TYPE_CHECKING:
    import torch

STATE, BEST = "early-stopping.json", "early-stopping.safetensors"


def held_out_slice(row_ids: Sequence[str], share: float, seed: int) -> set[int]:
    """Positions that are held out: the first `share` of a draw by seed and row id, one at least.

    Never all of them; none for a share of 0.
    """
    if not share:
        return set()
    count = min(max(round(share * len(row_ids)), 1), len(row_ids) - 1)
    drawn = sorted(range(len(row_ids)), key=lambda i: draw_key("early stopping", seed, row_ids[i]))
    return set(drawn[:count])


@dataclass
class Stopping:
    """Follows the loss on held-out rows: mean per response token, in nats; lower is better.

    `losses` are `(step, loss)` of the evaluations so far. The first one follows the first pass over the
    rows: whatever is chosen has seen every row.
    """

    rows: Sequence[TrainingRow]
    settings: EarlyStoppingSettings
    plan: Plan
    losses: list[tuple[int, float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    def is_due(self, step: int) -> bool:
        since = step - self.plan.steps_per_epoch
        return since >= 0 and (since % self.settings.steps == 0 or step == self.plan.steps)

    def after(self, step: int, loss: Callable[[], float], adapted: torch.nn.Module) -> bool:
        """Evaluates when it is time, keeps the weights when they are the best; whether to stop."""
        if not self.is_due(step):
            return self.stopped
        found = loss()
        if not self.losses or found < self.best_loss:
            self.best = {name: p.detach().cpu().clone() for name, p in trained(adapted).items()}
        self.losses.append((step, found))
        return self.stopped

    @property
    def best_loss(self) -> float:
        return min((loss for _, loss in self.losses), default=math.inf)

    @property
    def best_step(self) -> int:
        return min(self.losses, key=lambda found: (found[1], found[0]))[0]

    @property
    def stopped(self) -> bool:
        """Whether the last `patience` evaluations brought nothing better."""
        since = [loss for step, loss in self.losses if step > self.best_step] if self.losses else []
        return len(since) >= self.settings.patience

    def save(self, checkpoint: Path) -> None:
        from safetensors.torch import save_file

        write_json(checkpoint / STATE, {"losses": self.losses})
        if self.best:
            save_file(self.best, checkpoint / BEST)

    def load(self, checkpoint: Path) -> None:
        from safetensors.torch import load_file

        self.losses = [(step, loss) for step, loss in read_json(checkpoint / STATE)["losses"]]
        if self.losses:
            self.best = load_file(checkpoint / BEST)

    def restore(self, adapted: torch.nn.Module) -> None:
        """Puts the best weights into `adapted`."""
        import torch

        with torch.no_grad():
            for name, parameter in trained(adapted).items():
                parameter.copy_(self.best[name])

    def facts(self) -> dict[str, Any]:
        return {
            "held_out_rows": len(self.rows),
            "held_out_loss_first": round(self.losses[0][1], 6),
            "held_out_loss_best": round(self.best_loss, 6),
            "best_step": self.best_step,
            "last_step": self.losses[-1][0],
        }


def trained(adapted: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The weights that are trained, by name."""
    return {name: p for name, p in adapted.named_parameters() if p.requires_grad}
