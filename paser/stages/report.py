"""Stage `report`: the HTML page people open first, and the data behind its figures for `dvc plots`."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import read_array, read_columns, read_json
from paser.errors import StageError
from paser.report.content import Row, Tables, build
from paser.report.layout import lay_out, sample_rows
from paser.report.page import ClusterMap, render

if TYPE_CHECKING:
    from paser.stages.run import Context

# What the page is made from; whole rows of a large pool take longer, and more memory.
_READ = {
    "pool": ("row_id", "source", "license", "label", "benchmark", "tokens", "instruction"),
    "holdout": ("source", "license", "label"),
    "quarantine": ("source", "reason"),
    "clusters": ("row_id", "split", "cluster"),
    "scores": ("row_id", "jsd"),
    "decisions": ("row_id", "cluster", "jsd", "decision", "reason", "detail"),
}


def run(context: Context) -> None:
    tables = Tables(
        pool=_rows(context, "pool"),
        holdout=_rows(context, "holdout"),
        quarantine=_rows(context, "quarantine"),
        clusters=_rows(context, "clusters"),
        cluster_info=read_json(context.input("data/clusters.json")),
        scores=_rows(context, "scores"),
        decisions=_rows(context, "decisions"),
        budget=read_json(context.input("data/budget.json")),
        metrics=read_json(context.input("data/metrics.json")),
        entry=read_json(context.input("data/audit/entry.json")),
    )
    target = context.out("data/report")
    target.mkdir(parents=True)
    page = render(build(tables), _map(context, tables))
    (target / "index.html").write_text(page, encoding="utf-8")
    # The original's distance from itself is 0 everywhere.
    altered = [model for model in tables.metrics["models"] if model != "original"]
    _write_csv(
        target / "damage.csv",
        ("capability", *altered),
        (
            (capability["name"], *(_cell(capability["jsd"].get(model)) for model in altered))
            for capability in tables.metrics["capabilities"]
        ),
    )
    _write_csv(
        target / "budget.csv",
        ("cluster", "allocated", "spent"),
        (
            (f"{item['cluster']} {item['name']}", item["allocated"], item["spent"])
            for item in tables.budget["clusters"]
        ),
    )


def _rows(context: Context, name: str) -> list[Row]:
    rows: list[Row] = read_columns(context.input(f"data/{name}.parquet"), _READ[name]).to_pylist()
    return rows


def _map(context: Context, tables: Tables) -> ClusterMap:
    embeddings = read_array(context.input("data/embeddings.npy"))
    if len(embeddings) != len(tables.pool):
        raise StageError(
            f"data/embeddings.npy has {len(embeddings)} rows, data/pool.parquet {len(tables.pool)}",
            remedy="`dvc repro` makes them from the same pool",
        )
    settings = context.settings
    drawn = sample_rows(len(embeddings), settings.report.map_rows, settings.seed)
    cluster_of = {row["row_id"]: row["cluster"] for row in tables.clusters if row["split"] == "pool"}
    accepted = {row["row_id"] for row in tables.decisions if row["decision"] == "accepted"}
    ids = [tables.pool[i]["row_id"] for i in drawn]
    return ClusterMap(
        points=lay_out(embeddings[drawn], settings.seed),
        clusters=[cluster_of[row_id] for row_id in ids],
        selected=[row_id in accepted for row_id in ids],
        total=len(embeddings),
    )


def _cell(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(float(value))


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
