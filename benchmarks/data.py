"""Real rows for the benchmarks: the pool that `PASER_BENCH_DATA` names, its embeddings, the default models.

Everything fetched or computed here is kept below `.paser/`, so a second benchmark run starts at once.
"""

from __future__ import annotations

import gzip
import json
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import fingerprint, sha256_path, staged
from paser.cache import Cache
from paser.errors import PaserError
from paser.models.loading import load_causal_lm, load_tokenizer, model_directory, save_causal_lm
from paser.progress import progress, say
from paser.records import Sample
from paser.sources.catalog import Source, load_sources
from paser.sources.fetching import fetch_one

if TYPE_CHECKING:
    import numpy as np

ROOT = Path(__file__).parent.parent
POOL = "pool-large.jsonl.gz"


def bench_file(name: str) -> Path:
    """A file of the benchmark data."""
    folder = os.environ.get("PASER_BENCH_DATA")
    if not folder or not (Path(folder) / name).exists():
        raise PaserError(
            f"the benchmark data ({name}) is not at hand", remedy="set PASER_BENCH_DATA to its folder"
        )
    return Path(folder) / name


@cache
def real_rows() -> list[dict[str, Any]]:
    """All rows of `pool-large`, in the file's order."""
    with gzip.open(bench_file(POOL), "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def as_sample(number: int, row: dict[str, Any]) -> Sample:
    return Sample(
        row["source"],
        str(number),
        row["license"],
        row["instruction"],
        row["input"],
        row["output"],
        row["label"],
    )


def default_source(role: str) -> Source:
    return next(s for s in load_sources(ROOT / "data/sources.yaml") if s.role == role)


def fetched(role: str) -> Path:
    """The default model or encoder, fetched once."""
    store = Cache.of(ROOT)
    source = default_source(role)
    folder = store.entry("bench", fingerprint([role, source.as_json()]))
    if not folder.exists():
        with staged(folder) as partial:
            fetch_one(source, None, store, partial)
    return folder


def original_model() -> Path:
    """SmolLM2-135M-Instruct as bfloat16 safetensors."""
    import torch

    source = model_directory(fetched("original"))
    folder = Cache.of(ROOT).entry("bench", fingerprint(["safetensors", sha256_path(source)]))
    if not folder.exists():
        with staged(folder) as partial:
            save_causal_lm(load_causal_lm(source, dtype=torch.bfloat16), load_tokenizer(source), partial)
    return folder


def embeddings(prompts: list[str], name: str) -> np.ndarray:
    """L2-normalised embeddings of `prompts` by the default encoder, float32, shape (n, 384)."""
    import numpy as np

    from paser.models.encoder import embed, load_encoder
    from paser.settings import EmbedSettings

    folder = fetched("encoder")
    digest = fingerprint([sha256_path(folder), prompts])
    target = Cache.of(ROOT).entry("bench", f"embeddings-{name}-{digest}.npy")
    if not target.exists():
        say(f"embedding {len(prompts)} prompts of {name}")
        encoder = load_encoder(folder)
        result = np.zeros((len(prompts), encoder.get_embedding_dimension() or 0), dtype=np.float32)
        with progress("embed", len(prompts)) as advance:
            for positions, vectors in embed(encoder, prompts, EmbedSettings().batch_tokens):
                result[positions] = vectors
                advance(len(positions))
        with staged(target) as partial, partial.open("wb") as stream:
            np.save(stream, result)
    return np.asarray(np.load(target))


def pool_large_embeddings() -> np.ndarray:
    rows = real_rows()
    return embeddings([as_sample(i, row).prompt for i, row in enumerate(rows)], "pool-large")


@cache
def default_rows() -> list[dict[str, Any]]:
    """The pool of `make demo`, made by the stages themselves."""
    import shutil

    from paser.artifacts import read_rows
    from paser.stages.run import run_stage

    inputs = ("params.yaml", "data/sources.yaml", "data/withdrawn.csv")
    store = Cache.of(ROOT)
    project = store.entry("bench", fingerprint([sha256_path(ROOT / name) for name in inputs])).absolute()
    if not project.exists():
        with staged(project) as partial:
            for name in inputs:
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, partial / name)
            (partial / "data/raw").mkdir()
            for stage in ("fetch", "pool"):
                run_stage(stage, partial)
    return read_rows(project / "data/pool.parquet", "pool")


def default_pool() -> tuple[np.ndarray, list[str]]:
    """Embeddings and labels of the pool of `make demo`."""
    from paser.records import row_to_sample

    rows = default_rows()
    prompts = [row_to_sample(row).prompt for row in rows]
    return embeddings(prompts, "default"), [str(row["label"]) for row in rows]
