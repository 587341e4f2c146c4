"""Several models loaded for one pass over a table: shared by scoring and evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from paser.cache import Cache
from paser.errors import ModelError
from paser.lineage.record import code_digest, package_versions
from paser.method.divergence import Divergences
from paser.models.packing import device_of, pack
from paser.models.passes import FusedPass, context_length, head_of
from paser.models.shards import Arrays, run_rows
from paser.models.tokens import Encoded, SampleEncoder
from paser.progress import say, warn
from paser.records import row_to_sample
from paser.settings import ScoreSettings, Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


# What decides a score beside models, settings and libraries.
CODE = (
    "paser/models", "paser/method/divergence.py", "paser/method/recoverability.py", "paser/records.py",
)  # fmt: skip
# Forward passes in one portion of an actor's work.
PASSES = 8


class Models(Protocol):
    """Several models that compare rows, wherever they are: here or in actors."""

    @property
    def encoder(self) -> SampleEncoder: ...
    @property
    def precision(self) -> str: ...
    @property
    def threads(self) -> int: ...
    def devices(self) -> list[str]:
        """Where the models compute."""
        ...

    def limit(self, max_tokens: int) -> int:
        """`max_tokens`, or less where a model's context is shorter."""
        ...

    def groups(
        self, samples: Sequence[Encoded], settings: ScoreSettings
    ) -> Iterator[tuple[list[int], Arrays]]:
        """Positions in `samples` and the arrays of `FusedPass`, in portions of some seconds of work."""
        ...


