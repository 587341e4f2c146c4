"""Tensors and configuration out of a pickle, without running anything in it; a process of its own.

torch's `weights_only` unpickler does the reading: it knows tensors and plain containers. Classes of
modules, configurations and tokenizers get inert stand-ins that only hold what was saved in them; nothing that
the pickle names is ever imported or called. Any other name is refused, and then nothing is read at all.

`python -m paser.models.unpickling FILE... --out FOLDER`, started by `conversion`, writes `facts.json`,
`model.safetensors` and `tokenizer.json` or `tokenizer.model` to the folder.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import pickletools
import resource
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Packages whose classes are stood in for, and modules with functions that are held as activations.
LIBRARIES = ("torch.nn", "transformers", "tokenizers", "LLMPruner", "peft", "accelerate")
ACTIVATIONS = ("torch._C._nn", "torch.nn.functional")
# Tensors may take so many times the bytes of the file: more is a file that was made to fill memory.
MOST_BYTES = 4
MOST_DEPTH = 64
REFUSED, BROKEN = 3, 4
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_FORBIDDEN = (
    "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill", "os.remove",
    "os.rmdir", "socket.", "urllib.", "shutil.rmtree", "webbrowser.",
)  # fmt: skip


class StandIn:
    """In the place of an object of a class that is not loaded: its arguments and its state, nothing else."""

    path = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        made = super().__new__(cls)
        made.args = (*args, *kwargs.values())
        made.state = {}
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args: tuple[Any, ...]
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, key: str) -> Any:
        """An attribute as it was saved; None when there is none."""
        return self.state.get(key) if isinstance(self.state, dict) else None


def names_in(stream: bytes) -> set[str]:
    """Every `module name` that a pickle refers to, read from its instructions alone.

    Names that are put together on the stack are those of the last two texts before; the unpickler refuses
    that instruction anyway.
    """
    found: set[str] = set()
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            found.add(str(argument))
        elif opcode.name == "STACK_GLOBAL":
            found.add(" ".join(texts[-2:]) or "? ?")
        elif opcode.name.startswith("EXT"):
            found.add(f"copyreg extension {argument}")
        elif isinstance(argument, str):
            texts.append(argument)
    return found


def may_stand_in(name: str) -> bool:
    """Whether `module name` is a class (or activation) of a known library, which a stand-in can hold."""
    module, _, attribute = name.partition(" ")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        return False
    if module in ACTIVATIONS:
        return True
    return (module.split(".")[0] in LIBRARIES and attribute[0].isupper()) or (
        module.startswith("torch.nn.") and attribute[0].isupper()
    )


def _pickles(path: Path) -> list[bytes]:
    """The pickled parts of a file: `data.pkl` of torch's archives, else the whole file."""
    if not zipfile.is_zipfile(path):
        return _legacy(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        parts = [name for name in archive.namelist() if name.endswith(".pkl")]
        if not parts:
            raise ValueError("the archive holds no data.pkl")
        return [archive.read(name) for name in parts]


def _legacy(content: bytes) -> list[bytes]:
    """The pickles that stand one after the other at the beginning of an old torch file."""
    parts: list[bytes] = []
    rest = content
    while rest[:1] == b"\x80" and len(parts) < 8:
        end = next(position for opcode, _, position in pickletools.genops(rest) if opcode.name == "STOP")
        assert end is not None
        parts.append(rest[: end + 1])
        rest = rest[end + 1 :]
    return parts or [content]


def unpickle(path: Path) -> tuple[Any, list[str]]:
    """The content of one file with stand-ins for objects, and the names that were stood in for.

    Raises `Refusal` with every refused name before anything is read.
    """
    import torch
    from torch.serialization import safe_globals

    known = _known_to_torch()
    try:
        names = {name for part in _pickles(path) for name in names_in(part)} - known
    except (ValueError, IndexError, StopIteration, zipfile.BadZipFile) as error:
        raise ValueError("it is truncated, or no pickle") from error
    refused = sorted(name for name in names if not may_stand_in(name))
    if refused:
        raise Refusal(refused)
    classes: list[Any] = []
    for name in sorted(names):
        full = ".".join(name.split(" "))
        classes.append((type(name.split(" ")[1], (StandIn,), {"path": full}), full))
    with safe_globals(classes):
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None
        )
    return content, sorted(name.replace(" ", ".") for name in names)


