"""Models on tasks and texts, one model at a time, and what their results say beside each other.

What was measured is kept in the cache by everything that decides it, so that a killed run goes on where it
stopped, and a new recovered model does not measure the original again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import fingerprint, read_json, write_json
from paser.cache import Cache
from paser.errors import PaserError, SourceError
from paser.evaluation.gap import ORIGINAL, Metric, choice_jsd, metric_gaps, spread
from paser.evaluation.harness import Task, TaskResult, hub_task, local_task, run_task
from paser.evaluation.hub import require_known
from paser.evaluation.items import read_items
from paser.evaluation.perplexity import Perplexity, corpus_text, perplexity
from paser.lineage.record import code_digest, package_versions
from paser.progress import say
from paser.settings import Settings
from paser.sources.catalog import TEXT_FORMAT, Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CODE = ("paser/evaluation", "paser/models")
# A context of more than this is not used, as in the pruning literature.
LONGEST = 2048
ROOM = "evaluation"


@dataclass(frozen=True)
class Text:
    """A text for perplexity and where it came from."""

    name: str
    text: str


@dataclass(frozen=True)
class Measurement:
    """One model's results, by name of task or text."""

    tasks: Mapping[str, TaskResult]
    texts: Mapping[str, Perplexity]


def open_tasks(names: Sequence[str], local: Mapping[str, tuple[Path, Source]]) -> list[Task]:
    """The tasks of these names: local sources where there are some, else lm-eval's own."""
    tasks = []
    for name in names:
        if name in local:
            folder, source = local[name]
            if source.format == TEXT_FORMAT:
                raise SourceError(
                    f"{name!r} is a text, not a task", remedy="name it under evaluate.perplexity or --text"
                )
            tasks.append(local_task(name, source.uri, read_items(folder, source)))
        else:
            require_known(name)
            tasks.append(hub_task(name))
    return tasks


def open_texts(names: Sequence[str], local: Mapping[str, tuple[Path, Source]]) -> list[Text]:
    """The texts of these names; the files of a source are joined in their order."""
    texts = []
    for name in names:
        if name not in local or local[name][1].format != TEXT_FORMAT:
            raise SourceError(
                f"{name!r} is no source with `role: task` and `format: text`",
                remedy="add it to data/sources.yaml",
            )
        files = sorted(path for path in local[name][0].rglob("*") if path.is_file())
        texts.append(Text(name, "".join(corpus_text(path) for path in files)))
    return texts


def measure(
    name: str,
    path: Path,
    digest: str,
    tasks: Sequence[Task],
    texts: Sequence[Text],
    settings: Settings,
    cache: Cache,
) -> Measurement:
    """The model at `path` on every task and text; only what the cache lacks is computed."""
    from paser.models.precision import choose_device, choose_dtype, set_threads

    wanted = settings.evaluate
    device, threads = choose_device(settings.runtime.device), set_threads(settings.runtime.threads)
    dtype = choose_dtype(settings.model.precision, device, cache)
    common = {
        "model": digest,
        "dtype": str(dtype),
        "device": device,
        "threads": threads,
        "versions": package_versions(),
        "code": code_digest(CODE),
    }
    opened: list[tuple[PreTrainedModel, PreTrainedTokenizerBase]] = []

    def model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from paser.models.loading import load_causal_lm, load_tokenizer

        if not opened:
            opened.append((load_causal_lm(path, dtype=dtype, device=device), load_tokenizer(path)))
        return opened[0]

    results: dict[str, TaskResult] = {}
    for task in tasks:
        key = {"task": task.key, "limit": wanted.limit, "batch": wanted.batch_size, **common}
        entry = cache.entry(ROOM, fingerprint(key))
        if entry.exists():
            found = [TaskResult(**one) for one in read_json(entry)]
        else:
            say(f"  {name}: task {task.name}")
            found = run_task(*model(), task, limit=wanted.limit, batch_size=wanted.batch_size)
            write_json(entry, [one.as_json() for one in found])
        single = len(found) == 1
        renamed = [replace(one, task=task.name if single else one.task, origin=task.origin) for one in found]
        results |= {one.task: one for one in renamed}
    measured: dict[str, Perplexity] = {}
    for text in texts:
        key = {"text": text.text, "windows": wanted.windows, "context": wanted.context, **common}
        entry = cache.entry(ROOM, fingerprint(key))
        if entry.exists():
            kept = read_json(entry)
            measured[text.name] = Perplexity(
                **kept | {key: tuple(kept[key]) for key in ("window_losses", "window_tokens")}
            )
        else:
            say(f"  {name}: perplexity of {text.name}")
            context = context_of(model()[0], wanted.context)
            measured[text.name] = perplexity(*model(), text.text, context=context, windows=wanted.windows)
            write_json(entry, vars(measured[text.name]))
    return Measurement(results, measured)


