"""Says what pruning damaged, by capability, for one pruned model or several, and draws it.

On the models that `make demo` leaves, with its held-out rows:

    python examples/damage_report.py data/models/original data/models/pruned --samples data/holdout.parquet
"""

import argparse
from pathlib import Path

import paser

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("original", help="folder or URI of the dense model")
parser.add_argument("pruned", nargs="+", help="folders or URIs of pruned models")
parser.add_argument("--samples", help="rows with a `label`; default: rows of six capabilities from PyPI")
parser.add_argument("--out", default="damage-report", help="folder for table and figure")
words = parser.parse_args()

found = paser.damage(words.original, {Path(model).name: model for model in words.pruned}, words.samples)

print(found.table.to_string(index=False))
for scheme, rows in found.table[found.table["rank"].notna()].groupby("scheme"):
    worst = rows.loc[rows["jsd"].idxmax()]
    print(f"{scheme} lost most in {worst['capability']}: {worst['loss_increase']:+.2f} nats a token")
print(found.write(words.out) / "damage.svg")
