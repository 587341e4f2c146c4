"""Training curves for TensorBoard or Weights & Biases, where `recover.report_to` asks for them.

They are written outside the model and the records, because they hold times.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from paser.errors import SettingsError

# What to install; wandb brings too much for an extra of its own.
PACKAGES = {"tensorboard": "'paser[track]'", "wandb": "wandb"}


def check_reporter(name: str) -> None:
    """Raises SettingsError where the package that `recover.report_to` names is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise SettingsError(
            f"recover.report_to is {name}, but the package {name} is not installed",
            remedy=f"pip install {PACKAGES[name]}, or set recover.report_to: none",
        )


def reporter(name: str, logs: Path | None, title: str) -> Any:
    """A callback of transformers that writes the curves below `logs`; None where there is nothing to do.

    Weights & Biases stays offline unless `WANDB_MODE` says otherwise; `wandb sync` uploads the folder later.
    """
    if name == "none" or logs is None:
        return None
    check_reporter(name)
    logs.mkdir(parents=True, exist_ok=True)
    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations.integration_utils import TensorBoardCallback

        return TensorBoardCallback(SummaryWriter(str(logs)))
    from transformers.integrations.integration_utils import WandbCallback

    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_PROJECT", "paser")
    os.environ.setdefault("WANDB_NAME", title)
    os.environ["WANDB_DIR"] = str(logs)
    return WandbCallback()
