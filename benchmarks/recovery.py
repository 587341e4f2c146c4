"""Recovery on the default model after Wanda 50 %: speed against a bare loop, and what each option brings.

Each training is kept under benchmarks/results/recovery/ by what determines it, so a run goes on where it
stopped. `PASER_BENCH_ROWS` and `PASER_BENCH_SEEDS` set rows and seeds of the trainings.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.data import ROOT, as_sample, original_model, real_rows
from benchmarks.pruning import CALIBRATION_ROWS, pruned_model
from benchmarks.pruning import CASES as PRUNED
from paser.artifacts import fingerprint, read_json, sha256_path, write_json
from paser.lineage.record import code_digest, package_versions
from paser.models.loading import load_causal_lm, load_tokenizer
from paser.models.packing import row_attention
from paser.models.passes import FusedPass
from paser.models.precision import set_threads
from paser.models.sparsity import is_sparse
from paser.models.tokens import SampleEncoder
from paser.progress import duration, say
from paser.records import draw_key
from paser.recovery.batches import TrainingRow, padded, padding_share, portions
from paser.recovery.lora import Extras, add_adapter, fine_tune
from paser.recovery.masked import merged
from paser.recovery.objective import Objective, damage_weights
from paser.recovery.stopping import held_out_slice
from paser.settings import RecoverSettings

RESULTS = ROOT / "benchmarks/results/recovery"
SPEED_ROWS, REPEATS = 24, 2
TRAIN_ROWS = int(os.environ.get("PASER_BENCH_ROWS", "200"))
TEST_ROWS, SEEDS = 40, range(1, int(os.environ.get("PASER_BENCH_SEEDS", "3")) + 1)
# On a machine that others use, OMP_NUM_THREADS=1 gets more done than two threads that wait for each other.
THREADS = int(os.environ.get("OMP_NUM_THREADS", "0"))
TARGET_SPEED, TARGET_PADDING = 0.9, 0.05
PAD = 0
Row = dict[str, Any]
Clock = tuple[float, float]  # seconds, and seconds of the processor


@dataclass(frozen=True)
class Case:
    """One line of the table: settings that differ from the defaults."""

    label: str
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> RecoverSettings:
        return RecoverSettings.model_validate(self.changes)


STOPPING = {"share": 0.15, "patience": 2, "steps": 4}
CASES = (
    Case("defaults: masked in training"),
    Case("`zeros: merged`", {"zeros": "merged"}),
    Case("`distill.weight: 0.5`", {"distill": {"weight": 0.5}}),
    Case("`weighting: damage`", {"weighting": "damage"}),
    Case("`epochs: 3`", {"epochs": 3}),
    Case("`epochs: 3`, `early_stopping.share: 0.15`", {"epochs": 3, "early_stopping": STOPPING}),
)


def wanda_model() -> Path:
    """The default model after Wanda 50 %, as the pruning benchmark makes it."""
    return pruned_model(next(case for case in PRUNED if case.label == "Wanda 50 %"))


def run() -> dict[str, Any]:
    set_threads(THREADS)
    untrained = kept("untrained", {}, lambda: quality(load_causal_lm(wanda_model(), dtype=_bfloat16())))
    cells: list[Row] = []
    for seed in SEEDS:
        for case in CASES:
            done = kept(
                case.label,
                {"settings": case.settings.model_dump(mode="json"), "seed": seed},
                functools.partial(trained, case, seed),
            )
            say(f"  seed {seed}, {case.label}: held-out loss {done['loss']:.4f}, JSD {done['jsd']:.4f}")
            cells.append({"case": case.label, "seed": seed, **done})
    speed = kept("speed", {"rows": [SPEED_ROWS, REPEATS, THREADS]}, throughput)
    say(f"  {speed['ours']:.0f} tokens/s, bare loop {speed['bare']:.0f}, padding {speed['padding']:.1%}")
    return {
        "speed": speed,
        "untrained": untrained,
        "rows": TRAIN_ROWS,
        "test_rows": TEST_ROWS,
        "cells": cells,
    }


def kept(name: str, determines: dict[str, Any], make: Any) -> Row:
    """A result from disk, or made now."""
    key = fingerprint(
        {
            "name": name,
            "trained_on": [TRAIN_ROWS, TEST_ROWS],
            **determines,
            "model": sha256_path(wanda_model()),
            "code": code_digest(("paser/models", "paser/recovery")),
            "versions": package_versions(),
        }
    )
    path = RESULTS / f"{key[:16]}.json"
    if not path.exists():
        write_json(path, make())
    found: Row = read_json(path)
    return found


@functools.cache
def encoded_rows() -> list[TrainingRow]:
    """Real rows that fit whole, in the order of their ids, without those that calibrated the pruning."""
    encoder = SampleEncoder(load_tokenizer(original_model()))
    samples = sorted((as_sample(i, row) for i, row in enumerate(real_rows())), key=lambda s: s.row_id)
    rows, wanted = [], 6 * (TRAIN_ROWS + TEST_ROWS)
    for sample in samples[:-CALIBRATION_ROWS]:
        encoded = encoder.encode(sample, RecoverSettings().max_tokens)
        if not encoded.cut:
            rows.append(TrainingRow(sample.row_id, encoded))
        if len(rows) == wanted:
            break
    return rows


def test_rows() -> list[TrainingRow]:
    return encoded_rows()[:TEST_ROWS]


def training_rows(seed: int, count: int) -> list[TrainingRow]:
    """A draw of its own for each seed."""
    return sorted(encoded_rows()[TEST_ROWS:], key=lambda r: draw_key("benchmark", seed, r.row_id))[:count]


def _bfloat16() -> Any:
    import torch

    return torch.bfloat16


def quality(model: Any) -> Row:
    """Mean loss and JSD to the original model per row, on rows that nothing was trained on; nats."""
    model.eval()
    original = load_causal_lm(original_model(), dtype=_bfloat16())
    values = FusedPass(original, {"it": model}, 1.0, 1024)([row.encoded for row in test_rows()])
    return {
        "loss": float(values["loss_it"].mean()),
        "jsd": float(values["jsd_it"].mean()),
        "loss_original": float(values["loss"].mean()),
    }


def trained(case: Case, seed: int) -> Row:
    """One training and what it gives on the test rows, as saved; with the zeros that were lost on the way."""
    settings, rows = case.settings, training_rows(seed, TRAIN_ROWS)
    held = held_out_slice([row.row_id for row in rows], settings.early_stopping.share, seed)
    held_out = [row for number, row in enumerate(rows) if number in held]
    rows = [row for number, row in enumerate(rows) if number not in held]
    pruned, original = (load_causal_lm(p, dtype=_bfloat16()) for p in (wanda_model(), original_model()))
    if settings.weighting == "damage":
        values = FusedPass(original, {"it": pruned}, 1.0, 1024)([row.encoded for row in rows])
        weights = damage_weights(values["jsd_it"].tolist())
        rows = [dataclasses.replace(row, weight=w) for row, w in zip(rows, weights, strict=True)]
    zeros = {name: weight == 0 for name, weight in pruned.named_parameters() if is_sparse(weight)}
    with tempfile.TemporaryDirectory(prefix="paser-bench-") as folder:
        start = time.perf_counter()
        adapted, facts = fine_tune(
            pruned, rows, settings, seed=seed, pad_id=PAD, checkpoints=Path(folder),
            extras=Extras(original, held_out),
        )  # fmt: skip
        seconds = time.perf_counter() - start
    before = quality(adapted.get_base_model()) if settings.zeros == "merged" else None
    recovered = merged(adapted)
    weights_now = dict(recovered.named_parameters())
    lost = sum(int((weights_now[name][mask] != 0).sum()) for name, mask in zeros.items())
    return {
        **quality(recovered),
        "loss_before_merge": before["loss"] if before else None,
        "zeros": sum(int(mask.sum()) for mask in zeros.values()),
        "lost_zeros": lost,
        "seconds": seconds,
        "facts": facts.as_json(),
    }


def throughput() -> Row:
    """Tokens per second of our training and of bare loops over the same rows; the best of each counts.

    They take turns, so that what else the machine does meets all of them; the processor's own time, which
    waits for nobody, is what they are compared by.
    """
    rows, settings = training_rows(0, SPEED_ROWS), RecoverSettings(epochs=1)
    lengths = [row.encoded.tokens for row in rows]
    tokens = sum(lengths)
    best: dict[str, float] = {}
    work: dict[str, float] = {}
    for _ in range(REPEATS):
        for name, loop in (("bare", bare), ("ours", ours), ("padded", naive)):
            seconds, processor = loop(rows, settings)
            best[name] = max(best.get(name, 0.0), tokens / seconds)
            work[name] = min(work.get(name, math.inf), processor)
            say(f"  {name}: {seconds:.1f} s, {processor:.1f} s of the processor")
    passes = [part for portion in portions(rows, settings, packed=True) for part in portion.passes]
    size = settings.micro_batch_size
    in_order = [range(b, min(b + size, len(rows))) for b in range(0, len(rows), size)]
    return {
        **best,
        "work": work,
        "threads": THREADS,
        "rows": len(rows),
        "tokens": tokens,
        "passes": len(passes),
        "passes_padded": len(in_order),
        "padding": padding_share(passes, lengths, packed=True),
        "padding_padded": padding_share(in_order, lengths, packed=False),
    }


def now() -> Clock:
    return time.perf_counter(), time.process_time()


def since(start: Clock) -> Clock:
    return time.perf_counter() - start[0], time.process_time() - start[1]


def ours(rows: Sequence[TrainingRow], settings: RecoverSettings) -> Clock:
    """Seconds of `fine_tune` with checkpoints, guards and progress, from its first step to its end."""
    model = load_causal_lm(wanda_model(), dtype=_bfloat16())
    started: list[Clock] = []
    original = Objective.sums

    def first(self: Objective, *given: Any) -> Any:
        started.append(now())
        return original(self, *given)

    Objective.sums = first  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory(prefix="paser-bench-") as folder:
            fine_tune(model, rows, settings, seed=1, pad_id=PAD, checkpoints=Path(folder), title="ours")
            return since(started[0])
    finally:
        Objective.sums = original  # type: ignore[method-assign]


def bare(rows: Sequence[TrainingRow], settings: RecoverSettings) -> Clock:
    """Seconds of the shortest loop over the same model and passes."""
    import torch

    model: Any = add_adapter(load_causal_lm(wanda_model(), dtype=_bfloat16()), settings).train()
    inner = model.get_base_model()
    objective = Objective(True, PAD)
    steps = portions(rows, settings, packed=True)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    with row_attention(inner):
        start = now()
        for portion in steps:
            for numbers in portion.passes:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = objective.sums(inner, [rows[i] for i in numbers])[0] / portion.tokens
                loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
            optimiser.step()
            optimiser.zero_grad()
        return since(start)


def naive(rows: Sequence[TrainingRow], settings: RecoverSettings) -> Clock:
    """Seconds of a first draft: padded micro-batches in order, peft's adapter, the model's own loss."""
    import torch

    plain = settings.model_copy(update={"zeros": "merged"})
    model: Any = add_adapter(load_causal_lm(wanda_model(), dtype=_bfloat16()), plain).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    size = settings.micro_batch_size
    start = now()
    for begin in range(0, len(rows), settings.batch_size):
        step = rows[begin : begin + settings.batch_size]
        for first in range(0, len(step), size):
            part = [row.encoded for row in step[first : first + size]]
            inputs = padded([e.prompt_ids + e.response_ids for e in part], PAD)
            labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
            for line, e in enumerate(part):
                labels[line, : len(e.prompt_ids)] = -100
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(**inputs, labels=labels).loss * len(part) / len(step)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad()
    return since(start)


def render(result: dict[str, Any]) -> str:
    speed, untrained = result["speed"], result["untrained"]
    ratio = {name: speed["work"]["bare"] / seconds for name, seconds in speed["work"].items()}
    seeds = len({cell["seed"] for cell in result["cells"]})
    lines = []
    for label in dict.fromkeys(cell["case"] for cell in result["cells"]):
        cells = [cell for cell in result["cells"] if cell["case"] == label]
        losses, jsds = ([cell[name] for cell in cells] for name in ("loss", "jsd"))
        lines.append(
            f"| {label} | {_each(losses)} | {mean(losses):.4f} | {_each(jsds)} | {mean(jsds):.4f} | "
            f"{mean(cell['facts']['steps'] for cell in cells):.0f} | "
            f"{duration(mean(cell['seconds'] for cell in cells))} |"
        )
    first = result["cells"][0]
    merging = [c for c in result["cells"] if c["loss_before_merge"] is not None]
    plain = "; ".join(
        f"seed {c['seed']}: {c['loss_before_merge']:.4f} as trained, {c['loss']:.4f} as saved"
        for c in merging
    )
    stopped = [c["facts"]["early_stopping"] for c in result["cells"] if "early_stopping" in c["facts"]]
    stops = "; ".join(
        f"best at step {s['best_step']}, last step {s['last_step']}, {s['held_out_rows']} rows held out"
        for s in stopped
    )
    lost = sum(cell["lost_zeros"] for cell in result["cells"])
    return f"""## Recovery

