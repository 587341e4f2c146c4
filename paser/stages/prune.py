"""Prunes the original model; saves both as bfloat16 safetensors and measures what was achieved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paser.errors import StageError
from paser.progress import say
from paser.settings import PruneSettings

if TYPE_CHECKING:
    from paser.models.sparsity import Sparsity
    from paser.stages.run import Context

# Largest accepted distance between the sparsity asked for and the one measured.
TOLERANCE = 0.01


def run(context: Context) -> None:
    import torch

    from paser.artifacts import read_rows
    from paser.models.loading import load_causal_lm, load_tokenizer, model_directory, save_causal_lm
    from paser.models.precision import choose_device, choose_dtype, set_threads
    from paser.models.sparsity import measure
    from paser.models.tokens import SampleEncoder
    from paser.pruning.protocol import scheme
    from paser.records import row_to_sample

    settings = context.settings.prune
    set_threads(context.settings.runtime.threads)
    device = choose_device(context.settings.runtime.device)
    dtype = choose_dtype(context.settings.model.precision, device, context.cache)
    source = model_directory(context.input("data/sources/original"))
    original, pruned = context.out("data/models/original"), context.out("data/models/pruned")

    tokenizer = load_tokenizer(source)
    save_causal_lm(load_causal_lm(source, dtype=torch.bfloat16), tokenizer, original)

    encoder = SampleEncoder(tokenizer)
    rows = read_rows(context.input("data/calibration.parquet"), "pool")
    calibration = [encoder.encode(row_to_sample(row), settings.max_tokens) for row in rows]
    model: Any = load_causal_lm(original, dtype=dtype, device=device)
    report = scheme(settings.scheme)(model, calibration, settings, context.settings.seed)
    save_causal_lm(model.to(device="cpu", dtype=torch.bfloat16), tokenizer, pruned)

    sparsity = measure(pruned)
    check_achieved(sparsity, settings)
    context.note(
        scheme=report.scheme,
        calibration_samples=report.samples,
        calibration_tokens=report.tokens,
        calibration_cut=sum(sample.cut for sample in calibration),
        dtype=str(dtype).removeprefix("torch."),
        template=encoder.template,
        sparsity=sparsity.as_json(),
    )
    say(
        f"prune: {report.scheme} on {report.samples} samples; {sparsity.overall:.1%} zeros "
        f"({sparsity.lowest:.1%} to {sparsity.highest:.1%} a layer), {sparsity.pattern}"
    )


def check_achieved(sparsity: Sparsity, settings: PruneSettings) -> None:
    """Raises `StageError` when the saved weights are not as sparse as, or not in the pattern, asked for."""
    if abs(sparsity.overall - settings.sparsity) > TOLERANCE:
        raise StageError(
            f"prune.sparsity is {settings.sparsity:.1%}, but the saved weights have {sparsity.overall:.1%}",
            remedy="the model has layers that the scheme does not reach, or layers too narrow for this "
            "share; choose another prune.sparsity",
        )
    if settings.pattern == "unstructured":
        return
    broken = [layer.name for layer in sparsity.layers if settings.pattern not in layer.patterns]
    if broken:
        raise StageError(
            f"prune.pattern is {settings.pattern}, but {len(broken)} layers do not keep it, "
            f"{broken[0]} first",
            remedy="set prune.pattern: unstructured",
        )
