"""Tasks through lm-eval, the harness of the field: its prompts, its requests, its metrics and standard
errors.

Local items become configurations of lm-eval's own task class, so that what differs from the stock tasks is
the source of the items alone. Programs that a model wrote are scored in `sandbox`, and only when asked for.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from paser.artifacts import fingerprint
from paser.errors import SettingsError
from paser.evaluation.hub import CODE_DATASETS, hub_rows, load_tasks, require_harness
from paser.evaluation.items import CHOICES, CLOZE, CODE, FUNCTION, NUMBER, PROGRAM, Items

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The metric that stands for a task where one is wanted: the first of these that it has.
PRIMARY = ("acc_norm", "acc", "exact_match (flexible-extract)", "exact_match", "pass@1")


@dataclass(frozen=True)
class Task:
    """A task ready to be asked. `key` decides its items and prompts; `of` is the number of its items before
    any limit, None where lm-eval alone knows."""

    name: str
    origin: str
    config: Mapping[str, Any] | str
    key: str
    code: bool
    of: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskResult:
    """One model on one task. `metrics`: value and standard error by name, higher is better, 0 .. 1.
    `values`: per item and metric. `choices`: log-likelihood of each choice of each item, where it has
    choices."""

    task: str
    origin: str
    protocol: str
    items: int
    of: int
    metrics: Mapping[str, Mapping[str, float]]
    values: Mapping[str, Sequence[float]]
    ids: Sequence[str]
    choices: Sequence[Sequence[float]] | None = None
    notes: Sequence[str] = field(default=())

    @property
    def primary(self) -> str:
        """The metric that stands for the task in averages."""
        return next((name for name in PRIMARY if name in self.metrics), next(iter(self.metrics)))

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def local_task(name: str, origin: str, items: Items) -> Task:
    """A task of local items, with the prompts of lm-eval's task of this kind."""
    config = _CONFIGS[items.kind](items)
    documents = [dict(document) for document in items.documents]
    return Task(
        name,
        origin,
        {"task": name, "custom_dataset": _dataset(documents), "test_split": "test", **config},
        fingerprint(
            {"kind": items.kind, "documents": documents, "examples": list(map(dict, items.examples))}
        ),
        items.kind in CODE,
        len(documents),
        items.notes,
    )


def hub_task(name: str) -> Task:
    """A task of lm-eval by its name."""
    require_harness()
    if name not in CODE_DATASETS:
        return Task(name, f"lm-eval {name}", name, f"hub {name} {version('lm_eval')}", code=False)
    rows = hub_rows(name)
    if name == "humaneval":
        documents = [{**row, "item": row["task_id"], "probes": [row["prompt"]]} for row in rows]
        items = Items(FUNCTION, tuple(documents))
    else:
        first = [row for row in hub_rows(name, "prompt") if row["task_id"] in (2, 3, 4)]
        items = Items(PROGRAM, tuple(map(_mbpp_document, rows)), (), tuple(map(_mbpp_document, first)))
    return local_task(name, f"{CODE_DATASETS[name][0]} on the Hub", items)


def _mbpp_document(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"item": str(row["task_id"]), "text": row["text"], "code": row["code"],
            "tests": "\n".join(row["test_list"]), "probes": [row["text"]]}  # fmt: skip


def _dataset(documents: Sequence[Mapping[str, Any]]) -> Callable[..., Any]:
    """What lm-eval calls for a task's data; kept in memory, so that nothing is left in its cache."""

    def dataset(**_: Any) -> Any:
        import datasets

        return {"test": datasets.Dataset.from_list([dict(document) for document in documents])}

    return dataset


def _mean(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


def _choices_config(items: Items) -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": _mean("acc", "acc_norm"),
        "num_fewshot": 0,
    }


def _cloze_config(items: Items) -> dict[str, Any]:
    """WinoGrande: the same ending after each context; which one makes it likelier."""
    return {
        "output_type": "multiple_choice",
        "doc_to_text": lambda document: document["gold"],
        "doc_to_choice": lambda document: document["contexts"],
        "doc_to_target": lambda document: document["ending"],
        "metric_list": _mean("acc"),
        "num_fewshot": 0,
    }


def _number_config(items: Items) -> dict[str, Any]:
    """GSM8K: the number after `####` (strict) or the last one (flexible)."""
    ignored = [",", "\\$", "(?s).*#### ", "\\.$"]
    extract: dict[str, dict[str, Any]] = {
        "strict-match": {"regex_pattern": r"#### (\-?[0-9\.\,]+)"},
        "flexible-extract": {"group_select": -1, "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)"},
    }
    return {
        "output_type": "generate_until",
        "doc_to_text": "query",
        "doc_to_target": "target",
        "metric_list": [{**_mean("exact_match")[0], "ignore_case": True, "ignore_punctuation": False,
                         "regexes_to_ignore": ignored}],
        "generation_kwargs": {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False,
                              "temperature": 0.0},
        "filter_list": [
            {"name": name, "filter": [{"function": "regex", **how}, {"function": "take_first"}]}
            for name, how in extract.items()
        ],
        "num_fewshot": 0,
    }  # fmt: skip


def _function_config(items: Items) -> dict[str, Any]:
    """HumanEval: the rest of a function, greedy, tested by the item's own `check`."""

    def score(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
        program = f"{document['prompt']}{results[0]}\n{document['test']}\ncheck({document['entry_point']})"
        return {"pass@1": _passes(program)}

    return {
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "",
        "process_results": score,
        "metric_list": _mean("pass@1"),
        "generation_kwargs": {"until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"], "max_gen_toks": 512,
                              "do_sample": False},
        "num_fewshot": 0,
    }  # fmt: skip


