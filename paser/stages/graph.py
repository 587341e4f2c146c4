"""The twelve stages: what each reads, writes, and which code and settings decide its output.

`dvc.yaml` says the same to DVC (a test holds the two together); this table is what the stage's own
record is made from, so that a stage run without DVC leaves the same record.
"""

from __future__ import annotations

from dataclasses import dataclass

from paser.errors import StageError

# Modules every stage passes through.
CORE = (
    "paser/artifacts.py",
    "paser/cache.py",
    "paser/errors.py",
    "paser/lineage/events.py",
    "paser/lineage/record.py",
    "paser/progress.py",
    "paser/records.py",
    "paser/settings.py",
    "paser/stages/graph.py",
    "paser/stages/run.py",
)


@dataclass(frozen=True)
class Stage:
    """One stage. Paths are POSIX, relative to the project.

    `code` are files or folders of the package besides `CORE` and the stage's own file; `params` are
    dotted keys of `params.yaml` that can change the outputs.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: tuple[str, ...] = ()
    code: tuple[str, ...] = ()

    @property
    def record(self) -> str:
        return f"data/records/{self.name}.json"

    @property
    def run_record(self) -> str:
        return f"data/records/{self.name}.run.json"

    @property
    def all_code(self) -> tuple[str, ...]:
        return tuple(sorted({*CORE, *self.code, f"paser/stages/{self.name}.py"}))


# Whose time and cost the report shows.
_BEFORE_REPORT = (
    "fetch", "pool", "prune", "embed", "cluster", "score", "select", "recover", "control", "evaluate",
    "audit",
)  # fmt: skip
_POOL = "data/pool.parquet"
_HOLDOUT = "data/holdout.parquet"
_MODELS = "paser/models"
# What recovery reads when it distils or weighs by damage.
_OPTIONS = ("data/models/original", "data/scores.parquet")
# Named one by one: a new question to the audit must not retrain a model.
_PROOF = ("paser/lineage/merkle.py", "paser/lineage/provenance.py")

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "fetch",
            inputs=("data/sources.yaml", "data/raw"),
            outputs=(
                "data/sources/original",
                "data/sources/encoder",
                "data/sources/pool",
                "data/sources/calibration",
                "data/sources/evaluation",
                "data/sources/task",
                "data/sources/pruned",
            ),
            params=("prune.external", "evaluate.tasks", "evaluate.perplexity"),
            code=("paser/evaluation/hub.py", "paser/sources"),
        ),
        Stage(
            "pool",
            inputs=(
                "data/sources/original",
                "data/sources/pool",
                "data/sources/calibration",
                "data/withdrawn.csv",
            ),
            outputs=(
                _POOL,
                _HOLDOUT,
                "data/calibration.parquet",
                "data/quarantine.parquet",
            ),
            params=("seed", "pool", "policy"),
            code=("paser/pool", "paser/sources", _MODELS),
        ),
        Stage(
            "prune",
            inputs=("data/sources/original", "data/sources/pruned", "data/calibration.parquet"),
            outputs=("data/models/original", "data/models/pruned"),
            params=("seed", "model", "prune"),
            code=(_MODELS, "paser/pruning"),
        ),
        Stage(
            "embed",
            inputs=("data/sources/encoder", _POOL, _HOLDOUT),
            outputs=("data/embeddings.npy", "data/holdout-embeddings.npy"),
            params=("embed",),
            code=(_MODELS,),
        ),
        Stage(
            "cluster",
            inputs=(_POOL, _HOLDOUT, "data/embeddings.npy", "data/holdout-embeddings.npy"),
            outputs=("data/clusters.parquet", "data/clusters.json"),
            params=("seed", "cluster", "select.concepts", "select.phrase_words"),
            code=("paser/method",),
        ),
        Stage(
            "score",
            inputs=(_POOL, "data/models/original", "data/models/pruned"),
            outputs=("data/scores.parquet",),
            params=("model", "score"),
            code=(_MODELS, "paser/method/divergence.py", "paser/method/recoverability.py"),
        ),
        Stage(
            "select",
            inputs=(
                _POOL,
                "data/embeddings.npy",
                "data/clusters.parquet",
                "data/clusters.json",
                "data/scores.parquet",
                _HOLDOUT,
                "data/sources/evaluation",
                "data/sources/task",
            ),
            outputs=(
                "data/selected.jsonl",
                "data/control.jsonl",
                "data/decisions.parquet",
                "data/budget.json",
                "data/contamination.json",
            ),
            params=("seed", "select", "pool.near_duplicate"),
            code=(
                "paser/evaluation/items.py",
                "paser/method",
                "paser/pool",
                "paser/selectors",
                "paser/sources",
            ),
        ),
        Stage(
            "recover",
            inputs=("data/models/pruned", "data/selected.jsonl", *_OPTIONS),
            outputs=("data/models/recovered",),
            params=("seed", "model", "recover"),
            code=(_MODELS, "paser/recovery", *_PROOF),
        ),
        Stage(
            "control",
            inputs=("data/models/pruned", "data/control.jsonl", *_OPTIONS),
            outputs=("data/models/control",),
            params=("seed", "model", "recover", "control"),
            code=(_MODELS, "paser/recovery", *_PROOF),
        ),
        Stage(
            "evaluate",
            inputs=(
                "data/models/original",
                "data/models/pruned",
                "data/models/recovered",
                "data/models/control",
                _HOLDOUT,
                "data/clusters.parquet",
                "data/clusters.json",
                "data/budget.json",
                "data/contamination.json",
                "data/sources/evaluation",
                "data/sources/task",
                "data/sources/pool",
                "data/sources/calibration",
            ),
            outputs=(
                "data/metrics.json",
                "data/evaluation.parquet",
                "data/tasks.parquet",
                "data/scoreboard.json",
                "data/scoreboard.csv",
                "data/summary.json",
            ),
            params=("seed", "model", "score", "evaluate"),
            code=(_MODELS, "paser/evaluation", "paser/method", "paser/pool", "paser/sources"),
        ),
        Stage(
            "audit",
            inputs=(
                *(
                    f"data/records/{name}.json"
                    for name in (
                        "fetch", "pool", "prune", "embed", "cluster", "score",
                        "select", "recover", "control", "evaluate",
                    )
                ),
                _POOL,
                _HOLDOUT,
                "data/calibration.parquet",
                "data/quarantine.parquet",
                "data/clusters.parquet",
                "data/clusters.json",
                "data/decisions.parquet",
                "data/selected.jsonl",
                "data/budget.json",
                "data/scores.parquet",
                "data/metrics.json",
                "data/models/recovered",
            ),
            outputs=("data/audit",),
            code=(
                *_PROOF,
                "paser/lineage/chain.py",
                "paser/lineage/documents/cards.py",
                "paser/lineage/documents/facts.py",
                "paser/lineage/entry.py",
                "paser/lineage/hashing.py",
                "paser/lineage/lock.py",
                "paser/lineage/sketch.py",
                "paser/pool/dedup.py",
            ),
        ),
        Stage(
            "report",
            inputs=(
                _POOL,
                _HOLDOUT,
                "data/quarantine.parquet",
                "data/embeddings.npy",
                "data/clusters.parquet",
                "data/clusters.json",
                "data/scores.parquet",
                "data/decisions.parquet",
                "data/budget.json",
                "data/metrics.json",
                "data/scoreboard.json",
                "data/evaluation.parquet",
                "data/audit",
                *(f"data/records/{name}.run.json" for name in _BEFORE_REPORT),
            ),
            outputs=("data/report",),
            params=("seed", "report"),
            code=("paser/report",),
        ),
    )
}  # fmt: skip


def stage(name: str) -> Stage:
    if name not in STAGES:
        raise StageError(f"unknown stage {name!r}", remedy=f"one of {', '.join(STAGES)}")
    return STAGES[name]
