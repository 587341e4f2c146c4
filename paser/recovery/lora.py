"""Instruction tuning with LoRA: the loss is on the response only, the rows come in the order given.

transformers' Trainer trains and keeps the checkpoints. Its sampling, printing and reporting are switched
off; a batch with a loss or gradient that is not finite stops the run and names its rows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import remove, write_json
from paser.errors import StageError
from paser.models.tokens import Encoded
from paser.progress import Advance, progress, say
from paser.recovery.checkpoints import PREFIX, newest_complete, seal
from paser.recovery.masked import keep_zeros, masked_linear
from paser.settings import RecoverSettings

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

IGNORED = -100
ADAPTER_NOTE = """\
# LoRA adapter, already merged into the model above

Where a layer of the model this adapter was trained on is sparse, its update counts only where the weight is
not zero: multiply `B A` by that mask before adding it. Loaded by peft alone, it would fill the zeros.
"""


@dataclass(frozen=True)
class TrainingRow:
    """One row to train on, by its id."""

    row_id: str
    encoded: Encoded


@dataclass(frozen=True)
class TrainingFacts:
    """What training did. Losses are means per response token, in nats; lower is better.

    `masked_layers` kept the zeros of their weight, `dense_layers` had none to keep. `loss_first` is the
    mean over the first pass through the rows, `loss_last` over the last one, both while training.
    """

    rows: int
    cut_rows: int
    tokens: int
    response_tokens: int
    epochs: int
    steps: int
    masked_layers: int
    dense_layers: int
    trained_weights: int
    loss_first: float
    loss_last: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """Micro-batches and optimiser steps of a run, from the number of rows and the settings.

    `accumulation` counts the micro-batches of one process in one step. Of several processes each takes every
    `processes`-th micro-batch, so the rows of a step are the same as in one process.
    """

    rows: int
    micro_batch: int
    accumulation: int
    epochs: int
    warmup: float
    processes: int = 1

    @classmethod
    def of(cls, rows: int, settings: RecoverSettings, processes: int = 1) -> Plan:
        accumulation = settings.batch_size // (settings.micro_batch_size * processes)
        size = settings.micro_batch_size
        return cls(rows, size, accumulation, settings.epochs, settings.warmup, processes)

    @property
    def together(self) -> int:
        """Rows in one micro-batch of every process."""
        return self.micro_batch * self.processes

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(math.ceil(self.rows / self.together) / self.accumulation)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.warmup * self.steps)

    def rows_done(self, step: int) -> int:
        """Rows seen after `step` optimiser steps."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        return epochs * self.rows + min(rest * self.accumulation * self.together, self.rows)


def fine_tune(
    model: PreTrainedModel,
    rows: Sequence[TrainingRow],
    settings: RecoverSettings,
    *,
    seed: int,
    pad_id: int,
    checkpoints: Path,
    title: str = "recover",
    processes: int = 1,
) -> tuple[PeftModel, TrainingFacts]:
    """Trains a LoRA adapter on `model` and returns the model with it (not merged).

    With `processes` above 1 it is called in each of so many processes of an accelerate launch.

    The dtype of `model` decides the number type: bfloat16 weights are trained under bfloat16 autocast with
    a float32 adapter, float32 weights in float32. Resumes from the newest complete checkpoint in
    `checkpoints`, whose content only this run's inputs may decide; the result is the same as that of an
    uninterrupted run. Raises `StageError` for rows without a response, unknown targets, and losses or
    gradients that are not finite.
    """
    import torch

    _check(model, rows, settings)
    torch.manual_seed(seed)
    adapted = add_adapter(model, settings)
    plan = Plan.of(len(rows), settings, processes)
    with _in_turn(processes) as first:
        resume = newest_complete(checkpoints)
    total = plan.rows * plan.epochs
    done = plan.rows_done(int(resume.name.removeprefix(PREFIX))) if resume else 0
    if first and 0 < done < total:
        say(f"  {title}: resuming after {done:,} of {total:,} rows")
    with _plain_surroundings(), progress(title, total - done, "rows") as advance:
        trainer = _trainer(adapted, rows, settings, plan, seed, pad_id, checkpoints, advance)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return adapted, _facts(adapted, rows, plan, losses)


@contextmanager
def _in_turn(processes: int) -> Iterator[bool]:
    """Within it the first process is before the others; yields whether this is the first."""
    if processes == 1:
        yield True
        return
    from accelerate import PartialState

    with PartialState().main_process_first():
        yield PartialState().is_main_process


