"""The fused pass against its parts and against the naive protocol, on the default model and a pruned copy."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.data import ROOT, as_sample, original_model, real_rows
from benchmarks.measure import measured
from paser.artifacts import fingerprint, sha256_path, staged
from paser.cache import Cache
from paser.method.efficiency import agreement
from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm
from paser.models.packing import hidden_packed, pack, row_attention
from paser.models.passes import CHUNK, FusedPass, project
from paser.models.precision import set_threads
from paser.models.tokens import Encoded, SampleEncoder
from paser.progress import say
from paser.settings import PruneSettings, ScoreSettings

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

TOKENS = 12_000
CALIBRATION_ROWS, CALIBRATION_TOKENS = 32, 128
REPEATS = 3
# Padded tokens in a batch of the bare passes; the fastest one counts.
BARE_BATCHES = (512, 1024, 2048)
TARGET_BARE, TARGET_NAIVE, TARGET_SPEARMAN, TARGET_DIFFERENCE = 1.15, 8.0, 0.99, 0.03


def run() -> dict[str, Any]:
    pruned_model()
    result: dict[str, Any] = measured("benchmarks.scoring:scoring")["result"]
    return result


def rows_by_digest(max_tokens: int) -> list[tuple[str, Encoded]]:
    """Label and tokens of every row that is not longer than `max_tokens`, in the order of the row ids."""
    encoder = SampleEncoder(load_tokenizer(original_model()))
    samples = sorted((as_sample(i, row) for i, row in enumerate(real_rows())), key=lambda s: s.row_id)
    chosen: list[tuple[str, Encoded]] = []
    tokens = 0
    for sample in samples:
        encoded = encoder.encode(sample, max_tokens)
        if not encoded.cut and tokens + encoded.tokens <= TOKENS:
            chosen.append((str(sample.label), encoded))
            tokens += encoded.tokens
        if tokens > TOKENS - 2 * CALIBRATION_ROWS:
            break
    return chosen


def pruned_model() -> Path:
    """The original model after Wanda 50 %, calibrated on the rows with the highest row ids."""
    import torch

    from paser.pruning.wanda import wanda

    source, settings = original_model(), PruneSettings()
    key = fingerprint(
        ["wanda", sha256_path(source), settings.model_dump(), CALIBRATION_ROWS, CALIBRATION_TOKENS]
    )
    folder = Cache.of(ROOT).entry("bench", key)
    if not folder.exists():
        say("pruning the default model")
        tokenizer = load_tokenizer(source)
        encoder = SampleEncoder(tokenizer)
        samples = sorted((as_sample(i, row) for i, row in enumerate(real_rows())), key=lambda s: s.row_id)
        calibration = [encoder.encode(s, CALIBRATION_TOKENS) for s in samples[-CALIBRATION_ROWS:]]
        model = load_causal_lm(source, dtype=torch.bfloat16)
        wanda(model, calibration, settings, seed=0)
        with staged(folder) as target:
            save_causal_lm(model, tokenizer, target)
    return folder


def scoring() -> dict[str, Any]:
    import numpy as np
    import torch

    threads, settings = set_threads(0), ScoreSettings()
    labels, samples = zip(*rows_by_digest(settings.max_tokens), strict=True)
    paths = original_model(), pruned_model()
    narrow = [load_causal_lm(path, dtype=torch.bfloat16) for path in paths]
    seconds, found = compared(narrow, samples, settings)
    split = parts(narrow, samples, settings)
    wide = [load_causal_lm(path, dtype=torch.float32) for path in paths]
    exact: list[np.ndarray] = []
    seconds["naive"] = timed(lambda: exact.extend(naive(wide, samples) for _ in range(2)))
    jsd = found["jsd_pruned"]
    columns = {
        "jsd": jsd,
        "kl": found["kl_pruned"],
        "reverse_kl": found["reverse_kl_pruned"],
        "delta_loss": found["loss_pruned"] - found["loss"],
    }
    return {
        "rows": len(samples),
        "tokens": sum(s.tokens for s in samples),
        "response_tokens": sum(len(s.response_ids) for s in samples),
        "labels": dict(sorted(Counter(labels).items())),
        "batch_tokens": settings.batch_tokens,
        "threads": threads,
        "seconds": sum(seconds.values()),
        "best": seconds,
        "parts": split,
        "spearman": agreement({"bfloat16": jsd, "float32": exact[0]})["bfloat16"]["float32"]["spearman"],
        "difference": float(np.median(np.abs(jsd - exact[0]) / exact[0])),
        "agreement": agreement(columns),
        "means": {name: float(values.mean()) for name, values in columns.items()},
    }


def compared(
    models: list[PreTrainedModel], samples: tuple[Encoded, ...], settings: ScoreSettings
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Best seconds of the fused and of the bare passes, and what the fused pass found."""
    fused = FusedPass(models[0], {"pruned": models[1]}, settings.temperature, settings.batch_tokens)
    found = fused(samples)
    work: dict[str, Callable[[], Any]] = {"fused": partial(fused, samples)}
    for size in BARE_BATCHES:
        work[f"bare {size}"] = partial(bare, models, samples, size)
    seconds = dict.fromkeys(work, float("inf"))
    for repeat in range(REPEATS):
        for name, call in work.items():
            seconds[name] = min(seconds[name], timed(call))
        say(f"  round {repeat + 1}: " + ", ".join(f"{n} {s:.1f} s" for n, s in seconds.items()))
    return seconds, found


