"""SliceGPT (Ashkboos et al. 2024): the residual stream is rotated to its principal components and sliced.

Everything is computed in the model's own basis, with the stream projected on what will be kept, and the
weights are rotated once at the end: with nothing sliced, the model computes what it did before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from paser.errors import StageError
from paser.models.shapes import BLOCK, SLICED
from paser.models.sliced import FAMILIES, check_sliced, resize_embeddings, to_sliced
from paser.models.tokens import Encoded
from paser.progress import progress
from paser.pruning.calibration import token_ids, usable
from paser.pruning.coupled import decoder_layers
from paser.pruning.protocol import PrunedModel, PruningReport
from paser.settings import PruneSettings, SliceGptOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "slicegpt"
# Added to the covariance's diagonal, as a share of its mean.
DAMPENING = 0.01


def slicegpt(
    model: PreTrainedModel, calibration: list[Encoded], settings: PruneSettings, seed: int
) -> PrunedModel:
    """Slices `settings.sparsity` of the hidden size off, in place; the report says what is left.

    Embeddings and vocabulary projection are untied, because they live in different bases. `seed` is not
    needed: principal components are no random choice.

    Departure: weights are rotated in float64 once, after all bases are known, in place of block by block.
    """
    options = settings.options_as(SliceGptOptions)
    blocks = decoder_layers(model, NAME, FAMILIES)
    hidden = int(model.config.hidden_size)
    samples = usable(calibration, hidden, f"as many as the stream has dimensions to find ({hidden})")
    width = kept_width(hidden, settings.sparsity, options.multiple)
    tied = bool(model.config.tie_word_embeddings)
    before = sum(int(weight.numel()) for weight in model.parameters())
    bases = principal_bases(model, blocks, samples, width, whole_head=not options.slice_head)
    rotate_and_slice(model, blocks, bases)
    setattr(model.config, BLOCK, {"layout": SLICED, "scheme": NAME, "width": width})
    facts = {
        "hidden_size": hidden,
        "width": width,
        "untied": tied,
        "parameters_before": before,
        "parameters": sum(int(weight.numel()) for weight in model.parameters()),
    }
    return PrunedModel(model, PruningReport(NAME, len(samples), sum(s.tokens for s in samples), facts))


def kept_width(hidden: int, sparsity: float, multiple: int) -> int:
    """The multiple of `multiple` nearest to the hidden size less its share `sparsity`; all of it at 0."""
    if sparsity == 0:
        return hidden
    width = round((1 - sparsity) * hidden / multiple) * multiple
    if not 0 < width < hidden:
        raise StageError(
            f"prune.sparsity is {sparsity:.1%}, which leaves {width} of {hidden} dimensions in multiples of "
            f"{multiple}",
            remedy="lower prune.options.multiple, or choose another prune.sparsity",
        )
    return width


def principal_bases(
    model: PreTrainedModel, blocks: Any, samples: Sequence[Encoded], width: int, *, whole_head: bool
) -> list[torch.Tensor]:
    """The basis of the residual stream before each layer and before the head, float64, (hidden, kept).

    In order: attention and feed-forward layer of each block, then the head, whose basis is not sliced if
    `whole_head`. Each is found on the stream as the layers before it have left it.
    """
    import torch

    bases: list[torch.Tensor] = []
    with torch.no_grad():
        states, arguments = _first_states(model, blocks, samples)
        with progress(NAME, 2 * len(blocks) + 1, "layers") as advance:
            for number, block in enumerate(blocks):
                bases.append(_basis(states, block.input_layernorm, width, f"block {number}, attention"))
                states = [_projected(state, bases[-1]) for state in states]
                states = [
                    state + block.self_attn(hidden_states=block.input_layernorm(state), **others[number])[0]
                    for state, others in zip(states, arguments, strict=True)
                ]
                advance()
                norm = block.post_attention_layernorm
                bases.append(_basis(states, norm, width, f"block {number}, feed-forward"))
                states = [_projected(state, bases[-1]) for state in states]
                states = [state + block.mlp(norm(state)) for state in states]
                advance()
            last = states[0].shape[-1] if whole_head else width
            anything: Any = model
            bases.append(_basis(states, anything.model.norm, last, "the head"))
            advance()
    return bases


def _first_states(
    model: PreTrainedModel, blocks: Any, samples: Sequence[Encoded]
) -> tuple[list[torch.Tensor], list[list[dict[str, Any]]]]:
    """What enters the first block, and the other arguments of every block, for each sample."""
    states: list[torch.Tensor] = []
    arguments: list[list[dict[str, Any]]] = []
    device = model.get_input_embeddings().weight.device
    with _arguments(blocks) as seen:
        for sample in samples:
            model.base_model(input_ids=token_ids(sample, device), use_cache=False)
            states.append(seen[0][0])
            arguments.append([others for _, others in seen])
            seen.clear()
    return states, arguments


@contextmanager
def _arguments(blocks: Any) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """Collects what each block is called with: hidden states (of the first block alone) and the rest."""
    seen: list[tuple[Any, dict[str, Any]]] = []

    def see(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        others = {key: value for key, value in kwargs.items() if key != "hidden_states"}
        hidden = args[0] if args else kwargs["hidden_states"]
        seen.append((hidden if not seen else None, others))

    handles = [block.register_forward_pre_hook(see, with_kwargs=True) for block in blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _basis(states: Sequence[torch.Tensor], norm: Any, width: int, where: str) -> torch.Tensor:
    """Principal components of the normalised states; raises `StageError` where they are not finite."""
    import torch

    size = states[0].shape[-1]
    covariance = torch.zeros(size, size, dtype=torch.float64, device=states[0].device)
    for state in states:
        rows = state.flatten(0, -2).double()
        rows = rows * torch.rsqrt(rows.pow(2).mean(dim=-1, keepdim=True) + norm.variance_epsilon)
        covariance += rows.T @ rows
    if not bool(torch.isfinite(covariance).all()):
        raise StageError(
            f"the activations that enter {where}, are not finite in calibration",
            remedy="set model.precision: float32; if it stays, the model or its weights are broken",
        )
    return principal_components(covariance)[:, :width]


def principal_components(covariance: torch.Tensor) -> torch.Tensor:
    """Eigenvectors as columns, the largest eigenvalue first, float64; each one's largest entry is above 0."""
    import torch

    count = len(covariance)
    damped = covariance + DAMPENING * covariance.diagonal().mean() * torch.eye(
        count, dtype=covariance.dtype, device=covariance.device
    )
    vectors = torch.linalg.eigh(damped).eigenvectors.flip(dims=(1,))
    largest = vectors.abs().argmax(dim=0)
    signs = vectors[largest, torch.arange(count, device=vectors.device)].sign()
    turned: torch.Tensor = vectors * signs
    return turned


