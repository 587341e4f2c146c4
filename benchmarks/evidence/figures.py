"""Figures of docs/evidence.md, as SVG files with the same bytes for the same cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
# value, low, high
Point = Mapping[str, float]
COLOURS = ("#0b6e4f", "#b5542b", "#3b5b92", "#7a4b8f")


def differences(path: Path, columns: Mapping[str, Mapping[str, Point]], title: str) -> None:
    """One panel a metric, one line a name: the difference with its interval; best by the first on top. What
    rests on one seed is hollow."""
    first = next(iter(columns.values()))
    names = sorted(first, key=lambda name: first[name]["value"])
    with _figure(path, len(columns), 0.28 * len(names) + 1.1) as panels:
        for panel, (metric, points) in zip(panels, columns.items(), strict=True):
            for place, name in enumerate(names):
                point = points[name]
                panel.plot([point["low"], point["high"]], [place, place], color=COLOURS[0], linewidth=2)
                inside = COLOURS[0] if point["seeds"] > 1 else "white"
                panel.plot(point["value"], place, "o", color=COLOURS[0], markerfacecolor=inside, markersize=5)
            panel.axvline(0, color="#555555", linewidth=1)
            panel.set_title(metric, fontsize=10)
            panel.set_xlabel(title, fontsize=9)
            panel.locator_params(axis="x", nbins=5)
            panel.set_ylim(-0.7, len(names) - 0.3)
            panel.set_yticks(range(len(names)), names if panel is panels[0] else [""] * len(names))


def by_budget(path: Path, panels_of: Mapping[str, Mapping[str, Mapping[int, Point]]], metric: str) -> None:
    """One panel a scheme, one line a selector: the metric against training tokens, with intervals."""
    with _figure(path, len(panels_of), 3.0) as panels:
        for panel, (scheme, lines) in zip(panels, panels_of.items(), strict=True):
            for number, (name, points) in enumerate(lines.items()):
                budgets = sorted(points)
                colour = COLOURS[number % len(COLOURS)]
                low, high = (
                    [abs(points[b]["value"] - points[b][k]) for b in budgets] for k in ("low", "high")
                )
                panel.errorbar(
                    [b * 1.02**number for b in budgets], [points[b]["value"] for b in budgets], [low, high],
                    color=colour, marker="o", capsize=3, label=name,
                )  # fmt: skip
            panel.set_title(scheme, fontsize=10)
            panel.set_xlabel("training tokens", fontsize=9)
            panel.set_xticks(sorted({b for points in lines.values() for b in points}))
        panels[0].set_ylabel(metric, fontsize=9)
        panels[0].legend(fontsize=8, frameon=False)


def bars(path: Path, columns: Mapping[str, Mapping[str, float]], first: str) -> None:
    """One panel a metric, one bar a name, with a line at the value of `first`."""
    names = list(next(iter(columns.values())))[::-1]
    with _figure(path, len(columns), 0.26 * len(names) + 1.0) as panels:
        for panel, (metric, values) in zip(panels, columns.items(), strict=True):
            panel.barh(range(len(names)), [values[name] for name in names], color=COLOURS[2])
            panel.axvline(values[first], color=COLOURS[1], linewidth=1)
            panel.set_title(metric, fontsize=10)
            panel.set_yticks(range(len(names)), names if panel is panels[0] else [""] * len(names))


def tradeoff(
    path: Path, kinds: Mapping[str, Mapping[str, Row]], metrics: Sequence[str], also: set[str]
) -> None:
    """Every name as a point of two metrics, one colour a kind; what rests on one seed is hollow. Labelled:
    those that nothing surpasses in both, joined by a line, and `also`. A share of 1 has a line of its own."""
    x, y = metrics
    points = {
        name: (found[x]["value"], found[y]["value"])
        for named in kinds.values()
        for name, found in named.items()
    }
    best = [
        name
        for name, (a, b) in points.items()
        if not any(c >= a and d >= b and (c, d) != (a, b) for c, d in points.values())
    ]
    best.sort(key=points.__getitem__)
    with _figure(path, 1, 5.6, width=8.4) as (panel,):
        panel.plot(
            *zip(*(points[name] for name in best), strict=True), color="#bbbbbb", linewidth=1, zorder=1
        )
        panel.axvline(1, color=COLOURS[1], linewidth=1, linestyle=":", zorder=0)
        for place, (kind, named) in enumerate(kinds.items()):
            colour = COLOURS[place]
            for number, (name, found) in enumerate(named.items()):
                inside = colour if found[x]["seeds"] > 1 else "white"
                panel.plot(
                    *points[name], "o", color=colour, markerfacecolor=inside, markersize=6,
                    label=kind if not number else None,
                )  # fmt: skip
                if name in best or name in also:
                    beside = (6, (4, -10)[place % 2])
                    panel.annotate(
                        name, points[name], beside, textcoords="offset points", fontsize=8, color=colour
                    )
        panel.set_xlabel(x, fontsize=9)
        panel.set_ylabel(y, fontsize=9)
        panel.legend(fontsize=8, frameon=False, loc="lower left")


class _figure:
    """Panels side by side, written to `path` at the end."""

    def __init__(self, path: Path, count: int, height: float, width: float | None = None) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        self.path, self.pyplot, self.matplotlib = path, pyplot, matplotlib
        size = (width or 3.4 * count + 1.6, height)
        self.figure, axes = pyplot.subplots(1, count, figsize=size, squeeze=False)
        self.panels: Sequence[Any] = axes[0]
        for panel in self.panels:
            panel.tick_params(labelsize=8)
            for side in ("top", "right"):
                panel.spines[side].set_visible(False)

    def __enter__(self) -> Sequence[Any]:
        return self.panels

    def __exit__(self, *error: object) -> None:
        self.figure.tight_layout()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.matplotlib.rc_context({"svg.hashsalt": "paser", "svg.fonttype": "none"}):
            self.figure.savefig(self.path, format="svg", metadata={"Date": None}, facecolor="white")
        self.pyplot.close(self.figure)