class Refusal(Exception):
    """Names in the pickle that are neither tensors nor containers nor classes of a known library."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = [name.replace(" ", ".") for name in names]
        super().__init__(", ".join(self.names))


def _known_to_torch() -> set[str]:
    from torch import _weights_only_unpickler as own

    allowed: Any = own._get_allowed_globals()
    spelled = {" ".join(name.rpartition(".")[::2]) for name in allowed}
    old = {"__builtin__ set", "__builtin__ bytearray", "__builtin__ complex"}
    return spelled | old


def tensors_of(content: Any) -> dict[str, Any]:
    """Parameters and saved buffers by name: of a module's stand-in, or of a plain dictionary of tensors."""
    import torch

    if isinstance(content, StandIn):
        return dict(_of_module(content, "", 0))
    if isinstance(content, dict):
        named = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
        return {name: value.detach() for name, value in named.items()}
    return {}


def _of_module(module: StandIn, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    import torch

    if depth > MOST_DEPTH:
        raise ValueError(f"modules are nested more than {MOST_DEPTH} deep")
    skipped = module.get("_non_persistent_buffers_set") or set()
    for kind in ("_parameters", "_buffers"):
        for name, value in _items(module.get(kind)):
            if isinstance(value, torch.Tensor) and not (kind == "_buffers" and name in skipped):
                yield f"{prefix}{name}", value.detach()
    for name, child in _items(module.get("_modules")):
        if isinstance(child, StandIn):
            yield from _of_module(child, f"{prefix}{name}.", depth + 1)


def _items(value: Any) -> list[tuple[str, Any]]:
    return [(str(key), item) for key, item in value.items()] if isinstance(value, dict) else []


def model_in(content: Any) -> Any:
    """The model of a checkpoint: what it holds as `model` or `state_dict`, else itself."""
    if isinstance(content, dict):
        for key in ("model", "state_dict", "model_state_dict", "masks"):
            if isinstance(content.get(key), (StandIn, dict)):
                return content[key]
    return content


def plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON can hold it; `None` in place of what it cannot."""
    import torch

    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if depth > 8:
        return None
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, StandIn) and value.path.endswith(".AddedToken"):
        return value.get("content")
    return None


def configuration(model: StandIn) -> dict[str, Any]:
    """Class and values of the model's configuration; the size of a head as its attention has it."""
    config = model.get("config")
    if not isinstance(config, StandIn):
        return {}
    values = {
        key: plain(value) for key, value in _items(config.state) if key != "auto_map" and key[:1] != "_"
    }
    head = next((m.get("head_dim") for m in _modules(model, 0) if isinstance(m.get("head_dim"), int)), None)
    if head:
        values["head_dim"] = head
    return {"class": config.path.rpartition(".")[2], "values": values}


def _modules(module: StandIn, depth: int) -> Iterator[StandIn]:
    yield module
    for _, child in _items(module.get("_modules")):
        if isinstance(child, StandIn) and depth < MOST_DEPTH:
            yield from _modules(child, depth + 1)


def tokenizer_of(content: Any, out: Path) -> dict[str, Any] | None:
    """Writes the tokenizer of a checkpoint to `out`; returns its class, special tokens and chat template."""
    found = content.get("tokenizer") if isinstance(content, dict) else None
    if not isinstance(found, StandIn):
        return None
    fast, pieces = found.get("_tokenizer"), found.get("sp_model_proto")
    if isinstance(fast, StandIn) and isinstance(fast.state, bytes):
        (out / "tokenizer.json").write_bytes(fast.state)
    elif isinstance(pieces, bytes):
        (out / "tokenizer.model").write_bytes(pieces)
    else:
        return None
    special: dict[str, Any] = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = found.get(name) or found.get(f"_{name}") or (found.get("_special_tokens_map") or {}).get(name)
        if isinstance(plain(value), str):
            special[name] = plain(value)
    template = found.get("chat_template")
    return {
        "class": found.path.rpartition(".")[2],
        "special": special,
        "chat_template": template if isinstance(template, str) else None,
    }


def save_tensors(tensors: dict[str, Any], size: int, out: Path) -> dict[str, str]:
    """Writes the tensors; returns the names of those that share another's memory, with the other's name."""
    from safetensors.torch import save_file

    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > MOST_BYTES * size:
        raise ValueError(f"the tensors would take {total:,} bytes, the file has {size:,}")
    kept: dict[str, Any] = {}
    first: dict[Any, str] = {}
    shared: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.layout.__str__() != "torch.strided":
            raise ValueError(f"{name} is no dense tensor")
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if tensor.numel() and place in first:
            shared[name] = first[place]
            continue
        first[place] = name
        kept[name] = tensor.clone().contiguous()
    save_file(kept, str(out / "model.safetensors"), metadata={"format": "pt"})
    return shared


def isolate(bytes_limit: int, seconds: int, file_limit: int) -> bool:
    """Limits this process and cuts it off the network; returns whether the system allowed the latter."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (bytes_limit, bytes_limit))
    if sys.platform != "linux":
        return False
    system = ctypes.CDLL(None, use_errno=True)
    return any(system.unshare(flags) == 0 for flags in (_CLONE_NEWUSER | _CLONE_NEWNET, _CLONE_NEWNET))


def forbid() -> None:
    """From here on this process starts no other, opens no connection and removes no file."""

    def refuse(event: str, _: Any) -> None:
        if event.startswith(_FORBIDDEN):
            raise PermissionError(f"{event} is forbidden while a pickle is read")

    sys.addaudithook(refuse)


def _reason(error: Exception) -> str:
    """The cause alone: torch's own message goes on to say how to load the file without any protection."""
    text = str(error).partition("WeightsUnpickler error:")[2] or str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if "persistent_load" in first:
        return "it is in torch's format of before 2020, which holds source code beside the tensors"
    return f"{type(error).__name__}: {first[:300]}"


def main(words: Sequence[str] | None = None) -> int:
    """Reads the pickles and writes what was found; exit code 3 says refused, 4 unreadable."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    options = parser.parse_args(words)
    size = sum(path.stat().st_size for path in options.files)
    offline = isolate(options.memory, options.seconds, MOST_BYTES * size + (64 << 20))
    import torch

    torch.set_num_threads(1)
    forbid()
    facts: dict[str, Any] = {"network": not offline, "refused": [], "stand_ins": []}
    code = 0
    try:
        tensors: dict[str, Any] = {}
        for path in options.files:
            content, stood = unpickle(path)
            facts["stand_ins"] = sorted({*facts["stand_ins"], *stood})
            model = model_in(content)
            tensors |= tensors_of(model)
            if isinstance(model, StandIn):
                facts |= {"model": model.path.rpartition(".")[2], "config": configuration(model)}
            facts["tokenizer"] = tokenizer_of(content, options.out) or facts.get("tokenizer")
        if not tensors:
            raise ValueError("it holds no tensors by name")
        facts["shared"] = save_tensors(tensors, size, options.out)
    except Refusal as refusal:
        facts["refused"], code = refusal.names, REFUSED
    except MemoryError:
        facts["broken"], code = "it asks for more memory than it may have", BROKEN
    except Exception as error:
        facts["broken"], code = _reason(error), BROKEN
    (options.out / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
