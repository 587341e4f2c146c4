"""What a checkpoint is: architecture, parameters, zeros a layer, pattern, number types, vocabulary.

Everything is read from the files, one tensor at a time: a model larger than memory can be looked at, and
nothing is claimed that the weights do not show. `paser models inspect` prints it.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import NOT_READ, files_below
from paser.cache import Cache
from paser.errors import ModelError
from paser.models.checkpoint import (
    ADAPTER_CONFIG,
    WEIGHTS,
    Stored,
    Weights,
    gguf_file,
    pickles_in,
    read_config,
    refuse_pickles,
    weight_files,
)
from paser.models.foreign import (
    ADAPTER,
    COMPRESSED,
    PLAIN,
    SHARDED,
    Adapted,
    Bitmasks,
    Opened,
    is_adapter,
    open_folder,
    tokenizer_folder,
)
from paser.models.gguf_file import Gguf, usual_name
from paser.models.shapes import check_loads, find, missing, strange, with_saved_blocks
from paser.models.sparsity import SPARSE_SHARE, LayerSparsity, Sparsity, patterns
from paser.progress import progress

if TYPE_CHECKING:
    from rich.console import Console

GGUF, SLICED = "GGUF", "SliceGPT rotated"
_SHORTCUT = re.compile(r"shortcut_q$", re.IGNORECASE)
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Layer:
    """One linear layer. `shape` is (out, in); `nonfinite` counts weights that are NaN or infinite."""

    name: str
    shape: tuple[int, int]
    dtype: str
    zeros: int
    patterns: tuple[str, ...]
    nonfinite: int

    @property
    def share(self) -> float:
        """Share of zeros, 0 .. 1."""
        return self.zeros / max(self.shape[0] * self.shape[1], 1)

    @property
    def block(self) -> tuple[int, str] | None:
        """Number of the block that the layer is in, and the layer's short name in it."""
        match = _BLOCK.search(self.name)
        return (int(match[1]), match[2].rpartition(".")[2]) if match else None


