"""Sentence embeddings of prompts with sentence-transformers, from a local folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.cache import Cache
from paser.errors import ModelError
from paser.lineage.record import code_digest, package_versions
from paser.models.shards import Arrays, run_shards
from paser.progress import warn
from paser.records import row_to_sample
from paser.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from sentence_transformers import SentenceTransformer


def load_encoder(path: Path, device: str = "cpu") -> SentenceTransformer:
    """A sentence encoder from `path`, or from its only sub-folder. Never from the network."""
    from sentence_transformers import SentenceTransformer

    from paser.models.loading import quiet_transformers

    quiet_transformers()
    folder = path
    if not (path / "config.json").exists() and not (path / "modules.json").exists():
        inside = sorted(p for p in path.iterdir() if (p / "config.json").exists())
        if len(inside) != 1:
            raise ModelError(
                f"{path} holds {len(inside)} encoders", remedy="list exactly one with role: encoder"
            )
        folder = inside[0]
    try:
        return SentenceTransformer(str(folder), device=device, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder}: the sentence encoder cannot be loaded: {error}",
            remedy="it must be a sentence-transformers folder with safetensors",
        ) from error


@dataclass(frozen=True)
class PromptEmbedder:
    """Embeds the prompts of table rows, in shards that survive a kill."""

    encoder: SentenceTransformer
    determines: Mapping[str, Any]
    batch_size: int
    cache: Cache

    @classmethod
    def load(cls, path: Path, digest: str, settings: Settings, cache: Cache) -> PromptEmbedder:
        """The encoder at `path`, whose digest names the shards."""
        from paser.models.precision import choose_device, set_threads

        runtime = settings.runtime
        device, threads = choose_device(runtime.device), set_threads(runtime.threads)
        determines = {
            "encoder": digest,
            "batch_size": settings.embed.batch_size,
            "device": device,
            "threads": threads,
            "versions": package_versions(),
            "code": code_digest(("paser/models", "paser/records.py")),
        }
        return cls(load_encoder(path, device), determines, settings.embed.batch_size, cache)

    @property
    def width(self) -> int:
        """Numbers in one embedding."""
        return int(self.encoder.get_embedding_dimension() or 0)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, int]:
        """L2-normalised embeddings, float32, shape (rows, width), and how many prompts were cut."""
        import numpy as np

        texts = [row_to_sample(dict(row)).prompt for row in rows]
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32), 0

        def vectors(positions: list[int]) -> Arrays:
            encoded = self.encoder.encode(
                [texts[p] for p in positions],
                batch_size=self.batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
            return {"vectors": np.asarray(encoded, dtype=np.float32)}

        row_ids = [str(row["row_id"]) for row in rows]
        result = run_shards("embed", row_ids, self.determines, vectors, self.cache)
        cut = count_cut(self.encoder, texts)
        if cut:
            limit = self.encoder.max_seq_length
            warn(f"{cut} of {len(texts)} prompts are longer than the encoder's {limit} tokens and were cut")
        return result["vectors"], cut


def count_cut(encoder: SentenceTransformer, texts: Sequence[str]) -> int:
    """How many texts are longer than the encoder reads."""
    limit = encoder.max_seq_length
    if not limit or not texts:
        return 0
    lengths = encoder.tokenizer(list(texts), truncation=False, padding=False)["input_ids"]
    return sum(len(ids) > limit for ids in lengths)
