"""Recovers a pruned model on selected rows, and proves afterwards which rows went into it.

On what `make demo` leaves:

    python examples/recover_and_verify.py data/models/pruned data/selected.jsonl recovered
"""

import argparse
import sys

from datasets import Dataset

import paser
from paser.lineage.proof import prove, why_not

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("pruned", help="folder or URI of the pruned model")
parser.add_argument("selected", help="JSON Lines: selected.jsonl of `paser select`, or any instruction rows")
parser.add_argument("out", help="new folder for the recovered model")
parser.add_argument("--epochs", type=int, default=2)
words = parser.parse_args()

rows = Dataset.from_json(words.selected)
model = paser.recover(words.pruned, rows, words.out, settings={"recover": {"epochs": words.epochs}})
facts = model.provenance["facts"]
print(f"{model.path}: loss {facts['loss_first']:.3f} -> {facts['loss_last']:.3f} on {len(rows)} rows")

checks = paser.verify(model.path)
for check in checks:
    print(f"{'ok' if check.ok else 'FAILED'}  {check.name}: {check.detail}")

proof = prove(model.path, model.provenance["row_ids"][0])
problem = why_not(proof, model.provenance["merkle_root"], model.provenance["rows"])
print(f"row {proof['row_id'][:11]} is in it: {problem or 'proven, without showing any other row'}")
sys.exit(0 if problem is None and all(check.ok for check in checks) else 1)