@dataclass(frozen=True)
class Inspection:
    """What `paser models inspect` says of a checkpoint."""

    path: str
    format: str
    translated: str
    config: Mapping[str, Any]
    parameters: int
    nonzero: int
    stored_bytes: int
    dtypes: Mapping[str, int]
    embedding_rows: int | None
    tokens: int | None
    tied: bool
    nonfinite: Mapping[str, int]
    layers: tuple[Layer, ...]
    plain: str | None
    unfit: str | None
    filled: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def architecture(self) -> str:
        named = self.config.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else str(self.config["model_type"])

    @property
    def sparsity(self) -> Sparsity | None:
        """Zeros of the linear layers; None when there are none."""
        found = tuple(
            LayerSparsity(layer.name, layer.shape, layer.zeros, layer.patterns)
            for layer in self.layers
            if layer.shape[0] * layer.shape[1]
        )
        return Sparsity(found) if found else None

    @property
    def blocks(self) -> int:
        return len({layer.block[0] for layer in self.layers if layer.block})

    def uneven(self) -> tuple[str, ...]:
        """Short names of the layers whose shape is not the same in every block."""
        shapes: dict[str, set[tuple[int, int]]] = {}
        for layer in self.layers:
            if layer.block:
                shapes.setdefault(layer.block[1], set()).add(layer.shape)
        return tuple(name for name, found in shapes.items() if len(found) > 1)

    @property
    def head_dim(self) -> int | None:
        given, hidden = self.config.get("head_dim"), self.config.get("hidden_size")
        heads = self.config.get("num_attention_heads")
        if isinstance(given, int) and given:
            return given
        return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None

    def widths(self) -> list[dict[str, int]]:
        """Heads, key-value heads and MLP width of each block, as far as the names of its layers tell."""
        found: dict[int, dict[str, int]] = {}
        for layer in self.layers:
            if layer.block is None:
                continue
            number, short = layer.block
            entry = found.setdefault(number, {"block": number})
            if short in _HEADS and self.head_dim:
                entry[_HEADS[short]] = layer.shape[0] // self.head_dim
            elif short in _WIDTHS:
                entry["mlp_width"] = layer.shape[0]
        return [found[number] for number in sorted(found)]

    @property
    def vocabulary_agrees(self) -> bool | None:
        """Whether every token has a row in the embedding; None when either is missing."""
        if self.tokens is None or self.embedding_rows is None:
            return None
        return self.tokens <= self.embedding_rows

    def keeps_pattern(self) -> tuple[bool, str]:
        """Whether recovery keeps the zeros of the pruned model, and why."""
        sparsity = self.sparsity
        if self.unfit:
            return False, f"nothing can load it: {self.unfit}"
        if self.filled:
            return False, (
                f"merging the adapter fills zeros of its base in {len(self.filled)} layers, {self.filled[0]} "
                "first: the pattern of the base is lost"
            )
        if self.nonfinite:
            return False, "weights are not finite: nothing can be trained on them"
        if sparsity is None or sparsity.pattern == "dense":
            if self.uneven() or self.format == SLICED:
                return True, "whole rows and columns were taken out: shapes stay as they are"
            return True, "no zeros to keep; LoRA updates are merged as they are"
        what = f"{sparsity.pattern} zeros" if sparsity.pattern != "unstructured" else "zeros"
        kept = f"the {what} of every layer are masked out of its update"
        if self.format == COMPRESSED or self.format == GGUF:
            return True, f"{kept}; the recovered model is dense bfloat16 safetensors, no longer {self.format}"
        return True, kept

    def as_json(self) -> dict[str, Any]:
        """Everything, every linear layer included; shares rounded to six digits."""
        sparsity = self.sparsity
        keeps, why = self.keeps_pattern()
        return {
            "path": self.path,
            "format": self.format,
            "translated": self.translated or None,
            "architecture": self.architecture,
            "model_type": self.config["model_type"],
            "parameters": {"stored": self.parameters, "nonzero": self.nonzero, "bytes": self.stored_bytes},
            "dtypes": dict(self.dtypes),
            "blocks": self.blocks,
            "hidden_size": self.config.get("hidden_size"),
            "context": self.config.get("max_position_embeddings"),
            "vocabulary": {
                "tokenizer": self.tokens,
                "embedding": self.embedding_rows,
                "agrees": self.vocabulary_agrees,
            },
            "tied_embeddings": self.tied,
            "sparsity": sparsity.as_json() if sparsity else None,
            "uneven": list(self.uneven()),
            "widths": self.widths(),
            "nonfinite": dict(self.nonfinite),
            "recovery_keeps_pattern": {"keeps": keeps, "why": why},
            "plain_transformers": {"loads": self.plain is None, "why_not": self.plain},
            "paser": {"loads": self.unfit is None, "why_not": self.unfit},
            "notes": list(self.notes),
            "layers": [
                {
                    "name": layer.name,
                    "shape": list(layer.shape),
                    "dtype": layer.dtype,
                    "zeros": round(layer.share, 6),
                    "patterns": list(layer.patterns),
                }
                for layer in self.layers
            ],
        }


_HEADS = {"q_proj": "heads", "k_proj": "kv_heads"}
_WIDTHS = ("up_proj", "fc1", "c_fc", "fc_in", "dense_h_to_4h")


def inspect(folder: Path, shown: str | None = None, left_out: Sequence[str] = ()) -> Inspection:
    """Inspects a model folder (see `loading.model_directory`); raises `ModelError` where it is unreadable.

    `shown` stands for the folder in the result; `left_out` are pickles that were not brought into it.
    """
    refuse_pickles(folder)
    if not is_adapter(folder) and (only := gguf_file(folder)):
        file = Gguf(only)
        opened = Opened(folder, GGUF, file.config, file, "dequantised")
        tokens: int | None = file.tokens or None
    else:
        if not is_adapter(folder):
            weight_files(folder)
        opened = open_folder(folder)
        tokens = _tokens(tokenizer_folder(folder))
    counted = _count(opened)
    kind = opened.kind
    if any(_SHORTCUT.search(name) for name in opened.weights.tensors):
        kind = SLICED
    head = _named(opened.weights, _OUTPUT)
    return Inspection(
        path=shown or str(folder),
        format=kind,
        translated=opened.translated,
        config=opened.config,
        parameters=sum(stored.numbers for stored in opened.weights.tensors.values()),
        nonzero=counted.nonzero,
        stored_bytes=_bytes(folder),
        dtypes=counted.dtypes,
        embedding_rows=_rows(opened.weights),
        tokens=tokens,
        tied=bool(opened.config.get("tie_word_embeddings", False)) and head is None,
        nonfinite=counted.nonfinite,
        layers=counted.layers,
        plain=_why_not_plain(opened, kind),
        unfit=(unfit := _why_not_at_all(folder, opened)),
        filled=_filled(opened),
        notes=_notes(folder, opened, left_out, whole=unfit is None),
    )


