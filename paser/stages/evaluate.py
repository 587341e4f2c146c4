"""Stage `evaluate`: the four models on held-out rows, tasks and texts: what each is worth, and what recovery
gave back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import read_json, read_rows, staged, write_json, write_table
from paser.errors import StageError
from paser.evaluation.board import board, board_csv, headline
from paser.evaluation.gap import Measured, summarise
from paser.evaluation.harness import require_runnable
from paser.evaluation.measure import (
    Measurement,
    item_rows,
    measure,
    open_tasks,
    open_texts,
    tasks_part,
    texts_part,
)
from paser.models.workload import finite, fused_arrays, open_models
from paser.pool.build import read_sources
from paser.progress import say, warn
from paser.records import sample_to_row
from paser.sources.catalog import TASK_ROLE, contaminated
from paser.sources.fetching import read_index
from paser.stages.run import Context

if TYPE_CHECKING:
    from paser.models.shards import Arrays

Row = dict[str, Any]
CONTROL = "control"


def run(context: Context) -> None:
    settings, wanted = context.settings, context.settings.evaluate
    benchmarks = _benchmarks(context)
    local = _local(context.input("data/sources/task"))
    tasks, texts = open_tasks(wanted.tasks, local), open_texts(wanted.perplexity, local)
    require_runnable(tasks, wanted.run_code)
    holdout = read_rows(context.input("data/holdout.parquet"), "pool")
    rows = [{**row, "split": "holdout"} for row in holdout]
    for sample in read_sources(context.input("data/sources/evaluation").parent, "evaluation"):
        rows.append({**sample_to_row(sample), "split": "evaluation"})
    if not rows:
        raise StageError("there are no held-out rows to evaluate on", remedy="raise pool.holdout_per_label")
    clusters = read_rows(context.input("data/clusters.parquet"), "clusters")
    cluster_of = {row["row_id"]: row["cluster"] for row in clusters if row["split"] == "holdout"}
    paths = {name: context.input(f"data/models/{name}") for name in ("original", "pruned", "recovered")}
    control = context.input("data/models/control")
    if (control / "config.json").exists():
        paths[CONTROL] = control
    digests = {name: context.digest(f"data/models/{name}") for name in paths}
    models = open_models(paths, digests, settings, context.cache)
    arrays = fused_arrays("evaluate", rows, models, digests, settings.score, context.cache)
    precision, template = models.precision, models.encoder.template
    del models
    kind = "label" if any(row["label"] for row in holdout) else "cluster"
    for row in rows:
        row["cluster"] = cluster_of.get(row["row_id"])
        row["capability"] = _capability(row, kind)
    names = list(paths)
    write_table(context.out("data/evaluation.parquet"), "evaluation", _long(rows, arrays, names))
    usable = [i for i in range(len(rows)) if str(arrays["status"][i]) in ("ok", "cut")]
    if not usable:
        raise StageError("no held-out row has finite logits in all models", remedy="check the models")
    excluded = len(rows) - len(usable)
    if excluded:
        warn(f"{excluded} held-out rows have no finite result in all models and are left out")
    capabilities = [
        _measured(name, [i for i in usable if rows[i]["capability"] == name], arrays, names)
        for name in sorted({rows[i]["capability"] for i in usable})
    ]
    measured: dict[str, Measurement] = {}
    if tasks or texts:
        for name, path in paths.items():
            measured[name] = measure(name, path, digests[name], tasks, texts, settings, context.cache)
    budget = read_json(context.input("data/budget.json"))
    resamples, seed = wanted.bootstrap, settings.seed
    metrics = {
        "models": names,
        "capability_kind": kind,
        "seeds": 1,
        "budget": {
            "rows": budget["rows"],
            "tokens": budget["tokens"],
            "unit": budget["unit"],
            "requested": budget["requested"]["text"],
            "control_rows": budget["control"]["rows"],
            "control_tokens": budget["control"]["tokens"],
        },
        "interval": "95 % bootstrap over held-out rows",
        "benchmarks": benchmarks,
        "excluded_rows": excluded,
        "notes": _notes(benchmarks),
        **summarise(capabilities, names, resamples, seed),
        "clusters": _by_cluster(rows, usable, arrays, names, read_json(context.input("data/clusters.json")),
                                resamples, seed),
        "tasks": tasks_part(measured, resamples, seed) if tasks else {},
        "perplexity": texts_part(measured, resamples, seed) if texts else {},
        "contamination": _overlap(read_json(context.input("data/contamination.json"))),
    }  # fmt: skip
    lines = board(metrics)
    write_json(context.out("data/metrics.json"), metrics)
    write_json(context.out("data/scoreboard.json"), lines)
    write_json(context.out("data/summary.json"), headline(metrics, lines))
    with staged(context.out("data/scoreboard.csv")) as partial:
        partial.write_text(board_csv(lines, names), encoding="utf-8")
    write_table(context.out("data/tasks.parquet"), "tasks", item_rows(measured))
    context.note(precision=precision, template=template)
    for name in names[2:]:
        entry = metrics["overall"][name]
        gap, fidelity = entry["gap_closed"], entry["fidelity_gap"]
        say(
            f"  {name}: fidelity gap {fidelity['value']:.3f}"
            + (f", gap closed in loss {gap['value']:.3f}" if gap else "")
        )


def _local(folder: Path) -> dict[str, tuple[Path, Any]]:
    """Folder and source of the fetched tasks and texts, by name."""
    return {entry.source.name: (folder / entry.source.name, entry.source) for entry in read_index(folder)}


def _by_cluster(
    rows: Sequence[Row],
    usable: Sequence[int],
    arrays: Arrays,
    models: Sequence[str],
    info: Mapping[str, Any],
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Held-out rows by the cluster that they fall into (method.md, section 1), in order of the clusters."""
    titles = {entry["cluster"]: entry["name"] for entry in info["clusters"]}
    members: dict[int, list[int]] = {}
    for i in usable:
        if rows[i]["cluster"] is not None:
            members.setdefault(int(rows[i]["cluster"]), []).append(i)
    if not members:
        return []
    clusters = [_measured(f"cluster {k}", members[k], arrays, models) for k in sorted(members)]
    found: list[dict[str, Any]] = summarise(clusters, models, resamples, seed)["capabilities"]
    return [{**entry, "title": titles.get(k, "")} for k, entry in zip(sorted(members), found, strict=True)]


