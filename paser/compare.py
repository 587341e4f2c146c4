"""Selectors against each other on a project's own models and pool, at equal training tokens: `paser compare`.

Every cell, one selector with one seed, is a file: rows, cost, and what training on them did to the held-out
rows. A comparison that was stopped goes on where it stopped, and more seeds or selectors add to it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import fingerprint, read_json, read_rows, sha256_path, write_json, write_jsonl
from paser.cache import Cache
from paser.errors import PaserError, SettingsError
from paser.evaluation.paired import CLOSED, FIDELITY, Judge, holm, shown, verdict
from paser.evaluation.table import with_interval
from paser.lineage.record import code_digest, package_versions
from paser.models.workload import CODE, finite, fused_arrays, open_models
from paser.progress import duration, say
from paser.records import draw_key, row_to_sample
from paser.recovery.job import ORIGINAL, PRUNED, SCORES, Alone, recover_model
from paser.selectors.derive import Inputs, overlapping, read_inputs
from paser.selectors.protocol import ScoredPool
from paser.selectors.registry import selector, selectors
from paser.selectors.resources import Models, Resources, opener
from paser.selectors.tables import scored_pool, training_rows
from paser.settings import Budget, Settings, load_settings

if TYPE_CHECKING:
    import numpy as np
    from rich.console import RenderableType

Row = dict[str, Any]
NEEDED = (
    "data/pool.parquet", "data/holdout.parquet", "data/clusters.parquet", "data/clusters.json",
    "data/embeddings.npy", SCORES, ORIGINAL, PRUNED,
)  # fmt: skip
SELECTED, RECOVERED = "data/selected.jsonl", "data/models/recovered"
# Of the usable rows, those that a seed draws: without it most selectors would choose the same ones each time.
DRAWN = 0.8
METRICS = (FIDELITY, CLOSED)
DEFAULT = ("random", "paser", "recoverable-coverage")
# From this share of the budget on, too few or too many tokens are no comparison at equal cost.
UNEQUAL = 0.02


@dataclass(frozen=True)
class Study:
    """A project of which stages up to `score` are done. `tokens` is the budget of every selection."""

    project: Path
    settings: Settings
    cache: Cache
    inputs: Inputs
    refused: Mapping[int, str]
    held_out: Sequence[Row]
    digests: Mapping[str, str]
    pool: ScoredPool
    tokens: int

    @classmethod
    def of(cls, project: Path, budget: str | None) -> Study:
        """Raises PaserError for a project without scores, SettingsError for a budget that is no amount."""
        settings = load_settings(project / "params.yaml")
        if missing := [path for path in NEEDED if not (project / path).exists()]:
            raise PaserError(
                f"{project / missing[0]} does not exist", remedy="`dvc repro score embed cluster`"
            )
        inputs = read_inputs(lambda path: project / path)
        refused = {i: str(overlap) for i, overlap in overlapping(inputs, settings).items()}
        pool = scored_pool(inputs.pool, inputs.clusters, inputs.scores, refused)
        tokens = tokens_of(Budget.parse(budget) if budget else settings.select.parsed_budget, pool)
        return cls(
            project, settings, Cache.of(project), inputs, refused,
            read_rows(project / "data/holdout.parquet", "pool"),
            {path: sha256_path(project / path) for path in NEEDED}, pool, tokens,
        )  # fmt: skip

    def drawn(self, seed: int) -> np.ndarray:
        """Positions of the rows that the seed draws from the pool, in its order."""
        import numpy as np

        ids = self.inputs.pool["row_id"].to_pylist()
        order = sorted(range(len(ids)), key=lambda i: draw_key("compare", seed, ids[i]))
        return np.sort(np.array(order[: round(DRAWN * len(ids))], dtype=np.int64))

    def cell(self, name: str, seed: int) -> str:
        """Digest of all that determines a cell."""
        settings = self.settings
        return fingerprint(
            {
                "selector": name,
                "options": selectors()[name].options().model_dump(mode="json"),
                "seed": seed,
                "tokens": self.tokens,
                "drawn": DRAWN,
                "inputs": dict(self.digests),
                "refused": sorted(self.refused),
                "settings": [
                    part.model_dump(mode="json")
                    for part in (settings.model, settings.score, settings.recover)
                ],
                "runs": [*map(str, _device_and_dtype(self)), settings.runtime.threads],
                "versions": package_versions(),
                "code": code_digest(("paser/selectors", "paser/method", "paser/recovery", *CODE)),
            }
        )


def drawn_tokens(pool: ScoredPool) -> float:
    """Training tokens of the usable rows of a draw, on average."""
    return DRAWN * int(pool.tokens[pool.usable].sum())


def tokens_of(budget: Budget, pool: ScoredPool) -> int:
    """The budget in training tokens: a share of those of the usable rows of a draw, or so many rows of mean
    length."""
    if budget.unit == "tokens":
        return int(budget.amount)
    share = budget.amount / max(DRAWN * len(pool.usable), 1) if budget.unit == "rows" else budget.amount
    return int(min(share, 1.0) * drawn_tokens(pool))


def compare(
    project: Path, names: Sequence[str], seeds: int, budget: str | None, out: Path | None = None
) -> Row:
    """Selects, trains and measures with each selector and seed; what is in `out` already is not done again.

    The first of `names` is what the others are compared with. `out`: default the project's `data/comparison`.
    Returns what `report.json` in `out` says, which is written anew after each seed. Raises SettingsError for
    names, seeds or budgets that compare nothing, PaserError for a project without scores.
    """
    import numpy as np

    out = out or project / "data/comparison"
    names = list(dict.fromkeys(names))
    if len(names) < 2:
        raise SettingsError("a comparison needs two selectors", remedy=f"some of {', '.join(selectors())}")
    if unknown := [name for name in names if name not in selectors()]:
        raise SettingsError(f"unknown selector {unknown[0]!r}", remedy=f"some of {', '.join(selectors())}")
    study = Study.of(project, budget)
    there = drawn_tokens(study.pool)
    if study.tokens < 1:
        raise SettingsError(
            f"a budget of {budget or study.settings.select.budget} is less than one of a draw's {there:,.0f} "
            "training tokens",
            remedy='a larger one, as --budget "10%"',
        )
    if study.tokens >= there:
        raise SettingsError(
            f"a budget of {study.tokens:,} training tokens takes all of a draw ({there:,.0f}), "
            "whatever the selector",
            remedy='a smaller one, as --budget "10%"',
        )
    resources = _resources(study, np.arange(len(study.pool)))
    for name in names:
        selector(name, {}, resources, 1).check(study.pool)
    say(f"{len(names)} selectors, {seeds} seeds, {study.tokens:,} training tokens each")
    before = _untrained(study, out)
    _require_damage(before["jsd"])
    cells: dict[str, list[Row]] = {name: [] for name in names}
    for seed in range(1, seeds + 1):
        for name in names:
            path = out / "cells" / f"{study.cell(name, seed)[:20]}.json"
            if not path.exists():
                write_json(path, _made(study, name, seed))
            cells[name].append(read_json(path))
        found = _judged(study, before, cells)
        write_json(out / "report.json", found)
    return found


def _made(study: Study, name: str, seed: int) -> Row:
    """One cell: rows, what they cost, and the held-out rows after training on them."""
    positions = study.drawn(seed)
    pool, resources = study.pool.part(positions), _resources(study, positions)
    begin = time.perf_counter()
    chosen = selector(name, {}, resources, seed)(pool, study.tokens, "tokens")
    selecting = time.perf_counter() - begin
    table = study.inputs.pool.take(positions)
    rows = list(training_rows(table, pool, chosen, seed))
    say(f"{name}, seed {seed}: {len(rows)} rows")
    with tempfile.TemporaryDirectory(prefix="paser-compare-") as folder:
        work = Path(folder)
        write_jsonl(work / "selected.jsonl", rows)
        places = {path: study.project / path for path in (PRUNED, ORIGINAL, SCORES)}
        settings = study.settings.model_copy(update={"seed": seed})
        begin = time.perf_counter()
        recover_model(
            Alone(settings, study.cache, {**places, SELECTED: work / "selected.jsonl"}, work / "model"),
            role="recovered",
            selection=SELECTED,
            output=RECOVERED,
            code=code_digest(("paser/models", "paser/recovery")),
        )
        training = time.perf_counter() - begin
        measured = _measured(study, work / "model", sha256_path(work / "model"))
    return {
        "selector": name,
        "seed": seed,
        "rows": [row["row_id"] for row in rows],
        "tokens": sum(int(row["tokens"]) for row in rows),
        "cost": chosen.report["cost"],
        "seconds": {"selecting": round(selecting, 1), "training": round(training, 1)},
        **measured,
    }


def _device_and_dtype(study: Study) -> tuple[Any, Any]:
    from paser.models.precision import choose_device, choose_dtype

    device = choose_device(study.settings.runtime.device)
    return device, choose_dtype(study.settings.model.precision, device, study.cache)


def _resources(study: Study, positions: np.ndarray) -> Resources:
    import numpy as np

    settings, table = study.settings, study.inputs.pool.take(positions)
    device, dtype = _device_and_dtype(study)
    scores = {row["row_id"]: row for row in study.inputs.scores.to_pylist()}
    known = [scores[row_id] for row_id in table["row_id"].to_pylist()]
    losses = [np.array([row[f"loss_{m}"] for row in known], dtype=float) for m in ("original", "pruned")]
    models = Models(
        pruned=opener(study.project / PRUNED, dtype, device),
        samples=lambda places: [row_to_sample(row) for row in table.take(places).to_pylist()],
        recover=settings.recover,
        max_tokens=settings.recover.max_tokens,
    )
    return Resources(study.inputs.embeddings()[positions], losses[0], losses[1], models)


def _untrained(study: Study, out: Path) -> Row:
    """The held-out rows of the original and the pruned model."""
    named = {path: study.digests[path] for path in (ORIGINAL, PRUNED, "data/holdout.parquet")}
    parts = [part.model_dump(mode="json") for part in (study.settings.model, study.settings.score)]
    key = fingerprint([named, parts, package_versions(), code_digest(CODE)])
    path = out / "cells" / f"before-{key[:20]}.json"
    if not path.exists():
        write_json(path, _measured(study, study.project / PRUNED, study.digests[PRUNED]))
    found: Row = read_json(path)
    return found


def _measured(study: Study, model: Path, digest: str) -> Row:
    """Both models' loss on each held-out row and the JSD between them; None where not finite."""
    paths = {"original": study.project / ORIGINAL, "it": model}
    digests = {"original": study.digests[ORIGINAL], "it": digest}
    models = open_models(paths, digests, study.settings, study.cache)
    found = fused_arrays("measure", study.held_out, models, digests, study.settings.score, study.cache)
    return {
        name: [finite(float(value)) for value in found[column]]
        for name, column in (("original", "loss"), ("loss", "loss_it"), ("jsd", "jsd_it"))
    }


