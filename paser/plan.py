"""`paser plan`: what a run will cost in tokens, time, memory and disk, from settings and a `config.json`.

Nothing is loaded and nothing fetched: the model is built without weights and counted. The figures are sums
of floating-point operations and bytes; what a machine makes of them is an estimate, good to about a factor
of two.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.errors import PaserError
from paser.pruning.protocol import schemes
from paser.settings import Settings
from paser.stages.graph import STAGES

if TYPE_CHECKING:
    from rich.console import Console

GB = 1e9
# Share of a device's matrix products per second that whole models reach, in long and in short passes alike.
EFFICIENCY = 0.4
# all-MiniLM-L6-v2: parameters, and width of an embedding in float32.
ENCODER_PARAMETERS, EMBEDDING_BYTES = 22_700_000, 384 * 4
# Seconds until a stage has its libraries, and bytes a second of files that are hashed, read and written; each
# file about `FILE_PASSES` times: digests before and after, by the stage and by DVC.
START, FILE_SPEED, FILE_PASSES = 4.0, 0.5 * GB, 3
# Calibration sends each row by itself through each layer, before and after pruning it: seconds a time beside
# the products.
LAYER_CALL = 0.004
# Stages that run no model, and their seconds a row of the pool: cleaning, clusters, report.
PLAIN_STAGES, PLAIN_ROW = ("pool", "cluster", "select", "audit", "report"), 0.02
# A row's texts, scores and decisions, compressed.
ROW_BYTES = 1_000
CALIBRATION_ROWS, HOLDOUT_ROWS = 128, 200
# Rows at a time in the vocabulary projection of `score`, and copies of their logits in float32.
SCORE_POSITIONS, LOGIT_COPIES = 256, 4
# Share of a row's tokens that are its response.
RESPONSE_SHARE = 0.5


@dataclass(frozen=True)
class Size:
    """A model's numbers: `linear` are the weights of its linear layers but the vocabulary projection;
    `adapter` those of the LoRA adapter, `adapted` those of the layers that get one."""

    parameters: int
    linear: int
    adapted: int
    adapter: int
    hidden: int
    inner: int
    layers: int
    vocabulary: int


@dataclass(frozen=True)
class Pool:
    """How much data there is: rows, and tokens of a mean row with its prompt's template."""

    rows: int
    row_tokens: float
    calibration: int = CALIBRATION_ROWS
    held_out: int = HOLDOUT_ROWS


@dataclass(frozen=True)
class Cost:
    """One stage: tokens that models read, operations, seconds, bytes on the device and new bytes on disk.

    `overhead` are seconds that no faster device saves: start, files, calls of layers.
    """

    stage: str
    tokens: int
    operations: float
    seconds: float
    overhead: float
    memory: float
    disk: float


@dataclass(frozen=True)
class Estimate:
    """All stages, with what was assumed. `tflops` are the device's own, before `EFFICIENCY`."""

    model: Size
    pool: Pool
    selected_rows: int
    selected_tokens: int
    steps: int
    tflops: float
    costs: tuple[Cost, ...]

    @property
    def seconds(self) -> float:
        return sum(cost.seconds + cost.overhead for cost in self.costs)

    @property
    def memory(self) -> float:
        """Bytes on the device, of the stage that needs most."""
        return max(cost.memory for cost in self.costs)

    @property
    def disk(self) -> float:
        return sum(cost.disk for cost in self.costs)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"seconds": self.seconds, "memory": self.memory, "disk": self.disk}


def size_of(config: Path, targets: Sequence[str], rank: int) -> Size:
    """Counts the model of a `config.json`, or of a folder that holds one.

    Raises `ModelError` where it is of no known causal language model, `PaserError` where a target of
    `recover.targets` is no layer of it.
    """
    import torch

    from paser.models.shapes import skeleton

    folder = config.parent if config.is_file() else config
    if not (folder / "config.json").exists():
        raise PaserError(f"{folder} has no config.json", remedy="give the folder of a model, or its config")
    model = skeleton(folder)
    head: Any = model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    wanted = [module for name, module in linear.items() if name.rpartition(".")[2] in targets]
    if not wanted:
        raise PaserError(
            f"recover.targets: the model of {folder} has no layer named {', '.join(targets)}",
            remedy=f"choose among {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}",
        )
    text = model.config.get_text_config()
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=sum(module.weight.numel() for module in linear.values()),
        adapted=sum(module.weight.numel() for module in wanted),
        adapter=sum(rank * (module.in_features + module.out_features) for module in wanted),
        hidden=int(text.hidden_size),
        inner=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        layers=int(text.num_hidden_layers),
        vocabulary=int(head.out_features),
    )


