"""Stage `report`: the HTML page people open first, its figures as SVG files and their data as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import read_columns, read_embeddings, read_json, sha256_file
from paser.errors import StageError
from paser.report.content import Row, Tables, build
from paser.report.figures import standalone
from paser.report.layout import lay_out, sample_rows, typical_rows
from paser.report.page import ClusterMap, Drawing, draw, render
from paser.stages.graph import STAGES

if TYPE_CHECKING:
    import numpy as np

    from paser.stages.run import Context

# More than are shown: several rows may have the same instruction.
TYPICAL_ROWS = 24
_BEFORE = [stage for stage in STAGES.values() if stage.name != "report"]
# The entry holds the records of all stages that its model depends on.
_RECORDED = [stage for stage in _BEFORE if stage.name != "audit"]

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
        board=read_json(context.input("data/scoreboard.json")),
        runs=[read_json(context.input(stage.run_record)) for stage in _BEFORE],
        records=[read_json(context.input(f"data/audit/records/{stage.name}.json")) for stage in _RECORDED],
        sweep=_sweep(context),
    )
    embeddings = read_embeddings(context.input("data/embeddings.npy"), len(tables.pool))
    cluster_of = {row["row_id"]: row["cluster"] for row in tables.clusters if row["split"] == "pool"}
    clusters = [cluster_of[row["row_id"]] for row in tables.pool]
    tables = replace(tables, typical=_typical(tables, embeddings, clusters))
    target = context.out("data/report")
    target.mkdir(parents=True)
    content = build(tables)
    cluster_map = _map(context, tables, embeddings, clusters)
    drawings = draw(content, cluster_map)
    page = render(content, drawings, cluster_map.sentence)
    (target / "index.html").write_text(page, encoding="utf-8")
    _write_figures(target / "figures", [d for d in drawings.values() if d])
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


def _sweep(context: Context) -> list[Row]:
    """The lines of the sweep that `report.sweep` names; its digest goes into the stage's record."""
    if not context.settings.report.sweep:
        return []
    path = context.project / context.settings.report.sweep
    if not path.is_file():
        raise StageError(
            f"{path}: no such file, which report.sweep in params.yaml names",
            remedy="name a CSV file of `.paser/sweeps`, or null",
        )
    context.note(sweep={"path": context.settings.report.sweep, "sha256": sha256_file(path)})
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _typical(tables: Tables, embeddings: np.ndarray, clusters: Sequence[int]) -> dict[int, list[str]]:
    """Row ids of each cluster's most typical rows; `clusters` are those of the pool's rows."""
    found = typical_rows(embeddings, clusters, TYPICAL_ROWS)
    return {cluster: [tables.pool[i]["row_id"] for i in positions] for cluster, positions in found.items()}


def _map(context: Context, tables: Tables, embeddings: np.ndarray, clusters: Sequence[int]) -> ClusterMap:
    settings = context.settings
    drawn = sample_rows(len(embeddings), settings.report.map_rows, settings.seed)
    accepted = {row["row_id"] for row in tables.decisions if row["decision"] == "accepted"}
    return ClusterMap(
        points=lay_out(embeddings[drawn], settings.seed),
        clusters=[clusters[i] for i in drawn],
        selected=[tables.pool[i]["row_id"] in accepted for i in drawn],
        total=len(embeddings),
    )


def _write_figures(folder: Path, drawings: Iterable[Drawing]) -> None:
    folder.mkdir()
    for drawing in drawings:
        (folder / f"{drawing.file}.svg").write_text(standalone(str(drawing.svg)), encoding="utf-8")
        rows = (["" if value is None else value for value in row] for row in drawing.data.rows)
        _write_csv(folder / f"{drawing.file}.csv", drawing.data.header, rows)


def _cell(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(float(value))


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