def parts(
    models: list[PreTrainedModel], samples: tuple[Encoded, ...], settings: ScoreSettings
) -> dict[str, float]:
    """Seconds of the fused pass's backbones and projections run alone, the best of `REPEATS`."""
    import torch

    plan = pack([s.tokens for s in samples], settings.batch_tokens)
    rows = [[samples[i].prompt_ids + samples[i].response_ids for i in members] for members in plan]
    states = torch.zeros(CHUNK, models[0].config.hidden_size, dtype=models[0].dtype)
    chunks = -(-sum(len(s.response_ids) for s in samples) // CHUNK)

    def backbones() -> None:
        for model in models:
            with row_attention(model):
                for members in rows:
                    hidden_packed(model, members, settings.batch_tokens)

    def projections() -> None:
        for model in models:
            for _ in range(chunks):
                project(model, states)

    with torch.inference_mode():
        return {
            name: min(timed(call) for _ in range(REPEATS))
            for name, call in (("backbones", backbones), ("projections", projections))
        }


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bare(models: list[PreTrainedModel], samples: tuple[Encoded, ...], size: int) -> None:
    """Both backbones on padded batches of rows of like length, and the projection of response positions."""
    import torch

    batches: list[list[Encoded]] = []
    for sample in sorted(samples, key=lambda s: -s.tokens):
        if batches and batches[-1][0].tokens * (len(batches[-1]) + 1) <= size:
            batches[-1].append(sample)
        else:
            batches.append([sample])
    with torch.inference_mode():
        for model in models:
            waiting = []
            for batch in batches:
                ids = torch.zeros(len(batch), batch[0].tokens, dtype=torch.long)
                for row, sample in enumerate(batch):
                    ids[row, : sample.tokens] = torch.tensor(sample.prompt_ids + sample.response_ids)
                states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
                for row, sample in enumerate(batch):
                    waiting.append(states[row, len(sample.prompt_ids) - 1 : sample.tokens - 1])
            for chunk in torch.cat(waiting).split(CHUNK):
                project(model, chunk)


def naive(models: list[PreTrainedModel], samples: tuple[Encoded, ...]) -> np.ndarray:
    """Mean JSD of each row: one row at a time, the whole vocabulary at every position."""
    import numpy as np
    import torch

    scores = []
    with torch.inference_mode():
        for sample in samples:
            ids = torch.tensor([sample.prompt_ids + sample.response_ids])
            p, q = (model(ids).logits[0].float().softmax(-1) for model in models)
            m = (p + q) / 2
            tokens = (torch.xlogy(p, p / m) + torch.xlogy(q, q / m)).sum(-1) / 2
            scores.append(float(tokens[len(sample.prompt_ids) - 1 : -1].mean()))
    return np.array(scores)


def render(result: dict[str, Any]) -> str:
    best, rows = result["best"], result["rows"]
    size = min(BARE_BATCHES, key=lambda s: float(best[f"bare {s}"]))
    plain = best[f"bare {size}"]
    ratio, faster = best["fused"] / plain, best["naive"] / best["fused"]
    checks = [
        ("fused pass / bare passes", f"{ratio:.2f}", f"at most {TARGET_BARE}", ratio <= TARGET_BARE),
        (
            "naive protocol / fused pass",
            f"{faster:.1f}",
            f"at least {TARGET_NAIVE:.0f}",
            faster >= TARGET_NAIVE,
        ),
        (
            "Spearman, JSD by row, to float32",
            f"{result['spearman']:.4f}",
            f"at least {TARGET_SPEARMAN}",
            result["spearman"] >= TARGET_SPEARMAN,
        ),
        (
            "median relative difference of JSD to float32",
            f"{result['difference']:.2%}",
            f"at most {TARGET_DIFFERENCE:.0%}",
            result["difference"] <= TARGET_DIFFERENCE,
        ),
    ]
    table = "\n".join(
        f"| {what} | {value} | {aim} | {'met' if met else 'missed'} |" for what, value, aim, met in checks
    )
    times = "\n".join(
        f"| {what} | {best[name]:.1f} | {result['tokens'] / best[name]:,.0f} |"
        for what, name in (
            (f"fused pass, {result['batch_tokens']} tokens a pass", "fused"),
            *((f"bare passes and projection, batches of {s}", f"bare {s}") for s in BARE_BATCHES),
            ("naive protocol, float32 (once)", "naive"),
        )
    )
    pairs = "\n".join(
        f"| {one} | {other} | {pair['spearman']:.3f} | {pair['top_overlap']:.0%} |"
        for one, others in result["agreement"].items()
        for other, pair in others.items()
    )
    means = ", ".join(f"{name} {value:.3f}" for name, value in result["means"].items())
    return f"""## Scoring

SmolLM2-135M and the same after Wanda 50 %, bfloat16, {result["threads"]} threads: {rows} real rows of {len(result["labels"])} labels,
{result["tokens"]:,} tokens, {result["response_tokens"]:,} of them responses. Best of {REPEATS} interleaved runs.

| | seconds | tokens/s |
|---|---|---|
{times}

Bare passes: both backbones on padded batches of rows of like length, then the vocabulary projection of the
response positions; the faster batch size counts. Naive protocol: float32, one row at a time, the whole
vocabulary at every position, and both models run a second time for the ranking. Run alone, the backbones of the
fused pass take {result["parts"]["backbones"]:.1f} s and its projections {result["parts"]["projections"]:.1f} s; the rest is the comparison of distributions.

| | measured | target | |
|---|---|---|---|
{table}

How far the divergences rank rows alike (means over the rows: {means}):

| | | Spearman | highest tenth in common |
|---|---|---|---|
{pairs}
"""  # noqa: E501