def open_models(
    paths: Mapping[str, Path], digests: Mapping[str, str], settings: Settings, cache: Cache
) -> Models:
    """The models at `paths`, the first one the reference, where `runtime.engine` wants them."""
    if settings.runtime.engine == "ray":
        return ActorModels.of(paths, digests, settings, cache)
    return ModelSet.load(paths, settings, cache)


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
        tokenizer = shared_tokenizer(paths)
        share = memory_shares(device, len(paths)) if runtime.device_map == "auto" else None
        loaded = {
            name: load_causal_lm(path, dtype=dtype, device=device, max_memory=share)
            for name, path in paths.items()
        }
        return cls.of(loaded, tokenizer, threads)

    @classmethod
    def of(
        cls,
        loaded: Mapping[str, PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase,
        threads: int | None = None,
    ) -> ModelSet:
        """Models that are loaded, in the number type of the first one, which is the reference.

        Raises ModelError where their vocabulary projections differ in size.
        """
        import torch

        first, *rest = loaded
        widths = {name: next(head_of(model).parameters()).shape[0] for name, model in loaded.items()}
        if len({*widths.values()}) > 1:
            raise ModelError(
                f"the models' vocabulary projections have different sizes: {widths}",
                remedy="the pruned model must keep the original's vocabulary",
            )
        encoder, others = _sample_encoder(tokenizer), {name: loaded[name] for name in rest}
        precision = str(loaded[first].dtype).removeprefix("torch.")
        return cls(loaded[first], others, encoder, precision, threads or torch.get_num_threads())

    def devices(self) -> list[str]:
        modules = [m for model in (self.reference, *self.others.values()) for m in model.modules()]
        return sorted({str(device_of(m)) for m in modules if any(True for _ in m.parameters(recurse=False))})

    def limit(self, max_tokens: int) -> int:
        return _limit([m.config for m in (self.reference, *self.others.values())], max_tokens)

    def groups(
        self, samples: Sequence[Encoded], settings: ScoreSettings
    ) -> Iterator[tuple[list[int], Arrays]]:
        fused = FusedPass(self.reference, self.others, settings.temperature, settings.batch_tokens)
        if not fused.packed:
            say("  these models cannot read several rows in one pass: each row has a pass of its own")
        yield from fused.groups(samples)


@dataclass(frozen=True)
class ActorModels:
    """A `ModelSet` in each actor of a Ray cluster. Nothing is loaded here but the tokenizer."""

    paths: Mapping[str, Path]
    digests: Mapping[str, str]
    settings: Settings
    cache: Cache
    encoder: SampleEncoder
    device: str
    precision: str
    threads: int

    @classmethod
    def of(
        cls, paths: Mapping[str, Path], digests: Mapping[str, str], settings: Settings, cache: Cache
    ) -> ActorModels:
        """Raises ModelError where vocabularies differ, SettingsError where Ray is missing or silent."""
        from paser.models.actors import connect
        from paser.models.precision import choose_dtype, set_threads

        runtime = settings.runtime
        connect(runtime)
        device, threads = ("cuda" if runtime.gpus_per_actor else "cpu"), set_threads(runtime.threads)
        wanted = settings.model.precision
        if device == "cuda" and wanted == "auto":
            wanted = "bfloat16"  # an actor on a GPU without it says so
        precision = str(choose_dtype(wanted, device, cache)).removeprefix("torch.")
        encoder = _sample_encoder(shared_tokenizer(paths))
        return cls(dict(paths), dict(digests), settings, cache, encoder, device, precision, threads)

    def devices(self) -> list[str]:
        return ["cuda:0" if self.device == "cuda" else self.device]

    def limit(self, max_tokens: int) -> int:
        from paser.models.loading import load_config

        return _limit([load_config(path) for path in self.paths.values()], max_tokens)

    def groups(
        self, samples: Sequence[Encoded], settings: ScoreSettings
    ) -> Iterator[tuple[list[int], Arrays]]:
        from paser.models.actors import Job

        paths = {name: path.resolve() for name, path in self.paths.items()}
        update = {"device": self.device, "threads": self.threads, "engine": "local", "gpus_per_actor": 0.0}
        runtime = self.settings.runtime.model_copy(update=update)
        actor = self.settings.model_copy(update={"runtime": runtime, "score": settings})
        if self.device == "cpu":
            model = actor.model.model_copy(update={"precision": self.precision})
            actor = actor.model_copy(update={"model": model})
        job = Job(
            _Scoring,
            {"paths": paths, "settings": actor, "cache": self.cache, "precision": self.precision},
            {path: self.digests[name] for name, path in paths.items()},
            CODE,
            self.settings.runtime,
            self.threads,
        )
        lengths = [sample.tokens for sample in samples]
        portions = pack(lengths, max(PASSES * settings.batch_tokens, *lengths))
        yield from job.run([(portion, _table([samples[i] for i in portion])) for portion in portions])


class _Scoring:
    """The work of one actor: `FusedPass` over the samples of a table."""

    def __init__(self, paths: Mapping[str, Path], settings: Settings, cache: Cache, precision: str) -> None:
        self._models = ModelSet.load(paths, settings, cache)
        self._settings = settings.score
        if self._models.precision != precision:
            raise ModelError(
                f"this node's GPU computes in {self._models.precision}, not in {precision}",
                remedy="set model.precision, which is the same on every node",
            )

    def __call__(self, table: pa.Table) -> Arrays:
        import numpy as np

        samples = [
            Encoded(tuple(prompt), tuple(response), cut)
            for prompt, response, cut in zip(
                *(table[name].to_pylist() for name in ("prompt_ids", "response_ids", "cut")), strict=True
            )
        ]
        done = list(self._models.groups(samples, self._settings))
        order = np.argsort([p for positions, _ in done for p in positions], kind="stable")
        return {name: np.concatenate([arrays[name] for _, arrays in done])[order] for name in done[0][1]}


def _table(samples: Sequence[Encoded]) -> pa.Table:
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    return pa.table(
        {
            "prompt_ids": pa.array([sample.prompt_ids for sample in samples], ids),
            "response_ids": pa.array([sample.response_ids for sample in samples], ids),
            "cut": pa.array([sample.cut for sample in samples], pa.bool_()),
        }
    )


def _limit(configs: Sequence[PretrainedConfig], max_tokens: int) -> int:
    shortest = min((c for c in map(context_length, configs) if c), default=max_tokens)
    if shortest < max_tokens:
        warn(f"samples are cut at the models' context of {shortest} tokens (asked: {max_tokens})")
    return min(shortest, max_tokens)


def _sample_encoder(tokenizer: PreTrainedTokenizerBase) -> SampleEncoder:
    encoder = SampleEncoder(tokenizer)
    if encoder.template == "plain":
        say("  the tokenizer has no chat template: a plain instruction/response template is used")
    return encoder


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
    models: Models,
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
        for done, arrays in models.groups([encoded[p] for p in positions], settings):
            yield [positions[p] for p in done], arrays

    row_ids = [str(row["row_id"]) for row in rows]
    sizes = [sample.tokens for sample in encoded]
    return run_rows(title, row_ids, determines, compute, cache, sizes)


def score_rows(
    pool: Sequence[Mapping[str, Any]],
    models: Models,
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
            "recoverability": finite(arrays["recoverability_pruned"][i]),
            "prompt_tokens": int(arrays["prompt_tokens"][i]),
            "response_tokens": int(arrays["response_tokens"][i]),
            "status": str(arrays["status"][i]),
        }
        for i, row in enumerate(pool)
    ]


def finite(value: float) -> float | None:
    """A number, or None where it is NaN or infinite (parquet and JSON have no stable NaN)."""
    return float(value) if math.isfinite(value) else None
