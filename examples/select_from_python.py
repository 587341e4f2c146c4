"""Selects from Python the samples that repair a pruned model, with models and data of Hugging Face.

On the models and rows that `make demo` leaves:

    python examples/select_from_python.py data/models/original data/models/pruned data/pool.parquet
"""

import argparse

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import paser

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("original", help="folder of the dense model")
parser.add_argument("pruned", help="folder of the pruned model")
parser.add_argument("samples", help="Parquet, or JSON Lines, with instruction, input and output")
parser.add_argument("--budget", type=float, default=0.1, help="share of the samples")
parser.add_argument("--encoder", help="sentence encoder; default all-MiniLM-L6-v2")
parser.add_argument("--out", help="folder for selection, control and decisions")
words = parser.parse_args()

read = Dataset.from_parquet if words.samples.endswith(".parquet") else Dataset.from_json
found = paser.select(
    AutoModelForCausalLM.from_pretrained(words.original),
    AutoModelForCausalLM.from_pretrained(words.pruned),
    read(words.samples),
    budget=words.budget,
    tokenizer=AutoTokenizer.from_pretrained(words.original),
    encoder=words.encoder,
)

print(found.damage.to_string(index=False))
print(found.decisions["reason"].value_counts().to_string())
print(f"{len(found.selected)} samples to train on, the first: {found.selected[0]['instruction']!r}")
if words.out:
    print(found.write(words.out))