@dataclass(frozen=True)
class _Counted:
    nonzero: int
    dtypes: Mapping[str, int]
    nonfinite: Mapping[str, int]
    layers: tuple[Layer, ...]


def _count(opened: Opened) -> _Counted:
    import torch

    linear = _linear(opened)
    nonzero, dtypes, nonfinite, layers = 0, Counter[str](), {}, []
    names = sorted(opened.weights.tensors, key=_natural)
    with progress("inspect", len(names), "tensors") as advance:
        for name in names:
            stored, tensor = opened.weights.tensors[name], opened.weights.read(name)
            nonzero += int(tensor.count_nonzero())
            dtypes[stored.dtype] += stored.numbers
            broken = 0
            if tensor.is_floating_point():
                broken = tensor.numel() - int(torch.isfinite(tensor).sum())
            if broken:
                nonfinite[name] = broken
            if name in linear and tensor.dim() == 2:
                layers.append(
                    Layer(
                        usual_name(name).removesuffix(".weight"),
                        (tensor.shape[0], tensor.shape[1]),
                        stored.dtype,
                        tensor.numel() - int(tensor.count_nonzero()),
                        patterns(tensor),
                        broken,
                    )
                )
            advance()
    return _Counted(nonzero, dict(dtypes.most_common()), nonfinite, tuple(layers))


def _natural(name: str) -> list[Any]:
    """`layers.2` before `layers.10`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]


_EMBEDDING = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "token_embd.weight")
_OUTPUT = ("lm_head.weight", "output.weight", "embed_out.weight")


def _named(weights: Weights, names: Sequence[str]) -> Stored | None:
    for name in weights.tensors:
        if any(name == wanted or name.endswith(f".{wanted}") for wanted in names):
            return weights.tensors[name]
    return None


def _rows(weights: Weights) -> int | None:
    found = _named(weights, _EMBEDDING) or _named(weights, _OUTPUT)
    return found.shape[0] if found else None


def _linear(opened: Opened) -> set[str]:
    """Names of the weights of linear layers, by architecture where transformers knows it, else by shape."""
    tensors = opened.weights.tensors
    skeleton = _skeleton(opened.config)
    if skeleton is not None and opened.kind != GGUF:
        known = {name for name, linear in skeleton.items() if linear} & set(tensors)
        if known:
            return known
    outside = {name for name in tensors if _named_as(name, (*_EMBEDDING, *_OUTPUT)) or _SHORTCUT.search(name)}
    return {
        name
        for name, stored in tensors.items()
        if len(stored.shape) == 2 and name.endswith(".weight") and name not in outside
    }


def _named_as(name: str, wanted: Sequence[str]) -> bool:
    return any(name == other or name.endswith(f".{other}") for other in wanted)


def _skeleton(config: Mapping[str, Any]) -> dict[str, bool] | None:
    """Tensor names that the architecture has, and which of them are linear layers inside its blocks."""
    import torch

    model = _promised(config)
    if model is None:
        return None
    head = model.get_output_embeddings()
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    return {name: name in linear for name in model.state_dict()}


def _promised(config: Mapping[str, Any]) -> Any:
    """The model that the configuration promises, on the meta device; None where transformers has none."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    values = {key: value for key, value in config.items() if key != "model_type"}
    try:
        with torch.device("meta"):
            return auto.from_config(AutoConfig.for_model(str(config["model_type"]), **values))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError):
        return None


