"""Wanda (Sun et al. 2023): weights with the smallest |weight| x input norm of each output become zero.

llm-compressor does the work, layer by layer, each layer calibrated on the pruned ones before it. It is
kept from writing logs and files, and from replacing the model's `save_pretrained`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from paser.errors import StageError
from paser.models.tokens import Encoded
from paser.progress import Advance, progress
from paser.pruning.protocol import PruningReport
from paser.settings import NM_PATTERNS, PruneSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def wanda(
    model: PreTrainedModel, calibration: list[Encoded], settings: PruneSettings, seed: int
) -> PruningReport:
    """Prunes every linear layer but the vocabulary projection to `settings.sparsity`, in place.

    Samples are prompt and response, one a batch, so that no padding enters the norms. `model` must have
    been loaded from a folder. `seed` is not needed: Wanda makes no random choice.
    """
    samples = [sample for sample in calibration if sample.tokens > 0]
    if not samples:
        raise StageError(
            "there is no calibration sample to prune with",
            remedy="give the calibration role a source with usable rows in data/sources.yaml",
        )
    _check_blocks(model, settings)
    if settings.sparsity > 0:
        _oneshot(model, samples, settings)
    return PruningReport("wanda", len(samples), sum(sample.tokens for sample in samples))


def _check_blocks(model: PreTrainedModel, settings: PruneSettings) -> None:
    """N:M patterns need whole blocks of M inputs."""
    if settings.pattern not in NM_PATTERNS:
        return
    from torch.nn import Linear

    block = NM_PATTERNS[settings.pattern][1]
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module.in_features % block:
            raise StageError(
                f"prune.pattern {settings.pattern} does not fit layer {name}: "
                f"{module.in_features} inputs are no multiple of {block}",
                remedy="set prune.pattern: unstructured",
            )


def _oneshot(model: PreTrainedModel, samples: list[Encoded], settings: PruneSettings) -> None:
    import torch

    with _quiet():
        from compressed_tensors.offload import remove_dispatch
        from llmcompressor.entrypoints.oneshot import oneshot
        from llmcompressor.modifiers.pruning import WandaPruningModifier

        kept, block = NM_PATTERNS.get(settings.pattern, (0, 0))
        modifier = WandaPruningModifier(
            sparsity=settings.sparsity,
            mask_structure=f"{block - kept}:{block}",
            ignore=["re:.*lm_head"],
        )
        batches: Any = torch.utils.data.DataLoader(_batches(samples), batch_size=None, shuffle=False)
        unused: Any = _NoProcessor()
        rounds = 2 * len(samples) * (int(model.config.num_hidden_layers) + 1)
        with progress("wanda", rounds, "layer passes") as advance, _progress_of_llmcompressor(advance):
            oneshot(
                model=model,
                processor=unused,
                dataset=batches,
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


def _batches(samples: list[Encoded]) -> Any:
    import torch

    batches = []
    for sample in samples:
        ids = torch.tensor([sample.prompt_ids + sample.response_ids], dtype=torch.long)
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return batches


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
