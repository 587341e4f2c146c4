"""llm-compressor's one-shot pruning of a model in memory: what Wanda and SparseGPT share.

It is kept from writing logs and files, and from replacing the model's `save_pretrained`; its progress
bars are PASER's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from paser.errors import StageError
from paser.models.tokens import Encoded
from paser.progress import Advance, progress
from paser.pruning.calibration import finite_inputs, token_ids
from paser.pruning.layers import linear_layers, other_linear_layers
from paser.settings import NM_PATTERNS, PruneSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def mask_structure(settings: PruneSettings) -> str:
    """`prune.pattern` in llm-compressor's words: zeros of each block, `0:0` for none."""
    kept, block = NM_PATTERNS.get(settings.pattern, (0, 0))
    return f"{block - kept}:{block}"


def ignored(model: PreTrainedModel) -> list[str]:
    """The layers that stay as they are, as llm-compressor's patterns (it adds a dot to names)."""
    return [f"re:{re.escape(name)}\\.?$" for name in other_linear_layers(model)]


def oneshot(model: PreTrainedModel, samples: list[Encoded], modifier: Any, name: str) -> None:
    """Prunes `model` in place with one of llm-compressor's modifiers, block by block.

    Each block is calibrated on the outputs of the pruned ones before it. `model` must have been loaded from
    a folder; call it inside `quiet`. Raises `StageError` when activations are not finite.
    """
    import torch
    from compressed_tensors.offload import remove_dispatch
    from llmcompressor.entrypoints.oneshot import oneshot as run

    ids = [token_ids(sample) for sample in samples]
    batches: Any = [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in ids]
    loader: Any = torch.utils.data.DataLoader(batches, batch_size=None, shuffle=False)
    unused: Any = _NoProcessor()
    rounds = 2 * len(samples) * (int(model.config.num_hidden_layers) + 1)
    with (
        progress(name, rounds, "layer passes") as advance,
        _progress_of_llmcompressor(advance),
        _no_silent_fallback(),
        finite_inputs(linear_layers(model)),
    ):
        run(
            model=model,
            processor=unused,
            dataset=loader,
            recipe=modifier,
            pipeline="sequential",
            num_calibration_samples=len(samples),
            shuffle_calibration_samples=False,
            clear_sparse_session=True,
            save_compressed=False,
        )
    remove_dispatch(model)
    model.__dict__.pop("save_pretrained", None)


class _NoProcessor:
    """Keeps llm-compressor from loading a tokenizer: the samples are token ids already."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log lines (not even those at import), no log file, and the environment as it was."""
    wanted = {
        "LLM_COMPRESSOR_LOG_LEVEL": "ERROR",
        "LLM_COMPRESSOR_LOG_FILE": "",
        "TOKENIZERS_PARALLELISM": "false",
    }
    before = {key: os.environ.get(key) for key in wanted}
    tracer = logging.getLogger("torch.fx._symbolic_trace")
    level = tracer.level
    os.environ.update(wanted)
    tracer.setLevel(logging.ERROR)
    try:
        import llmcompressor

        llmcompressor.logger.disable("llmcompressor")
        yield
    finally:
        tracer.setLevel(level)
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


class _Refusing:
    """In the place of llm-compressor's logger: a warning says that it goes on with another method."""

    def warning(self, message: str, *_: Any) -> None:
        raise StageError(
            f"llm-compressor: {message}",
            remedy="give the calibration role more rows in data/sources.yaml, or raise "
            "prune.options.dampening",
        )

    def info(self, *_: Any) -> None:
        return None


@contextlib.contextmanager
def _no_silent_fallback() -> Iterator[None]:
    """SparseGPT would replace a covariance that it cannot invert by the identity, and only log it."""
    from llmcompressor.modifiers.pruning.sparsegpt import sgpt_sparsify

    module: Any = sgpt_sparsify
    before = module.logger
    module.logger = _Refusing()
    try:
        yield
    finally:
        module.logger = before


@contextlib.contextmanager
def _progress_of_llmcompressor(advance: Advance) -> Iterator[None]:
    """Puts PASER's progress in the place of llm-compressor's bars, which cannot be switched off."""
    from llmcompressor.pipelines import cache
    from llmcompressor.pipelines.sequential import pipeline

    def counted(batches: Iterable[Any], **_: Any) -> Iterator[Any]:
        for batch in batches:
            yield batch
            advance()

    def silent(batches: Iterable[Any], **_: Any) -> Iterable[Any]:
        return batches

    shown: dict[Any, Callable[..., Any]] = {pipeline: counted, cache: silent}
    before = {module: module.tqdm for module in shown}
    for module, replacement in shown.items():
        module.tqdm = replacement
    try:
        yield
    finally:
        for module, tqdm in before.items():
            module.tqdm = tqdm
