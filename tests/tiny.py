"""Real models small enough for tests: a two-layer Llama, a two-layer sentence encoder, and a pool of
some dozens of rows with three capabilities. Built from seeds, never downloaded.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
ANIMALS = ["otter", "heron", "badger", "lynx", "marten", "stork", "beaver", "falcon", "newt", "raven"]
PLACES = ["river", "meadow", "forest", "harbour", "valley", "quarry", "island", "garden", "moor", "delta"]
FOODS = ["soup", "bread", "salad", "stew", "pancake", "omelette", "risotto", "curry", "pie", "noodles"]


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Distinct rows of three labels: sums, animals, recipes."""
    rng = random.Random(seed)
    made: dict[str, dict[str, Any]] = {}
    while len(made) < count:
        kind = len(made) % 3
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        animal, place, food = rng.choice(ANIMALS), rng.choice(PLACES), rng.choice(FOODS)
        other = rng.choice([x for x in FOODS if x != food])
        if kind == 0:
            row = {
                "instruction": f"Compute {a} plus {b} and then subtract {a % 7}.",
                "input": "",
                "output": f"{a} plus {b} is {a + b}. Less {a % 7} that is {a + b - a % 7}.",
                "label": "sums",
            }
        elif kind == 1:
            row = {
                "instruction": f"Describe where the {animal} lives and what it does at dawn number {a}.",
                "input": f"Place: {place} {b}",
                "output": f"The {animal} lives near the {place} {b}; at dawn {a} it looks for fish.",
                "label": "animals",
            }
        else:
            row = {
                "instruction": f"Write a short recipe for {food} with {other} for {a} guests.",
                "input": "",
                "output": f"Cook the {food} for {b} minutes, add the {other} and serve {a} plates warm.",
                "label": "recipes",
            }
        made[f"{row['instruction']}{row['input']}"] = row
    return list(made.values())


def write_jsonl(path: Path, content: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def make_tokenizer(chat: bool = True, extra: tuple[str, ...] = ()) -> Any:
    """A byte-level BPE tokenizer trained on the tiny pool; `extra` tokens change its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|start|>", "<|end|>", "<|pad|>", *extra]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{r['instruction']} {r['input']} {r['output']} user assistant" for r in rows(200, seed=9)]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def make_llama(
    path: Path,
    seed: int = 0,
    *,
    tokenizer: Any = None,
    context: int = 512,
    hidden: int = 32,
    inner: int = 64,
    blocks: int = 2,
    heads: int = 4,
) -> Path:
    """A two-layer Llama in float32 with its tokenizer, saved as a plain transformers folder.

    Two query heads share one key-value head.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from paser.models.loading import save_causal_lm

    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
    )
    save_causal_lm(LlamaForCausalLM(config).eval(), tokenizer, path)
    return path


def make_family(path: Path, family: str, *, layers: int = 3, tied: bool = True) -> Path:
    """A tiny decoder of another family, with grouped-query attention and random biases where it has any."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from paser.models.loading import save_causal_lm

    tokenizer = make_tokenizer()
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        pad_token_id=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.1)
            elif "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
            elif weight.dim() == 2:
                weight.normal_(std=0.15)
    save_causal_lm(model, tokenizer, path)
    return path


def calibration(path: Path, count: int = 8) -> list[Any]:
    """Encoded rows of the tiny pool, for the tokenizer of a saved model."""
    from paser.models.loading import load_tokenizer
    from paser.models.tokens import SampleEncoder
    from paser.records import Sample

    encoder = SampleEncoder(load_tokenizer(path))
    return [
        encoder.encode(Sample("tiny", str(i), "MIT", r["instruction"], r["input"], r["output"]), 200)
        for i, r in enumerate(rows(count, seed=5))
    ]


def make_sparse(source: Path, path: Path, share: float = 0.5) -> Path:
    """A copy of a model in which the smallest `share` of each linear layer's weights is zero."""
    import torch

    from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm

    model = load_causal_lm(source, dtype=torch.float32)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            with torch.no_grad():
                threshold = module.weight.abs().flatten().quantile(share)
                module.weight[module.weight.abs() <= threshold] = 0.0
    save_causal_lm(model, load_tokenizer(source), path)
    return path


def make_encoder(path: Path, seed: int = 0) -> Path:
    """A two-layer BERT with mean pooling, as a sentence-transformers folder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = sorted({w for r in rows(300, seed=9) for w in _words(f"{r['instruction']} {r['input']}")})
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    raw = path.with_name(f"{path.name}-raw")
    BertModel(config).save_pretrained(raw)
    fast.save_pretrained(raw)
    transformer = Transformer(str(raw), max_seq_length=64)
    SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_word_embedding_dimension())], device="cpu"
    ).save(str(path), create_model_card=False)
    return path


def _words(text: str) -> list[str]:
    import re

    return re.findall(r"\w+|[^\w\s]", text.lower())
