"""`paser models convert`: a pickled model as a plain folder of safetensors, without running what is in it.

LLM-Pruner saves whole model objects, SliceGPT and older tools dictionaries of tensors. A process of its own
(`unpickling`) takes the tensors out; here only what it wrote is read: safetensors, JSON, a tokenizer's file.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import PICKLES, read_json, staged
from paser.errors import ModelError
from paser.models.checkpoint import CONFIG, WEIGHTS, is_mask, read_config
from paser.models.given import naming
from paser.models.unpickling import BROKEN, REFUSED

if TYPE_CHECKING:
    import torch

# Memory and time of the process: a fixed part for torch itself, the rest by the size of the file.
MEMORY_BASE, MEMORY_TIMES = 16 << 30, 6
SECONDS_BASE, BYTES_A_SECOND = 120, 10 << 20


@dataclass(frozen=True)
class Converted:
    """What was taken out: tensors, the classes that were stood in for, what is missing."""

    out: Path
    tensors: int
    stand_ins: tuple[str, ...]
    network: bool
    notes: tuple[str, ...]


def convert(pickle: Path, out: Path, original: Path | None = None) -> Converted:
    """Writes `pickle` (a file, or a folder with `pytorch_model*.bin`) to the new folder `out`.

    `original` is the folder of the dense model, whose configuration and tokenizer are taken where the pickle
    has none. A pickle of masks becomes `masks.safetensors` in a copy of `original`, or of the folder that it
    is in. Raises `ModelError` naming every refused name of a pickle that holds more than tensors,
    containers and the classes of models, configurations and tokenizers.
    """
    files = _files(pickle)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} exists and is not empty", remedy="choose a new folder")
    with tempfile.TemporaryDirectory(prefix="paser-convert-") as work:
        facts = _extract(files, Path(work))
        beside = pickle if pickle.is_dir() else pickle.parent
        return _assemble(facts, Path(work), beside, original, out, str(pickle))


def _files(pickle: Path) -> list[Path]:
    if pickle.is_file():
        return [pickle]
    if not pickle.exists():
        raise ModelError(f"{pickle} does not exist", remedy="name the pickle, or the folder it is in")
    found = sorted(pickle.glob("pytorch_model*.bin")) or sorted(
        path for path in pickle.iterdir() if path.suffix in PICKLES
    )
    if not found:
        raise ModelError(f"{pickle} holds no pickle", remedy="it needs no conversion, or name the file")
    if len(found) > 1 and not found[0].name.startswith("pytorch_model"):
        names = ", ".join(path.name for path in found[:4])
        raise ModelError(f"{pickle} holds {len(found)} pickles: {names}", remedy="name the one to convert")
    return found


def _extract(files: list[Path], work: Path) -> dict[str, Any]:
    """Runs `unpickling` on the files; what it found, after its tensors are in `work`."""
    size = sum(path.stat().st_size for path in files)
    seconds = SECONDS_BASE + size // BYTES_A_SECOND
    package = Path(__file__).parent.parent.parent
    environment = {
        "PATH": os.defpath, "PYTHONPATH": str(package), "HOME": str(work), "TMPDIR": str(work),
        "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    command = [
        sys.executable, "-P", "-m", "paser.models.unpickling", *(str(path.resolve()) for path in files),
        "--out", str(work), "--memory", str(MEMORY_BASE + MEMORY_TIMES * size), "--seconds", str(seconds),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise ModelError(
            f"{files[0]}: reading it took more than {seconds} seconds and was stopped", remedy=_DISTRUST
        ) from error
    name = str(files[0])
    if process.returncode not in (0, REFUSED, BROKEN) or not (work / "facts.json").exists():
        last = (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise ModelError(f"{name}: reading it was stopped by its limits: {last}", remedy=_DISTRUST)
    facts: dict[str, Any] = read_json(work / "facts.json")
    if facts["refused"]:
        raise ModelError(
            f"{name} is refused and nothing in it was run: it names {', '.join(facts['refused'])}; only "
            "tensors, plain containers and classes of models, configurations and tokenizers are read",
            remedy=_DISTRUST,
        )
    if process.returncode == BROKEN:
        raise ModelError(f"{name} cannot be read: {facts['broken']}", remedy=_DISTRUST)
    return facts


_DISTRUST = (
    "do not load this file anywhere; ask its author for safetensors (`save_pretrained` writes that), or for "
    "a file that `torch.save` made of the model alone"
)


def _assemble(
    facts: Mapping[str, Any], work: Path, beside: Path, original: Path | None, out: Path, name: str
) -> Converted:
    notes: list[str] = []
    tensors = _tensors(work / WEIGHTS, facts["shared"])
    masks = _are_masks(tensors, name)
    with staged(out) as partial:
        partial.mkdir()
        if masks:
            count = len(tensors)
            with naming({partial: name}):
                notes += _beside_weights(tensors, beside, original, partial, name)
        else:
            config = _config(facts, beside, original, name)
            count = _weights(tensors, partial / WEIGHTS, config)
            (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            _describe(partial, facts, name)
            notes += _tokenizer(facts, work, beside, original, partial)
        if not facts["network"]:
            notes.append("the process that read it was cut off the network")
        else:
            notes.append("this system did not let the process that read it be cut off the network")
        if out.exists():
            out.rmdir()
    return Converted(out, count, tuple(facts["stand_ins"]), bool(facts["network"]), tuple(notes))


def _tensors(source: Path, shared: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """All tensors by name; those that shared another's memory are its copies."""
    from safetensors.torch import load_file

    tensors = load_file(source)
    return tensors | {name: tensors[other].clone() for name, other in shared.items()}