_MBPP_PROMPT = (
    "You are an expert Python programmer, and here is your task: {text} "
    "Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
)


def _program_config(items: Items) -> dict[str, Any]:
    """MBPP: a program between [BEGIN] and [DONE] after three worked examples, tested by the item's
    asserts."""
    shown = "".join(f"{_MBPP_PROMPT.format_map(item)}{item['code']}\n[DONE]\n\n" for item in items.examples)

    def score(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
        fenced = re.search(r"```(?:\w+)?\n?(.*?)\n?```", results[0], re.DOTALL)
        program = fenced[1] if fenced else results[0]
        return {"pass@1": _passes(f"{program}\n{document['tests']}")}

    return {
        "output_type": "generate_until",
        "doc_to_text": lambda document: shown + _MBPP_PROMPT.format_map(document),
        "doc_to_target": "",
        "target_delimiter": "",
        "process_results": score,
        "metric_list": _mean("pass@1"),
        "generation_kwargs": {"until": ["[DONE]"], "max_gen_toks": 256, "do_sample": False},
        "num_fewshot": 0,
    }


def _passes(program: str) -> float:
    from paser.evaluation.sandbox import run_program

    return float(run_program(program).passed)


_CONFIGS: dict[str, Callable[[Items], dict[str, Any]]] = {
    CHOICES: _choices_config,
    CLOZE: _cloze_config,
    NUMBER: _number_config,
    FUNCTION: _function_config,
    PROGRAM: _program_config,
}


def require_runnable(tasks: Sequence[Task], run_code: bool) -> None:
    """Raises `SettingsError` for a task with programs unless running them was asked for and is possible."""
    coding = [task.name for task in tasks if task.code]
    if coding and not run_code:
        raise SettingsError(
            f"{', '.join(coding)}: measuring it runs programs that the model wrote, which was not asked for",
            remedy="ask for it with --run-code or evaluate.run_code: true; they run in a sandbox without "
            "network, with limits on time, memory and files",
        )
    if coding:
        from paser.evaluation.sandbox import require_sandbox

        require_sandbox()


def run_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    limit: int | None = None,
    batch_size: int = 8,
) -> list[TaskResult]:
    """The model's results on the task, as lm-eval computes them; several for a group of tasks.

    `limit`: only the first so many items. Nothing is sampled: generation is greedy, and lm-eval's own seeds
    hold. Without a chat template, as the field reports these tasks.
    """
    require_harness()
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    for request in ("loglikelihood", "generate_until"):  # its bars are for a terminal
        quiet = functools.partial(getattr(harness, request), disable_tqdm=not sys.stderr.isatty())
        setattr(harness, request, quiet)
    config: Any = dict(task.config) if isinstance(task.config, Mapping) else None
    asked = [config] if config is not None else list(load_tasks(str(task.config)).values())
    results = lm_eval.simple_evaluate(harness, tasks=asked, limit=limit, log_samples=True)
    dtype = str(model.dtype).removeprefix("torch.")
    return [
        _result(task, name, results, f"batches of {batch_size}, {dtype}, {model.device.type}")
        for name in results["samples"]
    ]


def _result(task: Task, name: str, results: Mapping[str, Any], computed: str) -> TaskResult:
    samples = results["samples"][name]
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    by_filter = {key: [s for s in samples if s["filter"] == key] for key in filters}
    metrics: dict[str, dict[str, float]] = {}
    values: dict[str, list[float]] = {}
    for key, entries in by_filter.items():
        for metric in entries[0]["metrics"]:
            if not isinstance(entries[0][metric], int | float):
                continue  # a perplexity or F1 is no mean over items, so it has no value of an item
            shown = metric if len(filters) == 1 else f"{metric} ({key})"
            found = results["results"][name]
            error = found.get(f"{metric}_stderr,{key}")
            metrics[shown] = {"value": float(found[f"{metric},{key}"])}
            if isinstance(error, float) and math.isfinite(error):
                metrics[shown]["stderr"] = float(error)
            values[shown] = [float(entry[metric]) for entry in entries]
    if not metrics:
        raise SettingsError(
            f"task {name}: none of its metrics is a mean over items",
            remedy="perplexities are measured on texts (evaluate.perplexity, --text)",
        )
    first = by_filter[filters[0]]
    choices = None
    if results["configs"][name].get("output_type") == "multiple_choice":
        choices = [[float(pair[0]) for pair in entry["filtered_resps"]] for entry in first]
    counts = results["n-samples"][name]
    shots = results["n-shot"][name]
    limited = "" if counts["effective"] == counts["original"] else f"first {counts['effective']:,} of "
    protocol = (
        f"lm-eval {version('lm_eval')}, {shots} examples before the question, no chat template, "
        f"{limited}{counts['original']:,} items, {computed}"
    )
    return TaskResult(
        task=task.name if name == task.name else name,
        origin=task.origin,
        protocol=protocol,
        items=int(counts["effective"]),
        of=int(counts["original"]),
        metrics=metrics,
        values=values,
        ids=[str(entry["doc"].get("item", entry["doc_id"])) for entry in first],
        choices=choices,
        notes=list(task.notes),
    )
