"""One GGUF file as dense tensors and configuration, for inspection: memory-mapped, one tensor at a time.

To load such a file as a model is transformers' work (see `loading`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.errors import ModelError
from paser.models.checkpoint import Stored

if TYPE_CHECKING:
    import torch

_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
}
_PARTS = {
    "attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj",
    "ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj",
}  # fmt: skip


@dataclass(frozen=True)
class Gguf:
    """The tensors of a GGUF file, dequantised to float32 when they are read."""

    file: Path

    @cached_property
    def _reader(self) -> Any:
        from gguf import GGUFReader

        try:
            return GGUFReader(self.file)
        except (ValueError, OSError, IndexError, KeyError) as error:
            raise ModelError(
                f"{self.file} is truncated or no GGUF file: {error}",
                remedy="fetch or copy the file again and compare its size with the original's",
            ) from error

    @cached_property
    def tensors(self) -> Mapping[str, Stored]:
        return {
            tensor.name: Stored(
                tuple(int(n) for n in reversed(tensor.shape)), tensor.tensor_type.name, self.file
            )
            for tensor in self._reader.tensors
        }

    def read(self, name: str) -> torch.Tensor:
        import torch
        from gguf import dequantize

        tensor = next(t for t in self._reader.tensors if t.name == name)
        dense = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        return dense.reshape(self.tensors[name].shape)

    @property
    def tokens(self) -> int:
        """Tokens of the vocabulary in the file; 0 when it has none."""
        field = self._reader.fields.get("tokenizer.ggml.tokens")
        return len(field.data) if field else 0

    @property
    def config(self) -> dict[str, Any]:
        """The file's metadata under the names of a transformers configuration."""
        kind = self._value("general.architecture")
        if not isinstance(kind, str):
            raise ModelError(f"{self.file} names no architecture", remedy="convert the model to GGUF again")
        found = {name: self._value(f"{kind}.{key}") for name, key in _KEYS.items()}
        found = {name: value for name, value in found.items() if value is not None}
        return {"model_type": kind, "tie_word_embeddings": "output.weight" not in self.tensors, **found}

    def why_unloadable(self) -> str | None:
        """Why transformers would not load the file as a causal language model, or None."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
        )

        from paser.models.shapes import missing

        try:
            config = AutoConfig.from_pretrained(
                self.file.parent, gguf_file=self.file.name, local_files_only=True, trust_remote_code=False
            )
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
            processor = TENSOR_PROCESSORS.get(self.config["model_type"], TensorProcessor)
            make: Any = processor
            places = get_gguf_hf_weights_map(model, make(config=config.to_dict()))
        except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            return (str(error).strip().splitlines() or [type(error).__name__])[0]
        if any("_exps" in name for name in self.tensors):
            return None  # experts are stacked in other tensors than transformers' names say
        lacking = missing(model, [places[name] for name in self.tensors if name in places])
        return f"it lacks {len(lacking)} tensors, {lacking[0]} first" if lacking else None

    def _value(self, key: str) -> Any:
        field = self._reader.fields.get(key)
        return field.contents() if field else None


def usual_name(name: str) -> str:
    """`blk.3.attn_q.weight` as transformers would name it: `layers.3.q_proj`; other names unchanged."""
    parts = name.removesuffix(".weight").split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _PARTS:
        return f"layers.{parts[1]}.{_PARTS[parts[2]]}"
    return name
