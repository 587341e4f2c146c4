"""The report as one HTML file that needs nothing else to be read: no network, no script, no other file.
The figures and their data lie beside it, for papers and spreadsheets.

Everything that comes from data passes through jinja2's escaping; only the figures, whose text matplotlib
has escaped, go in as markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import paser
from paser.report import figures
from paser.report.content import MEASURES, TRAINED, Content, interval, number, percent, plural
from paser.report.figures import Interval
from paser.report.glossary import GLOSSARY

if TYPE_CHECKING:
    import numpy as np

SECTIONS = (
    ("result", "Result"),
    ("pool", "The pool"),
    ("funnel", "From pool to selection"),
    ("clusters", "What the pool asks for"),
    ("damage", "What pruning damaged"),
    ("budget", "Where the budget went"),
    ("reasons", "Why rows were left out"),
    ("results", "Results by capability"),
    ("tasks", "Tasks"),
    ("sweep", "Gap against budget"),
    ("cost", "Time and cost"),
    ("lineage", "Lineage"),
    ("glossary", "Glossary"),
)


@dataclass(frozen=True)
class ClusterMap:
    """Positions, shape (n, 2), of `n` of the pool's `total` rows; their clusters; whether selected."""

    points: np.ndarray
    clusters: Sequence[int]
    selected: Sequence[bool]
    total: int

    @property
    def sentence(self) -> str:
        some = (
            "" if len(self.clusters) == self.total else f" ({len(self.clusters):,} of {self.total:,} drawn)"
        )
        return (
            f"Each point is a row{some}; rows that ask for similar things lie close together, colours are "
            "clusters, rings mark the rows that were selected, and far groups are drawn at the edge."
        )


@dataclass(frozen=True)
class Data:
    """What a figure shows, as a table: `header` and `rows` of its CSV file."""

    header: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Drawing:
    """A figure, its title for screen readers, the name of its files, and its data."""

    title: str
    svg: Any
    file: str
    data: Data


Drawings = Mapping[str, Drawing | None]


