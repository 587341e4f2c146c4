"""Evaluation alone, on anyone's models, rows, tasks and texts, outside DVC: `paser evaluate`, `paser
perplexity`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import sha256_path, staged, write_json, write_table
from paser.cache import Cache
from paser.damage_profile import (
    DEFAULT_SOURCES,
    check_result_folder,
    name_and_model,
    row_clusters,
    rows_to_measure,
)
from paser.errors import PaserError
from paser.models.given import Given, fetch_models, naming, places
from paser.models.tokens import SampleEncoder
from paser.models.workload import open_models, shared_tokenizer
from paser.pool.build import kept_rows
from paser.progress import say, warn
from paser.settings import Settings, load_settings
from paser.sources.catalog import TASK_FORMATS, TASK_ROLE, TEXT_FORMAT, Source, load_sources, source_from_uri
from paser.sources.fetching import fetch_one
from paser.standalone import pool_rules

if TYPE_CHECKING:
    from paser.evaluation.gap import Measured
    from paser.evaluation.harness import Task
    from paser.evaluation.measure import Text
    from paser.evaluation.perplexity import Perplexity
    from paser.models.shards import Arrays

FILES = ("metrics.json", "scoreboard.json", "scoreboard.csv", "tasks.parquet")


@dataclass(frozen=True)
class Wanted:
    """What `paser evaluate` measures. Without rows, tasks and texts: the default held-out rows.

    `tasks`: names of sources with `role: task` in the default source list, `FORMAT:FILE`, or names of
    lm-eval's tasks. `texts`: files. `rows`: a file or URI of instruction rows.
    """

    tasks: Sequence[str] = ()
    texts: Sequence[str] = ()
    rows: str | None = None
    rows_format: str = "auto"
    encoder: str | None = None
    limit: int | None = None
    windows: int | None = None
    run_code: bool = False


def evaluate_models(
    original: str | None,
    pruned: str | None,
    models: Sequence[str],
    wanted: Wanted,
    out: Path | None,
    params: Path | None = None,
) -> dict[str, Any]:
    """The content of `metrics.json` for these models; with `out` also `FILES` in that folder.

    `models` are `NAME=MODEL` or a model alone; a name given several times are runs of one recipe with other
    seeds, whose spread is stated. Gaps need the original and the pruned model, divergences the original.
    """
    settings = load_settings(params) if params else Settings()
    changed = {key: value for key in ("limit", "windows") if (value := getattr(wanted, key)) is not None}
    changed |= {"run_code": True} if wanted.run_code else {}
    settings = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update=changed)})
    named = named_runs(original, pruned, models)
    if not named:
        raise PaserError("there is no model to evaluate", remedy="name one with --model")
    if out is not None:
        check_result_folder(out, FILES, "evaluation")
    with tempfile.TemporaryDirectory(prefix="paser-") as work:
        metrics, items = _evaluate(named, wanted, settings, Path(work))
    if out is not None:
        _write(out, metrics, items)
    return metrics


def named_runs(original: str | None, pruned: str | None, models: Sequence[str]) -> dict[str, str]:
    """Models by name, `original` and `pruned` first; runs of one recipe are numbered: `paser/1`,
    `paser/2`."""
    given = [name_and_model(text) for text in models]
    named = {name: uri for name, uri in (("original", original), ("pruned", pruned)) if uri is not None}
    names = [name for name, _ in given]
    for number, (name, uri) in enumerate(given):
        if name in ("original", "pruned"):
            raise PaserError(
                f"--model {name}=...: that name has an option of its own", remedy=f"use --{name}"
            )
        run = names[: number + 1].count(name)
        named[f"{name}/{run}" if names.count(name) > 1 else name] = uri
    return named


def text_perplexity(
    model: str,
    files: Sequence[Path],
    context: int | None = None,
    stride: int | None = None,
    windows: int | None = None,
    rolling: bool = False,
    params: Path | None = None,
) -> dict[str, Perplexity]:
    """Perplexity of a model on each file, by its path."""
    from paser.evaluation.measure import context_of
    from paser.evaluation.perplexity import corpus_text, perplexity
    from paser.models.loading import load_causal_lm, load_tokenizer
    from paser.models.precision import choose_device, choose_dtype, set_threads

    settings = load_settings(params) if params else Settings()
    texts = {str(path): corpus_text(path) for path in files}
    cache = Cache.of(Path.cwd())
    with tempfile.TemporaryDirectory(prefix="paser-") as work:
        given = fetch_models({"model": model}, cache, Path(work))
        path = given["model"].path
        device = choose_device(settings.runtime.device)
        set_threads(settings.runtime.threads)
        dtype = choose_dtype(settings.model.precision, device, cache)
        with naming(places(given)):
            loaded, tokenizer = load_causal_lm(path, dtype=dtype, device=device), load_tokenizer(path)
        size = context_of(loaded, context or settings.evaluate.context)
        return {
            name: perplexity(
                loaded, tokenizer, text, context=size, stride=stride, windows=windows, rolling=rolling
            )
            for name, text in texts.items()
        }


def _evaluate(
    named: Mapping[str, str], wanted: Wanted, settings: Settings, work: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from paser.evaluation.harness import require_runnable
    from paser.evaluation.measure import open_tasks, open_texts

    cache = Cache.of(Path.cwd())
    local, names = _local_tasks(wanted, cache, work)
    tasks, texts = open_tasks(names[0], local), open_texts(names[1], local)
    require_runnable(tasks, settings.evaluate.run_code)
    given = fetch_models(named, cache, work)
    with naming(places(given)):
        return _all_measured(given, wanted, settings, cache, work, tasks, texts)


def _all_measured(
    given: Mapping[str, Given],
    wanted: Wanted,
    settings: Settings,
    cache: Cache,
    work: Path,
    tasks: Sequence[Task],
    texts: Sequence[Text],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from paser.evaluation.measure import item_rows, measure, tasks_part, texts_part

    paths = {name: model.path for name, model in given.items()}
    digests = {name: sha256_path(path) for name, path in paths.items()}
    resamples, seed = settings.evaluate.bootstrap, settings.seed
    metrics: dict[str, Any] = {
        "models": list(given),
        "sources": {name: {"source": model.uri, "sha256": digests[name]} for name, model in given.items()},
        "seed": seed,
        "bootstrap": resamples,
        "notes": [],
    }
    if wanted.rows is not None or not (tasks or texts):
        metrics |= _on_rows(paths, digests, wanted, settings, cache, work)
    measured = {}
    if tasks or texts:
        for name, path in paths.items():
            measured[name] = measure(name, path, digests[name], tasks, texts, settings, cache)
    metrics["tasks"] = tasks_part(measured, resamples, seed) if tasks else {}
    metrics["perplexity"] = texts_part(measured, resamples, seed) if texts else {}
    return metrics, item_rows(measured)


def _local_tasks(
    wanted: Wanted, cache: Cache, work: Path
) -> tuple[dict[str, tuple[Path, Source]], tuple[list[str], list[str]]]:
    """Folder and source of each local task and text by name, and the names of both in their order."""
    listed = load_sources(DEFAULT_SOURCES)
    known = {source.name: source for source in listed if source.role == TASK_ROLE}
    chosen: dict[str, Source] = {}
    tasks: dict[str, str] = {}
    texts: dict[str, str] = {}
    for text in wanted.tasks:
        kind, _, uri = text.partition(":")
        name = _stem(uri) if uri and kind in TASK_FORMATS else text
        _require_new(name, text, tasks)
        if name != text:
            chosen[name] = source_from_uri(uri, TASK_ROLE, name=name, format=kind)
        elif text in known:
            chosen[text] = known[text]
        tasks[name] = text
    for uri in wanted.texts:
        name = uri if uri in known else _stem(uri)
        _require_new(name, uri, tasks | texts)
        chosen[name] = known.get(uri) or source_from_uri(uri, TASK_ROLE, name=name, format=TEXT_FORMAT)
        texts[name] = uri
    found = {}
    for number, (name, source) in enumerate(chosen.items()):
        folder = work / f"task-{number}"
        fetch_one(source, DEFAULT_SOURCES.parent / "raw" if name in known else None, cache, folder)
        found[name] = (folder, source)
    return found, (list(tasks), list(texts))


def _require_new(name: str, given: str, before: Mapping[str, str]) -> None:
    """Raises `PaserError` for a task or text whose name in the results another one has."""
    if name not in before:
        return
    if given == before[name]:
        raise PaserError(f"{given} is named twice to be measured", remedy="name it once")
    raise PaserError(
        f"{before[name]} and {given} would both be {name!r} in the results",
        remedy="rename one of them, or measure it in a run of its own",
    )


def _stem(uri: str) -> str:
    name = re.sub(r"[#@:].*$", "", re.sub(r"^(file|hf|pypi):", "", uri)).rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"(?i)(\.(jsonl?|txt|parquet))?(\.gz)?$", "", name) or "task"


def _on_rows(
    paths: Mapping[str, Path],
    digests: Mapping[str, str],
    wanted: Wanted,
    settings: Settings,
    cache: Cache,
    work: Path,
) -> dict[str, Any]:
    """Loss, and divergence from the original where it is given, on instruction rows by capability."""
    from paser.evaluation.gap import ORIGINAL, summarise
    from paser.models.workload import fused_arrays

    rules = pool_rules(SampleEncoder(shared_tokenizer(paths)), settings)
    kept, benchmarks = rows_to_measure(wanted.rows, wanted.rows_format, rules, cache, work)
    rows = kept_rows(kept)
    kind = "label" if any(row["label"] for row in rows) else "cluster"
    if kind == "label":
        capabilities = [row["label"] or "unlabelled" for row in rows]
    else:
        capabilities = row_clusters(rows, kept, wanted.encoder, settings, cache, work)
    say(f"{len(rows):,} rows, {len(set(capabilities))} {kind}s, {len(paths)} models")
    reference = ORIGINAL if ORIGINAL in paths else next(iter(paths))
    models = open_models(paths, digests, settings, cache)
    arrays = fused_arrays("evaluate", rows, models, digests, settings.score, cache)
    usable = [i for i in range(len(rows)) if str(arrays["status"][i]) in ("ok", "cut")]
    if not usable:
        raise PaserError(
            "no row has finite logits in all models", remedy="`paser models inspect` looks for NaN"
        )
    excluded = len(rows) - len(usable)
    if excluded:
        warn(f"{excluded} rows have no finite result in all models and are left out")
    names = sorted({capabilities[i] for i in usable})
    measured = [
        _measured(name, [i for i in usable if capabilities[i] == name], arrays, list(paths), reference)
        for name in names
    ]
    notes = [
        f"rows are items of public benchmarks ({', '.join(benchmarks)}); this is no score on them"
    ] * bool(benchmarks)
    return {
        "capability_kind": kind,
        "rows": wanted.rows or "held-out rows of the default sources",
        "excluded_rows": excluded,
        "benchmarks": benchmarks,
        "notes": notes,
        "precision": models.precision,
        **summarise(measured, list(paths), settings.evaluate.bootstrap, settings.seed),
    }


def _measured(
    name: str, members: Sequence[int], arrays: Arrays, models: Sequence[str], reference: str
) -> Measured:
    import numpy as np

    from paser.evaluation.gap import ORIGINAL, Measured

    where = np.array(members, dtype=np.int64)
    loss = {m: arrays["loss" if m == reference else f"loss_{m}"][where] for m in models}
    jsd = {}
    if reference == ORIGINAL:
        jsd = {m: np.zeros(len(where)) if m == reference else arrays[f"jsd_{m}"][where] for m in models}
    return Measured(name, loss, jsd)


def _write(out: Path, metrics: Mapping[str, Any], items: list[dict[str, Any]]) -> None:
    from paser.evaluation.board import board, board_csv

    lines = board(metrics)
    with staged(out) as folder:
        folder.mkdir(parents=True)
        write_json(folder / "metrics.json", dict(metrics))
        write_json(folder / "scoreboard.json", lines)
        (folder / "scoreboard.csv").write_text(board_csv(lines, metrics["models"]), encoding="utf-8")
        write_table(folder / "tasks.parquet", "tasks", items)
