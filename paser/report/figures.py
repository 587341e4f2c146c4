"""The report's figures as SVG text: the same data always gives the same bytes.

Colours become CSS variables with a fallback, so one drawing serves the light and the dark page and can
still be used alone; text stays text, so it can be read aloud, searched and copied.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Name -> light colour. The page gives the dark one. Okabe and Ito's palette, safe for colour-blind
# readers; no colour alone carries a meaning.
COLOURS = {
    "ink": "#1b2430",
    "muted": "#5b6776",
    "faint": "#c9d0d8",
    "original": "#4d5866",
    "pruned": "#d55e00",
    "recovered": "#0072b2",
    "control": "#b98200",
    "accent": "#0f6fa8",
    "loss": "#c2410d",
    "soft": "#9db8cc",
}
CLUSTER_COLOURS = (
    "#0173b2", "#de8f05", "#029e73", "#cc4778", "#8b6fd1", "#7a6a53", "#3bb0c9", "#a3a500",
)  # fmt: skip
CLUSTER_MARKERS = ("o", "^", "s", "D", "v", "P")
MODEL_MARKERS = {"original": "|", "pruned": "X", "recovered": "o", "control": "D"}
WIDTH = 8.6
LABEL_LENGTH = 34
# Most clusters that the map's legend names.
NAMED_CLUSTERS = 16
# Widest axis of a gap; what lies outside is shown as an arrow with its value.
GAP_LIMITS = (-1.0, 2.0)


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; bounds may be missing."""

    value: float
    low: float | None = None
    high: float | None = None


def short(text: str, length: int = LABEL_LENGTH) -> str:
    """One printable line of at most `length` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= length else f"{line[: length - 1].rstrip(' ,')}…"


@contextmanager
def _drawing(name: str) -> Iterator[None]:
    import matplotlib as mpl

    settings: Any = {
        "svg.hashsalt": name,
        "svg.fonttype": "none",
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "text.parse_math": False,
        "axes.unicode_minus": True,
        "axes.edgecolor": COLOURS["faint"],
        "axes.labelcolor": COLOURS["muted"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "text.color": COLOURS["ink"],
        "xtick.color": COLOURS["faint"],
        "xtick.labelcolor": COLOURS["muted"],
        "ytick.color": COLOURS["faint"],
        "ytick.labelcolor": COLOURS["ink"],
        "grid.color": COLOURS["faint"],
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 9,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that DejaVu lacks; the browser's font draws it
        yield


def _figure(rows: float, panels: int = 1, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, max(1.5, rows)), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False, **kwargs)
    return figure, list(axes[0])


def _svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as one `<svg>` element with a title and a description for screen readers."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
    used = {name for tag in _TAG.findall(text) for name in _REFERENCE.findall(tag)}
    text = _TAG.sub(lambda tag: _restyled(tag[0], name, used), text)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size is not None
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {size[1]} {size[2]}" role="img" aria-labelledby="{name}-title {name}-desc">\n'
        f'<title id="{name}-title">{escape(title)}</title>\n'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
    )
    text = re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)
    return text.rstrip() + "\n"


_TAG = re.compile(r"<[^>]+>")
_REFERENCE = re.compile(r'(?:url\(#|href="#)([^")]+)')
_VARIABLES = {value: f"var(--fig-{colour}, {value})" for colour, value in COLOURS.items()} | {
    value: f"var(--fig-k{number}, {value})" for number, value in enumerate(CLUSTER_COLOURS)
}


def _restyled(tag: str, name: str, used: set[str]) -> str:
    """One tag with ids that are unique on the page, themed colours and the page's font."""
    tag = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", tag)
    tag = re.sub(r'(url\(#|href="#)(?=[^")])', rf"\g<1>{name}-", tag)
    tag = re.sub(r"font: ((?:\w+ )*)([\d.]+px) [^;\"]*", _font, tag)
    return re.sub(r"#[0-9a-f]{6}\b", lambda m: _VARIABLES.get(m[0], m[0]), tag)


def _font(match: re.Match[str]) -> str:
    weight = "font-weight: 600; " if "700" in match[1] or "bold" in match[1] else ""
    return f"{weight}font-size: {match[2]}; font-family: var(--fig-font, sans-serif)"


def _rows_axis(axes: Axes, labels: Sequence[str]) -> None:
    """One row a label, the first on top, without a spine."""
    axes.set_yticks(range(len(labels)), labels=[short(label) for label in labels])
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.grid(True)