def render(content: Content, drawings: Drawings, map_sentence: str) -> str:
    """The whole page; `drawings` come from `draw`, `map_sentence` says what the map shows."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("paser.report"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    overall = {model["name"]: model for model in content.models}
    return environment.get_template("page.html.j2").render(
        content=content,
        lineage=content.lineage,
        overall=overall,
        models=list(overall),
        trained=[model for model in TRAINED if model in overall],
        figures=drawings,
        map_sentence=map_sentence,
        sections=[part for part in SECTIONS if part[0] != "sweep" or content.sweep],
        glossary=GLOSSARY,
        version=paser.__version__,
        number=number,
        interval=interval,
        bounds=_bounds,
        plural=plural,
        count=lambda value: f"{value:,}",
        percent=percent,
        scored=_scored,
    )


def draw(content: Content, cluster_map: ClusterMap) -> dict[str, Drawing | None]:
    """Every figure by name; None where there is nothing to draw."""
    clusters = content.clusters
    titles = [line["title"] for line in clusters]
    rejected = [line for line in content.rejections if line["decision"] == "rejected"]
    fidelity, closed = ({m["name"]: _point(m[key]) for m in content.models if m[key]} for key in MEASURES)
    capabilities = content.capabilities
    names = [c["name"] + ("" if c["averaged"] else " *") for c in capabilities]
    drawn: dict[str, tuple[str, str, Data] | None] = {
        "fig-headline": (
            "overall result",
            figures.headline(fidelity, closed, _describe_models(content)),
            _interval_data(
                "model", [(m["name"], k, m["name"], m[k]) for m in content.models for k in MEASURES if m[k]]
            ),
        )
        if fidelity
        else None,
        "fig-abilities": (
            "damage by capability",
            figures.abilities(
                names,
                [_finite(c["jsd"]).get("pruned") for c in capabilities],
                [_interval(c["damage"]) for c in capabilities],
                "; ".join(f"{c['name']}: JSD {number(c['jsd'].get('pruned'), 3)}" for c in capabilities),
            ),
            Data(
                ("capability", "rows", "jsd_pruned", "loss_rise", "low", "high"),
                [
                    (c["name"], c["rows"], _finite(c["jsd"]).get("pruned"), *_ends(c["damage"]))
                    for c in capabilities
                ],
            ),
        )
        if capabilities
        else None,
        "fig-funnel": (
            "from pool to selection",
            figures.funnel(
                content.funnel,
                "; ".join(f"{label}: {rows:,} rows" for label, rows, _ in content.funnel),
            ),
            Data(("step", "rows", "kind"), content.funnel),
        ),
        "fig-map": (
            "map of clusters",
            figures.cluster_map(
                cluster_map.points,
                cluster_map.clusters,
                cluster_map.selected,
                {line["cluster"]: line["title"] for line in sorted(clusters, key=lambda c: c["cluster"])},
                f"{len(clusters)} groups of points; the table below gives their names and sizes.",
            ),
            Data(
                ("x", "y", "cluster", "selected"),
                [
                    (round(float(x), 4), round(float(y), 4), cluster, int(selected))
                    for (x, y), cluster, selected in zip(
                        cluster_map.points, cluster_map.clusters, cluster_map.selected, strict=True
                    )
                ],
            ),
        ),
        "fig-damage": (
            "damage by cluster",
            figures.damage(
                titles,
                [line["cds"] for line in clusters],
                [line["spread"] for line in clusters],
                "; ".join(f"{line['title']}: {line['cds']:.3f}" for line in clusters),
            ),
            Data(
                ("cluster", "name", "rows", "cds", "quartile_low", "quartile_high"),
                [(c["cluster"], c["name"], c["rows"], c["cds"], *c["spread"]) for c in clusters],
            ),
        ),
        "fig-budget": (
            "budget by cluster",
            figures.budget(
                titles,
                [line["allocated"] for line in clusters],
                [line["spent"] for line in clusters],
                content.budget["unit"],
                "; ".join(
                    f"{line['title']}: {line['allocated']} allocated, {line['spent']} spent"
                    for line in clusters
                ),
            ),
            Data(
                ("cluster", "name", "allocated", "spent", "unit"),
                [
                    (c["cluster"], c["name"], c["allocated"], c["spent"], content.budget["unit"])
                    for c in clusters
                ],
            ),
        ),
        "fig-reasons": (
            "why rows were left out",
            figures.reasons(
                [line["reason"] for line in rejected],
                [line["rows"] for line in rejected],
                "; ".join(f"{line['reason']}: {line['rows']} rows" for line in rejected)
                or "No row was left out.",
            ),
            Data(("reason", "rows"), [(line["reason"], line["rows"]) for line in rejected]),
        ),
        "fig-results": (
            "results by capability",
            figures.by_capability(
                names,
                [_finite(c["loss"]) for c in capabilities],
                [_finite(c["jsd"]) for c in capabilities],
                "The tables below give every value.",
            ),
            Data(
                ("capability", "model", "jsd", "loss"),
                [
                    (c["name"], m["name"], c["jsd"].get(m["name"]), c["loss"].get(m["name"]))
                    for c in capabilities
                    for m in content.models
                ],
            ),
        )
        if capabilities
        else None,
        "fig-gaps": (
            "damage repaired by capability",
            figures.gaps(
                names,
                [_points(c["fidelity_gap"]) for c in capabilities],
                [_points(c["gap_closed"]) if c["averaged"] else {} for c in capabilities],
                "The tables below give every value and its interval.",
            ),
            _interval_data(
                "capability",
                [
                    (c["name"], measure, model, c[measure][model])
                    for c in capabilities
                    for measure in MEASURES
                    for model in TRAINED
                    if c[measure].get(model) and (c["averaged"] or measure == "fidelity_gap")
                ],
            ),
        )
        if capabilities
        else None,
        "fig-tasks": _tasks(content),
        "fig-sweep": _sweep(content),
        "fig-cost": (
            "time of each stage",
            figures.times(
                [line["stage"] for line in content.stages],
                [line["seconds"] for line in content.stages],
                "; ".join(f"{line['stage']}: {line['time']}" for line in content.stages),
            ),
            Data(
                ("stage", "seconds", "share", "started"),
                [(s["stage"], s["seconds"], round(s["share"], 4), s["started"]) for s in content.stages],
            ),
        )
        if content.stages
        else None,
    }
    return {name: _drawing(name, *found) if found else None for name, found in drawn.items()}


def _tasks(content: Content) -> tuple[str, str, Data] | None:
    lines = [line for line in content.board if line["section"] == "task"]
    if not lines:
        return None
    return (
        "tasks",
        figures.tasks(
            [f"{line['name']}, {line['metric']}" for line in lines],
            [{m: _with_error(v) for m, v in line["values"].items()} for line in lines],
            "The table below gives every value.",
        ),
        Data(
            ("task", "metric", "items", "model", "value", "stderr"),
            [
                (line["name"], line["metric"], line["units"], model, v["value"], v.get("stderr"))
                for line in lines
                for model, v in line["values"].items()
            ],
        ),
    )


def _sweep(content: Content) -> tuple[str, str, Data] | None:
    points = content.sweep
    if not points:
        return None
    series = {
        measure: {
            model: [(p["tokens"], p[key]) for p in points if p[key := f"{measure}_{model}"] is not None]
            for model in TRAINED
        }
        for measure in MEASURES
    }
    columns = [f"{measure}_{model}" for measure in MEASURES for model in TRAINED]
    return (
        "gap closed against budget",
        figures.against_budget(series, "The table below gives every value."),
        Data(
            ("cell", "tokens", *columns),
            [(p["cell"], p["tokens"], *(p[column] for column in columns)) for p in points],
        ),
    )


def _interval_data(what: str, lines: Iterable[tuple[str, str, str, Mapping[str, Any]]]) -> Data:
    return Data(
        (what, "measure", "model", "value", "low", "high"),
        [(name, measure, model, *_ends(point)) for name, measure, model, point in lines],
    )


def _ends(point: Mapping[str, Any] | None) -> tuple[float | None, float | None, float | None]:
    return (point["value"], point.get("low"), point.get("high")) if point else (None, None, None)


def _interval(point: Mapping[str, Any] | None) -> Interval | None:
    return _point(point) if point and point.get("value") is not None else None


def _with_error(value: Mapping[str, Any]) -> Interval:
    error = value.get("stderr")
    if error is None:
        return Interval(value["value"])
    return Interval(value["value"], value["value"] - error, value["value"] + error)


def _drawing(name: str, title: str, svg: str, data: Data) -> Drawing:
    from markupsafe import Markup

    return Drawing(title, Markup(svg), name.removeprefix("fig-"), data)


def _point(value: Mapping[str, Any]) -> Interval:
    return Interval(value["value"], value.get("low"), value.get("high"))


def _points(values: Mapping[str, Any]) -> dict[str, Interval]:
    return {m: _point(values[m]) for m in TRAINED if values.get(m) and values[m]["value"] is not None}


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {model: value for model, value in values.items() if value is not None and math.isfinite(value)}


def _bounds(point: Mapping[str, Any]) -> str:
    if point.get("low") is None or point.get("high") is None:
        return "no interval"
    return f"95 %: {number(point['low'])} to {number(point['high'])}"


def _scored(value: Mapping[str, Any] | None) -> str:
    """A score with its standard error, where one is known."""
    if value is None:
        return "–"
    error = f" ± {number(value['stderr'], 3)}" if value.get("stderr") is not None else ""
    return number(value["value"], 3) + error


def _describe_models(content: Content) -> str:
    return "; ".join(
        f"{model['name']}: fidelity gap {interval(model['fidelity_gap'])}, "
        f"gap closed {interval(model['gap_closed'])}"
        for model in content.models
        if model["fidelity_gap"]
    )
