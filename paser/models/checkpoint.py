"""A model folder on disk: its configuration, its tensors by name, and what makes it unreadable.

Headers are read first and tensors one at a time, so that a model larger than memory can be looked at.
Nothing here runs code of a checkpoint or unpickles.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from paser.artifacts import PICKLES
from paser.errors import ModelError

if TYPE_CHECKING:
    import torch

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS, INDEX, ADAPTER_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors",
)  # fmt: skip
_MASK = "_mask"


@dataclass(frozen=True)
class Stored:
    """One tensor as its file has it: shape, number type as safetensors or GGUF names it, and the file."""

    shape: tuple[int, ...]
    dtype: str
    file: Path

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


class Weights(Protocol):
    """Dense tensors by name, of any kind of checkpoint; `read` brings one of them into memory."""

    @property
    def tensors(self) -> Mapping[str, Stored]: ...
    def read(self, name: str) -> torch.Tensor: ...


@dataclass(frozen=True)
class SafeTensors:
    """The tensors of some safetensors files, as they are."""

    files: tuple[Path, ...]

    @cached_property
    def tensors(self) -> dict[str, Stored]:
        found: dict[str, Stored] = {}
        for path in self.files:
            for name, stored in _header(path).items():
                if name in found:
                    raise ModelError(
                        f"{path}: tensor {name!r} is in {found[name].file.name} too",
                        remedy="keep the files of one model alone in the folder",
                    )
                found[name] = stored
        return found

    def read(self, name: str) -> torch.Tensor:
        from safetensors import SafetensorError, safe_open

        path = self.tensors[name].file
        try:
            with safe_open(path, framework="pt") as stream:
                tensor: torch.Tensor = stream.get_tensor(name)
                return tensor
        except SafetensorError as error:
            raise ModelError(f"{path}: tensor {name!r} cannot be read: {error}", remedy=_AGAIN) from error


_AGAIN = "fetch or copy the file again and compare its size with the original's"


def _header(path: Path) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            slices = {name: stream.get_slice(name) for name in sorted(stream.keys())}
            return {
                name: Stored(tuple(part.get_shape()), str(part.get_dtype()), path)
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is truncated or damaged and cannot be loaded: {error}", remedy=_AGAIN
        ) from error


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """A configuration file of a model folder.

    Raises `ModelError` where it is missing, no JSON object, without an architecture, or asks for remote code.
    """
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} has no {name}", remedy="copy it from the original model") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not JSON: {error}", remedy="copy it from the original model") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object", remedy="copy it from the original model")
    if name != CONFIG:
        return content
    kind = content.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise ModelError(
            f"{path} names no architecture: model_type is {kind!r}",
            remedy="copy config.json from the original model; it says `model_type` and `architectures`",
        )
    _refuse_remote_code(folder, content)
    return content


def _refuse_remote_code(folder: Path, config: Mapping[str, Any]) -> None:
    where = folder / CONFIG
    asked = config.get("auto_map")
    tokenizer = folder / "tokenizer_config.json"
    if not asked and tokenizer.exists():
        where, asked = tokenizer, read_config(folder, tokenizer.name).get("auto_map")
    if not asked:
        return
    from transformers import CONFIG_MAPPING

    kind = str(config["model_type"])
    wanted = next(iter(asked.values())) if isinstance(asked, dict) and asked else asked
    remedy = "save the model with an architecture that is part of transformers"
    if kind in CONFIG_MAPPING:
        remedy = f"transformers has {kind!r} of its own: take `auto_map` out of {where.name} to use that"
    raise ModelError(
        f"{where} asks for code of its author (auto_map: {wanted}, trust_remote_code), which is never run",
        remedy=remedy,
    )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a model folder, those of masks beside the weights included.

    Raises `ModelError` for pickles alone, no weights, two sets of weights, a shard that the index names but
    that is not there, and names that nothing loads.
    """
    there = sorted(path for path in folder.glob("*.safetensors") if path.name != ADAPTER_WEIGHTS)
    gguf = sorted(folder.glob("*.gguf"))
    if there and gguf:
        raise ModelError(
            f"{folder} holds two kinds of weights: {there[0].name} and {gguf[0].name}",
            remedy="keep one of them, so that it is clear which model is meant",
        )
    if (folder / INDEX).exists():
        return _indexed(folder, there)
    if (folder / WEIGHTS).exists():
        main, others = folder / WEIGHTS, [path for path in there if path.name != WEIGHTS]
        unclear = [path for path in others if not all(name.endswith(_MASK) for name in _header(path))]
        if unclear:
            raise ModelError(
                f"{folder} holds two sets of weights: {WEIGHTS} and {unclear[0].name}",
                remedy="keep one of them, so that it is clear which model is meant",
            )
        return (main, *others)
    if there:
        raise ModelError(
            f"{folder} has no {WEIGHTS}, only {', '.join(path.name for path in there[:4])}",
            remedy=f"a single file must be named {WEIGHTS}; shards need {INDEX}",
        )
    refuse_pickles(folder)
    return ()


def _indexed(folder: Path, there: list[Path]) -> tuple[Path, ...]:
    index = read_config(folder, INDEX)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{folder / INDEX} has no weight_map", remedy="copy it from the original model")
    named = sorted({str(file) for file in places.values()})
    for file in named:
        if "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise ModelError(
                f"{folder / INDEX} names {file!r}, which is no safetensors file of this folder",
                remedy="save the model with `save_pretrained`",
            )
        if not (folder / file).exists():
            missing = sum(not (folder / name).exists() for name in named)
            raise ModelError(
                f"{folder / INDEX} names {file}, which is not there "
                f"({missing} of {len(named)} shards missing)",
                remedy="fetch or copy the missing shards",
            )
    if (folder / WEIGHTS).exists() and WEIGHTS not in named:
        raise ModelError(
            f"{folder} holds two sets of weights: {WEIGHTS}, and {len(named)} shards named by {INDEX}",
            remedy="keep one of them, so that it is clear which model is meant",
        )
    masks = [p for p in there if p.name not in named and all(n.endswith(_MASK) for n in _header(p))]
    return (*(folder / file for file in named), *masks)


def gguf_file(folder: Path) -> Path | None:
    """The GGUF file of a folder that has no safetensors; raises `ModelError` when there are several."""
    files = sorted(folder.glob("*.gguf"))
    if any(path.name != ADAPTER_WEIGHTS for path in folder.glob("*.safetensors")):
        return None
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise ModelError(f"{folder} holds {len(files)} GGUF files: {names}", remedy="keep one")
    return files[0] if files else None


def refuse_pickles(folder: Path) -> None:
    """Raises if the weights of a model folder are only there as pickles, or not at all."""
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.gguf")):
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ModelError(
            f"{folder / pickles[0]} is a pickle; loading it could run code of its author, so it is refused",
            remedy=f"`paser models convert {folder / pickles[0]} OUT` takes the tensors out into safetensors "
            "and runs nothing in it",
        )
    raise ModelError(f"{folder} holds no weights", remedy="expected *.safetensors or one *.gguf file")
