"""SliceGPT's architecture: a decoder whose residual stream is rotated, and narrower, around every layer.

Ashkboos et al. 2024. RMSNorm commutes with a rotation once its scale is folded into the layers behind it, so
each layer may read and write in a basis of its own; where the basis changes, a shortcut matrix turns the
residual. Shapes and names are those of the authors' tool.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from paser.errors import ModelError
from paser.models.shapes import Shapes, check, find, resize

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Families whose block is: norm, attention, add, norm, gated feed-forward, add; all norms RMSNorm.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ATTENTION_SHORTCUT, MLP_SHORTCUT = "attn_shortcut_Q", "mlp_shortcut_Q"


@functools.cache
def unit_norm() -> type[torch.nn.Module]:
    """The class of RMSNorm without a scale, over a stream of which a part was sliced off.

    `width` is the model's hidden size before slicing: the mean is taken over as many numbers, those that are
    gone counting as zero.
    """
    import torch

    class UnitNorm(torch.nn.Module):
        def __init__(self, width: int, eps: float) -> None:
            super().__init__()
            self.width, self.eps = width, eps

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            wide = hidden.float()
            mean = wide.pow(2).sum(dim=-1, keepdim=True) / self.width
            return (wide * torch.rsqrt(mean + self.eps)).to(hidden.dtype)

        def extra_repr(self) -> str:
            return f"width={self.width}, eps={self.eps}"

    return UnitNorm


def sliced_block(base: type[Any]) -> type[Any]:
    """A decoder block like `base`, by its name, that turns the residual with its two shortcut matrices."""

    class SlicedBlock(base):  # type: ignore[misc]
        def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            attended = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]
            between = hidden_states @ self.attn_shortcut_Q + attended
            fed = self.mlp(self.post_attention_layernorm(between))
            after: torch.Tensor = between @ self.mlp_shortcut_Q + fed
            return after

    for name in ("__name__", "__qualname__", "__module__"):
        setattr(SlicedBlock, name, getattr(base, name))
    return SlicedBlock


def check_family(model: PreTrainedModel) -> None:
    """Raises ModelError for an architecture whose blocks are built differently."""
    if model.config.model_type not in FAMILIES:
        raise ModelError(
            f"the architecture {model.config.model_type} cannot be rotated and sliced",
            remedy=f"known are {', '.join(FAMILIES)}",
        )


def to_sliced(model: PreTrainedModel) -> None:
    """Turns a plain model into the sliced architecture, in place, before anything is rotated or sliced.

    Norms lose their scale (fold it into the layers behind first), blocks get unset square shortcut matrices,
    and the vocabulary projection a weight of its own.
    """
    import torch

    check_family(model)
    anything: Any = model
    decoder, width = anything.model, int(model.config.hidden_size)
    norm, kind = unit_norm(), sliced_block(type(decoder.layers[0]))
    for block in decoder.layers:
        block.__class__ = kind
        for name in ("input_layernorm", "post_attention_layernorm"):
            setattr(block, name, norm(width, getattr(block, name).variance_epsilon))
        for name in (ATTENTION_SHORTCUT, MLP_SHORTCUT):
            weight = block.self_attn.q_proj.weight
            setattr(block, name, torch.nn.Parameter(weight.new_empty(width, width)))
    decoder.norm = norm(width, decoder.norm.variance_epsilon)
    if anything.lm_head.weight is decoder.embed_tokens.weight:
        anything.lm_head.weight = torch.nn.Parameter(decoder.embed_tokens.weight.detach().clone())
    model.config.tie_word_embeddings = False


def slice_modules(model: PreTrainedModel, shapes: Shapes, origin: str) -> None:
    """Turns a plain model into the sliced one whose weights have `shapes`, in place, weights unset.

    Raises ModelError, naming `origin`, where a tensor is missing or two neighbours have different widths.
    """
    import torch

    to_sliced(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            rows, columns = _shape(shapes, model, f"{name}.weight", origin)
            bias = find(shapes, model, f"{name}.bias") is not None
            resize(module, rows, columns, bias=bias or module.bias is not None)
        for shortcut in (ATTENTION_SHORTCUT, MLP_SHORTCUT):
            if (weight := getattr(module, shortcut, None)) is not None:
                shape = _shape(shapes, model, f"{name}.{shortcut}", origin)
                setattr(module, shortcut, torch.nn.Parameter(weight.new_empty(*shape)))
    resize_embeddings(model, _shape(shapes, model, "model.embed_tokens.weight", origin)[1])
    check_sliced(model, origin)


def resize_embeddings(model: PreTrainedModel, width: int) -> None:
    """Gives the token embeddings another width and an unset weight."""
    import torch

    table: Any = model.get_input_embeddings()
    table.embedding_dim = width
    table.weight = torch.nn.Parameter(table.weight.new_empty(table.num_embeddings, width))


def _shape(shapes: Shapes, model: PreTrainedModel, name: str, origin: str) -> tuple[int, int]:
    found = find(shapes, model, name)
    if found is None or len(found) != 2:
        raise ModelError(
            f"{origin}: a sliced model needs the matrix {name}; "
            f"{'it is missing' if found is None else f'its shape is {list(found)}'}",
            remedy="save or convert the model again with all of its tensors",
        )
    return found[0], found[1]


def check_sliced(model: PreTrainedModel, origin: str = "the model") -> None:
    """Raises ModelError unless what each layer writes is as wide as what the next one reads."""
    check(model, origin)
    anything: Any = model
    stream, where = int(anything.model.embed_tokens.weight.shape[1]), "model.embed_tokens"
    for number, block in enumerate(anything.model.layers):
        name = f"model.layers.{number}"
        turn, second = getattr(block, ATTENTION_SHORTCUT), getattr(block, MLP_SHORTCUT)
        attention, mlp = block.self_attn, block.mlp
        readers = [attention.q_proj, attention.k_proj, attention.v_proj]
        _same(origin, where, stream, f"{name}.self_attn", *(r.in_features for r in readers), turn.shape[0])
        stream, where = int(turn.shape[1]), f"{name}.{ATTENTION_SHORTCUT}"
        feeders = [mlp.gate_proj, mlp.up_proj]
        widths = (attention.o_proj.out_features, *(f.in_features for f in feeders), second.shape[0])
        _same(origin, where, stream, f"{name}.mlp", *widths)
        stream, where = int(second.shape[1]), f"{name}.{MLP_SHORTCUT}"
        _same(origin, where, stream, f"{name}.mlp.down_proj", mlp.down_proj.out_features)
    _same(origin, where, stream, "lm_head", anything.lm_head.in_features)


def _same(origin: str, before: str, width: int, after: str, *widths: int) -> None:
    if wrong := [int(each) for each in widths if int(each) != width]:
        raise ModelError(
            f"{origin}: {before} gives {width} values, {after} has layers of {wrong[0]}",
            remedy="the tensors are of different models; save or convert the model again",
        )
