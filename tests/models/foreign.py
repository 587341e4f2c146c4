"""Checkpoints of other tools, made with these tools from the tiny model."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import torch

from paser.models.loading import load_causal_lm, load_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 9]])
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits.float()
    return found


def with_tokenizer(source: Path, folder: Path) -> Path:
    for name in TOKENIZER:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    return folder


def masked(dense: Path, folder: Path) -> torch.Tensor:
    """torch.nn.utils.prune's `weight_orig` and `weight_mask`; returns the pruned model's logits."""
    from safetensors.torch import save_file
    from torch.nn.utils import prune

    model: Any = load_causal_lm(dense, dtype=torch.float32)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            prune.l1_unstructured(module, "weight", amount=0.5)
    shutil.copytree(dense, folder)
    state = {k: v.detach().clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return logits(model)


def packed(sparse: Path, folder: Path) -> None:
    """Four-bit weights in groups of 16, by llm-compressor."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.entrypoints.oneshot import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    four_bits = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=16)
    scheme = QuantizationScheme(targets=["Linear"], weights=four_bits)
    model: Any = load_causal_lm(sparse, dtype=torch.bfloat16)
    recipe = QuantizationModifier(config_groups={"four": scheme}, ignore=["lm_head"])
    oneshot(model=model, processor=load_tokenizer(sparse), recipe=recipe, log_dir=None)
    model.save_pretrained(folder, save_compressed=True)
    with_tokenizer(sparse, folder)


def adapter(base: Path, folder: Path) -> torch.Tensor:
    """A LoRA adapter by peft; returns the logits of peft's own merge."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 2},
        use_rslora=True, init_lora_weights=False,
    )  # fmt: skip
    model: Any = get_peft_model(load_causal_lm(base, dtype=torch.float32), config)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return logits(model.merge_and_unload())


def uneven(dense: Path) -> Any:
    """The model with one key-value group less in its first block and a narrower MLP in its second."""
    model: Any = load_causal_lm(dense, dtype=torch.float16)
    first, second = model.model.layers
    for name in ("q_proj", "k_proj", "v_proj"):
        layer = getattr(first.self_attn, name)
        _keep(layer, rows=layer.out_features // 2)
    _keep(first.self_attn.o_proj, columns=16)
    for name in ("gate_proj", "up_proj"):
        _keep(getattr(second.mlp, name), rows=40)
    _keep(second.mlp.down_proj, columns=40)
    return model


def _keep(layer: Any, rows: int | None = None, columns: int | None = None) -> None:
    layer.weight = torch.nn.Parameter(layer.weight.data[:rows, :columns].clone())
    layer.out_features, layer.in_features = layer.weight.shape


def rotated(dense: Path) -> Any:
    """The model in SliceGPT's architecture, with a rotation at random in each shortcut."""
    from paser.models.sliced import to_sliced

    model: Any = load_causal_lm(dense, dtype=torch.float32)
    to_sliced(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for block in model.model.layers:
            for name in ("attn_shortcut_Q", "mlp_shortcut_Q"):
                getattr(block, name).copy_(torch.linalg.qr(torch.randn(32, 32))[0])
    return model


def llm_pruner(dense: Path, file: Path) -> torch.Tensor:
    """A pickle as LLM-Pruner writes it, with its own copy of the modelling code; returns the logits.

    The modules of that copy exist while the pickle is written and not after.
    """
    model = uneven(dense)
    expected = logits(model)
    names = ["LLMPruner", "LLMPruner.models", "LLMPruner.models.hf_llama"]
    own = types.ModuleType("LLMPruner.models.hf_llama.modeling_llama")
    modules = {name: types.ModuleType(name) for name in names} | {own.__name__: own}
    for module in model.modules():
        kind = type(module)
        if kind.__module__ == "transformers.models.llama.modeling_llama":
            if not hasattr(own, kind.__name__):
                copy = type(kind.__name__, (kind,), {"__module__": own.__name__})
                copy.__qualname__ = kind.__name__
                setattr(own, kind.__name__, copy)
            module.__class__ = getattr(own, kind.__name__)
    sys.modules.update(modules)
    try:
        torch.save({"model": model, "tokenizer": load_tokenizer(dense)}, file)
    finally:
        for name in modules:
            del sys.modules[name]
    return expected


def gguf(dense: Path, file: Path, *, architecture: str = "llama", lacking: str = "") -> torch.Tensor:
    """The model as llama.cpp's converter writes it, in float32; returns its logits."""
    from gguf import GGUFWriter, TokenType

    model: Any = load_causal_lm(dense, dtype=torch.float32)
    config, tokenizer = model.config, load_tokenizer(dense)
    writer = GGUFWriter(file, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = {entry["content"] for entry in state["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if t in special else TokenType.NORMAL for t in tokens])
    merges = state["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        if (written := _gguf_name(name)) and written != lacking:
            writer.add_tensor(written, _as_llama_cpp(name, tensor, config).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return logits(model)


def _gguf_name(name: str) -> str:
    outside = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in outside or "layers" not in name:
        return outside.get(name, "")
    _, _, number, *rest = name.split(".")
    parts = {
        "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
        "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    return f"blk.{number}.{parts[rest[-2]]}.weight"


def _as_llama_cpp(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Rows of queries and keys in the order of llama.cpp's rotary embedding."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    short = name.split(".")[-2]
    if short not in heads:
        return tensor.contiguous()
    halves = tensor.view(heads[short], 2, -1, tensor.shape[1])
    return halves.transpose(1, 2).reshape(tensor.shape).contiguous()
