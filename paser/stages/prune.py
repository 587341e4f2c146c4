"""Prunes the original model, or takes a pruned one from outside; saves both as bfloat16 safetensors and
measures what was achieved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.errors import ModelError
from paser.progress import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from paser.stages.run import Context

ORIGINAL, PRUNED = "data/models/original", "data/models/pruned"


def run(context: Context) -> None:
    import torch

    from paser.models.loading import load_causal_lm, load_tokenizer, model_directory, save_causal_lm
    from paser.models.precision import set_threads

    set_threads(context.settings.runtime.threads)
    source = model_directory(context.input("data/sources/original"))
    tokenizer = load_tokenizer(source)
    save_causal_lm(load_causal_lm(source, dtype=torch.bfloat16), tokenizer, context.out(ORIGINAL))
    if context.settings.prune.external is None:
        _prune(context, tokenizer)
    else:
        _take(context, tokenizer)


def _prune(context: Context, tokenizer: PreTrainedTokenizerBase) -> None:
    import torch

    from paser.artifacts import read_rows
    from paser.models.loading import load_causal_lm, save_causal_lm
    from paser.models.precision import choose_device, choose_dtype
    from paser.models.shapes import describe
    from paser.models.tokens import SampleEncoder
    from paser.pruning.protocol import prune, scheme
    from paser.records import row_to_sample

    settings = context.settings.prune
    device = choose_device(context.settings.runtime.device)
    dtype = choose_dtype(context.settings.model.precision, device, context.cache)
    original, pruned = context.out(ORIGINAL), context.out(PRUNED)
    encoder = SampleEncoder(tokenizer)
    rows = read_rows(context.input("data/calibration.parquet"), "pool")
    calibration = [encoder.encode(row_to_sample(row), settings.max_tokens) for row in rows]

    model: Any = load_causal_lm(original, dtype=dtype, device=device)
    result = prune(model, calibration, settings, context.settings.seed)
    smaller: Any = result.model
    describe(smaller, base=f"data/sources/original, SHA-256 {context.digest('data/sources/original')}")
    save_causal_lm(smaller.to(device="cpu", dtype=torch.bfloat16), tokenizer, pruned)

    report = result.report
    context.note(
        scheme=report.scheme,
        calibration_samples=report.samples,
        calibration_tokens=report.tokens,
        calibration_cut=sum(sample.cut for sample in calibration),
        dtype=str(dtype).removeprefix("torch."),
        template=encoder.template,
        measured=dict(report.facts),
    )
    achieved = _achieved(context, scheme(settings.scheme).kind, original, pruned, report.facts.get("blocks"))
    say(f"prune: {report.scheme} on {report.samples} samples; {achieved}")


def _achieved(context: Context, kind: Any, original: Path, pruned: Path, blocks: Any) -> str:
    """Checks the saved files against the settings, notes the facts, and returns them as a sentence."""
    from paser.models.sparsity import measure
    from paser.pruning.achieved import check_removed, check_width, check_zeros, removed

    settings = context.settings.prune
    if kind == "unstructured":
        sparsity = measure(pruned)
        check_zeros(sparsity, settings)
        context.note(sparsity=sparsity.as_json())
        return (
            f"{sparsity.overall:.1%} zeros ({sparsity.lowest:.1%} to {sparsity.highest:.1%} a layer), "
            f"{sparsity.pattern}"
        )
    found = removed(original, pruned, blocks)
    context.note(removed=found.as_json())
    if kind == "sliced":
        before, after = check_width(original, pruned, settings)
        context.note(stream_width={"before": before, "after": after})
        return (
            f"{after} of {before} dimensions of the residual stream are left; {found.total_after:,} "
            f"parameters (before: {found.total_before:,}; shortcuts and untied embeddings included)"
        )
    check_removed(found, kind, settings)
    return (
        f"{found.share:.1%} of the parameters of {found.pruned_blocks} blocks are gone; "
        f"{found.total_after:,} of {found.total_before:,} remain"
    )


def _take(context: Context, tokenizer: PreTrainedTokenizerBase) -> None:
    """The model of `prune.external` in place of pruning, after it was checked against the original."""
    import torch

    from paser.models.loading import load_causal_lm, model_directory, save_causal_lm
    from paser.models.sparsity import measure
    from paser.pruning.achieved import removed

    folder = model_directory(context.input("data/sources/pruned"))
    original, pruned = context.out(ORIGINAL), context.out(PRUNED)
    model = load_causal_lm(folder, dtype=torch.bfloat16)
    check_external(model, folder, tokenizer, original)
    save_causal_lm(model, tokenizer, pruned)
    sparsity, found = measure(pruned), removed(original, pruned)
    context.note(scheme="external", sparsity=sparsity.as_json(), removed=found.as_json())
    say(
        f"prune: taken from {context.settings.prune.external}; {sparsity.overall:.1%} zeros, "
        f"{sparsity.pattern}; {found.total_after:,} of {found.total_before:,} parameters"
    )


def check_external(
    model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase, original: Path
) -> None:
    """Raises `ModelError` when `model` (of `folder`) is no pruned form of the saved model `original`.

    Architecture and vocabulary are the original's and every weight is a finite number. A folder without
    a tokenizer is taken to use the original's.
    """
    import torch
    from transformers import AutoConfig

    from paser.models.loading import load_tokenizer, vocabulary_mismatch

    expected = AutoConfig.from_pretrained(original, local_files_only=True, trust_remote_code=False)
    remedy = "prune.external must name a pruned form of the model that has the role original"
    if model.config.model_type != expected.model_type:
        raise ModelError(
            f"{folder} has the architecture {model.config.model_type}, the original {expected.model_type}",
            remedy=remedy,
        )
    if model.config.vocab_size != expected.vocab_size:
        raise ModelError(
            f"{folder} knows {model.config.vocab_size} tokens, the original {expected.vocab_size}",
            remedy=remedy,
        )
    own = any(any(folder.glob(name)) for name in ("tokenizer_config.json", "tokenizer.json", "*.gguf"))
    if own and (mismatch := vocabulary_mismatch(tokenizer, load_tokenizer(folder))):
        raise ModelError(f"{folder}: its tokenizer is not the original's: {mismatch}", remedy=remedy)
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise ModelError(
                f"{folder}: the weight {name} holds numbers that are not finite",
                remedy="save the model again in bfloat16 or float32 from where it was pruned",
            )