def _require_damage(jsd: Sequence[float | None]) -> None:
    """Raises where the pruned model answers every row as the original does."""
    known = [value for value in jsd if value is not None]
    if known and not any(known):
        raise PaserError(
            f"the pruned model's JSD to the original is 0 on all {len(known)} held-out rows: there is "
            "nothing to repair",
            remedy="look at `prune` in params.yaml, or with `paser models inspect` at the pruned model",
        )


def _judged(study: Study, before: Row, cells: Mapping[str, Sequence[Row]]) -> Row:
    """Each selector's metrics over seeds, and the paired differences to the first one."""
    everything = [before, *(cell for made in cells.values() for cell in made)]
    usable = [
        i
        for i in range(len(study.held_out))
        if all(one[key][i] is not None for one in everything for key in ("original", "loss", "jsd"))
    ]
    if not usable:
        named = {"the pruned or the original model": before} | {
            f"{name}, seed {cell['seed']}": cell for name, made in cells.items() for cell in made
        }
        broken = [what for what, one in named.items() if all(value is None for value in one["jsd"])]
        raise PaserError(
            "no held-out row has finite logits in all models; none at all has it in: "
            f"{', '.join(broken) or 'no single one'}",
            remedy="check these models, or leave the selector out",
        )

    _require_damage([before["jsd"][i] for i in usable])

    def kept(found: Row) -> Row:
        return {key: [found[key][i] for i in usable] for key in ("loss", "jsd")}

    clusters = read_rows(study.project / "data/clusters.parquet", "clusters")
    cluster_of = {row["row_id"]: row["cluster"] for row in clusters}
    labels = [
        str(row["label"] or f"cluster {cluster_of.get(row['row_id'])}")
        for row in (study.held_out[i] for i in usable)
    ]
    original = {"loss": [before["original"][i] for i in usable], "jsd": [0.0] * len(usable)}
    judge = Judge(kept(before), original, labels)
    metrics = [name for name in METRICS if name == FIDELITY or judge.damaged]
    first = next(iter(cells))
    lines: dict[str, Row] = {}
    for name, made in cells.items():
        trainings = [kept(cell) for cell in made]
        entry: Row = {
            "rows": sum(len(cell["rows"]) for cell in made) / len(made),
            "tokens": sum(cell["tokens"] for cell in made) / len(made),
            "cost": _means([cell["cost"] for cell in made]),
            "seconds": _means([cell["seconds"] for cell in made]),
            "by_label": {m: judge.by_label(m, trainings) for m in metrics},
        }
        for metric in metrics:
            entry[metric] = judge.mean(metric, trainings)
            if name != first:
                others = [kept(cell) for cell in cells[first]]
                entry[f"{metric}, minus {first}"] = judge.difference(metric, trainings, others)
        lines[name] = entry
    for metric in metrics:
        key = f"{metric}, minus {first}"
        for name, p in holm({n: e[key]["p"] for n, e in lines.items() if key in e}).items():
            lines[name][key]["holm"] = p
    return {
        "reference": first,
        "metrics": metrics,
        "seeds": len(next(iter(cells.values()))),
        "tokens": study.tokens,
        "held_out": len(usable),
        "labels": sorted(set(labels)),
        "undamaged": sorted(set(labels) - set(judge.damaged)),
        "selectors": lines,
    }


