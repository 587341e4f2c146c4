"""One cell: rows chosen by one selector, one training on them, and what that did. Each is a small file.

A selection and a training are files of their own, so that two selectors that choose the same rows are trained
once. Their names are digests of all that determines them (code by its meaning: benchmarks.evidence.world).
Code that changed and gives the same bits (benchmarks.evidence.same) keeps its cells.
"""

from __future__ import annotations

import functools
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.__main__ import machine
from benchmarks.data import ROOT
from benchmarks.evidence import world as worlds
from benchmarks.evidence.world import DENSE, MAX_TOKENS, TASK_ITEMS, world
from paser.artifacts import columns_of, fingerprint, read_json, sha256_path, staged
from paser.evaluation.gap import choice_jsd
from paser.evaluation.harness import run_task
from paser.method.grouping import group
from paser.models.checkpoint import WEIGHTS
from paser.models.loading import load_causal_lm, load_tokenizer
from paser.models.passes import FusedPass
from paser.models.precision import set_threads
from paser.models.tokens import SampleEncoder
from paser.progress import say
from paser.records import draw_key, row_to_sample
from paser.recovery.batches import TrainingRow
from paser.recovery.lora import Extras, fine_tune
from paser.recovery.masked import merged
from paser.recovery.token_pruning import token_pruned
from paser.selectors.registry import CLUSTERS, EMBEDDINGS, MODELS, TARGETS, selector, selectors
from paser.selectors.registry import SMALL as NEEDS_SMALL
from paser.selectors.resources import Models, Resources, opener
from paser.selectors.tables import scored_pool
from paser.settings import ClusterSettings, RecoverSettings

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

RESULTS = ROOT / "benchmarks/results/evidence"
EQUAL = RESULTS / "equal.json"
# Code that decides a trained model and its measures, and code that decides a selection; of the selectors that
# read models only those modules that have a part in it.
PASSES = tuple(f"paser/models/{name}.py" for name in ("packing", "passes", "tokenwise", "tokens"))
TRAINER = tuple(f"paser/recovery/{name}.py" for name in ("batches", "lora", "masked", "objective"))
TRAINING = (
    *TRAINER, *PASSES, "paser/method/divergence.py", "paser/evaluation/harness.py",
    "paser/evaluation/items.py",
)  # fmt: skip
SELECTING = ("paser/method", "paser/pool", "paser/models/encoder.py", *PASSES, *TRAINER)
SHARED = ("protocol", "filling", "resources", "tables", "random", "registry")
BY_TABLES = ("damage", "ablations", "ranked", "coverage", "geometric")
BY_MODELS = {
    "ifd": "readings", "ifd-small": "readings", "nuggets": "readings", "q-tuning": "readings",
    "instruction-mining": "mining", "el2n": "dynamics", "grand": "dynamics",
    "variance-of-gradients": "dynamics", "influence-effort": "influence", "preselect": "predictive",
    "less": "matching",
}  # fmt: skip
# Of one cell, so that the same bits come out whatever runs beside it.
THREADS = 1
LIBRARIES = ("torch", "transformers", "peft", "lm-eval")
SELECTING_LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "numpy",
    "scipy",
    "scikit-learn",
    "sentence-transformers",
)
Row = dict[str, Any]


