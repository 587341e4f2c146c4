"""The damage profile of pruned models, on anyone's models and rows, outside DVC: `paser damage`."""

from __future__ import annotations

import csv
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import sha256_path, staged, write_json
from paser.cache import Cache
from paser.errors import PaserError
from paser.models.subjects import Subjects, subjects
from paser.models.tokens import SampleEncoder
from paser.models.workload import fused_arrays
from paser.pool.build import Rows, Rules, build, clean_pool, kept_rows
from paser.pool.clean import Kept
from paser.pool.formats import read_source
from paser.progress import progress, say, warn
from paser.settings import Settings, load_settings
from paser.sources.catalog import Source, load_sources
from paser.sources.fetching import fetch_one
from paser.standalone import fetch_encoder, fetch_rows, group_rows, pool_rules

if TYPE_CHECKING:
    from paser.evaluation.gap import Measured
    from paser.models.shards import Arrays

FILES = ("damage.csv", "damage.json", "damage.svg", "damage.png")
DEFAULT_SOURCES = (Path(__file__).parent / "starter" / "sources.yaml").resolve()
DEFAULT_ROWS = "held-out rows of the default sources"
_FEW_ROWS = 10


def profile_damage(
    original: str,
    pruned: Sequence[str],
    pool: str | None,
    out: Path,
    pool_format: str = "auto",
    encoder: str | None = None,
    params: Path | None = None,
) -> dict[str, Any]:
    """Writes `FILES` to the folder `out` and returns what `damage.json` says.

    `pruned` are models, each `NAME=MODEL` or a model alone; models and pool are folders, files or URIs.
    Without a pool the held-out rows of the default sources are used. Capabilities are the labels of the rows
    where there are any, else clusters of their prompts. One pruned model is scored at a time, and what was
    scored is kept in the cache.
    """
    settings = load_settings(params) if params else Settings()
    named = named_models(pruned)
    check_result_folder(out, FILES, "profile")
    cache = Cache.of(Path.cwd())
    with (
        tempfile.TemporaryDirectory(prefix="paser-") as work,
        subjects({"original": original, **named}, None, settings, cache, Path(work)) as models,
    ):
        rules = pool_rules(SampleEncoder(models.tokenizer), settings)
        kept, benchmarks = rows_to_measure(pool, pool_format, rules, cache, Path(work))
        rows = rows_by_capability(kept, encoder, settings, cache, Path(work))
        profile = profile_models(models, rows, settings, cache, benchmarks)
    profile["pool"] = pool or DEFAULT_ROWS
    write_profile(out, profile)
    return profile


def named_models(pruned: Sequence[str]) -> dict[str, str]:
    """`NAME=MODEL`, or a model alone, which is named after the last part of its path.

    Raises `PaserError` for the same name twice.
    """
    found: dict[str, str] = {}
    for text in pruned:
        name, model = name_and_model(text)
        if name in found or name == "original":
            raise PaserError(
                f"--pruned {text!r}: the name {name!r} is taken",
                remedy="give each model a name of its own: --pruned NAME=MODEL",
            )
        found[name] = model
    return found


def name_and_model(text: str) -> tuple[str, str]:
    """The two parts of `NAME=MODEL`; a model alone is named after the last part of its path."""
    match = re.fullmatch(r"(?!(?:file|hf|pypi):)([^=/#]+)=(?!=)(.+)", text)
    if match and not Path(text).exists():
        return match[1].strip(), match[2]
    plain = re.sub(r"[#@].*$", "", re.sub(r"^(file|hf|pypi):", "", text)).rstrip("/")
    return Path(plain).name or "model", text


def check_result_folder(out: Path, files: Sequence[str], what: str) -> None:
    """Raises `PaserError` unless `out` may be replaced: it is new, or holds nothing but `files`."""
    if out.resolve() == Path.cwd():
        raise PaserError("--out is the working directory", remedy="name a new folder in it")
    if out.exists() and (not out.is_dir() or any(path.name not in files for path in out.iterdir())):
        raise PaserError(
            f"{out} exists and holds more than an earlier {what}", remedy="choose a new folder for --out"
        )


@dataclass(frozen=True)
class Capabilities:
    """Rows to measure on and the capability of each; `kind` says what that is: `label` or `cluster`."""

    rows: list[dict[str, Any]]
    of: list[str]
    kind: str


def rows_by_capability(
    kept: Sequence[Kept], encoder: str | None, settings: Settings, cache: Cache, work: Path
) -> Capabilities:
    """Rows by their labels where any has one, else by clusters of their prompts."""
    rows = kept_rows(kept)
    if any(row["label"] for row in rows):
        return Capabilities(rows, [row["label"] or "unlabelled" for row in rows], "label")
    return Capabilities(rows, row_clusters(rows, kept, encoder, settings, cache, work), "cluster")


