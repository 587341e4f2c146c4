"""The models that are compared, wherever they come from: folders and URIs, or objects in a notebook.

Selection and damage profiles ask for a tokenizer, digests and a pass over rows, and do not care which it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from paser.artifacts import fingerprint, sha256_path
from paser.cache import Cache
from paser.errors import ModelError
from paser.models.given import fetch_models, naming, places
from paser.models.workload import Models, ModelSet, open_models, shared_tokenizer
from paser.settings import Settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Model = str | Path | PreTrainedModel


class Subjects(Protocol):
    """Models by name, the reference first."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def digests(self) -> Mapping[str, str]:
        """What tells the models apart in the cache: SHA-256 of files or of weights, by name."""
        ...

    @property
    def origins(self) -> Mapping[str, str]:
        """What the user named, by name."""
        ...

    def open(self, roles: Mapping[str, str]) -> Models:
        """The models `roles` names, called by their roles, ready for a pass over rows; the first one is the
        reference."""
        ...


@contextmanager
def subjects(
    models: Mapping[str, Model],
    tokenizer: PreTrainedTokenizerBase | None,
    settings: Settings,
    cache: Cache,
    work: Path,
) -> Iterator[Subjects]:
    """The models as `Subjects`, fetched below `work` where they are named by path or URI.

    While open, errors speak of what the user named, and objects are in evaluation mode. Raises `ModelError`
    where tokenizers number tokens differently, and where there are only objects and no tokenizer.
    """
    named = {name: str(model) for name, model in models.items() if isinstance(model, str | Path)}
    held = {name: model for name, model in models.items() if not isinstance(model, str | Path)}
    given = fetch_models(named, cache, work) if named else {}
    with naming(places(given)):
        paths = {name: found.path for name, found in given.items()}
        if named:
            tokenizer = _agreeing(tokenizer, shared_tokenizer(paths))
        if tokenizer is None:
            raise ModelError(
                "the models are objects, and no tokenizer was given",
                remedy="give it with them: tokenizer=AutoTokenizer.from_pretrained(...)",
            )
        digests = {name: sha256_path(path) for name, path in paths.items()}
        if not held:
            yield OnDisk(tokenizer, digests, named, paths, settings, cache)
            return
        digests |= {name: weights_digest(model) for name, model in held.items()}
        origins = named | {name: f"a {type(model).__name__} in memory" for name, model in held.items()}
        with _evaluating(list(held.values())):
            digests, origins = ({name: of[name] for name in models} for of in (digests, origins))
            yield InMemory(tokenizer, digests, origins, held, paths)


def _agreeing(
    given: PreTrainedTokenizerBase | None, loaded: PreTrainedTokenizerBase
) -> PreTrainedTokenizerBase:
    from paser.models.loading import vocabulary_mismatch

    if given is not None and (why := vocabulary_mismatch(given, loaded)):
        raise ModelError(
            f"the tokenizer that was given and that of the models have different vocabularies: {why}",
            remedy="the pruned model must come from the original one; give the tokenizer of both",
        )
    return given or loaded


@dataclass(frozen=True)
class OnDisk:
    """Models in folders, loaded when they are opened, where `runtime.engine` wants them."""

    tokenizer: PreTrainedTokenizerBase
    digests: Mapping[str, str]
    origins: Mapping[str, str]
    paths: Mapping[str, Path]
    settings: Settings
    cache: Cache

    def open(self, roles: Mapping[str, str]) -> Models:
        paths = {role: self.paths[name] for role, name in roles.items()}
        digests = {role: self.digests[name] for role, name in roles.items()}
        return open_models(paths, digests, self.settings, self.cache)


@dataclass(frozen=True)
class InMemory:
    """Models of which at least one is an object; those named by path are loaded in its number type and to its
    device."""

    tokenizer: PreTrainedTokenizerBase
    digests: Mapping[str, str]
    origins: Mapping[str, str]
    held: Mapping[str, PreTrainedModel]
    paths: Mapping[str, Path]

    def open(self, roles: Mapping[str, str]) -> Models:
        from paser.models.loading import load_causal_lm

        first = next(iter(self.held.values()))
        loaded = {
            role: self.held[name]
            if name in self.held
            else load_causal_lm(self.paths[name], dtype=first.dtype, device=str(first.device))
            for role, name in roles.items()
        }
        return ModelSet.of(loaded, self.tokenizer)


def weights_digest(model: PreTrainedModel) -> str:
    """SHA-256 of a model's class, configuration and tensors: name, number type, shape and bytes of each.

    Raises `ModelError` for float16, whose range is too small for Llama-family models.
    """
    import torch

    if model.dtype == torch.float16:
        raise ModelError(
            f"the {type(model).__name__} is in float16, which overflows on Llama-family models",
            remedy="load it with dtype=torch.bfloat16 or torch.float32",
        )
    state = model.state_dict()
    config = model.config.to_dict()
    parts = {name: _tensor_digest(state[name]) for name in sorted(state)}
    return fingerprint([type(model).__name__, {key: repr(config[key]) for key in sorted(config)}, parts])


def _tensor_digest(tensor: torch.Tensor) -> list[Any]:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    content = flat.view(torch.uint8).numpy().data if flat.numel() else b""
    return [str(tensor.dtype), list(tensor.shape), hashlib.sha256(content).hexdigest()]


@contextmanager
def _evaluating(models: Sequence[PreTrainedModel]) -> Iterator[None]:
    """Puts models into evaluation mode, and afterwards back into that of each module."""
    training = [[module for module in model.modules() if module.training] for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for modules in training:
            for module in modules:
                module.training = True