def _why_not_plain(opened: Opened, kind: str) -> str | None:
    """Why transformers' `from_pretrained` would not load the folder as it is, or None."""
    if isinstance(opened.weights, Gguf):
        return opened.weights.why_unloadable()
    if kind == SLICED:
        return "the residual stream is rotated and sliced"
    if kind not in (PLAIN, SHARDED):
        if kind == COMPRESSED:
            sparse = isinstance(opened.weights, Bitmasks) or "decompressed" in opened.translated
            return "newer versions of compressed-tensors do not read its sparse format" if sparse else None
        return "it needs peft" if kind.startswith(ADAPTER) else "it would not apply the masks"
    if opened.translated:
        return f"it wants a file {WEIGHTS}"
    promised = _promised(opened.config)
    if promised is None:
        return f"transformers knows no causal language model of the type {opened.config['model_type']!r}"
    shapes = _shapes(opened)
    for name, tensor in promised.state_dict().items():
        found = find(shapes, promised, name)
        if found is not None and found != tuple(tensor.shape):
            return f"{name} has shape {found}, config.json promises {tuple(tensor.shape)}"
    if lacking := missing(promised, shapes):
        return f"{lacking[0]} is missing"
    extra = strange(promised, shapes)
    return f"{extra[0]} is a tensor that the architecture does not have" if extra else None


def _why_not_at_all(folder: Path, opened: Opened) -> str | None:
    """Why `load_causal_lm` would not load the folder, as far as names and shapes tell, or None."""
    if isinstance(opened.weights, Gguf):
        return opened.weights.why_unloadable()
    try:
        check_loads(opened.config, _shapes(opened), str(folder))
    except ModelError as error:
        return error.problem
    return None


def _shapes(opened: Opened) -> dict[str, tuple[int, ...]]:
    return {name: stored.shape for name, stored in opened.weights.tensors.items()}


def _tokens(folder: Path) -> int | None:
    """One more than the highest token number of the tokenizer; None when there is no usable one."""
    from paser.models.loading import load_tokenizer

    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    try:
        return max(load_tokenizer(folder).get_vocab().values(), default=-1) + 1
    except ModelError:
        return None


def _bytes(folder: Path) -> int:
    suffixes = (".safetensors", ".gguf")
    return sum(path.stat().st_size for path in files_below(folder) if path.suffix in suffixes)


def _notes(folder: Path, opened: Opened, left_out: Sequence[str], *, whole: bool) -> tuple[str, ...]:
    notes = []
    if pickles := sorted({*pickles_in(folder), *left_out}):
        notes.append(f"{NOT_READ}: {', '.join(pickles)}")
    if is_adapter(folder):
        named = read_config(folder, ADAPTER_CONFIG).get("base_model_name_or_path")
        notes.append(f"the adapter names as its base: {named}")
    if whole and opened.kind != GGUF:
        notes.append(with_saved_blocks(opened.config, opened.weights.tensors, str(folder))[1])
    return tuple(filter(None, notes))


def _filled(opened: Opened) -> tuple[str, ...]:
    """The sparse layers of an adapter's base whose zeros merging it fills."""
    if not isinstance(opened.weights, Adapted):
        return ()
    base, found = opened.weights.base, []
    for name in sorted(opened.weights.pairs, key=_natural):
        zeros = base.read(name) == 0
        sparse = int(zeros.sum()) >= SPARSE_SHARE * zeros.numel()
        if sparse and bool((opened.weights.read(name)[zeros] != 0).any()):
            found.append(name.removesuffix(".weight"))
    return tuple(found)


def inspect_uri(uri: str) -> Inspection:
    """Inspects what `--pruned` takes: a folder, a `file:`, `hf:` or `pypi:` URI, or BASE+ADAPTER."""
    from paser.models.given import fetch_models, naming, places, shown

    with tempfile.TemporaryDirectory(prefix="paser-") as work:
        models = fetch_models({"model": uri}, Cache.of(Path.cwd()), Path(work))
        given, fetched = models["model"], places(models)
        with naming(fetched):
            found = inspect(given.path, uri, given.left_out)
        plain, unfit = (why and shown(why, fetched) for why in (found.plain, found.unfit))
        return replace(found, plain=plain, unfit=unfit)


# Tables


def render(found: Inspection, console: Console) -> None:
    """Prints an inspection: one table of facts, one of the blocks with the zeros of each layer."""
    from rich.markup import escape
    from rich.table import Table

    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(found):
        facts.add_row(f"[bold]{name}[/]", escape(value))
    console.print(facts, highlight=False)
    blocks = _blocks_table(found)
    if blocks is not None:
        console.print(blocks)


