"""Checkpoints that others pruned, as plain dense tensors: masks, compressed-tensors, adapters on a base.

Each kind is a view that gives one dense tensor at a time. To load such a folder, the view is written out as
a plain safetensors folder in the cache, and from there on it is a model like any other.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import files_below, fingerprint, sha256_file, sha256_path, staged, write_json
from paser.cache import Cache
from paser.errors import ModelError
from paser.models.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    INDEX,
    WEIGHTS,
    SafeTensors,
    Stored,
    Weights,
    gguf_file,
    is_mask,
    read_config,
    weight_files,
)
from paser.progress import progress, say

if TYPE_CHECKING:
    import torch

# Sub-folder of an adapter's folder that holds its base model.
BASE = "base"
PLAIN, SHARDED, MASKED, ADAPTER = "safetensors", "sharded safetensors", "masks beside weights", "adapter"
COMPRESSED = "compressed-tensors"
SHARD_BYTES = 4 << 30
ROOM = "models"


@dataclass(frozen=True)
class Opened:
    """A model folder: what kind it is, its configuration without what the view undoes, its dense tensors.

    `translated` says in a few words what was done to get them; empty where the folder is plain.
    """

    folder: Path
    kind: str
    config: Mapping[str, Any]
    weights: Weights
    translated: str = ""


def open_folder(folder: Path) -> Opened:
    """Opens a folder with safetensors; raises `ModelError` with the reason where nothing can read it."""
    if is_adapter(folder):
        return _open_adapter(folder)
    config = dict(read_config(folder))
    files = weight_files(folder)
    if not files.weights:
        raise ModelError(f"{folder} holds no safetensors", remedy="expected *.safetensors")
    stored = SafeTensors(files.weights)
    quantised = config.get("quantization_config") or config.get("compression_config")
    if quantised:
        return _open_compressed(folder, config, stored, quantised)
    if files.masks or any(name.endswith("_mask") for name in stored.tensors):
        masked = Masked(stored, SafeTensors(files.masks))
        return Opened(folder, MASKED, config, masked, f"{len(masked.masks)} masks applied to their weights")
    if (folder / INDEX).exists():
        return Opened(folder, SHARDED, config, stored)
    renamed = "" if files.weights[0].name == WEIGHTS else f"{files.weights[0].name} taken as {WEIGHTS}"
    return Opened(folder, PLAIN, config, stored, renamed)


def plain_folder(folder: Path) -> Path:
    """`folder`, or, where transformers could not read it, a plain copy of it in the cache.

    The copy has dense tensors and is bfloat16 where the checkpoint was compressed. Its name is the digest of
    the folder's files, so that an altered folder is translated again.
    """
    if not is_adapter(folder) and (not (folder / CONFIG).exists() or gguf_file(folder)):
        return folder
    opened = open_folder(folder)
    if not opened.translated:
        return folder
    key = fingerprint([_VERSION, _digest(folder)])
    target = Cache.of(Path.cwd()).entry(ROOM, key)
    if not target.exists():
        say(f"  {folder}: {opened.kind}; {opened.translated}, dense copy in {target}")
        write_plain(opened, target)
    return target


_VERSION = 1


def _digest(folder: Path) -> str:
    if not is_adapter(folder):
        return sha256_path(folder)
    own = {path.name: sha256_file(path) for path in files_below(folder) if BASE not in path.parts}
    return fingerprint([own, sha256_path(base_folder(folder))])


def tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer of a model folder lies: an adapter without one has its base's."""
    if is_adapter(folder) and not (folder / "tokenizer_config.json").exists():
        return base_folder(folder)
    return folder


def write_plain(opened: Opened, target: Path) -> None:
    """Writes the dense tensors, configuration and tokenizer as a folder of safetensors."""
    from safetensors.torch import save_file

    names = sorted(opened.weights.tensors)
    places: dict[str, str] = {}
    with staged(target) as partial, progress("translate", len(names), "tensors") as advance:
        partial.mkdir()
        for number, shard in enumerate(_shards(opened.weights, names), 1):
            file = f"model-{number:05d}.safetensors"
            save_file(shard, str(partial / file), metadata={"format": "pt"})
            places |= dict.fromkeys(shard, file)
            advance(len(shard))
        if len(set(places.values())) == 1:
            (partial / file).rename(partial / WEIGHTS)
        else:
            write_json(partial / INDEX, {"metadata": {}, "weight_map": places})
        (partial / CONFIG).write_text(json.dumps(dict(opened.config), indent=2) + "\n", encoding="utf-8")
        for path in sorted(tokenizer_folder(opened.folder).iterdir()):
            if path.is_file() and path.name != CONFIG and _beside(path):
                shutil.copyfile(path, partial / path.name)


