"""Sentence embeddings of prompts with sentence-transformers, from a local folder.

Prompts share forward passes without padding (see `packing`): a prompt's embedding does not depend on the
others, and on a CPU this is several times faster than padded batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.cache import Cache
from paser.errors import ModelError
from paser.lineage.record import code_digest, package_versions
from paser.models.packing import hidden_packed, pack, packs, row_attention
from paser.models.shards import Arrays, run_rows
from paser.progress import warn
from paser.records import row_to_sample
from paser.settings import RuntimeSettings, Settings

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch
    from sentence_transformers import SentenceTransformer

# What decides an embedding beside encoder, settings and libraries.
CODE = ("paser/models", "paser/records.py")
# Largest difference between a prompt embedded in a packed pass and by the encoder's own `encode`.
_TOLERANCE = 1e-4
# Texts in one portion of an actor's work.
_PORTION = 512
_PROBE = ("What is 2 plus 2?", "Describe the River Thames in three sentences, please.", "why")

Portions = Callable[["Sequence[str]"], "Iterator[tuple[list[int], np.ndarray]]"]


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
    """Embeds the prompts of table rows; what was embedded survives a kill and is kept for a grown table."""

    encoder: SentenceTransformer
    determines: Mapping[str, Any]
    portions: Portions
    cache: Cache

    @classmethod
    def load(cls, path: Path, digest: str, settings: Settings, cache: Cache) -> PromptEmbedder:
        """The encoder at `path`, whose digest names the shards."""
        from paser.models.precision import choose_device, set_threads

        runtime, batch_tokens = settings.runtime, settings.embed.batch_tokens
        threads = set_threads(runtime.threads)
        portions: Portions
        if runtime.engine == "ray":
            device = "cuda" if runtime.gpus_per_actor else "cpu"
            encoder = load_encoder(path)
            arguments = {
                "path": path.resolve(),
                "device": device,
                "threads": threads,
                "batch_tokens": batch_tokens,
            }
            portions = functools.partial(_by_actors, arguments, digest, runtime)
        else:
            device = choose_device(runtime.device)
            encoder = load_encoder(path, device)
            portions = functools.partial(embed, encoder, batch_tokens=batch_tokens)
        determines = {
            "encoder": digest,
            "batch_tokens": batch_tokens,
            "device": device,
            "threads": threads,
            "versions": package_versions(),
            "code": code_digest(CODE),
        }
        return cls(encoder, determines, portions, cache)

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

        def compute(positions: list[int]) -> Iterator[tuple[list[int], Arrays]]:
            for done, vectors in self.portions([texts[p] for p in positions]):
                yield [positions[p] for p in done], {"vectors": vectors}

        row_ids = [str(row["row_id"]) for row in rows]
        result = run_rows("embed", row_ids, self.determines, compute, self.cache)
        cut = count_cut(self.encoder, texts)
        if cut:
            limit = self.encoder.max_seq_length
            warn(f"{cut} of {len(texts)} prompts are longer than the encoder's {limit} tokens and were cut")
        return result["vectors"], cut


def embed(
    encoder: SentenceTransformer, texts: Sequence[str], batch_tokens: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Positions in `texts` and their L2-normalised embeddings, float32, shape (positions, width).

    Portion by portion, in no particular order. A forward pass has `batch_tokens` tokens, or as many as the
    encoder reads of one text where that is more. A text's embedding does not depend on the others.
    """
    capacity = max(batch_tokens, encoder.max_seq_length or 0)
    if _packs(encoder, capacity):
        yield from _packed(encoder, texts, capacity)
    else:
        for position, text in enumerate(texts):
            yield [position], _alone(encoder, text)


def _by_actors(
    arguments: Mapping[str, Any], digest: str, runtime: RuntimeSettings, texts: Sequence[str]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """What `embed` yields, from the actors of a Ray cluster."""
    import pyarrow as pa

    from paser.models.actors import Job

    job = Job(_Embedding, arguments, {arguments["path"]: digest}, CODE, runtime, arguments["threads"])
    portions = [range(begin, min(begin + _PORTION, len(texts))) for begin in range(0, len(texts), _PORTION)]
    for done, arrays in job.run([(p, pa.table({"text": [texts[i] for i in p]})) for p in portions]):
        yield done, arrays["vectors"]


class _Embedding:
    """The work of one actor: `embed` over the texts of a table."""

    def __init__(self, path: Path, device: str, threads: int, batch_tokens: int) -> None:
        from paser.models.precision import set_threads

        set_threads(threads)
        self._encoder, self._batch_tokens = load_encoder(path, device), batch_tokens

    def __call__(self, table: pa.Table) -> Arrays:
        import numpy as np

        texts = table["text"].to_pylist()
        vectors = np.zeros((len(texts), int(self._encoder.get_embedding_dimension() or 0)), dtype=np.float32)
        for positions, found in embed(self._encoder, texts, self._batch_tokens):
            vectors[positions] = found
        return {"vectors": vectors}


def _alone(encoder: SentenceTransformer, text: str) -> np.ndarray:
    import numpy as np

    vectors = encoder.encode([text], normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32)


def _packs(encoder: SentenceTransformer, capacity: int) -> bool:
    """Whether packed passes give what `encode` gives: tried, because encoders differ in what they do to a
    text before and after the transformer."""
    import numpy as np

    model = getattr(encoder[0], "auto_model", None)
    if model is None or not encoder.max_seq_length or not packs(model, capacity):
        return False
    return all(
        np.abs(vectors - np.concatenate([_alone(encoder, _PROBE[p]) for p in positions])).max() < _TOLERANCE
        for positions, vectors in _packed(encoder, _PROBE, capacity)
    )


def _packed(
    encoder: SentenceTransformer, texts: Sequence[str], capacity: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    import torch

    model: Any = encoder[0].auto_model
    ids = encoder.tokenizer(list(texts), truncation=True, max_length=encoder.max_seq_length, padding=False)[
        "input_ids"
    ]
    for positions in pack([len(row) for row in ids], capacity):
        with torch.inference_mode(), row_attention(model):
            states = hidden_packed(model, [ids[p] for p in positions], capacity)
            parts = torch.split(states, [len(ids[p]) for p in positions])
            vectors = torch.stack([_pooled(encoder, part) for part in parts])
        yield positions, vectors.float().cpu().numpy()


def _pooled(encoder: SentenceTransformer, states: torch.Tensor) -> torch.Tensor:
    """The embedding of one text from its tokens' hidden states, by the encoder's own further modules."""
    import torch

    features = {
        "token_embeddings": states[None],
        "attention_mask": torch.ones(1, len(states), dtype=torch.long, device=states.device),
    }
    for module in list(encoder)[1:]:
        features = module(features)
    return torch.nn.functional.normalize(features["sentence_embedding"][0], dim=0)


def count_cut(encoder: SentenceTransformer, texts: Sequence[str]) -> int:
    """How many texts are longer than the encoder reads."""
    limit = encoder.max_seq_length
    if not limit or not texts:
        return 0
    lengths = encoder.tokenizer(list(texts), truncation=False, padding=False)["input_ids"]
    return sum(len(ids) > limit for ids in lengths)