def _projected(state: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """The part of the states that lies in the basis, in their own coordinates."""
    if basis.shape[0] == basis.shape[1]:
        return state
    near = basis.float()
    return (state.float() @ near @ near.T).to(state.dtype)


def rotate_and_slice(model: PreTrainedModel, blocks: Any, bases: Sequence[torch.Tensor]) -> None:
    """Puts every weight into the bases on both of its sides, with the norms' scales folded in, in place."""
    anything: Any = model
    decoder = anything.model
    scales = [norm.weight.detach().double() for b in blocks for norm in _norms(b)]
    last_scale = decoder.norm.weight.detach().double()
    to_sliced(model)
    table = decoder.embed_tokens.weight.detach()
    resize_embeddings(model, bases[0].shape[1])
    _set(decoder.embed_tokens, "weight", table.double() @ bases[0])
    for number, block in enumerate(blocks):
        first, second, third = bases[2 * number : 2 * number + 3]
        a, m = block.self_attn, block.mlp
        for layer in (a.q_proj, a.k_proj, a.v_proj):
            _read(layer, scales[2 * number], first)
        _write(a.o_proj, second)
        for layer in (m.gate_proj, m.up_proj):
            _read(layer, scales[2 * number + 1], second)
        _write(m.down_proj, third)
        _set(block, "attn_shortcut_Q", first.T @ second)
        _set(block, "mlp_shortcut_Q", second.T @ third)
    _read(anything.lm_head, last_scale, bases[-1])
    check_sliced(model)


def _norms(block: Any) -> tuple[Any, Any]:
    return block.input_layernorm, block.post_attention_layernorm


def _read(layer: Any, scale: torch.Tensor, basis: torch.Tensor) -> None:
    """The layer reads the stream in `basis`: W diag(scale) Q."""
    _set(layer, "weight", (layer.weight.detach().double() * scale) @ basis)
    layer.in_features = basis.shape[1]


def _write(layer: Any, basis: torch.Tensor) -> None:
    """The layer writes the stream in `basis`: Q^T W and Q^T b."""
    _set(layer, "weight", basis.T @ layer.weight.detach().double())
    if layer.bias is not None:
        _set(layer, "bias", basis.T @ layer.bias.detach().double())
    layer.out_features = basis.shape[1]


def _set(module: Any, name: str, value: torch.Tensor) -> None:
    """Sets a parameter to `value` in the dtype that it has."""
    import torch

    old = getattr(module, name)
    setattr(module, name, torch.nn.Parameter(value.to(old.dtype).contiguous(), old.requires_grad))