def _panel_title(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left", color=COLOURS["ink"], fontweight="bold")


def _mark(axes: Axes, y: float, point: Interval, model: str, label: str | None = None) -> None:
    if point.low is not None and point.high is not None:
        axes.plot([point.low, point.high], [y, y], color=COLOURS[model], linewidth=2.2, alpha=0.55)
    axes.plot(
        [point.value], [y], MODEL_MARKERS[model], color=COLOURS[model], markersize=7.5, label=label,
        markeredgewidth=2.4 if model == "original" else 0.0, linestyle="none",
    )  # fmt: skip


def _mark_outside(axes: Axes, y: float, value: float, model: str) -> None:
    """An arrow at the edge, with the value, for a point that the axis leaves out."""
    low, high = axes.get_xlim()
    if low <= value <= high:
        return
    right = value > high
    axes.plot([high if right else low], [y], ">" if right else "<", color=COLOURS[model], clip_on=False)
    axes.annotate(
        f"{value:.1f}".replace("-", "−"),
        (high if right else low, y),
        (-7 if right else 7, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        va="center",
        fontsize=8.5,
    )


def headline(
    fidelity: dict[str, Interval], closed: dict[str, Interval], description: str, name: str = "fig-headline"
) -> str:
    """Overall fidelity gap and gap closed of each trained model, between pruned (0) and original (1)."""
    with _drawing(name):
        models = list(dict.fromkeys([*fidelity, *closed]))
        figure, panels = _figure(0.85 + 0.42 * len(models), 2, sharey=True)
        for axes, title, values in zip(
            panels, ("Fidelity gap", "Gap closed (loss)"), (fidelity, closed), strict=True
        ):
            for y, model in enumerate(models):
                if model in values:
                    _mark(axes, y, values[model], model)
                    axes.annotate(
                        f"{values[model].value:.2f}",
                        (values[model].value, y),
                        (0, 8),
                        textcoords="offset points",
                        ha="center",
                        fontsize=9,
                    )
            _rows_axis(axes, models)
            axes.set_ylim(len(models) - 0.5, -0.75)
            low = min([0.0, *(v.low if v.low is not None else v.value for v in values.values())])
            high = max([1.0, *(v.high if v.high is not None else v.value for v in values.values())])
            axes.set_xlim(low - 0.06, high + 0.06)
            axes.axvline(0, color=COLOURS["pruned"], linewidth=1.2, linestyle=(0, (4, 3)))
            axes.axvline(1, color=COLOURS["original"], linewidth=1.2, linestyle=(0, (4, 3)))
            _panel_title(axes, title)
            axes.set_xlabel("0 = pruned model   ·   1 = original model")
        return _svg(figure, name, "Overall result", description)


def funnel(steps: Sequence[tuple[str, int, str]], description: str, name: str = "fig-funnel") -> str:
    """`steps`: (label, rows, kind); kind is `stock` (what is there) or `loss` (what leaves)."""
    with _drawing(name):
        figure, (axes,) = _figure(0.55 + 0.27 * len(steps))
        running = steps[0][1] if steps else 0
        most = max((rows for _, rows, _ in steps), default=1) or 1
        for y, (_, rows, kind) in enumerate(steps):
            if kind == "stock":
                running = rows
                axes.barh(y, rows, height=0.72, color=COLOURS["accent"])
                end = rows
            else:
                axes.barh(y, rows, left=running - rows, height=0.5, color=COLOURS["loss"], alpha=0.75)
                end, running = running, running - rows
            sign = "" if kind == "stock" else "−"
            weight = "bold" if kind == "stock" else "normal"
            axes.text(end + most * 0.008, y, f"{sign}{rows:,}", va="center", fontsize=9, fontweight=weight)
        _rows_axis(axes, [label for label, _, _ in steps])
        for tick, (_, _, kind) in zip(axes.get_yticklabels(), steps, strict=True):
            tick.set_fontweight("bold" if kind == "stock" else "normal")
            tick.set_color(COLOURS["ink"] if kind == "stock" else COLOURS["muted"])
        axes.set_xlim(0, most * 1.09)
        axes.set_xlabel("rows")
        return _svg(figure, name, "From the rows that were read to the rows that were selected", description)


def cluster_map(
    points: np.ndarray,
    clusters: Sequence[int],
    selected: Sequence[bool],
    names: Mapping[int, str],
    description: str,
    name: str = "fig-map",
) -> str:
    """Rows on a plane, shape (n, 2), coloured by cluster; selected rows have a dark ring.

    `names` stand in a legend as long as it is readable.
    """
    import numpy as np

    with _drawing(name):
        figure, (axes,) = _figure(5.0 + 0.19 * -(-min(len(names), NAMED_CLUSTERS) // 2))
        members = np.asarray(clusters)
        chosen = np.asarray(selected, dtype=bool)
        size = float(np.clip(9000 / max(len(members), 1), 9, 40))
        for cluster in sorted(set(clusters)):
            marker = CLUSTER_MARKERS[cluster // len(CLUSTER_COLOURS) % len(CLUSTER_MARKERS)]
            colour = CLUSTER_COLOURS[cluster % len(CLUSTER_COLOURS)]
            inside = points[(members == cluster) & ~chosen]
            axes.scatter(inside[:, 0], inside[:, 1], s=size, c=colour, marker=marker, alpha=0.5, linewidths=0)
            inside = points[(members == cluster) & chosen]
            axes.scatter(
                inside[:, 0], inside[:, 1], s=1.2 * size, c=colour, marker=marker,
                linewidths=0.9, edgecolors=COLOURS["ink"],
            )  # fmt: skip
        for cluster in sorted(set(clusters)):
            x, y = np.median(points[members == cluster], axis=0)
            axes.text(
                x, y, str(cluster), ha="center", va="center", fontsize=9.5, fontweight="bold",
                color="#ffffff",
                bbox={
                    "boxstyle": "circle,pad=0.24",
                    "facecolor": "#16202b",
                    "edgecolor": CLUSTER_COLOURS[cluster % len(CLUSTER_COLOURS)],
                    "linewidth": 1.8,
                },
            )  # fmt: skip
        if len(names) <= NAMED_CLUSTERS:
            figure.legend(
                handles=[_cluster_handle(number, title) for number, title in names.items()],
                loc="outside lower left", ncols=2, handletextpad=0.3,
            )  # fmt: skip
        axes.set_axis_off()
        axes.margins(0.03)
        return _svg(figure, name, "Map of the pool by cluster", description)


def _cluster_handle(number: int, title: str) -> Any:
    from matplotlib.lines import Line2D

    marker = CLUSTER_MARKERS[number // len(CLUSTER_COLOURS) % len(CLUSTER_MARKERS)]
    colour = CLUSTER_COLOURS[number % len(CLUSTER_COLOURS)]
    return Line2D([], [], linestyle="none", marker=marker, color=colour, label=short(title, 48))


def damage(
    labels: Sequence[str], cds: Sequence[float], spread: Sequence[tuple[float, float]], description: str,
    name: str = "fig-damage",
) -> str:  # fmt: skip
    """CDS a cluster as bars; `spread` is the range of the middle half of its rows."""
    with _drawing(name):
        figure, (axes,) = _figure(0.6 + 0.34 * len(labels))
        top = max([*(high for _, high in spread), *cds, 1e-6])
        for y, (value, (low, high)) in enumerate(zip(cds, spread, strict=True)):
            axes.barh(y, value, height=0.62, color=COLOURS["soft"])
            axes.plot([low, high], [y, y], color=COLOURS["ink"], linewidth=1.3)
            axes.plot([value], [y], "|", color=COLOURS["ink"], markersize=11, markeredgewidth=2)
            axes.text(max(value, high) + top * 0.012, y, f"{value:.3f}", va="center", fontsize=9)
        _rows_axis(axes, labels)
        axes.set_xlim(0, top * 1.1)
        axes.set_xlabel("capability degradation score: mean JSD, 0 (unharmed) to 0.693")
        return _svg(figure, name, "Damage by cluster", description)


def abilities(
    labels: Sequence[str],
    jsd: Sequence[float | None],
    rise: Sequence[Interval | None],
    description: str,
    name: str = "fig-abilities",
) -> str:
    """The pruned model's damage by capability: its JSD to the original and the rise of its loss."""
    with _drawing(name):
        figure, panels = _figure(0.75 + 0.34 * len(labels), 2, sharey=True)
        distances = [v if v is None else Interval(v) for v in jsd]
        sides: tuple[tuple[str, str, Sequence[Interval | None]], ...] = (
            ("JSD to the original", "0 = unharmed, 0.693 at most", distances),
            ("Rise of the loss", "nats a token, 0 = unharmed", rise),
        )  # fmt: skip
        for axes, (title, unit, values) in zip(panels, sides, strict=True):
            present = [v for v in values if v is not None]
            reach = [*(v.value if v.high is None else v.high for v in present), 1e-6]
            low = min([0.0, *(v.value if v.low is None else v.low for v in present)])
            for y, point in enumerate(values):
                if point is None:
                    continue
                axes.barh(y, point.value, height=0.62, color=COLOURS["pruned"], alpha=0.55)
                if point.low is not None and point.high is not None:
                    axes.plot([point.low, point.high], [y, y], color=COLOURS["ink"], linewidth=1.3)
                end = max(point.value, point.high or point.value, 0.0)
                digits = 3 if axes is panels[0] else 2
                axes.text(
                    end + max(reach) * 0.02, y, f"{point.value:.{digits}f}".replace("-", "−"),
                    va="center", fontsize=9,
                )  # fmt: skip
            _rows_axis(axes, labels)
            axes.set_xlim(low * 1.1, max(reach) * 1.2)
            axes.locator_params(axis="x", nbins=6)
            _panel_title(axes, title)
            axes.set_xlabel(unit)
        return _svg(figure, name, "What pruning damaged, by capability", description)


def times(labels: Sequence[str], seconds: Sequence[float], description: str, name: str = "fig-cost") -> str:
    """Seconds of each stage."""
    with _drawing(name):
        figure = _bars(labels, seconds, [f"{value:,.1f}" for value in seconds], "seconds")
        return _svg(figure, name, "Time of each stage", description)


def tasks(
    labels: Sequence[str],
    values: Sequence[dict[str, Interval]],
    description: str,
    name: str = "fig-tasks",
) -> str:
    """Scores of every model, one row a task; intervals are one standard error each way."""
    with _drawing(name):
        figure, (axes,) = _figure(1.0 + 0.5 * len(labels))
        for y, row in enumerate(values):
            for number, (model, point) in enumerate(row.items()):
                _mark(axes, y + 0.18 * (number - (len(row) - 1) / 2), point, model)
        _rows_axis(axes, labels)
        axes.set_xlabel("score; the line is one standard error each way")
        _model_legend(figure, [m for m in MODEL_MARKERS if any(m in row for row in values)])
        return _svg(figure, name, "Tasks", description)


def against_budget(
    series: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
    description: str,
    name: str = "fig-sweep",
) -> str:
    """Fidelity gap and gap closed against training tokens; `series`: measure -> model -> (tokens, gap)."""
    with _drawing(name):
        figure, panels = _figure(3.2, 2)
        titles = {"fidelity_gap": "Fidelity gap", "gap_closed": "Gap closed"}
        for axes, (measure, models) in zip(panels, series.items(), strict=True):
            for model, points in models.items():
                axes.plot(
                    [x for x, _ in points], [y for _, y in points], MODEL_MARKERS[model],
                    color=COLOURS[model], markersize=7, alpha=0.85,
                )  # fmt: skip
                mean: dict[int, list[float]] = {}
                for x, y in points:
                    mean.setdefault(x, []).append(y)
                axes.plot(
                    sorted(mean), [sum(mean[x]) / len(mean[x]) for x in sorted(mean)],
                    color=COLOURS[model], linewidth=1.4, alpha=0.6,
                )  # fmt: skip
            axes.axhline(0, color=COLOURS["pruned"], linewidth=1.2, linestyle=(0, (4, 3)))
            axes.yaxis.grid(True)
            axes.margins(0.08)
            _panel_title(axes, titles[measure])
            axes.set_xlabel("training tokens")
        used = {model for models in series.values() for model, points in models.items() if points}
        _model_legend(figure, [m for m in MODEL_MARKERS if m in used])
        return _svg(figure, name, "Gap closed against budget", description)


def standalone(svg: str) -> str:
    """A figure of the page as a file of its own: drawing programs do not know the page's variables."""
    fixed = re.sub(r"var\(--fig-[a-z0-9]+, ([^)]*)\)", r"\1", svg)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{fixed}'


def budget(
    labels: Sequence[str], allocated: Sequence[int], spent: Sequence[int], unit: str, description: str,
    name: str = "fig-budget",
) -> str:  # fmt: skip
    """Allocated and spent budget a cluster, with the even share as a line."""
    with _drawing(name):
        figure, (axes,) = _figure(0.95 + 0.4 * len(labels))
        top = max([*allocated, *spent, 1])
        for y, (plan, done) in enumerate(zip(allocated, spent, strict=True)):
            axes.barh(
                y - 0.19, plan, height=0.32, facecolor="none", edgecolor=COLOURS["accent"],
                linewidth=1.2, label="allocated" if y == 0 else None,
            )  # fmt: skip
            axes.barh(y + 0.19, done, height=0.36, color=COLOURS["accent"], label="spent" if y == 0 else None)
            axes.text(max(plan, done) + top * 0.012, y, f"{plan:,} → {done:,}", va="center", fontsize=9)
        if labels:
            even = sum(allocated) / len(labels)
            axes.axvline(
                even, color=COLOURS["pruned"], linestyle=(0, (4, 3)), linewidth=1.3,
                label=f"even share ({even:,.0f})",
            )  # fmt: skip
        _rows_axis(axes, labels)
        axes.set_xlim(0, top * 1.14)
        axes.set_xlabel(unit)
        handles, names = axes.get_legend_handles_labels()
        order = sorted(range(len(names)), key=lambda i: names[i].startswith("even"))
        figure.legend(
            [handles[i] for i in order], [names[i] for i in order], loc="outside upper left", ncols=3
        )
        return _svg(figure, name, "Budget by cluster", description)


def reasons(labels: Sequence[str], counts: Sequence[int], description: str, name: str = "fig-reasons") -> str:
    """How many rows were turned away for each reason."""
    with _drawing(name):
        figure = _bars(labels, counts, [f"{count:,}" for count in counts], "rows of the pool")
        return _svg(figure, name, "Why rows were left out", description)


def _bars(labels: Sequence[str], values: Sequence[float], shown: Sequence[str], unit: str) -> Any:
    """One bar a row with what is `shown` at its end."""
    figure, (axes,) = _figure(0.55 + 0.34 * len(labels))
    top = max(values, default=0) or 1
    for y, (value, text) in enumerate(zip(values, shown, strict=True)):
        axes.barh(y, value, height=0.6, color=COLOURS["soft"])
        axes.text(value + top * 0.01, y, text, va="center", fontsize=9)
    _rows_axis(axes, labels)
    axes.set_xlim(0, top * 1.09)
    axes.set_xlabel(unit)
    return figure


def by_capability(
    labels: Sequence[str],
    loss: Sequence[dict[str, float]],
    jsd: Sequence[dict[str, float]],
    description: str,
    name: str = "fig-results",
) -> str:
    """JSD to the original and loss of every model, one row a capability."""
    with _drawing(name):
        figure, panels = _figure(1.1 + 0.36 * len(labels), 2, sharey=True)
        for axes, title, values in zip(
            panels,
            ("JSD to the original (left is better)", "Loss (left is better)"),
            (jsd, loss),
            strict=True,
        ):
            for y, row in enumerate(values):
                if row:
                    axes.plot(
                        [min(row.values()), max(row.values())], [y, y], color=COLOURS["faint"], linewidth=2.4
                    )
                for model, value in row.items():
                    _mark(axes, y, Interval(value), model)
            _rows_axis(axes, labels)
            axes.locator_params(axis="x", nbins=6)
            _panel_title(axes, title)
        _model_legend(figure, [m for m in MODEL_MARKERS if any(m in row for row in [*loss, *jsd])])
        return _svg(figure, name, "Held-out results by capability", description)


def gaps(
    labels: Sequence[str],
    fidelity: Sequence[dict[str, Interval]],
    closed: Sequence[dict[str, Interval]],
    description: str,
    name: str = "fig-gaps",
) -> str:
    """Fidelity gap and gap closed with intervals, one row a capability."""
    with _drawing(name):
        figure, panels = _figure(1.1 + 0.46 * len(labels), 2, sharey=True)
        for axes, title, values in zip(
            panels, ("Fidelity gap", "Gap closed"), (fidelity, closed), strict=True
        ):
            for y, row in enumerate(values):
                for number, (model, point) in enumerate(row.items()):
                    _mark(axes, y + 0.3 * (number - (len(row) - 1) / 2), point, model)
            _rows_axis(axes, labels)
            axes.axvline(0, color=COLOURS["pruned"], linewidth=1.2, linestyle=(0, (4, 3)))
            axes.axvline(1, color=COLOURS["original"], linewidth=1.2, linestyle=(0, (4, 3)))
            low, high = axes.get_xlim()
            axes.set_xlim(max(min(low, -0.05), GAP_LIMITS[0]), min(max(high, 1.05), GAP_LIMITS[1]))
            for y, row in enumerate(values):
                for number, (model, point) in enumerate(row.items()):
                    _mark_outside(axes, y + 0.3 * (number - (len(row) - 1) / 2), point.value, model)
            _panel_title(axes, title)
            axes.set_xlabel("0 = pruned   ·   1 = original")
        used = {model for row in [*fidelity, *closed] for model in row}
        _model_legend(figure, [m for m in MODEL_MARKERS if m in used])
        return _svg(figure, name, "How much of the damage was repaired, by capability", description)


def _model_legend(figure: Figure, models: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=COLOURS[m], marker=MODEL_MARKERS[m], linestyle="none", markersize=7.5,
            markeredgewidth=2.4 if m == "original" else 0.0, label=m,
        )
        for m in models
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles) or 1)


# Okabe and Ito's palette without yellow, which is too light on paper; markers tell the schemes apart as well.
SCHEME_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b98200", "#4d5866")
SCHEME_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PNG_DPI = 220


_DAMAGE_PANELS = (
    ("jsd", "JSD to the original", "nats; 0 = unharmed, 0.693 at most"),
    ("loss_increase", "Increase in loss", "nats a token; 0 = unharmed"),
)


def damage_by_scheme(profile: Mapping[str, Any], name: str = "fig-damage-profile") -> tuple[str, bytes]:
    """A damage profile (see `evaluation.damage`) as SVG text and PNG bytes, for a paper of two columns.

    One row a capability, the most damaged on top; one mark with its 95 % interval a pruned model.
    """
    schemes, entries = profile["schemes"], profile["capabilities"]
    height = 0.46 if len(schemes) < 3 else 0.115 * len(schemes) + 0.2
    with _drawing(name):
        figure, panels = _figure(0.85 + 0.2 * -(-len(schemes) // 4) + height * len(entries), 2, sharey=True)
        layout: Any = figure.get_layout_engine()
        layout.set(wspace=0.06)
        for axes, (key, title, unit) in zip(panels, _DAMAGE_PANELS, strict=True):
            for y, entry in enumerate(entries):
                if y % 2:
                    axes.axhspan(y - 0.5, y + 0.5, color=COLOURS["faint"], alpha=0.22, linewidth=0)
                for number, scheme in enumerate(schemes):
                    place = y + 0.74 * ((number + 0.5) / len(schemes) - 0.5)
                    _scheme_mark(axes, place, entry["schemes"][scheme][key], number)
            _rows_axis(axes, [entry["name"] for entry in entries])
            axes.set_ylim(len(entries) - 0.5, -0.5)
            axes.axvline(0, color=COLOURS["original"], linewidth=1.0)
            low, high = axes.get_xlim()
            axes.set_xlim(0 if key == "jsd" else low, high)
            _panel_title(axes, title)
            axes.set_xlabel(unit)
            axes.locator_params(axis="x", nbins=6)
        handles = [_scheme_handle(number, scheme) for number, scheme in enumerate(schemes)]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(schemes), 4))
        return _paper_svg(figure), _png(figure)


def _scheme_style(number: int) -> dict[str, Any]:
    """Colour and marker of the n-th scheme; after seven the markers are hollow."""
    colour = SCHEME_COLOURS[number % len(SCHEME_COLOURS)]
    turn = number // len(SCHEME_COLOURS)
    marker = SCHEME_MARKERS[(number + 3 * turn) % len(SCHEME_MARKERS)]
    return {"marker": marker, "color": colour, "markerfacecolor": "white" if turn % 2 else colour}


def _scheme_mark(axes: Axes, y: float, found: Mapping[str, float], number: int) -> None:
    style = _scheme_style(number)
    axes.plot([found["low"], found["high"]], [y, y], color=style["color"], linewidth=1.6, alpha=0.7)
    axes.plot([found["value"]], [y], linestyle="none", markersize=5.5, markeredgewidth=1.2, **style)


def _scheme_handle(number: int, scheme: str) -> Any:
    from matplotlib.lines import Line2D

    style = _scheme_style(number)
    return Line2D([], [], linestyle="none", markersize=6, label=short(scheme, 24), **style)


def _paper_svg(figure: Figure) -> str:
    """SVG with fixed colours: drawing programs do not know the variables of a page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return stream.getvalue()
