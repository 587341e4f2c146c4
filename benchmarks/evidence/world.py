"""Everything that cells share: pools, held-out rows, tasks, models, scores (docs/decisions/evidence-plan.md).

What takes long is kept below `.paser/`, by what determines it; nothing here depends on a selector.
"""

from __future__ import annotations

import ast
import functools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.data import ROOT, as_sample, bench_file, default_rows, fetched, original_model, real_rows
from benchmarks.pruning import CALIBRATION_ROWS, CASES, pruned_model
from paser.artifacts import fingerprint, sha256_path
from paser.cache import Cache
from paser.evaluation.harness import Task, local_task
from paser.evaluation.items import Items, read_items
from paser.lineage.record import PACKAGE_ROOT
from paser.models.encoder import PromptEmbedder
from paser.models.loading import load_tokenizer
from paser.models.tokens import SampleEncoder
from paser.models.workload import ModelSet, score_rows
from paser.pool.build import Rows, clean_pool, kept_rows
from paser.pool.clean import Kept, Quarantined
from paser.pool.contamination import Probe, overlaps
from paser.pool.dedup import NearIndex
from paser.records import Sample, draw_key, row_to_sample
from paser.settings import Settings
from paser.sources.catalog import Source, load_sources, source_from_uri
from paser.sources.fetching import fetch_one
from paser.standalone import pool_rules

if TYPE_CHECKING:
    import numpy as np

# The first two share rows of both sources by turns. The others have further rows of the benchmark pool, each
# for what is developed after the one before has been looked at; the last ones, rows beyond `MOST_PER_LABEL`.
POOLS = ("development", "confirmation", "reserve", "fresh", "last")
BEYOND = POOLS[3:]
TURNS = 2
ROWS_PER_LABEL, MOST_PER_LABEL, HELD_OUT, TARGETS, SPARE = 100, 400, 160, 30, 10
LOW_QUALITY, DUPLICATES, DRAWN = 0.08, 0.04, 0.8
# Politeness before a prompt, by turns: the sentence of a duplicate.
POLITE = (
    "Please help me with this one, if you have a moment to spare for it.",
    "I would be very glad about a careful answer to the following request.",
    "Kindly take a good look at the task below and answer it as you see fit.",
)
TASK_ITEMS = 100
# Schemes by the name that cells have, with the case of benchmarks/pruning.py; DENSE is the model unpruned.
SCHEMES = {"wanda-50": "Wanda 50 %", "wanda-2:4": "Wanda 2:4", "llm-pruner-25": "LLM-Pruner 25 %"}
DENSE = "dense"
# The cheap stand-in of the small-model selectors.
SMALL_MODEL = "llm-pruner-25"
MAX_TOKENS = 256
Row = dict[str, Any]


def meaning(paths: Sequence[str], root: Path = PACKAGE_ROOT) -> str:
    """A digest of Python files and folders that comments, docstrings and layout do not change."""
    digests = {}
    for relative in paths:
        top = root / relative
        for path in sorted(top.rglob("*.py")) if top.is_dir() else [top]:
            digests[path.relative_to(root).as_posix()] = _without_prose(path.read_text(encoding="utf-8"))
    return fingerprint(digests)


@functools.cache
def _without_prose(code: str) -> str:
    tree = ast.parse(code)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                node.body = body[1:]  # type: ignore[attr-defined]
    return ast.dump(tree)


def settings() -> Settings:
    """The product's defaults, in bfloat16 on the CPU."""
    return Settings.model_validate(
        {
            "model": {"precision": "bfloat16"},
            "pool": {"max_tokens": MAX_TOKENS},
            "runtime": {"device": "cpu", "threads": 0},
        }
    )


