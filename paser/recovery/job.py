"""From a pruned model and a file of rows to a recovered model on disk: what `recover` and `control` share.

The order matters: weights and adapter are saved, shapes and zeros are compared on the saved files, provenance
is written last, and only then are the checkpoints removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from paser.artifacts import fingerprint, read_jsonl, sha256_path
from paser.cache import Cache
from paser.errors import StageError
from paser.progress import say
from paser.records import row_to_sample
from paser.settings import Settings

if TYPE_CHECKING:
    import torch

    from paser.models.tokens import SampleEncoder
    from paser.recovery.batches import TrainingRow

PRUNED, ORIGINAL, SCORES = "data/models/pruned", "data/models/original", "data/scores.parquet"


class Run(Protocol):
    """What is needed of a stage's context."""

    @property
    def settings(self) -> Settings: ...
    @property
    def cache(self) -> Cache: ...
    def input(self, relative: str) -> Path: ...
    def digest(self, relative: str) -> str: ...
    def out(self, relative: str) -> Path: ...
    def note(self, **facts: Any) -> None: ...


@dataclass(frozen=True)
class Alone:
    """A `Run` outside a stage: `places` has its inputs, `target` is where the model goes."""

    settings: Settings
    cache: Cache
    places: Mapping[str, Path]
    target: Path

    def input(self, relative: str) -> Path:
        return self.places[relative]

    def digest(self, relative: str) -> str:
        return sha256_path(self.places[relative])

    def out(self, relative: str) -> Path:
        return self.target

    def note(self, **facts: Any) -> None:
        """Nothing is recorded beside the model: its provenance has the facts."""


def recover_model(run: Run, *, role: str, selection: str, output: str, code: str) -> None:
    """Trains the pruned model on the rows of `selection`, in their order, and writes `output`.

    `role` is `recovered` or `control`; `code` is the digest of the code that decides the result. The
    model is saved merged, in the dtype of the pruned one, with the adapter in `adapter/` inside. Raises
    `StageError` for an empty selection, an altered row, or a shape or zero that was lost.
    """
    import torch

    from paser.lineage.provenance import write_provenance
    from paser.lineage.record import package_versions
    from paser.models.loading import load_causal_lm, load_tokenizer, model_directory, save_causal_lm
    from paser.models.precision import choose_device, choose_dtype, set_threads
    from paser.models.shapes import other_shapes
    from paser.models.sparsity import measure, same_zeros
    from paser.models.tokens import SampleEncoder
    from paser.recovery.lora import Extras, fine_tune, forget, save_adapter
    from paser.recovery.masked import merged
    from paser.recovery.processes import Together, threads_of_each
    from paser.recovery.reporting import check_reporter
    from paser.recovery.stopping import held_out_slice
    from paser.recovery.token_pruning import token_pruned

    settings, processes = run.settings.recover, run.settings.runtime.processes
    check_reporter(settings.report_to)
    threads = set_threads(threads_of_each(run.settings.runtime.threads, processes))
    device = choose_device(run.settings.runtime.device)
    dtype = choose_dtype(run.settings.model.precision, device, run.cache)
    pruned = model_directory(run.input(PRUNED))
    rows = read_jsonl(run.input(selection))
    if not rows:
        raise StageError(
            f"{selection} is empty: there is nothing to recover with",
            remedy="raise select.budget, or lower select.strictness",
        )
    held = held_out_slice(
        [str(row["row_id"]) for row in rows], settings.early_stopping.share, run.settings.seed
    )
    if settings.early_stopping.share and not held:
        raise StageError(
            f"{selection} has one row: none can be held out of training",
            remedy="raise select.budget, or set recover.early_stopping.share: 0",
        )
    tokenizer = load_tokenizer(pruned)
    encoder = SampleEncoder(tokenizer)
    all_rows = training_rows(rows, encoder, settings.max_tokens, selection)
    training = [row for number, row in enumerate(all_rows) if number not in held]
    held_out = [row for number, row in enumerate(all_rows) if number in held]

    inputs = {path: run.digest(path) for path in (PRUNED, selection)}
    if settings.weighting == "damage":
        inputs[SCORES] = run.digest(SCORES)
        training = weighted(training, run.input(SCORES))
    teacher = None
    if settings.distill.weight:
        inputs[ORIGINAL] = run.digest(ORIGINAL)
        teacher = model_directory(run.input(ORIGINAL))
        _same_vocabulary(teacher, pruned)
    pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else encoder.end_of_turn)
    dropped: dict[str, int] = {}
    if settings.token_pruning.share:
        reader = load_causal_lm(pruned, dtype=dtype, device=device)
        training = token_pruned(reader, training, settings, pad_id=pad_id)
        dropped = {
            "rows": sum(row.kept is not None for row in training),
            "tokens": sum(len(row.encoded.response_ids) - row.counted for row in training),
        }
        del reader
        torch.cuda.empty_cache()  # other processes may train on this GPU
    number_type = str(dtype).removeprefix("torch.")
    key = fingerprint(
        {
            "role": role,
            "model": inputs[PRUNED],
            "rows": [
                [row.encoded.prompt_ids, row.encoded.response_ids, row.weight]
                + ([] if row.kept is None else [row.kept])
                for row in training
            ],
            "held_out": [[row.encoded.prompt_ids, row.encoded.response_ids] for row in held_out],
            "teacher": inputs.get(ORIGINAL),
            "settings": settings.model_dump(mode="json", exclude={"checkpoint_steps", "report_to"}),
            "seed": run.settings.seed,
            "dtype": number_type,
            "device": device,
            "threads": threads,
            "processes": processes,
            "versions": package_versions(),
            "code": code,
        }
    )
    checkpoints = run.cache.entry("recover", key)
    logs: Path | None = run.cache.root.parent / "logs" / f"{role}-{key[:12]}"
    if processes > 1:
        together = Together(
            processes=processes,
            model=pruned,
            dtype=number_type,
            device=device,
            threads=threads,
            seed=run.settings.seed,
            pad_id=pad_id,
            checkpoints=checkpoints,
            title=role,
            teacher=teacher,
            logs=logs,
        )
        together.train(training, settings, held_out)
        logs = None
    model = load_causal_lm(pruned, dtype=dtype, device=device)
    use_cache = model.config.use_cache
    adapted, facts = fine_tune(
        model,
        training,
        settings,
        seed=run.settings.seed,
        pad_id=pad_id,
        checkpoints=checkpoints,
        title=role,
        extras=Extras(
            load_causal_lm(teacher, dtype=dtype, device=device) if teacher else None, held_out, logs
        ),
    )
    target = run.out(output)
    save_adapter(adapted, target / "adapter")
    recovered: Any = merged(adapted)
    recovered.config.use_cache = use_cache
    save_causal_lm(recovered.to(device="cpu", dtype=saved_dtype(pruned)), tokenizer, target)

    if changed := other_shapes(pruned, target):
        raise StageError(
            f"{len(changed)} tensors changed their shape in training, {changed[0]} first",
            remedy="this is an error of PASER: please report it with data/records/prune.json",
        )
    if lost := same_zeros(pruned, target):
        raise StageError(
            f"{len(lost)} layers lost zeros of the pruned model in training, {lost[0]} first",
            remedy="this is an error of PASER: please report it with data/records/prune.json",
        )
    sparsity = measure(target)
    noted = {
        **facts.as_json(),
        "dtype": number_type,
        "template": encoder.template,
        "sparsity": sparsity.as_json(),
    }
    if processes > 1:
        noted["processes"] = processes
    if dropped:
        noted["token_pruning"] = dropped
    write_provenance(
        target,
        role=role,
        rows=[row for number, row in enumerate(rows) if number not in held],
        held_out=[row for number, row in enumerate(rows) if number in held],
        settings={
            "recover": settings.model_dump(mode="json"),
            "model": run.settings.model.model_dump(mode="json"),
        },
        inputs=inputs,
        seed=run.settings.seed,
        facts=noted,
    )
    forget(checkpoints)
    run.note(**noted)
    if held_out:
        say(
            f"{role}: {len(held_out)} rows held out; the weights of step {facts.stopping['best_step']} of "
            f"{facts.steps} were the best, with a loss of {facts.stopping['held_out_loss_best']:.3f}"
        )
    if dropped:
        say(
            f"{role}: {dropped['rows']} of {facts.rows} rows are confident errors; {dropped['tokens']} of "
            f"{facts.response_tokens:,} response tokens did not count"
        )
    say(
        f"{role}: {facts.rows} rows, {facts.epochs} passes; training loss {facts.loss_first:.3f} -> "
        f"{facts.loss_last:.3f}; {sparsity.overall:.1%} zeros, as before; {number_type}"
    )