def _are_masks(tensors: Mapping[str, torch.Tensor], name: str) -> bool:
    """Whether a pickle holds masks: 0 and 1 alone, and a type or a name that says so."""
    said = "mask" in Path(name).name.lower() or all(
        str(tensor.dtype) == "torch.bool" or "mask" in key for key, tensor in tensors.items()
    )
    return said and all(is_mask(tensor) for tensor in tensors.values())


def _beside_weights(
    masks: Mapping[str, torch.Tensor], beside: Path, original: Path | None, target: Path, name: str
) -> list[str]:
    """Copies the model that the masks belong to into `target`, with the masks as safetensors beside it."""
    from safetensors.torch import save_file

    from paser.models.foreign import Masked, open_folder, weight_of

    folder = next((f for f in (original, beside) if f is not None and any(f.glob("*.safetensors"))), None)
    if folder is None:
        raise ModelError(
            f"{name} holds masks alone, and there are no safetensors beside it",
            remedy="--original FOLDER names the model whose weights the masks are for",
        )
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix not in PICKLES:
            shutil.copyfile(path, target / path.name)
    weights = open_folder(target).weights.tensors
    named = {f"{(weight_of(mask, weights) or mask).removesuffix('_mask')}_mask": mask for mask in masks}
    save_file({new: masks[old].bool() for new, old in named.items()}, str(target / MASKS))
    opened = open_folder(target).weights
    if not isinstance(opened, Masked):
        raise ModelError(
            f"{folder} is no plain folder of weights that masks could apply to",
            remedy="--original FOLDER names the dense model in safetensors",
        )
    return [f"{len(opened.masks)} masks in {MASKS}, beside the weights of {folder}"]


MASKS = "masks.safetensors"


def _weights(tensors: dict[str, torch.Tensor], target: Path, config: dict[str, Any]) -> int:
    """Writes the tensors; a vocabulary projection that equals the embedding is tied to it."""
    from safetensors.torch import save_file

    from paser.models.shapes import BLOCK, SLICED
    from paser.models.sliced import ATTENTION_SHORTCUT

    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    if any(name.endswith(ATTENTION_SHORTCUT) for name in tensors):
        config[BLOCK] = {"layout": SLICED, "scheme": "slicegpt"}
        config["tie_word_embeddings"] = False
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("norm.weight")}
    embedding = next((name for name in tensors if name.endswith("embed_tokens.weight")), None)
    if embedding and _HEAD in tensors and BLOCK not in config:
        config["tie_word_embeddings"] = tensors[_HEAD].equal(tensors[embedding])
        if config["tie_word_embeddings"]:
            del tensors[_HEAD]
    save_file(tensors, str(target), metadata={"format": "pt"})
    return len(tensors)