@dataclass(frozen=True)
class World:
    """`pools[name]`: rows of the `pool` table after cleaning; `held_out`, `targets`: rows that no pool has.
    `removed`: what cleaning took, by pool and reason; `injected`: rows that were added, by pool."""

    pools: Mapping[str, list[Row]]
    held_out: list[Row]
    targets: list[Row]
    removed: Mapping[str, Mapping[str, int]]
    injected: Mapping[str, int]

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Of the rows of each pool."""
        return {name: fingerprint([row["row_id"] for row in rows]) for name, rows in self.pools.items()}

    def drawn(self, pool: str, seed: int) -> list[Row]:
        """The seed's share of a pool, in the pool's order."""
        rows = self.pools[pool]
        by_draw = sorted(rows, key=lambda row: draw_key("evidence-draw", seed, row["row_id"]))
        kept = {row["row_id"] for row in by_draw[: round(DRAWN * len(rows))]}
        return [row for row in rows if row["row_id"] in kept]


@functools.cache
def world() -> World:
    """Pools and held-out rows from the benchmark data and the default pool."""
    count = SampleEncoder(load_tokenizer(original_model())).count
    rows = [as_sample(i, row) for i, row in enumerate(real_rows())]
    calibration = {s.row_id for s in sorted(rows, key=lambda s: s.row_id)[-CALIBRATION_ROWS:]}
    candidates = [s for s in rows if s.row_id not in calibration]
    default = [replace(row_to_sample(row), label=_label(row["label"])) for row in default_rows()]
    by_label: dict[str, list[Sample]] = defaultdict(list)
    beyond: dict[str, dict[str, list[Sample]]] = {name: defaultdict(list) for name in BEYOND}
    rooms = [(by_label, MOST_PER_LABEL), *((room, ROWS_PER_LABEL) for room in beyond.values())]
    seen: set[str] = set()
    for place, source in ((0, default), (1, candidates)):
        for sample in sorted(source, key=lambda s: draw_key("evidence-pools", 1, s.row_id)):
            key = f"{place}:{sample.label}"
            room = next((room for room, most in rooms if len(room[key]) < most), None)
            if room is not None and sample.row_id not in seen and count(sample) <= MAX_TOKENS:
                seen.add(sample.row_id)
                room[key].append(sample)
    aside = _set_aside(by_label)
    clean = {row["row_id"] for row in _table(aside)}
    usable = [s for s in aside if s.row_id in clean]
    held_out, targets = usable[:HELD_OUT], usable[HELD_OUT : HELD_OUT + TARGETS]
    members = _members({s.row_id for s in aside}, by_label)
    members |= {name: [s for key in sorted(room) for s in room[key]] for name, room in beyond.items()}
    probes = [Probe("held-out rows", s.row_id, (s.prompt,)) for s in (*held_out, *targets)]
    probes += [probe for name, items in task_items().items() for probe in items.probes(name)]
    pools, removed, injected = {}, {}, {}
    for number, name in enumerate(POOLS):
        made = inject(members[name], seed=number + 1)
        injected[name] = len(made) - len(members[name])
        pools[name], removed[name] = _cleaned(made, probes)
    return World(pools, _table(held_out), _table(targets), removed, injected)


def _label(label: Any) -> str:
    """The default pool's name of a capability, by the name that the benchmark pool has for it."""
    return "math" if label == "maths" else str(label)


def _set_aside(by_label: Mapping[str, list[Sample]]) -> list[Sample]:
    """Rows that no pool has: held-out ones, then targets, one label after the other; some to spare."""
    merged: dict[str, list[Sample]] = {}
    for key in sorted(by_label):
        merged.setdefault(key.partition(":")[2], []).extend(by_label[key])
    for samples in merged.values():
        samples.sort(key=lambda s: draw_key("evidence-held-out", 1, s.row_id))
    chosen: list[Sample] = []
    turn = 0
    wanted = HELD_OUT + TARGETS + SPARE
    while len(chosen) < wanted:
        for label in sorted(merged):
            if turn < len(merged[label]) and len(chosen) < wanted:
                chosen.append(merged[label][turn])
        turn += 1
    return chosen


def _members(reserved: set[str], by_label: Mapping[str, list[Sample]]) -> dict[str, list[Sample]]:
    """The real rows of the first three pools: by turns from the default pool, `ROWS_PER_LABEL` a label of the
    other; of that, as many more go to the third."""
    members: dict[str, list[Sample]] = {name: [] for name in POOLS}
    for key in sorted(by_label):
        free = [s for s in by_label[key] if s.row_id not in reserved]
        most = len(free) if key.startswith("0:") else TURNS * ROWS_PER_LABEL
        for number, sample in enumerate(free[:most]):
            members[POOLS[number % TURNS]].append(sample)
        members[POOLS[2]].extend(free[most : most + ROWS_PER_LABEL])
    return members


