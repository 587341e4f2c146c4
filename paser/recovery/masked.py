"""LoRA that keeps a sparse weight sparse: the update is multiplied by the mask of the non-zero weights.

A plain LoRA update is dense, so merging it fills every zero that pruning made. Here the masked update is
part of the forward pass, so what is trained is exactly what is merged and saved. The classes are built
inside a function, because they derive from peft's and importing peft takes seconds.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from paser.models.sparsity import is_sparse

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel


def keep_zeros(config: LoraConfig) -> LoraConfig:
    """Makes `config` use masked adapters on sparse linear layers and peft's own on dense ones."""
    from torch.nn import Linear

    mapping: dict[Any, Any] = {Linear: _adapter}
    config._register_custom_module(mapping)
    return config


def merged(adapted: PeftModel) -> PreTrainedModel:
    """The model with its adapter merged, and every zero of a sparse layer's weight a zero again.

    After masked training the last part changes nothing; after plain training it takes away what the update
    put on zeros. Weights of `adapted` are overwritten.
    """
    import torch
    from peft.tuners.lora import Linear

    zeros = {}
    for name, module in adapted.get_base_model().named_modules():
        layer: Any = module.get_base_layer() if isinstance(module, Linear) else None
        if layer is not None and is_sparse(layer.weight):
            zeros[name] = layer.weight.detach() == 0
    anything: Any = adapted
    model: PreTrainedModel = anything.merge_and_unload()
    with torch.no_grad():
        for name, mask in zeros.items():
            plain: Any = model.get_submodule(name)
            plain.weight.masked_fill_(mask, 0)
    return model


def _adapter(target: Any, adapter_name: str, **kwargs: Any) -> torch.nn.Module:
    from peft.tuners.lora import Linear

    base = target.get_base_layer() if hasattr(target, "get_base_layer") else target
    kind: Any = masked_linear() if is_sparse(base.weight) else Linear
    built: torch.nn.Module = kind(target, adapter_name, **kwargs)
    return built


@functools.cache
def masked_linear() -> type[Any]:
    """The class of masked adapters, a `peft.tuners.lora.Linear`.

    With W (out, in) sparse, its mask M = (W != 0), A (r, in), B (out, r) and scaling s, the layer
    computes x E^T with E = M * (W + s B A), rounded to W's dtype; merging puts E in the place of W. One
    product with E costs less than the two thin products of plain LoRA beside W. Dropout drops whole
    input features of A, the same for all tokens of a micro-batch, so that E stays one matrix.
    """
    import torch
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import check_adapters_to_merge

    product: Any = _masked_product()

    class MaskedLinear(Linear):  # type: ignore[misc]
        def __init__(self, base_layer: torch.nn.Module, adapter_name: str, **kwargs: Any) -> None:
            super().__init__(base_layer, adapter_name, **kwargs)
            weight = self.base().weight.detach()
            self.register_buffer("kept", (weight != 0).to(weight.dtype), persistent=False)

        def base(self) -> Any:
            """The linear layer that holds W."""
            return self.get_base_layer()

        def _parts(self, adapter: str, *, dropout: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            """W, A and s B, all in the dtype of W."""
            adapters: Any = self
            lower, upper = adapters.lora_A[adapter].weight, adapters.lora_B[adapter].weight
            weight = self.base().weight
            if dropout:
                features = torch.ones(1, lower.shape[1], dtype=lower.dtype, device=lower.device)
                lower = lower * self.lora_dropout[adapter](features)
            return weight, lower.to(weight.dtype), (upper * self.scaling[adapter]).to(weight.dtype)

        @torch.no_grad()
        def effective_weight(self, adapter: str) -> torch.Tensor:
            """E, without dropout."""
            weight, lower, upper = self._parts(adapter, dropout=False)
            kept: Any = self.kept
            return torch.addmm(weight, upper, lower).mul_(kept)

        def get_delta_weight(self, adapter: str) -> torch.Tensor:
            """E - W in float32; zero wherever W is."""
            weight = self.base().weight.detach()
            difference: torch.Tensor = self.effective_weight(adapter).float() - weight.float()
            return difference

        def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
            """Puts E in the place of W, to the bit."""
            names = check_adapters_to_merge(self, adapter_names) or []
            if len(names) > 1:
                raise ValueError("a masked layer merges one adapter only")
            for name in names:
                self.base().weight.data = self.effective_weight(name)
                self.merged_adapters.append(name)

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            adapters = [name for name in self.active_adapters if name in self.lora_A]
            if self.disable_adapters or self.merged or len(adapters) != 1:
                plain: torch.Tensor = super().forward(x, *args, **kwargs)
                return plain
            weight, lower, upper = self._parts(adapters[0], dropout=True)
            x = x.to(weight.dtype)
            with torch.autocast(device_type=x.device.type, enabled=False):
                result: torch.Tensor = product.apply(x, weight, lower, upper, self.kept)
            bias = self.base().bias
            return result if bias is None else result + bias

    return MaskedLinear


@functools.cache
def _masked_product() -> type[torch.autograd.Function]:
    """x (W + B A)^T with the sum masked: gradients for x, A and B, none for W."""
    import torch
    from torch.nn import functional

    class MaskedProduct(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            x: torch.Tensor,
            weight: torch.Tensor,
            lower: torch.Tensor,
            upper: torch.Tensor,
            kept: torch.Tensor,
        ) -> torch.Tensor:
            effective = torch.addmm(weight, upper, lower).mul_(kept)
            ctx.save_for_backward(x, effective, lower, upper, kept)
            return functional.linear(x, effective)

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            x, effective, lower, upper, kept = ctx.saved_tensors
            grad = grads[0].to(effective.dtype)
            inner = grad @ effective if ctx.needs_input_grad[0] else None
            update = grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
            update.mul_(kept)
            return inner, None, upper.t() @ update, update @ lower.t(), None

    return MaskedProduct