def write_cell(path: Path, found: Row) -> None:
    """As compact as a small file in a repository should be."""
    with staged(path) as partial:
        partial.write_text(json.dumps(found, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    `name`: what the page calls it. `selector` and `options`: of paser/selectors/registry.py. `cluster`:
    changed settings of the clusters. `temperature`: of the divergence. `train`: the scheme whose model is
    trained, where it is not the one that was selected for (the ceiling). `recover`: changed settings of the
    training. `steps`: optimiser steps an epoch that the size of a batch is chosen for, in place of the
    default size, which takes more steps the more rows there are. `again`: a cell that there is, made a second
    time, on another machine.
    """

    pool: str
    scheme: str
    name: str
    selector: str
    budget: int
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    cluster: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    train: str | None = None
    recover: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    again: bool = False

    @property
    def trained(self) -> str:
        return self.train or self.scheme

    @functools.cached_property
    def selection_path(self) -> Path:
        return self.selection_by(known_as(selecting_code(self.selector)))

    def selection_by(self, code: str) -> Path:
        """Where the rows lie that code of this meaning chose."""
        return RESULTS / "selections" / f"{fingerprint(self._selection_key(code))[:20]}.json"

    def as_json(self) -> Row:
        """All of it; `again`, which is younger than the first cells, only where it is on."""
        return {k: v for k, v in asdict(self).items() if k != "again" or v}

    def of_selection(self) -> Row:
        """What decides the rows."""
        return {k: v for k, v in self.as_json().items() if k not in OF_TRAINING}

    def _selection_key(self, code: str) -> Row:
        asked = self.of_selection()
        if not needs_models(self.selector):
            asked["scheme"] = None
        needs = selectors()[self.selector].needs
        return {
            **asked,
            "options": rule(self),
            "settings": selecting_settings(self),
            "model": worlds.model_key(self.scheme) if needs_models(self.selector) else None,
            "small": worlds.model_key(worlds.SMALL_MODEL) if NEEDS_SMALL in needs else None,
            "pool_rows": world().digests[self.pool],
            "targets": [row["row_id"] for row in world().targets] if TARGETS in needs else None,
            "encoder": worlds.encoder_digest() if {EMBEDDINGS, CLUSTERS} & needs else None,
            "code": code,
            "libraries": libraries(SELECTING_LIBRARIES),
        }

    def training_path(self, row_ids: Sequence[str]) -> Path:
        return self.training_by(row_ids, known_as(training_code()))

    def training_by(self, row_ids: Sequence[str], code: str) -> Path:
        """Where the measures lie of a training on these rows by code of this meaning."""
        key = {
            "model": worlds.model_key(self.trained),
            "original": worlds.model_key(DENSE),
            "rows": list(row_ids),
            "seed": self.seed,
            "recover": training_settings(self.changes(len(row_ids))),
            "held_out": [row["row_id"] for row in world().held_out],
            "tasks": [[task.name, task.key, TASK_ITEMS] for task in worlds.tasks()],
            "code": code,
            "libraries": libraries(),
            **({"again": True} if self.again else {}),
        }
        return RESULTS / "trainings" / f"{fingerprint(key)[:20]}.json"

    def changes(self, rows: int) -> Row:
        """Changed settings of the training on so many rows."""
        if not (self.steps and rows):
            return dict(self.recover)
        batch = max(round(rows / self.steps), 1)
        return {**self.recover, "batch_size": batch, "micro_batch_size": micro_batch(batch)}

    def training_if_done(self) -> Row | None:
        """What the cell found, where selection and training were done."""
        if not self.selection_path.exists():
            return None
        path = self.training_path(training_order(self))
        return read_json(path) if path.exists() else None


# Options of selectors that enter a key only where they are on, because cells are older than they.
LATER_OPTIONS = ("standing",)
# What a cell has that does not decide its rows.
OF_TRAINING = ("name", "train", "recover", "steps")
# Those that do not look at the pruned model: their rows serve every scheme.
BLIND = ("random", "full", "longest", "k-centre", "prototypes", "instruction-mining")


def needs_models(name: str) -> bool:
    return name not in BLIND


@functools.cache
def selecting_code(name: str) -> str:
    own = (BY_MODELS[name], "reading", "training") if name in BY_MODELS else BY_TABLES
    return worlds.meaning((*SELECTING, *(f"paser/selectors/{module}.py" for module in (*SHARED, *own))))


@functools.cache
def training_code() -> str:
    return worlds.meaning(TRAINING)


def rule(cell: Cell) -> Row:
    """The options as they are resolved, with the defaults of the selector; those that came after the first
    cells, only where they are on."""
    found = selectors()[cell.selector].options.model_validate(dict(cell.options)).model_dump(mode="json")
    return {name: value for name, value in found.items() if value or name not in LATER_OPTIONS}


def selecting_settings(cell: Cell) -> Row:
    """Settings of the product that decide a selection, beside the options of the selector."""
    settings = worlds.settings()
    found: Row = {
        "score": settings.score.model_copy(update={"temperature": cell.temperature}).model_dump(mode="json")
    }
    needs = selectors()[cell.selector].needs
    if CLUSTERS in needs:
        found["cluster"] = clustering(cell).model_dump(mode="json")
        found["concepts"] = [settings.select.concepts, settings.select.phrase_words]
    if MODELS in needs:
        found["recover"] = training_settings({})
    return found


def clustering(cell: Cell) -> ClusterSettings:
    return worlds.settings().cluster.model_copy(update={"stability_runs": 0, **cell.cluster})


def known_as(meaning: str) -> str:
    """The code whose cells are valid for code of this meaning: itself, or what it was found to equal."""
    return equal_code().get(meaning, meaning)


@functools.cache
def equal_code() -> dict[str, str]:
    """Code by the meanings of later code that gave the same bits (benchmarks.evidence.same)."""
    return dict(read_json(EQUAL)) if EQUAL.exists() else {}


@functools.cache
def libraries(names: tuple[str, ...] = LIBRARIES) -> Row:
    return {name: version(name) for name in names}


def recover_settings(changes: Mapping[str, Any] | None = None) -> RecoverSettings:
    return RecoverSettings.model_validate({"epochs": 2, "max_tokens": MAX_TOKENS, **(changes or {})})


def micro_batch(batch: int) -> int:
    """The largest divisor of a batch between 2 and 7, or the batch; of the default, 8, the default 4."""
    return max((size for size in range(2, 8) if batch % size == 0), default=batch)


def training_settings(changes: Mapping[str, Any]) -> Row:
    """The settings as they enter a key; those that came after the first cells, only where they are on."""
    found = recover_settings(changes).model_dump(mode="json")
    if found["token_pruning"]["share"]:
        found["code"] = worlds.meaning(("paser/recovery/token_pruning.py",))
    else:
        del found["token_pruning"]
    return found


def selection(cell: Cell) -> Row:
    """The rows a selector takes, what it cost, from its file or made now."""
    path = cell.selection_path
    if not path.exists():
        write_cell(path, chosen_rows(cell))
    found: Row = read_json(path)
    return found


def chosen_rows(cell: Cell) -> Row:
    import numpy as np
    from threadpoolctl import threadpool_limits

    drawn = world().drawn(cell.pool, cell.seed)
    place = {row["row_id"]: i for i, row in enumerate(world().pools[cell.pool])}
    positions = np.array([place[row["row_id"]] for row in drawn])
    vectors = worlds.embeddings(cell.pool)[positions]
    known = worlds.scores(cell.pool, cell.scheme, cell.temperature)
    scores = [known[row["row_id"]] for row in drawn]
    with threadpool_limits(THREADS):  # the bits of eigenvectors depend on it
        labels, clusters = clustered(cell, drawn, vectors)
    table = columns_of("pool", drawn)
    pool = scored_pool(
        table,
        columns_of("clusters", [
            {"row_id": row["row_id"], "split": "pool", "cluster": int(k)}
            for row, k in zip(drawn, labels, strict=True)
        ]),
        columns_of("scores", scores),
        {},
    )  # fmt: skip
    import torch

    set_threads(THREADS)
    losses = [np.array([row[f"loss_{m}"] for row in scores], dtype=float) for m in ("original", "pruned")]
    samples = [row_to_sample(row) for row in drawn]
    needs = selectors()[cell.selector].needs  # targets only for those that cannot do without
    models = Models(
        pruned=opener(worlds.model_path(cell.scheme), torch.bfloat16),
        samples=lambda places: [samples[i] for i in places],
        small=opener(worlds.model_path(worlds.SMALL_MODEL), torch.bfloat16),
        targets=[row_to_sample(row) for row in world().targets] if TARGETS in needs else (),
        recover=recover_settings(),
        max_tokens=MAX_TOKENS,
    )
    resources = Resources(vectors, losses[0], losses[1], models)
    start, work = time.perf_counter(), time.process_time()
    chosen = selector(cell.selector, cell.options, resources, cell.seed)(pool, cell.budget, "tokens")
    ids = [drawn[i]["row_id"] for i in chosen.positions.tolist()]
    report = chosen.report
    return {
        "cell": cell.of_selection(),
        "rule": {k: report[k] for k in ("divergence", "policy", "order") if k in report},
        "rows": ids,
        "tokens": int(pool.tokens[chosen.accepted].sum()),
        "labels": counts([str(drawn[i]["label"]) for i in chosen.positions.tolist()]),
        "sources": counts([drawn[i]["source"] for i in chosen.positions.tolist()]),
        "rejected": chosen.rejected,
        "cost": report.get("cost", {}),
        "unspent": report.get("unspent", cell.budget - int(pool.tokens[chosen.accepted].sum())),
        "clusters": clusters,
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - work,
    }


def clustered(cell: Cell, drawn: Sequence[Row], vectors: np.ndarray) -> tuple[np.ndarray, int]:
    """Cluster of each drawn row, and their number."""
    settings = worlds.settings()
    prompts = [row_to_sample(row).prompt for row in drawn]
    grouping = group(
        vectors,
        vectors[:0],
        lambda positions: [prompts[i] for i in positions],
        clustering(cell),
        (settings.select.concepts, settings.select.phrase_words),
        cell.seed,
    )
    return grouping.labels, int(grouping.labels.max()) + 1


def counts(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}


def training_order(cell: Cell) -> list[str]:
    """The chosen rows as they are trained on: shuffled by seed, whatever the selector."""
    return sorted(selection(cell)["rows"], key=lambda r: draw_key("order", cell.seed, r))


def done(cell: Cell) -> Row:
    """What training on the cell's rows did, from its file or made now."""
    ids = training_order(cell)
    path = cell.training_path(ids)
    if not path.exists():
        say(f"{cell.pool} {cell.trained} {cell.name} {cell.budget} seed {cell.seed}: {len(ids)} rows")
        write_cell(path, trained_on(cell, ids))
    found: Row = read_json(path)
    return found


def trained_on(cell: Cell, ids: Sequence[str]) -> Row:
    import torch

    set_threads(THREADS)
    by_id = {row["row_id"]: row for row in world().pools[cell.pool]}
    path = worlds.model_path(cell.trained)
    model, tokenizer = load_causal_lm(path, dtype=torch.bfloat16), load_tokenizer(path)
    encoder = SampleEncoder(tokenizer)
    settings = recover_settings(cell.changes(len(ids)))
    extras = Extras()
    if settings.distill.weight:
        extras = Extras(teacher=load_causal_lm(worlds.model_path(DENSE), dtype=torch.bfloat16))
    rows = [TrainingRow(i, encoder.encode(row_to_sample(by_id[i]), settings.max_tokens)) for i in ids]
    pad_id = int(tokenizer.pad_token_id or 0)
    start, work = time.perf_counter(), time.process_time()
    if settings.token_pruning.share:
        rows = token_pruned(model, rows, settings, pad_id=pad_id)
    with tempfile.TemporaryDirectory(prefix="paser-evidence-") as folder:
        adapted, facts = fine_tune(
            model, rows, settings, seed=cell.seed, pad_id=pad_id,
            checkpoints=Path(folder), title=f"{cell.name} {cell.seed}", extras=extras,
        )  # fmt: skip
    recovered = merged(adapted)
    seconds, processor = time.perf_counter() - start, time.process_time() - work
    return {
        "scheme": cell.trained,
        "rows": len(rows),
        "tokens": sum(row.encoded.tokens for row in rows),
        "steps": facts.steps,
        "seconds": seconds,
        "processor_seconds": processor,
        "model": sha256_path(path / WEIGHTS),
        "commit": commit(),
        "machine": machine()["processor"],
        **measured(recovered, tokenizer),
    }


@functools.cache
def commit() -> str | None:
    """The commit that is checked out, where the benchmarks lie in a git repository."""
    asked = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or None


def by_label(pool: str, scheme: str) -> dict[str, dict[str, float]]:
    """Damage and recoverability of a pool's rows, by label: means over rows, and of all response tokens
    together over all training tokens. From their file: another machine would measure other bits."""
    key = {
        "pool_rows": world().digests[pool],
        "model": worlds.model_key(scheme),
        "original": worlds.model_key(DENSE),
        "score": worlds.settings().score.model_dump(mode="json"),
        "code": worlds.meaning((*PASSES, "paser/method/divergence.py")),
        "libraries": libraries(),
    }
    path = RESULTS / "labels" / f"{fingerprint(key)[:20]}.json"
    if not path.exists():
        write_cell(path, labelled(world().pools[pool], worlds.scores(pool, scheme)))
    found: dict[str, dict[str, float]] = read_json(path)
    return found


def labelled(rows: Sequence[Row], known: Mapping[str, Row]) -> dict[str, dict[str, float]]:
    found = {}
    for label in sorted({str(row["label"]) for row in rows}):
        inside = [known[row["row_id"]] for row in rows if str(row["label"]) == label]
        inside = [row for row in inside if row["jsd"] is not None]
        if not inside:
            continue
        tokens = sum(row["prompt_tokens"] + row["response_tokens"] for row in inside)
        whole = {
            measure: sum(row[measure] * row["response_tokens"] for row in inside)
            for measure in ("jsd", "recoverability")
        }
        found[label] = {
            "JSD": sum(row["jsd"] for row in inside) / len(inside),
            "loss increase": sum(row["loss_pruned"] - row["loss_original"] for row in inside) / len(inside),
            "recoverability": sum(row["recoverability"] for row in inside) / len(inside),
            "JSD a training token": whole["jsd"] / tokens,
            "recoverability a training token": whole["recoverability"] / tokens,
        }
    return found


def untrained(scheme: str) -> Row:
    """The measures of a scheme's model without recovery, or of the original itself."""
    cell = Cell("development", scheme, "no training", "random", 0, 0)
    path = cell.training_path([])
    if not path.exists():
        import torch

        say(f"{scheme}: no training")
        set_threads(THREADS)
        folder = worlds.model_path(scheme)
        model = load_causal_lm(folder, dtype=torch.bfloat16)
        found = measured(model, load_tokenizer(folder))
        write_cell(path, {"scheme": scheme, "model": sha256_path(folder / WEIGHTS), **found})
    result: Row = read_json(path)
    return result


def measured(model: PreTrainedModel, tokenizer: Any) -> Row:
    """Loss and JSD to the original on each held-out row, and each task item's result, rounded to 6 digits."""
    import torch

    model.eval()
    start = time.perf_counter()
    original = load_causal_lm(worlds.model_path(DENSE), dtype=torch.bfloat16)
    encoder = SampleEncoder(tokenizer)
    encoded = [encoder.encode(row_to_sample(row), MAX_TOKENS) for row in world().held_out]
    values = FusedPass(original, {"it": model}, 1.0, 1024)(encoded)
    del original
    answers: Row = {}
    for task in worlds.tasks():
        (result,) = run_task(model, tokenizer, task, limit=TASK_ITEMS)
        answers[task.name] = {
            "value": list(result.values["acc_norm"]),
            "choices": [[round(float(c), 4) for c in choice] for choice in result.choices or ()],
        }
    return {
        "loss": [round(float(v), 6) for v in values["loss_it"]],
        "jsd": [round(float(v), 6) for v in values["jsd_it"]],
        "tasks": answers,
        "measuring_seconds": time.perf_counter() - start,
    }


def task_jsd(reference: Row, other: Row) -> dict[str, list[float]]:
    """JSD between the choice distributions of two models, by task and item."""
    return {
        name: choice_jsd(found["choices"], other["tasks"][name]["choices"]).tolist()
        for name, found in reference["tasks"].items()
    }
