"""Loading and saving causal language models and their tokenizers, from local files only.

Checkpoints that are pickles are refused: unpickling runs code that the file's author chose. Remote
code is never run. Layers may have any shape (`shapes`, `sliced`).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.errors import ModelError
from paser.models.checkpoint import ADAPTER_CONFIG, gguf_file, refuse_pickles, warn_of_pickles
from paser.progress import warn

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def model_directory(path: Path) -> Path:
    """`path` if it holds a model, else its only sub-folder that does."""
    if not path.exists():
        raise ModelError(f"{path} does not exist", remedy="check the path of the model")
    if _holds_model(path):
        return path
    inside = sorted(p for p in path.iterdir() if p.is_dir() and _holds_model(p)) if path.is_dir() else []
    if len(inside) == 1:
        return inside[0]
    found = f"{len(inside)} models" if inside else "no model"
    raise ModelError(
        f"{path} holds {found}",
        remedy="name a folder with config.json and safetensors, or with one .gguf file",
    )


def _holds_model(path: Path) -> bool:
    named = any((path / name).exists() for name in ("config.json", ADAPTER_CONFIG))
    return path.is_dir() and (named or any(path.glob("*.gguf")))


def _gguf_argument(path: Path) -> dict[str, Any]:
    """What transformers must be told to read a folder with a GGUF file; nothing for any other."""
    found = gguf_file(path)
    return {"gguf_file": found.name} if found else {}


def quiet_transformers() -> None:
    """Errors only, no progress bars: PASER shows its own progress."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; the pad token is set to a special token when there is none."""
    quiet_transformers()
    from transformers import AutoTokenizer

    from paser.models.foreign import tokenizer_folder

    path = tokenizer_folder(model_directory(path))
    extra = _gguf_argument(path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, **extra
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path}: the tokenizer cannot be loaded: {_first_line(error)}",
            remedy="the folder needs tokenizer.json or the files of its tokenizer class",
        ) from error
    if extra and tokenizer.chat_template:
        # transformers takes the eos token of some GGUF files wrongly; the chat template knows it.
        from paser.models.tokens import SampleEncoder

        end = tokenizer.convert_ids_to_tokens(SampleEncoder(tokenizer).end_of_turn)
        tokenizer.eos_token = str(end)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
    return tokenizer


def load_config(path: Path) -> PretrainedConfig:
    """The configuration of a model folder, without its weights; of what others made of one, see `foreign`."""
    quiet_transformers()
    from transformers import AutoConfig

    from paser.models.foreign import plain_folder

    path = plain_folder(model_directory(path))
    extra = _gguf_argument(path)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, **extra
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path}: the configuration cannot be read: {_first_line(error)}",
            remedy="it must load with transformers' AutoConfig, without remote code",
        ) from error
    return config


def load_causal_lm(
    path: Path,
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    max_memory: Mapping[int | str, int] | None = None,
) -> PreTrainedModel:
    """A causal language model in evaluation mode, all weights in `dtype` on `device`.

    Reads a Hugging Face folder with safetensors, also one whose layers have other shapes than config.json
    says (see `shapes`), what others made of such a folder (see `foreign`), or a folder with one GGUF file,
    which is dequantised. With `max_memory` (bytes of each device, see `precision.memory_shares`) accelerate
    spreads the model over these devices, and the disk, in place of `device`. Raises ModelError when a tensor
    is missing or layers do not fit together.
    """
    quiet_transformers()
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from paser.models.foreign import plain_folder
    from paser.models.shapes import check_complete, check_runs, fewer_blocks, fitted_class

    given = model_directory(path)
    path = plain_folder(given)
    refuse_pickles(path)
    warn_of_pickles(given)
    extra = _gguf_argument(path)
    gguf = extra.get("gguf_file")
    kind: Any = AutoModelForCausalLM
    if gguf is None:
        extra["use_safetensors"] = True
        kind = fitted_class(path) or kind
        config, said = fewer_blocks(path)
        if config is not None:
            warn(f"{given}: {said}")
            extra["config"] = config
    if max_memory is not None:
        if gguf:
            raise ModelError(
                f"{path / gguf}: a GGUF file cannot be spread over devices",
                remedy="save the model as safetensors (stage `prune` does), or set runtime.device_map: none",
            )
        extra |= {"device_map": "auto", "max_memory": dict(max_memory)}
    try:
        model, loading = kind.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **extra,
        )
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{path}: the model cannot be loaded: {_first_line(error)}",
            remedy="it must load with transformers' AutoModelForCausalLM, without remote code",
        ) from error
    unusual = kind is not AutoModelForCausalLM
    check_complete(str(path), loading["missing_keys"], loading["unexpected_keys"] if unusual else [])
    if gguf:
        model = _without_quantisation(model)
    placed: Any = model if max_memory is not None else model.to(device)  # type: ignore[arg-type]
    loaded: PreTrainedModel = placed.eval()
    if unusual:
        check_runs(loaded, str(path))
    return loaded


def _without_quantisation(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that can be saved: one read from GGUF passes for quantised."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.generation_config = copy.deepcopy(model.generation_config)
    return plain


def save_causal_lm(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """A folder with safetensors, configuration and tokenizer that `load_causal_lm` reads.

    Plain transformers reads it too, unless config.json cannot say what the layers are: then a README.md in
    it says so, and how to load it.
    """
    from paser.models.shapes import card, describe

    directory.mkdir(parents=True, exist_ok=True)
    describe(model)
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    if text := card(model):
        (directory / "README.md").write_text(text, encoding="utf-8")


def vocabulary_mismatch(original: PreTrainedTokenizerBase, pruned: PreTrainedTokenizerBase) -> str | None:
    """Why two tokenizers cannot be compared token by token, or None when they agree."""
    first, second = original.get_vocab(), pruned.get_vocab()
    if first == second:
        return None
    if len(first) != len(second):
        return f"{len(first)} and {len(second)} tokens"
    differing = sorted(token for token, number in first.items() if second.get(token) != number)
    return f"{len(differing)} tokens have other numbers, {differing[0]!r} first"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