def context_of(model: PreTrainedModel, wanted: int | str) -> int:
    """`wanted` tokens, or with `auto` the model's context, at most `LONGEST`; raises above the context."""
    from paser.models.passes import context_length

    longest = context_length(model.config)
    if isinstance(wanted, str):
        return min(longest or LONGEST, LONGEST)
    if longest and wanted > longest:
        raise PaserError(
            f"a window of {wanted} tokens is longer than the model's context of {longest}",
            remedy="choose a shorter one",
        )
    return wanted


def tasks_part(measured: Mapping[str, Measurement], resamples: int, seed: int) -> dict[str, Any]:
    """The part `tasks` of `metrics.json`: every metric of every task with standard errors, gaps and
    limits."""
    import numpy as np

    models = list(measured)
    first = measured[models[0]].tasks
    metrics, about = [], []
    for name, task in first.items():
        of_model = {m: measured[m].tasks[name] for m in models}
        for m, other in of_model.items():
            if list(other.ids) != list(task.ids):
                raise PaserError(f"task {name}: {m} was asked other items", remedy="`paser cache prune`")
        jsd = None
        if task.choices is not None and ORIGINAL in models:
            reference = of_model[ORIGINAL].choices or ()
            jsd = {m: choice_jsd(reference, other.choices or ()) for m, other in of_model.items()}
        for metric in task.metrics:
            values = {m: np.array(other.values[metric], dtype=float) for m, other in of_model.items()}
            primary = metric == task.primary
            metrics.append(Metric(name, metric, values, True, jsd=jsd if primary else None, primary=primary))
            about.append(
                {
                    "limit": "" if task.items == task.of else f"of {task.of:,}",
                    "protocol": task.protocol,
                    "origin": task.origin,
                    "notes": list(task.notes),
                    "stderr": {
                        m: other.metrics[metric]["stderr"]
                        for m, other in of_model.items()
                        if "stderr" in other.metrics[metric]
                    },
                }
            )
    return _with_facts(metric_gaps(metrics, models, resamples, seed), about, models)


def texts_part(measured: Mapping[str, Measurement], resamples: int, seed: int) -> dict[str, Any]:
    """The part `perplexity` of `metrics.json`.

    What is resampled, and of which the gap is closed, is the mean loss, the logarithm of the perplexity; the
    perplexities stand beside it.
    """
    import numpy as np

    models = list(measured)
    metrics, about = [], []
    for name, text in measured[models[0]].texts.items():
        of_model = {m: measured[m].texts[name] for m in models}
        values = {m: np.array(found.window_losses) for m, found in of_model.items()}
        metrics.append(
            Metric(name, "log perplexity", values, False, weights=np.array(text.window_tokens, dtype=float))
        )
        about.append(
            {
                "perplexity": {m: found.value for m, found in of_model.items()},
                "protocol": text.protocol,
                "tokens": text.tokens,
            }
        )
    return _with_facts(metric_gaps(metrics, models, resamples, seed), about, models)


def _with_facts(
    part: Mapping[str, Any], about: Sequence[Mapping[str, Any]], models: Sequence[str]
) -> dict[str, Any]:
    entries = [
        {
            **entry,
            **facts,
            "spread": {key: spread(entry[key], models) for key in ("value", "gap_closed")},
        }
        for entry, facts in zip(part["metrics"], about, strict=True)
    ]  # fmt: skip
    return {"metrics": entries, "overall": part["overall"], "spread": spread(part["overall"], models)}


def item_rows(measured: Mapping[str, Measurement]) -> list[dict[str, Any]]:
    """`tasks.parquet`: one line for each item, metric and model."""
    return [
        {"task": name, "metric": metric, "model": m, "item": item, "value": float(value)}
        for m, found in measured.items()
        for name, task in found.tasks.items()
        for metric, values in task.values.items()
        for item, value in zip(task.ids, values, strict=True)
    ]