def training_rows(
    rows: list[dict[str, Any]], encoder: SampleEncoder, max_tokens: int, origin: str
) -> list[TrainingRow]:
    """Encoded rows in their order; an id that does not belong to its text is an error naming the line."""
    from paser.recovery.batches import TrainingRow

    training = []
    for line, row in enumerate(rows, start=1):
        sample = row_to_sample(row)
        if sample.row_id != row["row_id"]:
            raise StageError(
                f"{origin}, line {line}: the text does not belong to {row['row_id']}; it was altered",
                remedy="run `dvc repro select` again",
            )
        training.append(TrainingRow(sample.row_id, encoder.encode(sample, max_tokens)))
    return training


def weighted(rows: list[TrainingRow], scores: Path) -> list[TrainingRow]:
    """Rows with weights from their divergence (`jsd` of scores.parquet); the mean weight is 1."""
    import dataclasses
    import math

    from paser.artifacts import read_columns
    from paser.recovery.objective import damage_weights

    table = read_columns(scores, ("row_id", "jsd"))
    wanted = {row.row_id for row in rows}
    pairs = zip(table["row_id"].to_pylist(), table["jsd"].to_pylist(), strict=True)
    known = {row_id: jsd for row_id, jsd in pairs if row_id in wanted}
    for row in rows:
        if not math.isfinite(known.get(row.row_id) or math.nan) and known.get(row.row_id) != 0:
            raise StageError(
                f"row {row.row_id} has no finite score in {scores}, so it cannot be weighted by damage",
                remedy="`dvc repro score`, or set recover.weighting: none",
            )
    weights = damage_weights([known[row.row_id] for row in rows])
    return [dataclasses.replace(row, weight=w) for row, w in zip(rows, weights, strict=True)]


def _same_vocabulary(original: Path, pruned: Path) -> None:
    from paser.models.loading import load_tokenizer, vocabulary_mismatch

    if problem := vocabulary_mismatch(load_tokenizer(original), load_tokenizer(pruned)):
        raise StageError(
            f"the original model cannot teach the pruned one: {problem}",
            remedy="set recover.distill.weight: 0",
        )


def saved_dtype(directory: Path) -> torch.dtype:
    """The dtype of a saved model's first weight that has a floating point type."""
    from safetensors import safe_open

    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stream:
            for name in sorted(stream.keys()):
                tensor: torch.Tensor = stream.get_tensor(name)
                if tensor.is_floating_point():
                    return tensor.dtype
    raise StageError(f"{directory} holds no weights", remedy="run the stage that writes it")