def inject(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """The samples, then low-quality rows (the response of another row of the label) and polite duplicates."""
    order = sorted(samples, key=lambda s: draw_key("evidence-injected", seed, s.row_id))
    spoiled, copied = (round(share * len(samples)) for share in (LOW_QUALITY, DUPLICATES))
    extra = []
    for number, sample in enumerate(order[:spoiled]):
        others = [s for s in order if s.label == sample.label and s.output != sample.output]
        if others:
            wrong = others[number % len(others)]
            extra.append(replace(sample, source="injected-low-quality", output=wrong.output))
    for number, sample in enumerate(order[spoiled : spoiled + copied]):
        text = f"{POLITE[number % len(POLITE)]} {sample.instruction}"
        extra.append(replace(sample, source="injected-duplicates", instruction=text))
    return [*samples, *extra]


def _clean(samples: Sequence[Sample]) -> tuple[list[Kept], list[Quarantined]]:
    """The pool's own cleaning."""
    source = source_from_uri("file:evidence", "pool", name="evidence")
    rules = pool_rules(SampleEncoder(load_tokenizer(original_model())), settings())
    return clean_pool([Rows(source, samples)], rules)


def _cleaned(samples: Sequence[Sample], probes: Sequence[Probe]) -> tuple[list[Row], dict[str, int]]:
    """The pool's own cleaning, then without what overlaps an evaluation; what went, by reason."""
    kept, quarantine = _clean(samples)
    table = kept_rows(kept)
    words = settings().select.contamination_words
    shown = overlaps([(row_to_sample(r).prompt, r["output"]) for r in table], probes, words)
    removed = dict(Counter(gone.reason for gone in quarantine)) | {"contaminated": len(shown)}
    return [row for i, row in enumerate(table) if i not in shown], removed


def _table(samples: Sequence[Sample]) -> list[Row]:
    return kept_rows(_clean(samples)[0])


@functools.cache
def task_items() -> dict[str, Items]:
    """ARC-easy and PIQA of the benchmark data, HellaSwag of the default sources; whole."""
    found = {}
    for name, source, folder in _task_sources():
        found[name] = read_items(folder, source)
    return found


def _task_sources() -> list[tuple[str, Source, Path]]:
    store = Cache.of(ROOT)
    listed = []
    local = {name: bench_file(f"eval-{name}-test.json.gz") for name in ("arc-easy", "piqa")}
    for name, path in local.items():
        listed.append((name, source_from_uri(f"file:{path}", "task", name=name, format="llm-adapters")))
    (hellaswag,) = (s for s in load_sources(ROOT / "data/sources.yaml") if s.name == "hellaswag-100")
    listed.append(("hellaswag", hellaswag))
    done = []
    for name, source in listed:
        key = sha256_path(local[name]) if name in local else source.uri
        folder = store.entry("bench", fingerprint(["task", name, key]))
        if not folder.exists():
            fetch_one(source, None, store, folder)
        done.append((name, source, folder))
    return done


@functools.cache
def tasks() -> list[Task]:
    return [local_task(name, name, items) for name, items in task_items().items()]


def model_path(scheme: str) -> Path:
    """The model that cells of a scheme begin from."""
    if scheme == DENSE:
        return original_model()
    return pruned_model(next(case for case in CASES if case.label == SCHEMES[scheme]))


@functools.cache
def model_key(scheme: str) -> str:
    """What decides the model of a scheme, so that pruning again elsewhere leaves cells valid."""
    original = sha256_path(original_model())
    if scheme == DENSE:
        return fingerprint(["dense", original])
    case = next(case for case in CASES if case.label == SCHEMES[scheme])
    code = meaning(("paser/pruning", "paser/models/shapes.py"))
    chosen = case.settings.model_dump(mode="json")
    return fingerprint([original, chosen, CALIBRATION_ROWS, bench_digest(), code])


@functools.cache
def bench_digest() -> str:
    return sha256_path(bench_file("pool-large.jsonl.gz"))


@functools.cache
def encoder_digest() -> str:
    return sha256_path(fetched("encoder"))


@functools.cache
def embeddings(pool: str) -> np.ndarray:
    """Embeddings of a pool's prompts by the default encoder, shape (n, 384), in the pool's order."""
    folder = fetched("encoder")
    embedder = PromptEmbedder.load(folder, encoder_digest(), settings(), Cache.of(ROOT))
    return embedder(world().pools[pool])[0]


def near(rows: Sequence[Row], others: Sequence[Row]) -> int:
    """How many rows have nearly the prompt of one of the others, as the product's cleaning sees it."""
    index = NearIndex(settings().pool.near_duplicate, 0)
    for row in others:
        index.add(row["row_id"], row_to_sample(row).prompt)
    return sum(bool(index.query(row_to_sample(row).prompt)) for row in rows)


@functools.cache
def response_tokens(pool: str) -> dict[str, int]:
    """Response tokens of each row of a pool that count in training."""
    encoder = SampleEncoder(load_tokenizer(original_model()))
    return {
        row["row_id"]: len(encoder.encode(row_to_sample(row), MAX_TOKENS).response_ids)
        for row in world().pools[pool]
    }


@functools.cache
def scores(pool: str, scheme: str, temperature: float = 1.0) -> dict[str, Row]:
    """The rows of the `scores` table of a whole pool, by row id; what was scored once is read."""
    paths = {"original": original_model(), "pruned": model_path(scheme)}
    cache, wanted = Cache.of(ROOT), settings()
    models = ModelSet.load(paths, wanted, cache)
    digests = {name: sha256_path(path) for name, path in paths.items()}
    chosen = wanted.score.model_copy(update={"temperature": temperature})
    rows = score_rows(world().pools[pool], models, digests, chosen, cache)
    return {row["row_id"]: row for row in rows}