def _facts(found: Inspection) -> list[tuple[str, str]]:
    config, sparsity = found.config, found.sparsity
    share = found.nonzero / found.parameters if found.parameters else 0.0
    agrees = {True: "agree", False: "do NOT agree", None: "not compared"}[found.vocabulary_agrees]
    keeps, why = found.keeps_pattern()
    rows = [
        ("model", found.path),
        ("format", f"{found.format} ({found.translated})" if found.translated else found.format),
        (
            "architecture",
            f"{found.architecture}, {found.blocks} blocks, hidden size {config.get('hidden_size')}",
        ),
        (
            "parameters",
            f"{found.parameters:,} stored, {found.nonzero:,} not zero ({share:.1%}); "
            f"{found.stored_bytes / 1e6:,.0f} MB of files",
        ),
        ("number types", ", ".join(f"{name} {count:,}" for name, count in found.dtypes.items())),
        (
            "vocabulary",
            f"{_or_no(found.tokens)} tokens in the tokenizer, {_or_no(found.embedding_rows)} rows in the "
            f"embedding: {agrees}",
        ),
        ("embeddings", "tied to the output" if found.tied else "not tied to the output"),
        ("context", f"{config.get('max_position_embeddings', 'unknown'):,} tokens"
         if isinstance(config.get("max_position_embeddings"), int) else "unknown"),
    ]  # fmt: skip
    if sparsity:
        rows.append(
            (
                "sparsity",
                f"{sparsity.overall:.1%} of the linear layers' weights are zero "
                f"({sparsity.lowest:.1%} to {sparsity.highest:.1%} a layer), pattern: {sparsity.pattern}",
            )
        )
    uneven = found.uneven()
    rows.append(("shapes", f"uneven: {', '.join(uneven)}" if uneven else "the same in every block"))
    if found.nonfinite:
        total, first = sum(found.nonfinite.values()), next(iter(found.nonfinite))
        rows.append(
            (
                "NOT FINITE",
                f"{total:,} NaN or infinite numbers in {len(found.nonfinite)} tensors, {first} first",
            )
        )
    rows.append(("recovery", f"{'possible' if keeps else 'impossible'}: {why}"))
    rows.append(("transformers", "loads it" if found.plain is None else f"does not load it: {found.plain}"))
    if found.plain is not None:
        ours = "does not load it: " + found.unfit if found.unfit else "loads it through every --pruned"
        rows.append(("paser", ours))
    rows += [("note", note) for note in found.notes]
    return rows


def _or_no(number: int | None) -> str:
    return "no" if number is None else f"{number:,}"


def _blocks_table(found: Inspection) -> Any:
    from rich.table import Table

    grid: dict[int, dict[str, Layer]] = {}
    for layer in found.layers:
        if layer.block:
            grid.setdefault(layer.block[0], {})[layer.block[1]] = layer
    if not grid:
        return None
    columns = list(dict.fromkeys(short for row in grid.values() for short in row))
    order = [*_ORDER, *columns]
    columns.sort(key=order.index)
    widths = {entry["block"]: entry for entry in found.widths()}
    sized = [key for key in ("heads", "kv_heads", "mlp_width") if any(key in e for e in widths.values())]
    table = Table(title="Zeros a linear layer, by block", title_justify="left")
    for name in ("block", *(key.replace("_", " ") for key in sized), *columns):
        table.add_column(name, justify="right")
    for first, last, cells in _runs(
        [
            (number, [*(str(widths[number].get(key, "-")) for key in sized),
                      *(_cell(grid[number].get(short)) for short in columns)])
            for number in sorted(grid)
        ]
    ):  # fmt: skip
        table.add_row(str(first) if first == last else f"{first} to {last}", *cells)
    return table


def _runs(rows: Sequence[tuple[int, list[str]]]) -> list[tuple[int, int, list[str]]]:
    """Neighbouring blocks that look the same, as one line: first block, last block, cells."""
    found: list[tuple[int, int, list[str]]] = []
    for number, cells in rows:
        if found and found[-1][2] == cells:
            found[-1] = (found[-1][0], number, cells)
        else:
            found.append((number, number, cells))
    return found


_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _cell(layer: Layer | None) -> str:
    if layer is None:
        return "-"
    mark = " NaN" if layer.nonfinite else ""
    if layer.patterns and layer.share >= SPARSE_SHARE:
        return f"{layer.share:.0%} {layer.patterns[0]}{mark}"
    return f"{layer.share:.1%}{mark}"