def add_adapter(model: PreTrainedModel, settings: RecoverSettings, *, masked: bool = True) -> PeftModel:
    """Puts an untrained adapter on `model`; on sparse layers one that keeps the zeros, if `masked`."""
    from peft import LoraConfig, TaskType, get_peft_model

    alpha: Any = settings.alpha
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        bias="none",
    )
    adapted: PeftModel = get_peft_model(model, keep_zeros(config) if masked else config)
    return adapted


def save_adapter(adapted: PeftModel, directory: Path) -> None:
    """Adapter weights and configuration as peft reads them, and a warning about the mask.

    The same adapter gives the same bytes.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    ordered = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    save_file(ordered, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    # The path of the base model is this machine's own, and peft sets it when it saves a checkpoint.
    fixed = {"inference_mode": True, "base_model_name_or_path": None}
    config = adapted.peft_config["default"].to_dict() | fixed
    (directory / "README.md").write_text(ADAPTER_NOTE, encoding="utf-8")
    write_json(directory / "adapter_config.json", {key: _plain(value) for key, value in config.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return getattr(value, "value", value)


def _check(model: PreTrainedModel, rows: Sequence[TrainingRow], settings: RecoverSettings) -> None:
    import torch

    if model.dtype == torch.float16:
        raise StageError(
            "the model is in float16, which overflows in training",
            remedy="set model.precision: bfloat16 or float32",
        )
    if not rows:
        raise StageError("there is no row to train on", remedy="choose a larger select.budget")
    for row in rows:
        if not row.encoded.response_ids or not row.encoded.prompt_ids:
            raise StageError(
                f"row {row.row_id} has no response token within {settings.max_tokens} tokens "
                f"(its prompt has {len(row.encoded.prompt_ids)})",
                remedy="raise recover.max_tokens, or lower pool.max_tokens",
            )
    anything: Any = model
    head = anything.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    if missing := [target for target in settings.targets if target not in linear]:
        raise StageError(
            f"recover.targets: the model has no linear layer named {', '.join(missing)}",
            remedy=f"choose among {', '.join(sorted(linear))}",
        )


def _facts(adapted: PeftModel, rows: Sequence[TrainingRow], plan: Plan, losses: list[float]) -> TrainingFacts:
    from peft.tuners.lora import Linear

    masked = sum(isinstance(module, masked_linear()) for module in adapted.modules())
    layers = sum(isinstance(module, Linear) for module in adapted.modules())
    first, last = losses[: plan.steps_per_epoch], losses[-plan.steps_per_epoch :]
    return TrainingFacts(
        rows=len(rows),
        cut_rows=sum(row.encoded.cut for row in rows),
        tokens=sum(row.encoded.tokens for row in rows),
        response_tokens=sum(len(row.encoded.response_ids) for row in rows),
        epochs=plan.epochs,
        steps=plan.steps,
        masked_layers=masked,
        dense_layers=layers - masked,
        trained_weights=sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        loss_first=round(sum(first) / len(first), 6),
        loss_last=round(sum(last) / len(last), 6),
    )


def collate(batch: Sequence[tuple[int, Encoded]], pad_id: int) -> dict[str, torch.Tensor]:
    """Rows padded on the right to the longest of them; labels are `IGNORED` but on the response.

    Shapes: (rows, longest) for `input_ids`, `attention_mask`, `labels`; (rows,) for `rows`, the positions
    in the training order.
    """
    import torch

    longest = max(encoded.tokens for _, encoded in batch)
    shape = (len(batch), longest)
    ids = torch.full(shape, pad_id, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    for index, (_, encoded) in enumerate(batch):
        start, end = len(encoded.prompt_ids), encoded.tokens
        ids[index, :end] = torch.tensor(encoded.prompt_ids + encoded.response_ids)
        mask[index, :end] = 1
        labels[index, start:end] = torch.tensor(encoded.response_ids)
    rows = torch.tensor([number for number, _ in batch])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "rows": rows}


def response_loss(
    model: Any, inputs: dict[str, torch.Tensor], response_tokens: torch.Tensor | int
) -> torch.Tensor:
    """Sum of the response tokens' cross-entropy over `response_tokens`, in float32.

    Only positions that predict a response token reach the vocabulary projection.
    """
    from torch.nn.functional import cross_entropy

    backbone, head = model.base_model, model.get_output_embeddings()
    hidden = backbone(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
    ).last_hidden_state
    labels = inputs["labels"][:, 1:]
    wanted = labels != IGNORED
    logits = head(hidden[:, :-1][wanted]).float()
    return cross_entropy(logits, labels[wanted], reduction="sum") / response_tokens


def _trainer(
    adapted: PeftModel,
    rows: Sequence[TrainingRow],
    settings: RecoverSettings,
    plan: Plan,
    seed: int,
    pad_id: int,
    checkpoints: Path,
    advance: Advance,
) -> Any:
    """A Trainer subclass at work on `rows`; its class is built here because it needs transformers."""
    import torch
    from accelerate.utils import gather_object
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    inner: Any = adapted.get_base_model()
    on_cpu = inner.device.type == "cpu"
    alone = plan.processes == 1

    in_step: list[int] = []

    def not_finite(what: str, step: int, numbers: list[int]) -> StageError:
        names = ", ".join(rows[number].row_id for number in numbers if number < len(rows))
        return StageError(
            f"the {what} is not finite at optimiser step {step} of {plan.steps}; rows of the batch: {names}",
            remedy="lower recover.learning_rate, or set model.precision: float32; "
            "if it stays, withdraw the row in data/withdrawn.csv",
        )

    class ResponseTrainer(Trainer):  # type: ignore[misc]
        def compute_loss(
            self,
            model: torch.nn.Module,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: torch.Tensor | int | None = None,
        ) -> torch.Tensor:
            numbers = inputs["rows"].tolist()
            in_step.extend(numbers)
            assert num_items_in_batch is not None
            if alone:
                with self.accelerator.autocast():
                    loss = response_loss(inner, inputs, num_items_in_batch)
            else:
                # Through the wrapped model, which sums up gradients; it takes their mean, hence the factor.
                loss = model(inputs, num_items_in_batch) * plan.processes
            if not torch.isfinite(loss):
                raise not_finite("loss", self.state.global_step + 1, numbers)
            if alone:
                advance(len(numbers))
            return loss

        def floating_point_ops(self, inputs: dict[str, Any]) -> int:
            return 0

    class Guard(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            finite = all(
                bool(torch.isfinite(p.grad).all()) for p in adapted.parameters() if p.grad is not None
            )
            if not finite:
                numbers = in_step if alone else sorted(gather_object(in_step))
                raise not_finite("gradient", state.global_step + 1, numbers)
            in_step.clear()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not alone and state.is_world_process_zero:
                advance(plan.rows_done(state.global_step) - plan.rows_done(state.global_step - 1))

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.accelerator.wait_for_everyone()  # each process writes its own random state
            if state.is_world_process_zero:
                seal(checkpoints / f"{PREFIX}{state.global_step}")
            trainer.accelerator.wait_for_everyone()

    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=plan.micro_batch,
        gradient_accumulation_steps=plan.accumulation,
        num_train_epochs=plan.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=plan.warmup_steps,
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=settings.max_grad_norm,
        bf16=inner.dtype == torch.bfloat16,
        use_cpu=on_cpu,
        seed=seed,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=2,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
    )
    # One process has one GPU: with several in sight the Trainer would split each micro-batch over all.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if not alone:

        def forward(inputs: dict[str, torch.Tensor], tokens: torch.Tensor | int) -> torch.Tensor:
            with trainer.accelerator.autocast():
                return response_loss(inner, inputs, tokens)

        adapted.__dict__["forward"] = forward
    trainer = ResponseTrainer(
        model=adapted,
        args=arguments,
        train_dataset=_shared_out([row.encoded for row in rows], plan),
        data_collator=lambda batch: collate(batch, pad_id),
        callbacks=[Guard()],
    )
    if not alone:
        torch.manual_seed(seed + arguments.process_index)  # dropout of its own for each
    trainer.model_accepts_loss_kwargs = True
    trainer.remove_callback(PrinterCallback)
    return trainer


def _shared_out(rows: Sequence[Encoded], plan: Plan) -> list[tuple[int, Encoded]]:
    """Rows with their numbers, and behind them rows without a response, which teach nothing, until each of
    several processes has as many micro-batches as the others."""
    numbered = list(enumerate(rows))
    if plan.processes == 1:
        return numbered
    nothing = Encoded(rows[0].prompt_ids[:1] * 2, ())
    missing = -len(rows) % plan.together
    return numbered + [(len(rows) + i, nothing) for i in range(missing)]


@contextmanager
def _plain_surroundings() -> Iterator[None]:
    """No warnings of the libraries on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def forget(checkpoints: Path) -> None:
    """Removes the checkpoints of a finished run."""
    remove(checkpoints)