def profile_models(
    subjects: Subjects,
    capabilities: Capabilities,
    settings: Settings,
    cache: Cache,
    benchmarks: Sequence[str] = (),
) -> dict[str, Any]:
    """The damage of every model but `original`, by capability; the content of `damage.json` but for `pool`.

    Raises `PaserError` where no row has finite logits in all models.
    """
    from paser.evaluation.damage import damage_profile

    named = [name for name in subjects.digests if name != "original"]
    rows, of, kind = capabilities.rows, capabilities.of, capabilities.kind
    say(f"{len(rows):,} rows, {len(set(of))} {kind}s, {len(named)} pruned models")
    digests = subjects.digests
    arrays: dict[str, Arrays] = {}
    precision = ""
    for name in named:
        say(f"scoring {name}")
        models = subjects.open({"original": "original", "pruned": name})
        both = {"original": digests["original"], "pruned": digests[name]}
        arrays[name] = fused_arrays("damage", rows, models, both, settings.score, cache)
        precision = models.precision
        del models
    usable = [
        i
        for i in range(len(rows))
        if all(str(found["status"][i]) in ("ok", "cut") for found in arrays.values())
    ]
    if not usable:
        raise PaserError(
            "no row has finite logits in all models", remedy="`paser models inspect` looks for NaN"
        )
    excluded = len(rows) - len(usable)
    measured = [
        _measured(name, [i for i in usable if of[i] == name], arrays)
        for name in sorted({of[i] for i in usable})
    ]
    return {
        "capability_kind": kind,
        "models": {
            name: {"source": source, "sha256": digests[name]} for name, source in subjects.origins.items()
        },
        "rows": len(usable),
        "excluded_rows": excluded,
        "seed": settings.seed,
        "bootstrap": settings.evaluate.bootstrap,
        "precision": precision,
        "notes": _notes(measured, excluded, benchmarks),
        **damage_profile(measured, named, settings.evaluate.bootstrap, settings.seed),
    }  # fmt: skip


def rows_to_measure(
    pool: str | None, pool_format: str, rules: Rules, cache: Cache, work: Path
) -> tuple[list[Kept], list[str]]:
    """The rows to measure on, cleaned, and the public benchmarks they are items of."""
    if pool is not None:
        return clean_rows(fetch_rows(pool, "pool", pool_format, cache, work), rules), []
    sources = [s for s in load_sources(DEFAULT_SOURCES) if s.role in ("pool", "calibration")]
    found: dict[str, list[Rows]] = {"pool": [], "calibration": []}
    with progress("fetching", len(sources), "sources") as advance:
        for source in sources:
            found[source.role].append(_fetched(source, cache, work / "rows" / source.name))
            advance()
    built = build(found["pool"], found["calibration"], rules)
    return built.holdout, sorted({s.benchmark for s in sources if s.benchmark})


def clean_rows(rows: Rows, rules: Rules) -> list[Kept]:
    """The rows that can be used; the others are counted in a line."""
    kept, quarantine = clean_pool([rows], rules)
    if quarantine:
        counts = Counter(row.reason for row in quarantine)
        why = ", ".join(f"{reason} {number}" for reason, number in sorted(counts.items()))
        say(f"{len(quarantine)} rows are left out: {why}")
    return kept


def _fetched(source: Source, cache: Cache, folder: Path) -> Rows:
    fetch_one(source, DEFAULT_SOURCES.parent / "raw", cache, folder)
    return Rows(source, read_source(folder, source))


def row_clusters(
    rows: Sequence[Mapping[str, Any]],
    kept: Sequence[Kept],
    encoder: str | None,
    settings: Settings,
    cache: Cache,
    work: Path,
) -> list[str]:
    """The cluster of each row, by number and name."""
    folder = fetch_encoder(encoder, cache, work)
    grouping, _ = group_rows(rows, kept, folder, sha256_path(folder), settings, cache)
    names = {entry["cluster"]: entry["name"] for entry in grouping.describe()["clusters"]}
    return [f"{cluster}: {names[int(cluster)]}" for cluster in grouping.labels]


def _measured(name: str, members: Sequence[int], arrays: Mapping[str, Arrays]) -> Measured:
    import numpy as np

    from paser.evaluation.gap import ORIGINAL, Measured

    where = np.array(members, dtype=np.int64)
    first = next(iter(arrays.values()))
    loss = {ORIGINAL: first["loss"][where]} | {m: found["loss_pruned"][where] for m, found in arrays.items()}
    return Measured(name, loss, {m: found["jsd_pruned"][where] for m, found in arrays.items()})


def _notes(measured: Sequence[Measured], excluded: int, benchmarks: Sequence[str]) -> list[str]:
    notes = []
    if few := [entry.name for entry in measured if entry.rows < _FEW_ROWS]:
        notes.append(f"fewer than {_FEW_ROWS} rows, read with care: {', '.join(few)}")
    if excluded:
        warn(f"{excluded} rows have no finite result in all models and are left out")
        notes.append(f"{excluded} rows have no finite result in all models and are left out")
    if benchmarks:
        notes.append(
            f"rows are items of public benchmarks ({', '.join(benchmarks)}); this is no score on them"
        )
    return notes


def write_profile(out: Path, profile: Mapping[str, Any]) -> None:
    """Writes `FILES` to the folder `out`, which is replaced."""
    from paser.evaluation.damage import COLUMNS, long_rows
    from paser.report.figures import damage_by_scheme

    svg, png = damage_by_scheme(profile)
    with staged(out) as folder:
        folder.mkdir(parents=True)
        write_json(folder / "damage.json", dict(profile))
        (folder / "damage.svg").write_text(svg, encoding="utf-8")
        (folder / "damage.png").write_bytes(png)
        with (folder / "damage.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(long_rows(profile))