def _means(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def table(found: Row) -> RenderableType:
    """The comparison for the terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    reference, parts = found["reference"], []
    for metric in found["metrics"]:
        key = f"{metric}, minus {reference}"
        lines = Table(title=f"{metric} (95 % interval)", title_justify="left")
        lines.add_column("")
        for name in ("rows", "tokens", metric, f"minus {reference}", "p (Holm)"):
            lines.add_column(name, justify="right")
        lines.add_column("")
        ranked = sorted(found["selectors"].items(), key=lambda pair: -pair[1][metric]["value"])
        for name, entry in ranked:
            against = entry.get(key)
            lines.add_row(
                name,
                f"{entry['rows']:.0f}",
                f"{entry['tokens']:,.0f}",
                with_interval(entry[metric], 3),
                with_interval(against, 3) if against else "",
                shown(against["holm"]) if against and against["seeds"] > 1 else "",
                verdict(against, against["holm"]) if against else "",
            )
        parts.append(lines)
    notes = [
        f"{found['seeds']} seeds, {found['tokens']:,} training tokens each, {found['held_out']} held-out "
        "rows. Intervals: bootstrap over seeds and held-out rows, paired where a difference is shown. "
        "Selectors have their default options, whatever `select` says.",
    ]
    for name, entry in found["selectors"].items():
        if abs(entry["tokens"] / found["tokens"] - 1) > UNEQUAL:
            notes.append(f"{name} was trained on {entry['tokens']:,.0f} tokens: not at equal cost.")
    if found["undamaged"]:
        notes.append(f"Without damage, so no part of {CLOSED}: {', '.join(found['undamaged'])}.")
    for name, entry in found["selectors"].items():
        cost, seconds = entry["cost"], entry["seconds"]
        notes.append(
            f"{name}: {cost['forward_tokens']:,.0f} tokens forward and {cost['backward_tokens']:,.0f} "
            f"backward to select; {duration(seconds['selecting'])} selecting, "
            f"{duration(seconds['training'])} training"
        )
    return Group(*parts, Text("\n".join(notes)))
