"""From a pruned model and a file of rows to a recovered model on disk: what `recover` and `control` share.

The order matters: weights and adapter are saved, shapes and zeros are compared on the saved files, provenance
is written last, and only then are the checkpoints removed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from paser.artifacts import fingerprint, read_jsonl
from paser.cache import Cache
from paser.errors import StageError
from paser.progress import say
from paser.records import row_to_sample
from paser.settings import Settings

if TYPE_CHECKING:
    import torch

    from paser.models.tokens import SampleEncoder
    from paser.recovery.lora import TrainingRow

PRUNED = "data/models/pruned"


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


def recover_model(run: Run, *, role: str, selection: str, output: str, code: str) -> None:
    """Trains the pruned model on the rows of `selection`, in their order, and writes `output`.

    `role` is `recovered` or `control`; `code` is the digest of the code that decides the result. The
    model is saved merged, in the dtype of the pruned one, with the adapter in `adapter/` inside. Raises
    `StageError` for an empty selection, an altered row, or a shape or zero that was lost.
    """
    from paser.lineage.provenance import write_provenance
    from paser.lineage.record import package_versions
    from paser.models.loading import load_causal_lm, load_tokenizer, model_directory, save_causal_lm
    from paser.models.precision import choose_device, choose_dtype, set_threads
    from paser.models.shapes import other_shapes
    from paser.models.sparsity import measure, same_zeros
    from paser.models.tokens import SampleEncoder
    from paser.recovery.lora import fine_tune, forget, save_adapter
    from paser.recovery.processes import Together, threads_of_each

    settings, processes = run.settings.recover, run.settings.runtime.processes
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
    tokenizer = load_tokenizer(pruned)
    encoder = SampleEncoder(tokenizer)
    training = training_rows(rows, encoder, settings.max_tokens, selection)

    inputs = {path: run.digest(path) for path in (PRUNED, selection)}
    number_type = str(dtype).removeprefix("torch.")
    key = fingerprint(
        {
            "role": role,
            "model": inputs[PRUNED],
            "rows": [[row.encoded.prompt_ids, row.encoded.response_ids] for row in training],
            "settings": settings.model_dump(mode="json", exclude={"checkpoint_steps"}),
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
    pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else encoder.end_of_turn)
    if processes > 1:
        together = Together(
            processes, pruned, number_type, device, threads, run.settings.seed, pad_id, checkpoints, role
        )
        together.train(training, settings)
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
    )
    target = run.out(output)
    save_adapter(adapted, target / "adapter")
    merged: Any = adapted.merge_and_unload()
    merged.config.use_cache = use_cache
    save_causal_lm(merged.to(device="cpu", dtype=saved_dtype(pruned)), tokenizer, target)

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
    write_provenance(
        target,
        role=role,
        rows=rows,
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
    say(
        f"{role}: {facts.rows} rows, {facts.epochs} passes; training loss {facts.loss_first:.3f} -> "
        f"{facts.loss_last:.3f}; {sparsity.overall:.1%} zeros, as before; {number_type}"
    )


def training_rows(
    rows: list[dict[str, Any]], encoder: SampleEncoder, max_tokens: int, origin: str
) -> list[TrainingRow]:
    """Encoded rows in their order; an id that does not belong to its text is an error naming the line."""
    from paser.recovery.lora import TrainingRow

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
