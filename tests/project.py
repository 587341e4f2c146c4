"""A whole project on tiny models: the repository's own dvc.yaml and code, local sources, small settings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from paser.artifacts import write_table
from paser.records import Sample, sample_to_row
from tests import tiny

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "DVC_NO_ANALYTICS": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
}
SETTINGS = {
    "seed": 5,
    "model": {"precision": "float32"},
    "pool": {"holdout_per_label": 8},
    "cluster": {"k": 3, "stability_runs": 1},
    "select": {"budget": "20%"},
    "recover": {"epochs": 1, "checkpoint_steps": 2, "learning_rate": 0.01},
    "evaluate": {"bootstrap": 100},
    "runtime": {"threads": 1},
}
SOURCES = """\
sources:
  - name: tiny-llama
    uri: file:dense
    role: original
  - name: tiny-encoder
    uri: file:encoder
    role: encoder
  - name: handmade
    uri: file:pool.jsonl
    role: pool
    format: alpaca
    license: MIT
  - name: spare
    uri: file:calibration.jsonl
    role: calibration
    format: alpaca
    license: Apache-2.0
"""


def make_project(folder: Path, dense: Path, encoder: Path, rows: int = 240) -> Path:
    """A git and DVC repository with everything but results."""
    raw = folder / "data" / "raw"
    raw.mkdir(parents=True)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "paser", folder / "paser", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(dense, raw / "dense")
    shutil.copytree(encoder, raw / "encoder")
    made = tiny.rows(rows + 12)
    tiny.write_jsonl(raw / "calibration.jsonl", made[rows:])
    empty = {**made[0], "instruction": "Say nothing at all, please.", "output": "  "}
    near = {**made[1], "output": made[1]["output"] + " today"}
    tiny.write_jsonl(raw / "pool.jsonl", [*made[:rows], empty, made[3], near])
    (folder / "data" / "sources.yaml").write_text(SOURCES, encoding="utf-8")
    shutil.copy(ROOT / "data" / "withdrawn.csv", folder / "data" / "withdrawn.csv")
    write_settings(folder, SETTINGS)
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    return folder


def make_prune_inputs(root: Path, llama: Path) -> None:
    """What the stage `prune` reads beside params.yaml: the original, no foreign model, calibration rows."""
    shutil.copytree(llama, root / "data/sources/original/tiny")
    (root / "data/sources/pruned").mkdir(parents=True)
    (root / "data/sources/pruned/note.json").write_text("{}")
    samples = [
        Sample("tiny", str(i), "MIT", row["instruction"], row["input"], row["output"])
        for i, row in enumerate(tiny.rows(8))
    ]
    rows = [sample_to_row(sample, tokens=50) for sample in samples]
    write_table(root / "data/calibration.parquet", "pool", rows)


def write_settings(folder: Path, changes: dict[str, object]) -> None:
    """The shipped defaults with `changes` on top: DVC wants every key that dvc.yaml names."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for group, value in changes.items():
        content[group] = {**content[group], **value} if isinstance(value, dict) else value
    (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def run(folder: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done