def _overlap(found: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of `contamination.json`, without its rows."""
    return {key: value for key, value in found.items() if key != "rows"}


def _capability(row: Row, kind: str) -> str:
    """The held-out row's label or cluster; evaluation rows stand apart, by source."""
    if row["split"] == "evaluation":
        return f"evaluation: {row['source']}"
    return f"cluster {row['cluster']}" if kind == "cluster" else row["label"] or "unlabelled"


def _benchmarks(context: Context) -> list[str]:
    """Public benchmarks with items in pool or calibration; refuses to evaluate on one of them."""
    sources = {
        role: [fetched.source for fetched in read_index(context.input(f"data/sources/{role}"))]
        for role in ("pool", "calibration", "evaluation", TASK_ROLE)
    }
    training = [*sources["pool"], *sources["calibration"]]
    local = {source.name for source in sources[TASK_ROLE]}
    hub = [name for name in context.settings.evaluate.tasks if name not in local]
    overlap = contaminated([*sources["evaluation"], *sources[TASK_ROLE]], training, hub)
    if overlap and not context.settings.evaluate.allow_contaminated:
        raise StageError(
            f"evaluation on {', '.join(overlap)} is contaminated: its items are in pool or calibration",
            remedy="take that source or task out of data/sources.yaml and evaluate.tasks, or set "
            "evaluate.allow_contaminated: true",
        )
    return sorted({source.benchmark for source in training if source.benchmark})


def _notes(benchmarks: Sequence[str]) -> list[str]:
    if not benchmarks:
        return []
    return [
        f"pool and calibration hold items of public benchmarks ({', '.join(benchmarks)}): "
        "scores of these models on those benchmarks mean nothing"
    ]


def _long(rows: Sequence[Row], arrays: Arrays, models: Sequence[str]) -> list[Row]:
    """`evaluation.parquet`: one line a row and model."""
    result = []
    for i, row in enumerate(rows):
        for model in models:
            first = model == "original"
            jsd = 0.0 if first else float(arrays[f"jsd_{model}"][i])
            loss = float(arrays["loss" if first else f"loss_{model}"][i])
            result.append(
                {
                    "row_id": row["row_id"],
                    "split": row["split"],
                    "capability": row["capability"],
                    "cluster": row["cluster"],
                    "model": model,
                    "loss": finite(loss),
                    "jsd": finite(jsd) if finite(loss) is not None else None,
                    "response_tokens": int(arrays["response_tokens"][i]),
                    "status": str(arrays["status"][i]),
                }
            )
    return result


def _measured(name: str, members: Sequence[int], arrays: Arrays, models: Sequence[str]) -> Measured:
    import numpy as np

    where = np.array(members, dtype=np.int64)
    loss: Mapping[str, Any] = {m: arrays["loss" if m == "original" else f"loss_{m}"][where] for m in models}
    jsd = {m: np.zeros(len(where)) if m == "original" else arrays[f"jsd_{m}"][where] for m in models}
    return Measured(name, loss, jsd)