_HEAD = "lm_head.weight"


def _describe(folder: Path, facts: Mapping[str, Any], name: str) -> None:
    """Checks that the tensors make a model, and writes what config.json has to say of its shapes."""
    from paser.models.checkpoint import SafeTensors
    from paser.models.shapes import card, describe, skeleton

    model = skeleton(folder)
    there = set(SafeTensors((folder / WEIGHTS,)).tensors)
    tied = {_HEAD} if getattr(model.config, "tie_word_embeddings", False) else set()
    if missing := sorted(set(model.state_dict()) - there - tied):
        raise ModelError(
            f"{name} lacks {len(missing)} tensors of a {type(model).__name__}, {missing[0]} first",
            remedy="convert all files of the checkpoint, or name another --original",
        )
    pruner = any(stood.startswith("LLMPruner.") for stood in facts["stand_ins"])
    describe(model, **({"scheme": "llm-pruner"} if pruner else {}))
    model.config.save_pretrained(folder)
    if text := card(model):
        (folder / "README.md").write_text(text, encoding="utf-8")


def _config(facts: Mapping[str, Any], beside: Path, original: Path | None, name: str) -> dict[str, Any]:
    from transformers.models.auto import configuration_auto, modeling_auto

    found = facts.get("config") or {}
    if not found:
        for folder in (beside, original):
            if folder is not None and (folder / CONFIG).exists():
                return dict(read_config(folder))
        raise ModelError(
            f"{name} holds tensors alone, and there is no {CONFIG} beside it",
            remedy="--original FOLDER names the dense model, whose configuration and tokenizer are taken",
        )
    configurations: Any = configuration_auto
    models: Any = modeling_auto
    kinds: Mapping[str, str] = configurations.CONFIG_MAPPING_NAMES
    kind = next((kind for kind, wanted in kinds.items() if wanted == found["class"]), None)
    if kind is None or kind not in models.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"{name} holds a model whose configuration is {found['class']}, which transformers has no causal "
            "language model for",
            remedy="convert it where its own code is trusted, with `save_pretrained`",
        )
    architecture = models.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    values = {key: value for key, value in found["values"].items() if value is not None}
    dtype = values.pop("torch_dtype", None) or values.get("dtype")
    if dtype:
        values["dtype"] = dtype
    return {**values, "model_type": kind, "architectures": [architecture]}


def _tokenizer(
    facts: Mapping[str, Any], work: Path, beside: Path, original: Path | None, target: Path
) -> list[str]:
    """Puts a tokenizer into `target`: that of the pickle, of its folder, or of the original model."""
    from paser.models.loading import load_tokenizer

    found = facts.get("tokenizer")
    for name in ("tokenizer.json", "tokenizer.model"):
        if found and (work / name).exists():
            shutil.copyfile(work / name, target / name)
            fast = name == "tokenizer.json"
            settings = {
                "tokenizer_class": "PreTrainedTokenizerFast" if fast else found["class"],
                **found["special"],
            }
            if found["chat_template"]:
                settings["chat_template"] = found["chat_template"]
            (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
            try:
                load_tokenizer(target)
                return ["the tokenizer is the pickle's"]
            except ModelError:
                for path in (target / name, target / "tokenizer_config.json"):
                    path.unlink()
    for folder in (beside, original):
        if folder is None or not (folder / "tokenizer_config.json").exists():
            continue
        load_tokenizer(folder).save_pretrained(target)
        return [f"the tokenizer is that of {folder}"]
    return ["there is no tokenizer: copy that of the original model into the folder, or give --original"]
