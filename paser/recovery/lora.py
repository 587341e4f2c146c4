"""Instruction tuning with LoRA: the loss is on the response only, the steps come in the order given.

transformers' Trainer trains and keeps the checkpoints. Its sampling, printing and reporting are switched
off; a batch with a loss or gradient that is not finite stops the run and names its rows.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import remove, write_json
from paser.errors import StageError
from paser.models.packing import packs, row_attention
from paser.models.sparsity import is_sparse
from paser.models.tokens import Encoded
from paser.progress import Advance, progress, say
from paser.recovery.batches import Plan, Portion, TrainingRow, padding_share, portions
from paser.recovery.checkpoints import PREFIX, newest_complete, seal
from paser.recovery.masked import keep_zeros, masked_linear
from paser.recovery.objective import Objective, Teacher
from paser.recovery.reporting import reporter
from paser.recovery.stopping import Stopping
from paser.settings import RecoverSettings

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

# transformers' names of the schedules.
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
# Shortest row that shows whether a model can read packed rows.
_LEAST = 16
ADAPTER_NOTE = """\
# LoRA adapter, already merged into the model above

Where a layer of the model this adapter was trained on is sparse, its update counts only where the weight is
not zero: multiply `B A` by that mask before adding it. Loaded by peft alone, it would fill the zeros.
"""


@dataclass(frozen=True)
class TrainingFacts:
    """What training did. Losses are means per response token that counts, in nats; lower is better.

    `masked_layers` kept the zeros of their weight, `dense_layers` had none to keep. `loss_first` is the
    cross-entropy of the first pass through the rows, `loss_last` of the last one, both while training.
    `padding` is the share of padding in what went through the model, 0 .. 1. `stopping` has what early
    stopping did, where it was on.
    """

    rows: int
    cut_rows: int
    tokens: int
    response_tokens: int
    epochs: int
    steps: int
    packed: bool
    passes_per_epoch: int
    padding: float
    masked_layers: int
    dense_layers: int
    trained_weights: int
    loss_first: float
    loss_last: float
    stopping: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        content = asdict(self)
        stopping = content.pop("stopping")
        return {**content, **({"early_stopping": stopping} if stopping else {})}


@dataclass(frozen=True)
class Extras:
    """What is off by default: the original model as `teacher`, rows `held_out` to stop by, a folder for
    `logs`."""

    teacher: PreTrainedModel | None = None
    held_out: Sequence[TrainingRow] = ()
    logs: Path | None = None


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
    extras: Extras | None = None,
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

    extras = extras or Extras()
    everything = [*rows, *extras.held_out]
    _check(model, everything, settings)
    teacher = None
    if extras.teacher is not None and settings.distill.weight:
        teacher = Teacher(extras.teacher, settings.distill.weight, settings.distill.temperature)
    readers = [model, *([teacher.model] if teacher else [])]
    packed = settings.packing and _can_pack(readers, everything)
    objective = Objective(packed, pad_id, teacher)
    plan = Plan.of(len(rows), settings)
    stopping = None
    if extras.held_out:
        stopping = Stopping(extras.held_out, settings.early_stopping, plan)
    torch.manual_seed(seed)
    adapted = add_adapter(model, settings)
    with _in_turn(processes) as first:
        resume = newest_complete(checkpoints)
        if resume and stopping:
            stopping.load(resume)
    total = plan.rows * plan.epochs
    done = plan.rows_done(int(resume.name.removeprefix(PREFIX))) if resume else 0
    if first and 0 < done < total:
        say(f"  {title}: resuming after {done:,} of {total:,} rows")
    with (
        _plain_surroundings(),
        row_attention(*readers) if packed else contextlib.nullcontext(),
        progress(title, total - done, "rows") as advance,
    ):
        run = _Run(adapted, rows, settings, plan, objective, stopping, seed, checkpoints, advance, processes)
        history = run.train(resume, reporter(settings.report_to, extras.logs, title))
    if stopping:
        stopping.restore(adapted)
    losses = [entry["loss"] for entry in history if "loss" in entry]
    return adapted, _facts(adapted, rows, settings, plan, packed, losses, stopping)


def _can_pack(models: Sequence[PreTrainedModel], rows: Sequence[TrainingRow]) -> bool:
    longest = max(max(row.encoded.tokens for row in rows), _LEAST)
    able = all(packs(model, longest) for model in models)
    if not able:
        say("  this model cannot read several rows in one sequence: batches are padded")
    return able


@contextmanager
def _in_turn(processes: int) -> Iterator[bool]:
    """Within it the first process is before the others; yields whether this is the first."""
    if processes == 1:
        yield True
        return
    from accelerate import PartialState

    with PartialState().main_process_first():
        yield PartialState().is_main_process


def add_adapter(model: PreTrainedModel, settings: RecoverSettings) -> PeftModel:
    """Puts an untrained adapter on `model`; on sparse layers a masked one, unless `zeros` is `merged`."""
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
    adapted: PeftModel = get_peft_model(model, keep_zeros(config) if settings.zeros == "trained" else config)
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
            "the model is in float16, which overflows in training: Llama-family models give NaN",
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


def _facts(
    adapted: PeftModel,
    rows: Sequence[TrainingRow],
    settings: RecoverSettings,
    plan: Plan,
    packed: bool,
    losses: list[float],
    stopping: Stopping | None,
) -> TrainingFacts:
    from peft.tuners.lora import Linear

    layers: list[Any] = [module for module in adapted.modules() if isinstance(module, Linear)]
    masked = sum(
        isinstance(layer, masked_linear()) or is_sparse(layer.get_base_layer().weight) for layer in layers
    )
    epoch = plan.steps_per_epoch
    first, last = losses[:epoch], losses[-epoch:]
    passes = [part for portion in portions(rows, settings, packed=packed) for part in portion.passes]
    return TrainingFacts(
        rows=len(rows),
        cut_rows=sum(row.encoded.cut for row in rows),
        tokens=sum(row.encoded.tokens for row in rows),
        response_tokens=sum(len(row.encoded.response_ids) for row in rows),
        epochs=plan.epochs,
        steps=len(losses),
        packed=packed,
        passes_per_epoch=len(passes),
        padding=round(padding_share(passes, [row.encoded.tokens for row in rows], packed=packed), 6),
        masked_layers=masked,
        dense_layers=len(layers) - masked,
        trained_weights=sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        loss_first=round(sum(first) / len(first), 6),
        loss_last=round(sum(last) / len(last), 6),
        stopping=stopping.facts() if stopping else {},
    )


@dataclass
class _Run:
    """One run of the Trainer; its class is built in `train` because it needs transformers."""

    adapted: PeftModel
    rows: Sequence[TrainingRow]
    settings: RecoverSettings
    plan: Plan
    objective: Objective
    stopping: Stopping | None
    seed: int
    checkpoints: Path
    advance: Advance
    processes: int

    def __post_init__(self) -> None:
        self.inner: Any = self.adapted.get_base_model()
        # Without a response it teaches nothing: for a process that has no row in a step.
        nothing = TrainingRow("", Encoded(self.rows[0].encoded.prompt_ids[:1] * 2, ()))
        self.known = [*self.rows, nothing]
        self.in_step: list[int] = []

    def train(self, resume: Path | None, report: Any) -> list[dict[str, Any]]:
        """Trains to the end and returns the Trainer's log, one entry a step."""
        from transformers import TrainerState

        if resume and self.stopping and self.stopping.stopped:
            state = TrainerState.load_from_json(str(resume / "trainer_state.json"))
            return list(state.log_history)
        trainer = self._trainer(report)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        return list(trainer.state.log_history)

    def _not_finite(self, what: str, step: int, numbers: Sequence[int]) -> StageError:
        names = ", ".join(self.rows[number].row_id for number in numbers if number < len(self.rows))
        return StageError(
            f"the {what} is not finite at optimiser step {step} of {self.plan.steps}; "
            f"rows of the batch: {names}",
            remedy="lower recover.learning_rate, or set model.precision: float32; "
            "if it stays, withdraw the row in data/withdrawn.csv",
        )

    def _trainer(self, report: Any) -> Any:
        import torch
        from accelerate.utils import gather_object
        from transformers import PrinterCallback, Trainer, TrainerCallback

        run, alone = self, self.processes == 1

        class ResponseTrainer(Trainer):  # type: ignore[misc]
            def training_step(
                self, model: Any, inputs: Any, num_items_in_batch: torch.Tensor | int | None = None
            ) -> torch.Tensor:
                """Forward and backward of every pass of a step; the mean cross-entropy of the step."""
                model.train()
                step = self.state.global_step + 1
                total = torch.zeros((), device=run.inner.device)
                run.in_step.clear()
                portion: Portion = inputs["portion"]
                for numbers in portion.passes:
                    run.in_step.extend(numbers)
                    rows = [run.known[number] for number in numbers]
                    last = numbers is portion.passes[-1]
                    with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                        if alone:
                            with self.accelerator.autocast():
                                sums = run.objective.sums(run.inner, rows)
                        else:
                            # Through the wrapped model, which takes the mean of the processes' gradients.
                            sums = model(rows) * run.processes
                        if not torch.isfinite(sums).all():
                            raise run._not_finite("loss", step, numbers)
                        self.accelerator.backward(sums[0] / portion.tokens)
                    total = total + sums[1].detach()
                    if alone:
                        run.advance(len(numbers))
                gradients = [p.grad for p in run.adapted.parameters() if p.grad is not None]
                if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
                    everywhere = run.in_step if alone else gather_object(run.in_step)
                    raise run._not_finite("gradient", step, sorted(everywhere))
                mean: torch.Tensor = total / portion.tokens
                return mean

            def floating_point_ops(self, inputs: Any) -> int:
                return 0

        class Keeper(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                step = state.global_step
                if not alone and state.is_world_process_zero:
                    run.advance(run.plan.rows_done(step) - run.plan.rows_done(step - 1))
                if run.stopping and run.stopping.after(step, lambda: run.held_out_loss(trainer), run.adapted):
                    control.should_training_stop = control.should_save = True
                control.should_log = True  # the evaluation's own line has put it off

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                trainer.accelerator.wait_for_everyone()  # each process writes its own random state
                if state.is_world_process_zero:
                    checkpoint = run.checkpoints / f"{PREFIX}{state.global_step}"
                    if run.stopping:
                        run.stopping.save(checkpoint)
                    seal(checkpoint)
                trainer.accelerator.wait_for_everyone()

        arguments = self._arguments()
        if not alone:

            def forward(rows: list[TrainingRow]) -> torch.Tensor:
                with trainer.accelerator.autocast():
                    return run.objective.sums(run.inner, rows)

            self.adapted.__dict__["forward"] = forward
        trainer = ResponseTrainer(
            model=self.adapted,
            args=arguments,
            train_dataset=portions(
                self.rows, self.settings, packed=self.objective.packed, processes=self.processes
            ),
            data_collator=lambda batch: {"portion": batch[0]},
            callbacks=[Keeper(), *([report] if report else [])],
        )
        if not alone:
            torch.manual_seed(self.seed + arguments.process_index)  # dropout of its own for each
        trainer.remove_callback(PrinterCallback)
        return trainer

    def held_out_loss(self, trainer: Any) -> float:
        """Mean cross-entropy per response token on the rows held out, in nats; the same in all processes."""
        import torch
        from accelerate.utils import broadcast_object_list

        assert self.stopping is not None
        found = [0.0]
        if trainer.is_world_process_zero():
            rows, total, tokens = self.stopping.rows, 0.0, 0
            self.adapted.eval()
            plain = Objective(self.objective.packed, self.objective.pad_id)
            with torch.no_grad(), trainer.accelerator.autocast():
                for portion in portions(rows, self.settings, packed=self.objective.packed):
                    for numbers in portion.passes:
                        total += float(plain.sums(self.inner, [rows[number] for number in numbers])[1])
                    tokens += portion.tokens
            self.adapted.train()
            found = [total / tokens]
        if self.processes > 1:
            broadcast_object_list(found)
        trainer.log({"eval_loss": found[0]})
        return found[0]

    def _arguments(self) -> Any:
        import torch
        from transformers import TrainingArguments

        settings = self.settings
        arguments = TrainingArguments(
            output_dir=str(self.checkpoints),
            per_device_train_batch_size=1,  # one portion, which is one step
            gradient_accumulation_steps=1,
            num_train_epochs=self.plan.epochs,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=SCHEDULES[settings.schedule],
            warmup_steps=self.plan.warmup_steps,
            optim="adamw_torch",
            weight_decay=0.0,
            max_grad_norm=settings.max_grad_norm,
            bf16=self.inner.dtype == torch.bfloat16,
            use_cpu=self.inner.device.type == "cpu",
            seed=self.seed,
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
        # One process has one GPU: with several in sight the Trainer would split each pass over all.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        if self.processes > 1 and self.inner.device.type == "cpu":
            # accelerate says `cpu:0`, where torch.load restores nothing, so no checkpoint could be resumed.
            arguments.distributed_state.device = torch.device("cpu")
            vars(arguments)["_setup_devices"] = torch.device("cpu")
        return arguments


@contextmanager
def _plain_surroundings() -> Iterator[None]:
    """No warnings of the libraries on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def forget(checkpoints: Path) -> None:
    """Removes the checkpoints of a finished run."""
    remove(checkpoints)
