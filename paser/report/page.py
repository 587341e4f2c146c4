"""The report as one HTML file that needs nothing else: no network, no script, no other file.

Everything that comes from data passes through jinja2's escaping; only the figures, whose text matplotlib
has escaped, go in as markup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import paser
from paser.report import figures
from paser.report.content import TRAINED, Content, interval, number, plural
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
class Drawing:
    """A figure and its title for screen readers."""

    title: str
    svg: Any


def render(content: Content, cluster_map: ClusterMap) -> str:
    """The whole page."""
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
        figures=draw(content, cluster_map),
        map_sentence=cluster_map.sentence,
        sections=SECTIONS,
        glossary=GLOSSARY,
        version=paser.__version__,
        number=number,
        interval=interval,
        bounds=_bounds,
        plural=plural,
        count=lambda value: f"{value:,}",
    )


def draw(content: Content, cluster_map: ClusterMap) -> dict[str, Drawing | None]:
    """Every figure by name; None where there is nothing to draw."""
    clusters = content.clusters
    titles = [line["title"] for line in clusters]
    rejected = [line for line in content.rejections if line["decision"] == "rejected"]
    fidelity, closed = (
        {m["name"]: _point(m[key]) for m in content.models if m[key]}
        for key in ("fidelity_gap", "gap_closed")
    )
    capabilities = content.capabilities
    names = [c["name"] + ("" if c["averaged"] else " *") for c in capabilities]
    drawn: dict[str, tuple[str, str] | None] = {
        "fig-headline": (
            "overall result",
            figures.headline(fidelity, closed, _describe_models(content)),
        )
        if fidelity
        else None,
        "fig-funnel": (
            "from pool to selection",
            figures.funnel(
                content.funnel,
                "; ".join(f"{label}: {rows:,} rows" for label, rows, _ in content.funnel),
            ),
        ),
        "fig-map": (
            "map of clusters",
            figures.cluster_map(
                cluster_map.points,
                cluster_map.clusters,
                cluster_map.selected,
                f"{len(clusters)} groups of points; the table below gives their names and sizes.",
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
        ),
        "fig-reasons": (
            "why rows were left out",
            figures.reasons(
                [line["reason"] for line in rejected],
                [line["rows"] for line in rejected],
                "; ".join(f"{line['reason']}: {line['rows']} rows" for line in rejected)
                or "No row was left out.",
            ),
        ),
        "fig-results": (
            "results by capability",
            figures.by_capability(
                names,
                [_finite(c["loss"]) for c in capabilities],
                [_finite(c["jsd"]) for c in capabilities],
                "The tables below give every value.",
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
        )
        if capabilities
        else None,
    }
    return {name: _drawing(*found) if found else None for name, found in drawn.items()}


def _drawing(title: str, svg: str) -> Drawing:
    from markupsafe import Markup

    return Drawing(title, Markup(svg))


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


def _describe_models(content: Content) -> str:
    return "; ".join(
        f"{model['name']}: fidelity gap {interval(model['fidelity_gap'])}, "
        f"gap closed {interval(model['gap_closed'])}"
        for model in content.models
        if model["fidelity_gap"]
    )
