"""What the report says, worked out from the tables: plain values, ready for the page and its figures.

Nothing here reads files or draws; every sentence that states a result is made here, so that it can be
tested whichever way the result comes out.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paser.progress import duration

Row = dict[str, Any]
TRAINED = ("recovered", "control")
EXAMPLES = 4
CLUSTER_EXAMPLES = 3
MEASURES = ("fidelity_gap", "gap_closed")
_ROW_ID = re.compile(r"r1-[0-9a-f]{64}")
EXAMPLE_LENGTH = 220

REASONS = {
    "selected": "taken in the first round",
    "respread": "taken with budget that another cluster left over",
    "relaxed": "taken after the conflict rule was relaxed",
    "budget": "its cluster's budget was spent on rows that rank higher",
    "conflict": "it joins known concepts that no accepted row had joined",
    "nonfinite": "a model's prediction was not a finite number, so it has no score",
    "contaminated": "its text is part of what the models are evaluated on",
}


# What stands in the scoreboard beside the capabilities and clusters, which have tables of their own.
BOARD_SECTIONS = ("task", "text")

QUARANTINED = {
    "duplicate": "exact duplicate",
    "near_duplicate": "near duplicate",
    "near_heldout": "too close to a held-out row",
    "in_calibration": "used for calibration",
}


@dataclass(frozen=True)
class Tables:
    """The content of the files a report is made from; tables as lists of rows.

    `board`: the lines of `data/scoreboard.json`; `runs` and `records`: the run record and the record of each
    stage, in order; `sweep`: the lines of a sweep's CSV; `typical`: row ids of each cluster, the most typical
    first.
    """

    pool: list[Row]
    holdout: list[Row]
    quarantine: list[Row]
    clusters: list[Row]
    cluster_info: Mapping[str, Any]
    scores: list[Row]
    decisions: list[Row]
    budget: Mapping[str, Any]
    metrics: Mapping[str, Any]
    entry: Mapping[str, Any]
    board: list[Row] = field(default_factory=list)
    runs: list[Row] = field(default_factory=list)
    records: list[Row] = field(default_factory=list)
    sweep: list[Row] = field(default_factory=list)
    typical: Mapping[int, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Headline:
    """The first thing that is read: one sentence, what qualifies it, and the numbers behind both."""

    sentence: str
    verdict: str
    tone: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Content:
    """Everything the page shows, in its order."""

    headline: Headline
    setup: tuple[tuple[str, str], ...]
    models: list[Row]
    pool: list[Row]
    pool_total: Row
    benchmarks: tuple[str, ...]
    funnel: list[tuple[str, int, str]]
    clusters: list[Row]
    cluster_facts: str
    budget: Mapping[str, Any]
    budget_facts: str
    rejections: list[Row]
    conflicts: list[Row]
    conflict_facts: str
    capabilities: list[Row]
    averaged: list[Row]
    not_averaged: list[Row]
    kind: str
    marked: bool
    result_notes: tuple[str, ...]
    board: list[Row]
    board_notes: tuple[str, ...]
    stages: list[Row]
    cost_facts: str
    sweep: list[Row]
    lineage: Mapping[str, Any] = field(default_factory=dict)


def build(tables: Tables) -> Content:
    """The content of the report."""
    metrics = tables.metrics
    clusters = _clusters(tables)
    names = {f"cluster {line['cluster']}": f" · {line['name']}" for line in clusters}
    capabilities = [
        {
            **c,
            "name": c["name"] + (names.get(c["name"], "") if metrics["capability_kind"] == "cluster" else ""),
        }
        for c in sorted(metrics["capabilities"], key=lambda c: (-c["jsd"]["pruned"], c["name"]))
    ]
    return Content(
        headline=headline(metrics),
        setup=_setup(tables),
        models=_models(metrics),
        pool=_pool(tables.pool, tables.holdout),
        pool_total={
            "rows": len(tables.pool),
            "tokens": sum(row["tokens"] or 0 for row in tables.pool),
            "held_out": len(tables.holdout),
        },
        benchmarks=tuple(metrics["benchmarks"]),
        funnel=funnel(tables),
        clusters=clusters,
        cluster_facts=_cluster_facts(tables.cluster_info),
        budget=tables.budget,
        budget_facts=_budget_facts(tables.budget),
        rejections=_rejections(tables.decisions),
        conflicts=_conflicts(tables, {c["cluster"]: c["name"] for c in clusters}),
        conflict_facts=_conflict_facts(tables.budget),
        capabilities=capabilities,
        averaged=[c for c in capabilities if c["averaged"]],
        not_averaged=[c for c in capabilities if not c["averaged"]],
        kind="label" if metrics["capability_kind"] == "label" else "cluster",
        marked=_above_one(capabilities, metrics["overall"]),
        result_notes=_result_notes(metrics),
        board=[line for line in tables.board if line["section"] in BOARD_SECTIONS],
        board_notes=_board_notes(metrics, tables.board),
        stages=stages(tables.runs, tables.records),
        cost_facts=_cost_facts(tables.runs, tables.records),
        sweep=sweep_points(tables.sweep),
        lineage=tables.entry,
    )


def number(value: float | None, digits: int = 2) -> str:
    """`0.44`, with a true minus sign; a dash where there is nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", "−")