SmolLM2-135M after Wanda 50 %, bfloat16, default settings of `recover` where nothing else is said. One pass over
{speed["rows"]} real rows ({speed["tokens"]:,} tokens), the best of {REPEATS} turns
(threads: {speed["threads"] or "all"}; compared by processor time):

| | tokens/s | of the bare loop | forward passes | padding |
|---|--:|--:|--:|--:|
| `recover`: checkpoints, guards, progress | {speed["ours"]:.0f} | {ratio["ours"]:.2f} | {speed["passes"]} | {speed["padding"]:.1%} |
| bare loop, same model and passes | {speed["bare"]:.0f} | 1 | {speed["passes"]} | {speed["padding"]:.1%} |
| first draft: padded batches in order, peft's adapter (fills the zeros) | {speed["padded"]:.0f} | {ratio["padded"]:.2f} | {speed["passes_padded"]} | {speed["padding_padded"]:.1%} |

Targets: at least {TARGET_SPEED:.2f} of the bare loop ({_met(ratio["ours"] >= TARGET_SPEED)}), padding
under {TARGET_PADDING:.0%} ({_met(speed["padding"] < TARGET_PADDING)}).

What the options bring: trained on {result["rows"]} random real rows, {seeds} seed(s) with a draw of
their own each, then loss and JSD to the original model on {result["test_rows"]} other rows, in nats, of the model as it is saved. Before training:
loss {untrained["loss"]:.4f}, JSD {untrained["jsd"]:.4f}; the original model has a loss of {untrained["loss_original"]:.4f}. Of
{first["zeros"]:,} zeros, {lost} were lost in all trainings together.

| | loss, by seed | mean | JSD, by seed | mean | steps | time |
|---|---|--:|---|--:|--:|--:|
{chr(10).join(lines)}

Plain training with a masked merge: {plain}. Early stopping: {stops}.
{seeds} seed(s) on one small model are a measurement, no ranking.
"""  # noqa: E501


def _each(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _met(holds: bool) -> str:
    return "met" if holds else "MISSED"