def _beside(path: Path) -> bool:
    """Tokenizer, template and generation settings: what belongs to a model beside its weights."""
    if path.name in (ADAPTER_CONFIG, INDEX):
        return False
    kinds = (".json", ".jinja", ".model", ".tiktoken")
    return path.suffix in kinds or path.name in ("vocab.txt", "merges.txt")


def _shards(weights: Weights, names: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name in names:
        tensor = weights.read(name).contiguous()
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    if shard:
        yield shard


# Masks


@dataclass(frozen=True)
class Masked:
    """Weights times the masks beside them: `X_orig` and `X_mask` of torch's pruning, or `X` and `X_mask`.

    In `beside`, which are files of masks alone, a mask may also have the name of its weight.
    """

    stored: SafeTensors
    beside: SafeTensors

    @cached_property
    def masks(self) -> dict[str, tuple[str, SafeTensors, str]]:
        """Name of the dense tensor: the name of its values, and where its mask is."""
        found: dict[str, tuple[str, SafeTensors, str]] = {}
        tensors = self.stored.tensors
        own = [(self.stored, name) for name in tensors if name.endswith("_mask")]
        for source, mask in [*own, *((self.beside, name) for name in self.beside.tensors)]:
            stored, values = source.tensors[mask], weight_of(mask, tensors)
            if values is None:
                name = mask.removesuffix("_mask")
                raise ModelError(
                    f"{stored.file}: mask {mask!r} has no {name!r} or {name + '_orig'!r} beside it",
                    remedy="save weights and masks together, or multiply them and leave the masks out",
                )
            if tensors[values].shape != stored.shape:
                raise ModelError(
                    f"{stored.file}: mask {mask!r} has shape {stored.shape}, its weight "
                    f"{tensors[values].shape}",
                    remedy="save the weights and the masks of one model",
                )
            found[values.removesuffix("_orig")] = (values, source, mask)
        return found

    @cached_property
    def tensors(self) -> dict[str, Stored]:
        used = {values for values, _, _ in self.masks.values()}
        used |= {mask for _, source, mask in self.masks.values() if source is self.stored}
        plain = {name: stored for name, stored in self.stored.tensors.items() if name not in used}
        return plain | {name: self.stored.tensors[values] for name, (values, _, _) in self.masks.items()}

    def read(self, name: str) -> torch.Tensor:
        if name not in self.masks:
            return self.stored.read(name)
        values, source, mask = self.masks[name]
        kept = source.read(mask)
        if not is_mask(kept):
            raise ModelError(
                f"{source.tensors[mask].file}: mask {mask!r} has values other than 0 and 1",
                remedy="a mask says 1 for a weight that stays and 0 for one that is pruned",
            )
        return self.stored.read(values).masked_fill(kept == 0, 0)


def weight_of(mask: str, weights: Container[str]) -> str | None:
    """The name among `weights` that a mask's name means; None where there is none.

    `X_mask`, `X.mask` and `X` mean `X_orig`, `X`, or the `weight` of a module X.
    """
    name = mask.removesuffix("_mask").removesuffix(".mask")
    names = (f"{name}_orig", name, f"{name}.weight_orig", f"{name}.weight")
    return next((each for each in names if each in weights), None)


# compressed-tensors


@dataclass(frozen=True)
class Bitmasks:
    """The sparse formats of compressed-tensors, which newer versions of it no longer read.

    A weight is `compressed` (the values that are not pruned, row by row), `bitmask` (one bit a weight, the
    first column in the lowest bit of a row's first byte) and `shape`.
    """

    stored: SafeTensors

    @cached_property
    def parts(self) -> dict[str, str]:
        """Name of the dense tensor: the prefix of its parts."""
        found = {}
        for name in self.stored.tensors:
            if name.endswith(".bitmask"):
                prefix = name.removesuffix(".bitmask")
                for part in ("compressed", "shape"):
                    if f"{prefix}.{part}" not in self.stored.tensors:
                        raise ModelError(
                            f"{self.stored.tensors[name].file}: {name!r} has no {part!r} beside it",
                            remedy="fetch the checkpoint again",
                        )
                found[prefix if prefix.endswith(".weight") else f"{prefix}.weight"] = prefix
        return found

    @cached_property
    def tensors(self) -> dict[str, Stored]:
        used = {f"{prefix}.{part}" for prefix in self.parts.values() for part in _BITMASK_PARTS}
        found = {name: stored for name, stored in self.stored.tensors.items() if name not in used}
        for name, prefix in self.parts.items():
            values = self.stored.tensors[f"{prefix}.compressed"]
            shape = tuple(int(size) for size in self.stored.read(f"{prefix}.shape").flatten())
            found[name] = Stored(shape, values.dtype, values.file)
        return found

    def read(self, name: str) -> torch.Tensor:
        import numpy as np
        import torch

        if name not in self.parts:
            return self.stored.read(name)
        prefix = self.parts[name]
        rows, columns = self.tensors[name].shape
        packed = self.stored.read(f"{prefix}.bitmask").numpy()
        bits = np.unpackbits(packed.reshape(rows, -1), axis=1, count=columns, bitorder="little")
        places = torch.from_numpy(bits.astype(bool))
        values = self.stored.read(f"{prefix}.compressed").flatten()
        if int(places.sum()) != len(values):
            raise ModelError(
                f"{self.tensors[name].file}: {prefix!r} has {len(values)} values, but its bit mask has room "
                f"for {int(places.sum())}",
                remedy="fetch the checkpoint again",
            )
        dense = torch.zeros(rows, columns, dtype=values.dtype)
        dense[places] = values
        return dense


_BITMASK_PARTS = ("compressed", "bitmask", "shape", "row_offsets")


@dataclass(frozen=True)
class Quantised:
    """Weights that compressed-tensors quantised, dequantised to bfloat16 by its own code, layer by layer."""

    inner: Weights
    scheme: Any = field(repr=False)

    @cached_property
    def parts(self) -> dict[str, list[str]]:
        """Name of the dense tensor: the tensors that it is computed from."""
        found: dict[str, list[str]] = {}
        for name in self.inner.tensors:
            module, _, part = name.rpartition(".")
            if part == "weight_scale":
                beside = [f"{module}.{p}" for p in _QUANTISED_PARTS if f"{module}.{p}" in self.inner.tensors]
                found[f"{module}.weight"] = beside
        return found

    @cached_property
    def tensors(self) -> dict[str, Stored]:
        extra = re.compile(r"\.(input|output|k|v|q)_(scale|zero_point|global_scale)$|\.weight_g_idx$")
        used = {part for parts in self.parts.values() for part in parts}
        found = {n: s for n, s in self.inner.tensors.items() if n not in used and not extra.search(f".{n}")}
        for name, parts in self.parts.items():
            stored = self.inner.tensors[parts[0]]
            shape = stored.shape
            if f"{name}_shape" in self.inner.tensors:
                shape = tuple(int(size) for size in self.inner.read(f"{name}_shape").flatten())
            found[name] = Stored(shape, stored.dtype, stored.file)
        return found

    def read(self, name: str) -> torch.Tensor:
        if name not in self.parts:
            return self.inner.read(name)
        tensors = {part: self.inner.read(part) for part in self.parts[name]}
        file = self.tensors[name].file
        try:
            dense: torch.Tensor = self.scheme.process(tensors)[name]
        except (KeyError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"{file}: {name!r} cannot be decompressed: {error}",
                remedy="its parts do not fit quantization_config in config.json; fetch the checkpoint again",
            ) from error
        return dense


_QUANTISED_PARTS = (
    "weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_shape", "weight_global_scale",
    "weight_g_idx", "input_global_scale",
)  # fmt: skip


def _open_compressed(folder: Path, config: dict[str, Any], stored: SafeTensors, quantised: Any) -> Opened:
    method = quantised.get("quant_method", COMPRESSED) if isinstance(quantised, dict) else quantised
    if method != COMPRESSED:
        raise ModelError(
            f"{folder / CONFIG}: weights quantised by {method!r} cannot be read",
            remedy="PASER reads compressed-tensors and GGUF; save it in bfloat16 with the tool that made it",
        )
    plain = {k: v for k, v in config.items() if k not in ("quantization_config", "compression_config")}
    weights: Weights = stored
    steps = []
    bitmasks = Bitmasks(stored)
    if bitmasks.parts:
        weights = bitmasks
        steps.append(f"{len(bitmasks.parts)} layers decompressed from {_sparse_format(quantised)}")
    if any(name.endswith(".weight_scale") for name in stored.tensors):
        dense = Quantised(weights, _dequantizer(folder, quantised))
        weights = dense
        steps.append(f"{len(dense.parts)} layers dequantised from {quantised.get('format')} to bfloat16")
        plain["dtype"] = "bfloat16"
        plain.pop("torch_dtype", None)
    if not steps:
        steps = ["no layer is compressed"]
    return Opened(folder, COMPRESSED, plain, weights, " and ".join(steps))


def _sparse_format(quantised: Mapping[str, Any]) -> str:
    sparsity = quantised.get("sparsity_config") or {}
    return str(sparsity.get("format") or quantised.get("format"))


def _dequantizer(folder: Path, quantised: Mapping[str, Any]) -> Any:
    """compressed-tensors' own dequantiser for one layer's tensors at a time."""
    from compressed_tensors.entrypoints.convert import CompressedTensorsDequantizer

    del quantised
    try:
        return CompressedTensorsDequantizer(str(folder))
    except (ValueError, KeyError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{folder / CONFIG}: quantization_config cannot be read: {first}",
            remedy="the checkpoint was made by an incompatible version of compressed-tensors",
        ) from error


# Adapters


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a peft adapter."""
    return (folder / ADAPTER_CONFIG).exists()


def base_folder(folder: Path) -> Path:
    """The base model of an adapter's folder: its sub-folder `base`, else the local folder that it names."""
    config = read_config(folder, ADAPTER_CONFIG)
    if (folder / BASE / CONFIG).exists():
        return folder / BASE
    named = str(config.get("base_model_name_or_path") or "")
    for path in (Path(named).expanduser(), folder / named):
        if named and path.resolve() != folder.resolve() and (path / CONFIG).exists():
            return path
    raise ModelError(
        f"{folder / ADAPTER_CONFIG} names the base model {named!r}, which is no folder on this machine",
        remedy="give both: BASE+ADAPTER, with BASE the folder (or URI) of the pruned model it was trained on",
    )


@dataclass(frozen=True)
class Adapted:
    """A base model with a peft LoRA adapter merged into it: `W + scale * B A`, computed in float32."""

    base: Weights
    adapter: SafeTensors
    settings: Mapping[str, Any]

    @cached_property
    def pairs(self) -> dict[str, tuple[str, str]]:
        """Name of a weight: those of its A and B."""
        found = {}
        for name in self.adapter.tensors:
            match = re.fullmatch(r"base_model\.model\.(.+)\.lora_A(?:\.\w+)?\.weight", name)
            if match:
                second = name.replace(".lora_A", ".lora_B")
                found[f"{match[1]}.weight"] = (name, second)
        unknown = set(self.adapter.tensors) - {part for pair in found.values() for part in pair}
        file = self.adapter.files[0]
        if unknown or not found:
            raise ModelError(
                f"{file}: {'tensor ' + repr(min(unknown)) if unknown else 'no LoRA weights'}: only the A and "
                "B matrices of LoRA on linear layers can be merged",
                remedy="merge the adapter with peft's `merge_and_unload` and save the whole model",
            )
        for name, (first, second) in found.items():
            shape = self.base.tensors[name].shape if name in self.base.tensors else None
            fits = (self.adapter.tensors[second].shape[0], self.adapter.tensors[first].shape[1])
            if shape != fits:
                raise ModelError(
                    f"{file}: the adapter of {name!r} has shape {fits}, "
                    f"the base model {shape or 'no such weight'}",
                    remedy="give the base model that the adapter was trained on",
                )
        return found

    @property
    def tensors(self) -> Mapping[str, Stored]:
        return self.base.tensors

    def read(self, name: str) -> torch.Tensor:
        weight = self.base.read(name)
        if name not in self.pairs:
            return weight
        down, up = (self.adapter.read(part).float() for part in self.pairs[name])
        module = name.removesuffix(".weight")
        rank = _by_pattern(self.settings.get("rank_pattern"), module, int(self.settings["r"]))
        alpha = _by_pattern(self.settings.get("alpha_pattern"), module, float(self.settings["lora_alpha"]))
        scale = alpha / rank**0.5 if self.settings.get("use_rslora") else alpha / rank
        update = up @ down
        if self.settings.get("fan_in_fan_out"):
            update = update.T
        return (weight.float() + scale * update).to(weight.dtype)


def _by_pattern(patterns: Any, module: str, default: float) -> float:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return default


def _open_adapter(folder: Path) -> Opened:
    if (folder / CONFIG).exists() and any(p.name != ADAPTER_WEIGHTS for p in folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} holds both a whole model and an adapter",
            remedy="put them into two folders and give BASE+ADAPTER",
        )
    settings = read_config(folder, ADAPTER_CONFIG)
    kind = settings.get("peft_type")
    if kind != "LORA" or settings.get("use_dora") or settings.get("bias", "none") != "none":
        what = "DoRA" if settings.get("use_dora") else "biases" if kind == "LORA" else kind
        raise ModelError(
            f"{folder / ADAPTER_CONFIG}: an adapter with {what} cannot be merged here",
            remedy="merge it with peft's `merge_and_unload` and save the whole model",
        )
    if not (folder / ADAPTER_WEIGHTS).exists():
        from paser.models.checkpoint import refuse_pickles

        refuse_pickles(folder)
    base = open_folder(base_folder(folder))
    adapted = Adapted(base.weights, SafeTensors((folder / ADAPTER_WEIGHTS,)), copy.deepcopy(settings))
    done = f"LoRA merged into {len(adapted.pairs)} layers of its base model"
    return Opened(
        folder,
        f"{ADAPTER} on {base.kind}",
        base.config,
        adapted,
        f"{base.translated}; {done}" if base.translated else done,
    )
