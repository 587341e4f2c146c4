"""Several models loaded for one pass over a table: shared by scoring and evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.cache import Cache
from paser.errors import ModelError
from paser.lineage.record import code_digest, package_versions
from paser.method.divergence import Divergences
from paser.models.packing import device_of
from paser.models.passes import FusedPass, context_length, head_of
from paser.models.shards import Arrays, run_rows
from paser.models.tokens import SampleEncoder
from paser.progress import say, warn
from paser.records import row_to_sample
from paser.settings import ScoreSettings, Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# What decides a score beside models, settings and libraries.
CODE = ("paser/models", "paser/method/divergence.py", "paser/records.py")


@dataclass(frozen=True)
class ModelSet:
    """The reference model, those compared with it, and the encoder they share."""

    reference: PreTrainedModel
    others: Mapping[str, PreTrainedModel]
    encoder: SampleEncoder
    precision: str
    threads: int

    @classmethod
    def load(cls, paths: Mapping[str, Path], settings: Settings, cache: Cache) -> ModelSet:
        """Loads the models at `paths`; the first one is the reference.

        Raises ModelError where two vocabularies differ: their distributions cannot be compared.
        """
        from paser.models.loading import load_causal_lm
        from paser.models.precision import choose_device, choose_dtype, memory_shares, set_threads

        runtime = settings.runtime
        device, threads = choose_device(runtime.device), set_threads(runtime.threads)
        dtype = choose_dtype(settings.model.precision, device, cache)
        first, *rest = paths
        tokenizer = shared_tokenizer(paths)
        share = memory_shares(device, len(paths)) if runtime.device_map == "auto" else None
        loaded = {
            name: load_causal_lm(path, dtype=dtype, device=device, max_memory=share)
            for name, path in paths.items()
        }
        widths = {name: next(head_of(model).parameters()).shape[0] for name, model in loaded.items()}
        if len({*widths.values()}) > 1:
            raise ModelError(
                f"the models' vocabulary projections have different sizes: {widths}",
                remedy="the pruned model must keep the original's vocabulary",
            )
        encoder = SampleEncoder(tokenizer)
        if encoder.template == "plain":
            say("  the tokenizer has no chat template: a plain instruction/response template is used")
        others = {name: loaded[name] for name in rest}
        return cls(loaded[first], others, encoder, str(dtype).removeprefix("torch."), threads)

    def devices(self) -> list[str]:
        """Where the models compute."""
        modules = [m for model in (self.reference, *self.others.values()) for m in model.modules()]
        return sorted({str(device_of(m)) for m in modules if any(True for _ in m.parameters(recurse=False))})

    def limit(self, max_tokens: int) -> int:
        """`max_tokens`, or less where a model's context is shorter."""
        contexts = [context_length(m) for m in (self.reference, *self.others.values())]
        shortest = min((c for c in contexts if c), default=max_tokens)
        if shortest < max_tokens:
            warn(f"samples are cut at the models' context of {shortest} tokens (asked: {max_tokens})")
        return min(shortest, max_tokens)


def shared_tokenizer(paths: Mapping[str, Path]) -> PreTrainedTokenizerBase:
    """The first model's tokenizer; raises ModelError unless all number the same tokens alike."""
    from paser.models.loading import load_tokenizer, vocabulary_mismatch

    first, *rest = paths
    tokenizer = load_tokenizer(paths[first])
    for name in rest:
        if why := vocabulary_mismatch(tokenizer, load_tokenizer(paths[name])):
            raise ModelError(
                f"models {first!r} ({paths[first]}) and {name!r} ({paths[name]}) have different "
                f"vocabularies: {why}",
                remedy="the pruned model must come from the original one",
            )
    return tokenizer


def fused_arrays(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    models: ModelSet,
    digests: Mapping[str, str],
    settings: ScoreSettings,
    cache: Cache,
) -> Arrays:
    """`FusedPass` over rows of a pool table; arrays in row order. What `cache` holds is not run again."""
    limit = models.limit(settings.max_tokens)
    encoded = [models.encoder.encode(row_to_sample(dict(row)), limit) for row in rows]
    cut = sum(sample.cut for sample in encoded)
    if cut:
        warn(f"{cut} of {len(rows)} rows are longer than {limit} tokens and were cut at the end")
    fused = FusedPass(models.reference, models.others, settings.temperature, settings.batch_tokens)
    determines = {
        "models": dict(digests),
        "max_tokens": limit,
        "batch_tokens": settings.batch_tokens,
        "temperature": settings.temperature,
        "precision": models.precision,
        "devices": models.devices(),
        "threads": models.threads,
        "template": models.encoder.template,
        "versions": package_versions(),
        "code": code_digest(CODE),
    }

    def compute(positions: list[int]) -> Iterator[tuple[list[int], Arrays]]:
        if not fused.packed:
            say("  these models cannot read several rows in one pass: each row has a pass of its own")
        for done, arrays in fused.groups([encoded[p] for p in positions]):
            yield [positions[p] for p in done], arrays

    row_ids = [str(row["row_id"]) for row in rows]
    sizes = [sample.tokens for sample in encoded]
    return run_rows(title, row_ids, determines, compute, cache, sizes)


def score_rows(
    pool: Sequence[Mapping[str, Any]],
    models: ModelSet,
    digests: Mapping[str, str],
    settings: ScoreSettings,
    cache: Cache,
) -> list[dict[str, Any]]:
    """The rows of `scores.parquet`: the pool scored with the models `original` and `pruned`."""
    arrays = fused_arrays("score", pool, models, digests, settings, cache)
    return [
        {
            "row_id": row["row_id"],
            **{name: finite(arrays[f"{name}_pruned"][i]) for name in Divergences._fields},
            "loss_original": finite(arrays["loss"][i]),
            "loss_pruned": finite(arrays["loss_pruned"][i]),
            "prompt_tokens": int(arrays["prompt_tokens"][i]),
            "response_tokens": int(arrays["response_tokens"][i]),
            "status": str(arrays["status"][i]),
        }
        for i, row in enumerate(pool)
    ]


def finite(value: float) -> float | None:
    """A number, or None where it is NaN or infinite (parquet and JSON have no stable NaN)."""
    return float(value) if math.isfinite(value) else None
