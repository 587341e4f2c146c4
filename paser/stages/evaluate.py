"""Stage `evaluate`: the four models on held-out rows: loss, divergence, gap closed, fidelity gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paser.artifacts import read_json, read_rows, write_json, write_table
from paser.errors import StageError
from paser.evaluation.gap import Measured, summarise
from paser.models.workload import finite, fused_arrays, open_models
from paser.pool.build import read_sources
from paser.progress import say, warn
from paser.records import sample_to_row
from paser.sources.catalog import contaminated
from paser.sources.fetching import read_index
from paser.stages.run import Context

if TYPE_CHECKING:
    from paser.models.shards import Arrays

Row = dict[str, Any]
CONTROL = "control"


def run(context: Context) -> None:
    settings = context.settings
    benchmarks = _benchmarks(context)
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
    budget = read_json(context.input("data/budget.json"))
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
        **summarise(capabilities, names, settings.evaluate.bootstrap, settings.seed),
    }
    write_json(context.out("data/metrics.json"), metrics)
    context.note(precision=models.precision, template=models.encoder.template)
    for name in names[2:]:
        entry = metrics["overall"][name]
        gap, fidelity = entry["gap_closed"], entry["fidelity_gap"]
        say(
            f"  {name}: fidelity gap {fidelity['value']:.3f}"
            + (f", gap closed in loss {gap['value']:.3f}" if gap else "")
        )


def _capability(row: Row, kind: str) -> str:
    """The held-out row's label or cluster; evaluation rows stand apart, by source."""
    if row["split"] == "evaluation":
        return f"evaluation: {row['source']}"
    return f"cluster {row['cluster']}" if kind == "cluster" else row["label"] or "unlabelled"


def _benchmarks(context: Context) -> list[str]:
    """Public benchmarks with items in pool or calibration; refuses to evaluate on one of them."""
    sources = {
        role: [fetched.source for fetched in read_index(context.input(f"data/sources/{role}"))]
        for role in ("pool", "calibration", "evaluation")
    }
    training = [*sources["pool"], *sources["calibration"]]
    overlap = contaminated(sources["evaluation"], training)
    if overlap and not context.settings.evaluate.allow_contaminated:
        raise StageError(
            f"evaluation on {', '.join(overlap)} is contaminated: its items are in pool or calibration",
            remedy="take that source out of data/sources.yaml, or set evaluate.allow_contaminated: true",
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
