"""Sparsity as it stands in saved weights: share of zeros, N:M patterns, and whether zeros were kept.

Everything is read from the safetensors files, one tensor at a time: what is claimed about a model is
measured on the bytes that others will load, not on a model in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.errors import ModelError
from paser.settings import NM_PATTERNS

if TYPE_CHECKING:
    import torch

# Below this share of zeros a layer counts as dense: a few weights are zero by rounding alone.
SPARSE_SHARE = 0.01


@dataclass(frozen=True)
class LayerSparsity:
    """One linear layer: `shape` is (out, in); `patterns` are the N:M patterns that all its blocks keep."""

    name: str
    shape: tuple[int, int]
    zeros: int
    patterns: tuple[str, ...]

    @property
    def weights(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def share(self) -> float:
        """Share of zeros, 0 .. 1; higher is sparser."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class Sparsity:
    """All linear layers of a model but the vocabulary projection, in the order of their names."""

    layers: tuple[LayerSparsity, ...]

    @property
    def overall(self) -> float:
        """Zeros over weights of all layers together, 0 .. 1."""
        return sum(layer.zeros for layer in self.layers) / sum(layer.weights for layer in self.layers)

    @property
    def lowest(self) -> float:
        return min(layer.share for layer in self.layers)

    @property
    def highest(self) -> float:
        return max(layer.share for layer in self.layers)

    @property
    def pattern(self) -> str:
        """The strictest N:M pattern that every layer keeps, else `unstructured`, or `dense`."""
        for name in NM_PATTERNS:
            if all(name in layer.patterns for layer in self.layers):
                return name
        return "unstructured" if self.highest >= SPARSE_SHARE else "dense"

    def as_json(self) -> dict[str, Any]:
        """Shares rounded to six digits."""
        return {
            "overall": round(self.overall, 6),
            "lowest_layer": round(self.lowest, 6),
            "highest_layer": round(self.highest, 6),
            "layers": len(self.layers),
            "pattern": self.pattern,
        }


def measure(directory: Path) -> Sparsity:
    """Measures the linear layers of a saved model; raises `ModelError` when it has none."""
    layers = []
    for name, weight in _weights(directory, linear_layers(directory)):
        rows, columns = weight.shape
        zeros = weight.numel() - int(weight.count_nonzero())
        layers.append(LayerSparsity(name, (rows, columns), zeros, patterns(weight)))
    if not layers:
        raise ModelError(f"{directory} has no linear layers", remedy="expected a causal language model")
    return Sparsity(tuple(layers))


def patterns(weight: torch.Tensor) -> tuple[str, ...]:
    """Which of `NM_PATTERNS` hold: at most N of each M neighbours along the input are not zero.

    `weight`: (out, in).
    """
    found = []
    for name, (kept, block) in NM_PATTERNS.items():
        if weight.shape[1] % block:
            continue
        counts = (weight != 0).view(weight.shape[0], -1, block).sum(dim=-1)
        if int(counts.max()) <= kept:
            found.append(name)
    return tuple(found)


def same_zeros(before: Path, after: Path) -> list[str]:
    """Names of the sparse layers of `before` in which some zero is no longer zero in `after`.

    A layer that is missing in `after` or has another shape is named too. Layers with less than
    `SPARSE_SHARE` zeros are dense and have nothing to keep.
    """
    names = linear_layers(before)
    later = dict(_files(after))
    broken = []
    for name, weight in _weights(before, names):
        zeros = weight == 0
        if int(zeros.sum()) < SPARSE_SHARE * weight.numel():
            continue
        grown = _read(later[f"{name}.weight"], f"{name}.weight") if f"{name}.weight" in later else None
        if grown is None or grown.shape != weight.shape or bool((grown[zeros] != 0).any()):
            broken.append(name)
    return broken


def is_sparse(weight: torch.Tensor) -> bool:
    """Whether a weight has at least `SPARSE_SHARE` zeros."""
    zeros = weight.numel() - int(weight.detach().count_nonzero())
    return zeros >= SPARSE_SHARE * weight.numel()


def linear_layers(directory: Path) -> list[str]:
    """Names of the linear layers of a saved model but the vocabulary projection, without its weights."""
    import torch

    from paser.models.shapes import skeleton

    model = skeleton(directory)
    head: Any = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Every tensor's name and the file that holds it."""
    from safetensors import safe_open

    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise ModelError(f"{directory} holds no safetensors file", remedy="save the model there first")
    for path in paths:
        with safe_open(path, framework="pt") as stream:
            for name in sorted(stream.keys()):
                yield name, path


def _weights(directory: Path, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The saved weight of each named layer, one at a time."""
    where = dict(_files(directory))
    for name in names:
        tensor = f"{name}.weight"
        if tensor not in where:
            raise ModelError(
                f"{directory} has no tensor {tensor!r}, which its config.json promises",
                remedy="save the model again",
            )
        yield name, _read(where[tensor], tensor)


def _read(path: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stream:
        tensor: torch.Tensor = stream.get_tensor(name)
        return tensor
