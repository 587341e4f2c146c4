"""A model folder on disk: its configuration, its tensors by name, and what makes it unreadable.

Headers are read first and tensors one at a time, so that a model larger than memory can be looked at.
Nothing here runs code of a checkpoint or unpickles.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from paser.artifacts import NOT_READ, PICKLES, mask_pickle, masks_are_pickled
from paser.errors import ModelError
from paser.progress import warn

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


@dataclass(frozen=True)
class Files:
    """The safetensors files of a model folder: those of its weights, and those of masks beside them."""

    weights: tuple[Path, ...]
    masks: tuple[Path, ...] = ()


def weight_files(folder: Path) -> Files:
    """The safetensors files of a model folder; a single file may have any name.

    Raises `ModelError` for pickles alone, masks in a pickle, no weights, two sets of weights, and a shard
    that the index names but that is not there.
    """
    refuse_pickles(folder)
    there = sorted(path for path in folder.glob("*.safetensors") if path.name != ADAPTER_WEIGHTS)
    gguf = sorted(folder.glob("*.gguf"))
    if there and gguf:
        raise ModelError(
            f"{folder} holds two kinds of weights: {there[0].name} and {gguf[0].name}",
            remedy="keep one of them, so that it is clear which model is meant",
        )
    if (folder / INDEX).exists():
        return _indexed(folder, there)
    if shards := [path.name for path in there if _SHARD.search(path.name)]:
        raise ModelError(
            f"{folder} has no {INDEX}, but shards: {', '.join(shards[:4])}",
            remedy=f"fetch or copy {INDEX} with all of its shards",
        )
    main = [folder / WEIGHTS] if (folder / WEIGHTS).exists() else []
    main = main or [path for path in there if not _says_masks(_header(path))]
    if main:
        weights = SafeTensors((main[0],))
        others = [path for path in there if path != main[0]]
        if unclear := [path for path in others if not _are_masks(path, weights)]:
            raise ModelError(
                f"{folder} holds two sets of weights: {main[0].name} and {unclear[0].name}",
                remedy="keep one of them, so that it is clear which model is meant; if one has masks, it may "
                "only hold tensors of 0 and 1 under the names of the weights, or X_mask for a weight X",
            )
        return Files((main[0],), tuple(others))
    if there:
        raise ModelError(
            f"{folder} holds masks ({there[0].name}) and no weights", remedy="put the weights beside them"
        )
    return Files(())


_SHARD = re.compile(r"-\d+-of-(?!0*1\.)\d+\.")


def _says_masks(header: Mapping[str, Stored]) -> bool:
    """Whether all tensors of a file are masks by their names or their type."""
    return bool(header) and all(name.endswith(_MASK) or s.dtype == "BOOL" for name, s in header.items())


def _are_masks(path: Path, weights: SafeTensors) -> bool:
    """Whether a file holds masks: by names or type, or 0 and 1 alone under names and shapes of weights."""
    header = _header(path)
    if _says_masks(header):
        return True
    known = all(
        name in weights.tensors and weights.tensors[name].shape == s.shape for name, s in header.items()
    )
    stored = SafeTensors((path,))
    return known and all(is_mask(stored.read(name)) for name in header)


def is_mask(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds nothing but 0 and 1."""
    return not bool(((tensor != 0) & (tensor != 1)).any())


def _indexed(folder: Path, there: list[Path]) -> Files:
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
    files = tuple(folder / file for file in named)
    weights = SafeTensors(files)
    return Files(files, tuple(p for p in there if p.name not in named and _are_masks(p, weights)))


def gguf_file(folder: Path) -> Path | None:
    """The GGUF file of a folder that has no safetensors; raises `ModelError` when there are several."""
    files = sorted(folder.glob("*.gguf"))
    if any(path.name != ADAPTER_WEIGHTS for path in folder.glob("*.safetensors")):
        return None
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise ModelError(f"{folder} holds {len(files)} GGUF files: {names}", remedy="keep one")
    return files[0] if files else None


def pickles_in(folder: Path) -> list[str]:
    """Names of the pickles of a model folder, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)


def warn_of_pickles(folder: Path) -> None:
    """One line with the names of the pickles that lie unread beside the weights, where there are any."""
    if names := pickles_in(folder):
        warn(f"{folder}: {NOT_READ}: {', '.join(names)}")


def refuse_pickles(folder: Path) -> None:
    """Raises if the weights of a model folder, or their masks, are only there as pickles, or not at all."""
    pickles = pickles_in(folder)
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.gguf")):
        if masks := mask_pickle(pickles):
            problem, remedy = masks_are_pickled(
                f"{folder / masks}", f"paser models convert {folder / masks} OUT"
            )
            raise ModelError(problem, remedy=remedy)
        return
    if pickles:
        raise ModelError(
            f"{folder / pickles[0]} is a pickle; loading it could run code of its author, so it is refused",
            remedy=f"`paser models convert {folder / pickles[0]} OUT` takes the tensors out into safetensors "
            "and runs nothing in it",
        )
    raise ModelError(f"{folder} holds no weights", remedy="expected *.safetensors or one *.gguf file")