def interval(point: Mapping[str, Any] | None, digits: int = 2) -> str:
    """`0.44 [0.41, 0.47]`; a value above 1 of a gap closed carries a dagger."""
    if not point or point.get("value") is None:
        return "–"
    mark = "†" if point.get("above_one") else ""
    low, high = point.get("low"), point.get("high")
    bounds = (
        f"\u00a0[{number(low, digits)},\u00a0{number(high, digits)}]"
        if low is not None and high is not None
        else ""
    )
    return f"{number(point['value'], digits)}{mark}{bounds}"


def percent(value: float) -> str:
    return f"{number(100 * value, 0)}\u00a0%"


def overlap(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two intervals share a point; missing bounds count as overlapping."""
    bounds = (a.get("low"), a.get("high"), b.get("low"), b.get("high"))
    if any(bound is None for bound in bounds):
        return True
    return bool(a["low"] <= b["high"] and b["low"] <= a["high"])


def headline(metrics: Mapping[str, Any]) -> Headline:
    """The result in words, fidelity first; it says who is ahead only where the intervals part."""
    overall = metrics["overall"]
    recovered = overall["recovered"]
    fidelity, closed = recovered.get("fidelity_gap"), recovered.get("gap_closed")
    notes = []
    if closed and closed.get("above_one"):
        notes.append(
            "Its gap closed is above 1: training taught a format of answer which the original model never "
            "had, so loss flatters it."
        )
    if metrics["seeds"] < 2:
        notes.append("One training seed: the intervals do not cover the chance of another run.")
    if not fidelity or fidelity.get("value") is None:
        return Headline(
            "Pruning did no measurable damage, so there is nothing to recover",
            "Every capability's damage interval includes 0.",
            "neutral",
            tuple(notes),
        )
    share = fidelity["value"]
    if share > 0:
        sentence = f"The recovered model won back {percent(share)} of the distance to the original"
    elif share == 0:
        sentence = "The recovered model is exactly as far from the original as the pruned one"
    else:
        sentence = f"The recovered model is {percent(-share)} further from the original than the pruned one"
    if fidelity.get("low") is not None and fidelity["low"] <= 0 <= fidelity["high"]:
        notes.insert(0, "The interval of its fidelity gap includes 0: it may not have recovered at all.")
    control = overall.get("control")
    if not control or not control.get("fidelity_gap"):
        verdict = "There is no control, so nothing shows whether the choice of rows mattered."
        return Headline(sentence, verdict, "neutral", tuple(notes))
    verdict, tone = _against_control(fidelity, control["fidelity_gap"])
    if closed and control.get("gap_closed"):
        second = _leader(closed, control["gap_closed"])
        first = _leader(fidelity, control["fidelity_gap"])
        words = {
            "tie": "In gap closed (loss) the intervals overlap",
            "ahead": "In gap closed (loss) the recovered model is ahead of the control",
            "behind": "In gap closed (loss) the recovered model is behind the control",
        }[second]
        contrast = ": the two measures disagree." if {first, second} == {"ahead", "behind"} else "."
        values = f" ({interval(closed)} against {interval(control['gap_closed'])})"
        notes.insert(0, f"{words}{values}{contrast}")
    return Headline(sentence, verdict, tone, tuple(notes))


def _leader(recovered: Mapping[str, Any], control: Mapping[str, Any]) -> str:
    if overlap(recovered, control):
        return "tie"
    return "ahead" if recovered["value"] > control["value"] else "behind"


def _against_control(recovered: Mapping[str, Any], control: Mapping[str, Any]) -> tuple[str, str]:
    difference = recovered["value"] - control["value"]
    values = f"fidelity gap {interval(recovered)} against {interval(control)}"
    leader = _leader(recovered, control)
    if leader == "tie":
        side = "above" if difference > 0 else "below"
        by = f"{number(abs(difference))} {side} it" if round(difference, 2) else "level with it"
        return (
            f"Random rows with the same number of training tokens did about as well: {values}. It stands "
            f"{by}, but the intervals overlap, so this run does not tell the two apart.",
            "neutral",
        )
    if leader == "ahead":
        return (
            f"That is more than random rows with the same number of training tokens: {values}; the intervals "
            "do not overlap.",
            "good",
        )
    return (
        f"Random rows with the same number of training tokens did better: {values}; the intervals do not "
        "overlap.",
        "bad",
    )


def _setup(tables: Tables) -> tuple[tuple[str, str], ...]:
    summary = tables.entry["summary"]
    settings = summary["settings"]
    prune = settings.get("prune", {}).get("prune", {})
    recover = settings.get("recover", {}).get("recover", {})
    facts = []
    if prune:
        facts.append(("Pruned by", _pruned_by(prune)))
    facts.append(("Trained on", f"{summary['rows']:,} of {len(tables.pool):,} rows"))
    facts.append(("Training tokens", f"{summary['tokens']:,} an epoch"))
    if recover:
        facts.append(("Recovered by", f"LoRA, rank {recover['rank']}, {plural(recover['epochs'], 'epoch')}"))
    facts.append(
        ("Measured on", f"{plural(sum(c['rows'] for c in tables.metrics['capabilities']), 'held-out row')}")
    )
    return tuple(facts)


def _pruned_by(prune: Mapping[str, Any]) -> str:
    """The scheme by its name in params.yaml, or where a model from outside came from."""
    if prune.get("external"):
        return f"another tool; taken from {prune['external']}"
    pattern = "" if prune["pattern"] == "unstructured" else f", {prune['pattern']}"
    return f"{prune['scheme']}, {percent(prune['sparsity'])}{pattern}"


def _models(metrics: Mapping[str, Any]) -> list[Row]:
    return [{"name": name, **metrics["overall"][name]} for name in metrics["models"]]


def _pool(pool: list[Row], holdout: list[Row]) -> list[Row]:
    """One line for each label and source: rows, tokens, licence, benchmark, held-out rows."""
    held = Counter((row["label"] or "", row["source"], row["license"]) for row in holdout)
    grouped: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in pool:
        grouped[(row["label"] or "", row["source"], row["license"])].append(row)
    lines = []
    for key in sorted({*grouped, *held}):
        label, source, license = key
        rows = grouped.get(key, [])
        lines.append(
            {
                "label": label,
                "source": source,
                "license": license,
                "rows": len(rows),
                "tokens": sum(row["tokens"] or 0 for row in rows),
                "held_out": held[key],
                "benchmark": next((row["benchmark"] for row in rows if row["benchmark"]), None),
            }
        )
    sizes = Counter[str]()
    for line in lines:
        sizes[line["label"]] += line["rows"]
    return sorted(
        lines, key=lambda line: (-sizes[line["label"]], line["label"], -line["rows"], line["source"])
    )


def funnel(tables: Tables) -> list[tuple[str, int, str]]:
    """Steps from all rows of the pool's sources to those selected: (label, rows, stock or loss).

    Rows of calibration sources, quarantined or not drawn, never were on this way and are left out.
    """
    summary = tables.entry["summary"]
    sources = set(summary["pool_sources"])
    quarantine = [row for row in tables.quarantine if row["source"] in sources]
    not_drawn = sum(rows for source, rows in summary["not_drawn"].items() if source in sources)
    total = len(tables.pool) + len(tables.holdout) + len(quarantine) + not_drawn
    steps = [("Rows read", total, "stock")]
    steps += [
        (f"quarantined: {QUARANTINED.get(reason, reason.replace('_', ' '))}", count, "loss")
        for reason, count in _by_count(Counter(row["reason"] for row in quarantine))
    ]
    if not_drawn:
        steps.append(("not drawn (max_rows or share)", not_drawn, "loss"))
    steps.append(("held out for evaluation", len(tables.holdout), "loss"))
    steps.append(("Pool", len(tables.pool), "stock"))
    rejected = Counter(row["reason"] for row in tables.decisions if row["decision"] == "rejected")
    order = ("nonfinite", "contaminated", "conflict", "budget")
    known = [(reason, rejected[reason]) for reason in order if rejected[reason]]
    others = [(reason, count) for reason, count in _by_count(rejected) if reason not in order]
    names = {
        "nonfinite": "no finite score",
        "contaminated": "found in evaluation data",
        "budget": "beyond the budget",
    }
    steps += [(f"left out: {names.get(reason, reason)}", count, "loss") for reason, count in others + known]
    accepted = sum(row["decision"] == "accepted" for row in tables.decisions)
    steps.append(("Selected", accepted, "stock"))
    return steps


def _by_count(counts: Counter[Any]) -> list[tuple[str, int]]:
    return sorted(
        ((str(name), count) for name, count in counts.items()), key=lambda item: (-item[1], item[0])
    )


def _clusters(tables: Tables) -> list[Row]:
    """One line a cluster, most damaged first: its rows, labels, CDS and spread, and its budget."""
    jsd = {row["row_id"]: row["jsd"] for row in tables.scores}
    values: dict[int, list[float]] = defaultdict(list)
    for row in tables.clusters:
        value = jsd.get(row["row_id"])
        if row["split"] == "pool" and value is not None and math.isfinite(value):
            values[row["cluster"]].append(value)
    spent = {item["cluster"]: item for item in tables.budget["clusters"]}
    texts = {row["row_id"]: row["instruction"] for row in tables.pool}
    lines = []
    for info in tables.cluster_info["clusters"]:
        cluster = info["cluster"]
        plan = spent.get(cluster, {"cds": 0.0, "allocated": 0, "spent": 0, "accepted": 0})
        labels = sorted(info.get("labels", {}).items(), key=lambda item: (-item[1], item[0]))
        lines.append(
            {
                "cluster": cluster,
                "name": info["name"],
                "title": f"{cluster} · {info['name']}",
                "rows": info["rows"],
                "labels": labels[:3],
                "more_labels": max(0, len(labels) - 3),
                "cds": plan["cds"],
                "spread": _middle_half(values[cluster]),
                "allocated": plan["allocated"],
                "spent": plan["spent"],
                "accepted": plan["accepted"],
                "examples": _distinct(texts[row_id] for row_id in tables.typical.get(cluster, ())),
            }
        )
    return sorted(lines, key=lambda line: (-line["cds"], line["cluster"]))


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(clip(text) for text in texts))[:CLUSTER_EXAMPLES]


def _middle_half(values: list[float]) -> tuple[float, float]:
    """The quartiles around the middle half of the values; (0, 0) for none."""
    if not values:
        return (0.0, 0.0)
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return at(0.25), at(0.75)


def plural(count: int, noun: str) -> str:
    if count == 1:
        return f"{count:,} {noun}"
    return f"{count:,} {noun[:-1]}ies" if noun.endswith("y") else f"{count:,} {noun}s"


def _cluster_facts(info: Mapping[str, Any]) -> str:
    algorithm = {"nmf": "symmetric NMF", "kmeans": "k-means"}.get(info["algorithm"], info["algorithm"])
    facts = [f"{plural(info['k'], 'cluster')}, by {algorithm} on {info['manifold']} coordinates."]
    facts.append(_choice_of_k(info["choice"], info.get("gap")))
    stability = info.get("stability")
    if stability:
        facts.append(
            f"Clustering {stability['runs']} subsamples again gave the same groups with a mean adjusted Rand "
            f"index of {number(stability['mean_ari'])} (1 = the same)."
        )
    agreement = info.get("agreement")
    if agreement:
        facts.append(
            f"Agreement with the sources' labels, which clustering never saw: {number(agreement['nmi'])} "
            "(NMI, 1 = the same)."
        )
    return " ".join(facts)


def _choice_of_k(choice: Mapping[str, Any], gap: Mapping[str, Any] | None) -> str:
    """How the number of clusters came about."""
    rules = {
        "modularity": "the highest modularity",
        "gap": "the largest spectral gap",
        "stability": "stability",
    }
    if choice["rule"] not in rules:
        return (
            "Their number was given." if choice["rule"] == "given" else "The pool is too small for a choice."
        )
    scores, second = choice["scores"], choice["runner_up"]
    fact = f"Their number was found from {rules[choice['rule']]} ({number(scores[str(choice['k'])], 3)}"
    if second:
        fact += f"; the runner-up was {second} with {number(scores[str(second)], 3)}"
    if gap and choice["rule"] != "gap":
        fact += f"; the largest spectral gap is at {gap['k']}"
    return f"{fact})."


def _budget_facts(budget: Mapping[str, Any]) -> str:
    unit = budget["unit"]
    facts = [
        f"Asked for {budget['requested']['text']}: {budget['budget']:,} {unit}, of which {budget['spent']:,} "
        f"were spent on {plural(budget['rows'], 'row')} ({plural(budget['tokens'], 'training token')})."
    ]
    if budget["unspent"]:
        cause = f": {budget['cause']}" if budget.get("cause") else ""
        facts.append(f"{budget['unspent']:,} {unit} stayed unspent{cause}.")
    facts.append(
        f"Rule {budget.get('selector', 'paser')}: budget by {budget['policy']}, damage by "
        f"{budget.get('divergence', 'jsd')}, rows by {budget.get('order', 'efficiency')}; distance of the "
        f"plan from an even split {number(budget['distance_from_uniform'])} "
        "(0 = even, 1 = all in one cluster)."
    )
    moved = sum(move["amount"] for move in budget.get("moves", ()))
    if moved:
        facts.append(f"{moved:,} {unit} moved between clusters after the first round.")
    control = budget.get("control")
    if control and control.get("rows"):
        facts.append(
            f"The control drew {plural(control['rows'], 'random row')} with "
            f"{plural(control['tokens'], 'training token')}."
        )
    return " ".join(facts)


def _rejections(decisions: list[Row]) -> list[Row]:
    counts = Counter((row["decision"], row["reason"]) for row in decisions)
    lines = [
        {"decision": d, "reason": r, "rows": count, "meaning": REASONS.get(r, "")}
        for (d, r), count in counts.items()
    ]
    return sorted(lines, key=lambda line: (line["decision"] == "accepted", -line["rows"], line["reason"]))


def _conflicts(tables: Tables, names: Mapping[int, str]) -> list[Row]:
    """The rows that it cost most to turn away for a conflict: the most damaged, one a cluster first."""
    texts = {row["row_id"]: row for row in tables.pool}
    refused = [row for row in tables.decisions if row["reason"] == "conflict" and row["row_id"] in texts]
    refused.sort(key=lambda row: (-(row["jsd"] or 0.0), row["row_id"]))
    first: dict[int, Row] = {}
    for row in refused:
        first.setdefault(row["cluster"], row)
    shown = [*first.values(), *(row for row in refused if row is not first[row["cluster"]])]
    return [
        {
            "instruction": clip(texts[row["row_id"]]["instruction"]),
            "cluster": names.get(row["cluster"], str(row["cluster"])),
            "jsd": row["jsd"],
            "detail": _ROW_ID.sub(lambda found: f"{found[0][:11]}…", row["detail"] or ""),
            "row_id": row["row_id"],
        }
        for row in shown[:EXAMPLES]
    ]


def clip(text: str, length: int = EXAMPLE_LENGTH) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"


def _conflict_facts(budget: Mapping[str, Any]) -> str:
    facts = [f"The conflict rule turned away {percent(budget['rejected_share'])} of the rows it looked at."]
    if budget.get("relaxed"):
        steps = ", ".join(
            f"{plural(rows, 'row')} at strictness {step}" for step, rows in sorted(budget["relaxed"].items())
        )
        facts.append(f"It was then relaxed, because too much of the budget was left: {steps}.")
    return " ".join(facts)


def _above_one(capabilities: Iterable[Mapping[str, Any]], overall: Mapping[str, Any]) -> bool:
    gaps = [gap for c in capabilities for gap in c["gap_closed"].values()]
    gaps += [model.get("gap_closed") for model in overall.values()]
    return any(gap and gap.get("above_one") for gap in gaps)


def _result_notes(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    notes = [f"Intervals: {metrics['interval']}; {plural(metrics['seeds'], 'training seed')}."]
    if metrics["excluded_rows"]:
        notes.append(
            f"{plural(metrics['excluded_rows'], 'held-out row')} left out, because a model's prediction was "
            "not finite."
        )
    return (*notes, *metrics["notes"])


def _board_notes(metrics: Mapping[str, Any], board: list[Row]) -> tuple[str, ...]:
    if not any(line["section"] in BOARD_SECTIONS for line in board):
        return (
            "No task and no text was asked for: evaluate.tasks and evaluate.perplexity in params.yaml name "
            "them, and dvc repro measures them.",
        )
    return tuple((metrics.get("tasks") or {}).get("notes", ()))


def stages(runs: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One line a stage, in order: seconds, their share of the run, what it worked on, and where it ran."""
    total = sum(run["seconds"] for run in runs)
    worked = {record["stage"]: _work(record) for record in records}
    return [
        {
            "stage": run["stage"],
            "seconds": run["seconds"],
            "time": duration(run["seconds"]),
            "share": run["seconds"] / total if total else 0.0,
            "work": worked.get(run["stage"], ""),
            "machine": _machine(run),
            "started": run["started"],
        }
        for run in runs
    ]


def _work(record: Mapping[str, Any]) -> str:
    """What the stage went through, from its record's facts: tokens where it trained, rows where it read."""
    facts = record.get("facts", {})
    if facts.get("steps") is not None and facts.get("tokens") is not None:
        return f"{plural(facts['tokens'], 'token')} an epoch, {plural(facts['steps'], 'step')}"
    rows = sum(item["rows"] for item in record.get("inputs", ()) if _is_pool(item))
    return plural(rows, "row") if rows else ""


def _is_pool(item: Mapping[str, Any]) -> bool:
    return item["path"] in ("data/pool.parquet", "data/holdout.parquet") and bool(item.get("rows"))


def _machine(run: Mapping[str, Any]) -> str:
    where = f"{run['machine']}, {plural(run['cpus'], 'processor')}"
    return f"{run['worker']}: {where}" if run.get("worker") else where


def _cost_facts(runs: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> str:
    if not runs:
        return ""
    trained = {r["stage"]: r.get("facts", {}).get("tokens") for r in records}
    facts = [f"The stages took {duration(sum(run['seconds'] for run in runs))} together."]
    if trained.get("recover"):
        facts.append(
            f"Training saw {plural(trained['recover'], 'token')} in each epoch"
            + (f", its control {trained['control']:,}." if trained.get("control") else ".")
        )
    facts.append("A stage whose result was reused shows the time of the run that made it.")
    return " ".join(facts)


def sweep_points(lines: Sequence[Mapping[str, Any]]) -> list[Row]:
    """What a sweep's finished cells say of gap and budget, by tokens: `cell`, `tokens`, `MEASURE_MODEL`.

    A cell that failed or was not evaluated has no point. Numbers are read from the text of a CSV file.
    """
    points = []
    for line in lines:
        tokens = _float(line.get("tokens"))
        gaps = {
            f"{measure}_{model}": _float(line.get(f"{measure}_{model}"))
            for measure in MEASURES
            for model in TRAINED
        }
        if tokens is not None and gaps["fidelity_gap_recovered"] is not None:
            points.append({"cell": line.get("cell", ""), "tokens": int(tokens), **gaps})
    return sorted(points, key=lambda point: (point["tokens"], point["cell"]))


def _float(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