def chosen(settings: Settings, pool: Pool) -> tuple[int, int]:
    """Rows and tokens that the budget chooses."""
    budget = settings.select.parsed_budget
    row = min(pool.row_tokens, settings.recover.max_tokens)
    if budget.unit == "tokens":
        rows = min(int(budget.amount / row), pool.rows)
    else:  # of tokens, a share is as many rows of the mean length
        rows = int(budget.amount) if budget.unit == "rows" else int(budget.amount * pool.rows)
        rows = min(rows, pool.rows)
    return max(rows, 1), int(max(rows, 1) * row)


def estimate(settings: Settings, size: Size, pool: Pool, tflops: float) -> Estimate:
    """The cost of every stage; those that run no model are one line.

    A token costs 2 operations a parameter forwards, 2 more backwards for the activations, and in a masked
    adapter 2 for each weight of its layer, whose whole gradient is formed.
    """
    recover, width = settings.recover, 4 if settings.model.precision == "float32" else 2
    kind = schemes()[settings.prune.scheme].kind
    masked = kind == "unstructured" and recover.zeros == "trained"
    left = 1.0 if kind == "unstructured" else 1.0 - settings.prune.sparsity
    pruned = size.parameters - (1 - left) * size.linear
    adapted, whole, small = left * size.adapted, size.parameters * width, pruned * width
    scored = int(pool.rows * min(pool.row_tokens, settings.score.max_tokens))
    rows, tokens = chosen(settings, pool)
    trained = tokens * recover.epochs
    calibration = int(pool.calibration * min(pool.row_tokens, settings.prune.max_tokens))
    judged = int(pool.held_out * pool.row_tokens)
    speed = tflops * 1e12 * EFFICIENCY
    logits = size.vocabulary * 4 * LOGIT_COPIES

    def cost(
        stage: str, read: int, operations: float, memory: float, disk: float, files: float, processes: int = 1
    ) -> Cost:
        overhead = START + FILE_PASSES * files / FILE_SPEED
        return Cost(stage, read, operations, operations / speed / processes, overhead, memory, disk)

    a_token = 2 * (2 * pruned) + (2 * adapted if masked else 0.0)
    teacher = recover.distill.weight > 0
    if teacher:
        a_token += 2 * size.parameters
    a_pass = min(recover.micro_batch_size * recover.max_tokens, recover.batch_size * pool.row_tokens)
    training = (
        small
        + (2 * adapted * width if masked else 0.0)
        + (whole if teacher else 0.0)
        + 16 * size.adapter
        + a_pass * size.layers * (14 * size.hidden + 6 * size.inner) * width
        + a_pass * RESPONSE_SHARE * logits
    )
    model_disk = small + 4 * size.adapter
    looked_at = tokens if recover.token_pruning.share else 0
    trains = cost(
        "recover",
        trained + looked_at,
        a_token * trained + 2 * pruned * looked_at,
        training,
        model_disk,
        small + model_disk,
        settings.runtime.processes,
    )
    prunes = cost(
        "prune", calibration, 4.0 * size.parameters * calibration, 2.0 * whole, whole + small, whole + small
    )
    calls = 2 * size.layers * pool.calibration * LAYER_CALL
    costs = [
        cost("fetch", 0, 0.0, 0.0, whole + pool.rows * ROW_BYTES, whole),
        replace(prunes, overhead=prunes.overhead + calls),
        cost(
            "embed", scored, 2.0 * ENCODER_PARAMETERS * scored, 4.0 * ENCODER_PARAMETERS,
            pool.rows * EMBEDDING_BYTES, 0.0,
        ),
        cost(
            "score", 2 * scored, 2.0 * (size.parameters + pruned) * scored,
            whole + small + SCORE_POSITIONS * logits, pool.rows * ROW_BYTES, whole + small,
        ),
        trains,
    ]  # fmt: skip
    if settings.control.enabled:
        costs.append(replace(trains, stage="control"))
    models = 4 if settings.control.enabled else 3
    weights = whole + (models - 1) * small
    costs.append(
        cost(
            "evaluate", models * judged, 2.0 * (size.parameters + (models - 1) * pruned) * judged,
            weights + SCORE_POSITIONS * logits, 0.0, weights,
        )
    )  # fmt: skip
    plain = len(PLAIN_STAGES) * START + pool.rows * PLAIN_ROW
    costs.append(Cost(", ".join(PLAIN_STAGES), 0, 0.0, 0.0, plain, 0.0, 0.0))
    steps = recover.epochs * -(-rows // recover.batch_size)
    return Estimate(size, pool, rows, tokens, steps, tflops, tuple(costs))


def measured_tflops(precision: str, repeats: int = 3) -> float:
    """Matrix products of this machine's processor, in 10^12 operations a second; the best of some."""
    import torch

    width, dtype = 1024, torch.float32 if precision == "float32" else torch.bfloat16
    a, b = torch.randn(width, width).to(dtype), torch.randn(width, width).to(dtype)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * width**3 / best / 1e12


def model_of(project: Path) -> Path:
    """The original model of a project: as `prune` left it, else as its source list names it, where it is
    local."""
    from paser.sources.catalog import load_sources
    from paser.sources.uri import FileUri, parse_uri

    path, listed = project / "data" / "models" / "original", project / "data" / "sources.yaml"
    if path.exists() or not listed.exists():
        return path
    uris = [parse_uri(source.uri) for source in load_sources(listed) if source.role == "original"]
    return next((listed.parent / "raw" / uri.path for uri in uris if isinstance(uri, FileUri)), path)


def pool_of(project: Path) -> Pool:
    """The pool of a project whose stage `pool` has run."""
    from paser.artifacts import read_columns

    path = project / "data" / "pool.parquet"
    if not path.exists():
        raise PaserError(f"{path} does not exist", remedy="give --rows and --row-tokens, or run stage pool")
    tokens = read_columns(path, ("tokens",))["tokens"].to_numpy()
    counts = {
        name: len(read_columns(file, ("row_id",)))
        for name, file in (
            ("calibration", path.with_name("calibration.parquet")),
            ("held_out", path.with_name("holdout.parquet")),
        )
        if file.exists()
    }
    return Pool(len(tokens), float(tokens.mean()), **counts)


def last_run(project: Path) -> dict[str, float]:
    """Seconds that each stage of a project took when it ran last, by their run records."""
    from paser.artifacts import read_json

    files = [project / spec.run_record for spec in STAGES.values()]
    return {record["stage"]: record["seconds"] for record in map(read_json, filter(Path.exists, files))}


def render(
    found: Estimate, memory_gb: float | None, console: Console, took: Mapping[str, float] | None = None
) -> None:
    """A table of the stages, and in a sentence each what it adds up to; `took` are the seconds of an earlier
    run by stage, for comparison."""
    from rich.table import Table

    from paser.progress import duration

    table = Table(title="Estimate, good to about a factor of two", title_justify="left")
    for name in ("stage", "tokens read", "time", *(["last run"] if took else []), "memory", "new on disk"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for cost in found.costs:
        fits = memory_gb is None or cost.memory <= memory_gb * GB
        table.add_row(
            cost.stage,
            f"{cost.tokens:,}",
            duration(cost.seconds + cost.overhead),
            *([_took(cost.stage, took)] if took else []),
            f"{cost.memory / GB:.1f} GB{'' if fits else ' !'}",
            f"{cost.disk / GB:.1f} GB",
        )
    console.print(table)
    size = found.model
    print(
        f"model: {size.parameters:,} parameters, adapter of {size.adapter:,}; "
        f"pool: {found.pool.rows:,} rows of {found.pool.row_tokens:.0f} tokens"
    )
    print(
        f"selected: {found.selected_rows:,} rows, {found.selected_tokens:,} tokens, "
        f"{found.steps:,} optimiser steps"
    )
    print(
        f"in all: {duration(found.seconds)} at {found.tflops:.3g} TFLOPS x {EFFICIENCY:.0%}, "
        f"{found.memory / GB:.1f} GB of memory at most, {found.disk / GB:.1f} GB of disk"
    )
    if memory_gb is not None and found.memory > memory_gb * GB:
        print(f"! does not fit {memory_gb:g} GB: lower recover.micro_batch_size, or runtime.device_map: auto")


def _took(stages: str, took: Mapping[str, float]) -> str:
    from paser.progress import duration

    known = [took[name] for name in stages.split(", ") if name in took]
    return duration(sum(known)) if known else "-"
