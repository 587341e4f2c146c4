"""A small but consistent project on disk: every stage's outputs with made-up content and real records.

Tables, digests, provenance and the chain are what the stages would write; only the numbers in them are
invented, so that lineage and report can be tested without a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paser.artifacts import write_array, write_json, write_jsonl, write_table
from paser.lineage.provenance import write_provenance
from paser.lineage.record import describe
from paser.records import row_id
from paser.settings import load_settings
from paser.stages.graph import STAGES
from paser.stages.run import _param

Row = dict[str, Any]

# label: (source, licence, benchmark, cluster, mean JSD, loss increase, a prompt)
CAPABILITIES = {
    "code": ("more-itertools", "MIT", None, 0, 0.31, 0.99, "Write a Python function that {} an iterable"),
    "function calling": ("bfcl", "Apache-2.0", "BFCL", 1, 0.27, 0.84, "Call the tool which {} a booking"),
    "maths": ("champ", "MIT", "CHAMP", 2, 0.22, 0.65, "Prove how one {} the sum of two squares"),
    "knowledge": ("mmlu-cot", "MIT", "MMLU", 3, 0.17, 0.43, "Which organ of the body {} the blood?"),
    "conversation": ("chatterbot", "BSD-3-Clause", None, 4, 0.14, 0.37, "Tell me why a robot {} its friends"),
    "logic": ("reasoning-gym", "Apache-2.0", None, 5, 0.09, 0.02, "Which knight {} the puzzle first?"),
}
NOT_DRAWN = {"mmlu-cot": 5, "calibration-champ": 7}
NAMES = (
    "python function, iterable, return",
    "tool call, booking, parameters",
    "sum of squares, proof, integer",
    "organ, blood, biology",
    "robot, friends, feelings",
    "knight, knave, puzzle",
)
VERBS = (
    "splits",
    "moves",
    "filters",
    "orders",
    "finds",
    "cancels",
    "repeats",
    "confirms",
    "hides",
    "measures",
)


def sample(label: str, number: int, split: str) -> Row:
    """One made-up row of the pool table."""
    source, license, benchmark, _, _, _, prompt = CAPABILITIES[label]
    instruction = f"{prompt.format(VERBS[number % len(VERBS)])}, case {split} {number}."
    output = f"Here is answer {number} of the {split}, on {label}.\nIt has two lines – and a dash."
    origin = {"source": source, "source_row": f"{split}:{number}", "license": license}
    return {
        "row_id": row_id(instruction, "", output),
        **origin,
        "instruction": instruction,
        "input": "",
        "output": output,
        "label": label,
        "benchmark": benchmark,
        "tokens": 30 + (7 * number) % 60,
        "occurrences": [origin],
    }


def build(
    root: Path,
    *,
    per_label: int = 6,
    seed: int = 3,
    control: bool = True,
    names: tuple[str, ...] = NAMES,
    pool_rows: list[Row] | None = None,
) -> Path:
    """Writes a whole project up to the records of `evaluate`; `pool_rows` are added to the pool."""
    data = root / "data"
    (root / "params.yaml").parent.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(
        f"seed: 17\nreport: {{map_rows: 400}}\ncontrol: {{enabled: {str(control).lower()}}}\n", "utf-8"
    )
    rng = np.random.default_rng(seed)
    _sources(data)
    pool = [sample(label, i, "pool") for label in CAPABILITIES for i in range(per_label)]
    pool += pool_rows or []
    holdout = [sample(label, i, "held out") for label in CAPABILITIES for i in range(max(2, per_label // 3))]
    calibration = [sample(label, i, "calibration") for label in CAPABILITIES for i in range(2)]
    write_table(data / "pool.parquet", "pool", pool)
    write_table(data / "holdout.parquet", "pool", holdout)
    write_table(data / "calibration.parquet", "pool", calibration)
    write_table(data / "quarantine.parquet", "quarantine", _quarantine(pool, per_label))
    clusters = _cluster(data, pool, holdout, names, rng)
    scores = _score(data, pool, rng)
    selected, random_rows = _select(data, pool, clusters, scores, names, control, rng)
    for name in ("original", "pruned"):
        _weights(data / "models" / name, rng)
    for name, role, stage, rows in (
        ("recovered", "recovered", "recover", selected),
        ("control", "control", "control", random_rows),
    ):
        folder = data / "models" / name
        if name == "control" and not control:
            folder.mkdir(parents=True)
            (folder / "README.txt").write_text("control.enabled is false\n", "utf-8")
            continue
        _weights(folder, rng)
        settings = load_settings(root / "params.yaml")
        chosen = "data/selected.jsonl" if name == "recovered" else "data/control.jsonl"
        write_provenance(
            folder,
            role=role,
            rows=rows,
            settings={key: _param(settings, key) for key in STAGES[stage].params if key != "seed"},
            inputs={p: describe(root, p).sha256 for p in ("data/models/pruned", chosen)},
            seed=17,
            facts={"precision": "float32", "steps": 12},
        )
    _evaluate(data, holdout, names, clusters, selected, pool, control, rng)
    for name in STAGES:
        if name not in ("audit", "report"):
            write_record(root, name)
    return root


def write_record(root: Path, name: str) -> None:
    """The record that `run_stage` would have written for what lies on disk."""
    settings = load_settings(root / "params.yaml")
    stage = STAGES[name]
    write_json(
        root / stage.record,
        {
            "version": 1,
            "stage": name,
            "inputs": [describe(root, path).as_json() for path in stage.inputs],
            "outputs": [describe(root, path).as_json() for path in stage.outputs],
            "params": {key: _param(settings, key) for key in stage.params},
            "code": "0" * 64,
            "seed": 17,
            "versions": {"paser": "0.1.0"},
            "facts": {"not_drawn_by_source": dict(NOT_DRAWN)} if name == "pool" else {},
        },
    )
    write_json(
        root / stage.run_record,
        {
            "stage": name,
            "started": "2026-11-25T04:57:44+00:00",
            "seconds": 1.5 * (list(STAGES).index(name) + 1),
            "host": "here",
            "machine": "x86_64",
            "system": "Linux",
            "cpus": 2,
            "commit": None,
            "dirty": False,
        },
    )


def _sources(data: Path) -> None:
    data.mkdir(parents=True)
    (data / "sources.yaml").write_text("sources: []\n", "utf-8")
    (data / "withdrawn.csv").write_text("kind,value\n", "utf-8")
    (data / "raw").mkdir()
    (data / "raw" / "notes.txt").write_text("raw\n", "utf-8")
    for role in ("original", "encoder", "pool", "calibration", "evaluation", "task"):
        write_json(data / "sources" / role / "index.json", {"role": role, "sources": []})
    write_json(data / "sources/pruned/note.json", {"note": "prune.external is null"})
    for source, *_ in CAPABILITIES.values():
        for role, name in (("pool", source), ("calibration", f"calibration-{source}")):
            (data / "sources" / role / name).mkdir()
            (data / "sources" / role / name / "rows.jsonl").write_text(f"{name}\n", "utf-8")


def _weights(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(rng.bytes(3000))
    write_json(folder / "config.json", {"layers": 2})


def _quarantine(pool: list[Row], per_label: int) -> list[Row]:
    rows = []
    reasons = ("duplicate", "near_duplicate", "too_long", "empty_response")
    pairs = [(name, reason) for name in CAPABILITIES for reason in reasons[: 2 + len(name) % 3]]
    for number, (label, reason) in enumerate(pairs):
        for copy in range(1 + (per_label * (number % 4)) // 12):
            row = {**sample(label, 900 + 10 * number + copy, "quarantine"), "reason": reason, "detail": ""}
            row["duplicate_of"] = pool[number % len(pool)]["row_id"] if "duplicate" in reason else None
            rows.append({key: value for key, value in row.items() if key not in ("tokens", "occurrences")})
    for number in range(3):
        row = {**rows[0], "source": "calibration-champ", "source_row": f"calibration:{number}"}
        rows.append({**row, "reason": "too_long", "duplicate_of": None})
    return rows


def _cluster_of(row: Row) -> int:
    return CAPABILITIES[row["label"]][3]


def _cluster(
    data: Path, pool: list[Row], holdout: list[Row], names: tuple[str, ...], rng: np.random.Generator
) -> dict[str, int]:
    centres = 0.4 * rng.normal(size=(len(names), 32))
    for name, rows in (("embeddings", pool), ("holdout-embeddings", holdout)):
        points = centres[[_cluster_of(row) for row in rows]] + 1.0 * rng.normal(size=(len(rows), 32))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        write_array(data / f"{name}.npy", points.astype(np.float32))
    splits = [("pool", row) for row in pool] + [("holdout", row) for row in holdout]
    write_table(
        data / "clusters.parquet",
        "clusters",
        [{"row_id": row["row_id"], "split": split, "cluster": _cluster_of(row)} for split, row in splits],
    )
    write_json(
        data / "clusters.json",
        {
            "k": len(names),
            "automatic": True,
            "choice": {
                "rule": "modularity",
                "k": len(names),
                "runner_up": 4,
                "scores": {str(len(names)): 0.71, "4": 0.66},
            },
            "manifold": "diffusion",
            "algorithm": "nmf",
            "neighbours": 15,
            "gap": {"k": len(names), "gap": 0.11, "runner_up": 4, "runner_up_gap": 0.06},
            "eigenvalues": [1.0, 0.9, 0.8],
            "stability": {"runs": 5, "mean_ari": 0.81, "aris": [0.8, 0.82, 0.8, 0.83, 0.8]},
            "clusters": [
                {
                    "cluster": k,
                    "name": name,
                    "rows": sum(_cluster_of(row) == k for row in pool),
                    "phrases": name.split(", "),
                    "labels": {label: sum(r["label"] == label for r in pool if _cluster_of(r) == k)
                               for label, c in CAPABILITIES.items() if c[3] == k},
                }
                for k, name in enumerate(names)
            ],
            "agreement": {"nmi": 0.78, "ari": 0.74},
        },
    )  # fmt: skip
    return {row["row_id"]: _cluster_of(row) for _, row in splits}


def _score(data: Path, pool: list[Row], rng: np.random.Generator) -> list[Row]:
    rows = []
    for row in pool:
        jsd = float(np.clip(CAPABILITIES[row["label"]][4] * np.exp(0.3 * rng.normal()), 0, 0.69))
        rows.append(
            {
                "row_id": row["row_id"],
                "jsd": jsd,
                "loss_original": 1.2,
                "loss_pruned": 1.2 + 3 * jsd,
                "recoverability": 0.5 * jsd,
                "prompt_tokens": 12,
                "response_tokens": row["tokens"] - 12,
                "status": "ok",
            }
        )
    rows[0] |= {"jsd": None, "loss_pruned": None, "recoverability": None, "status": "nonfinite"}
    write_table(data / "scores.parquet", "scores", rows)
    return rows


def _select(
    data: Path,
    pool: list[Row],
    clusters: dict[str, int],
    scores: list[Row],
    names: tuple[str, ...],
    control: bool,
    rng: np.random.Generator,
) -> tuple[list[Row], list[Row]]:
    per_cluster = max(1, len(pool) // (5 * len(names)))
    by_id = {row["row_id"]: row for row in pool}
    order = sorted(scores, key=lambda s: (clusters[s["row_id"]], -(s["jsd"] or 0), s["row_id"]))
    decisions, selected, taken = [], [], [0] * len(names)
    for rank, score in enumerate(order, 1):
        cluster = clusters[score["row_id"]]
        accepted, reason, detail = False, "budget", f"cluster {cluster} had spent its {per_cluster}"
        if score["jsd"] is None:
            reason, detail = "nonfinite", "a logit of the pruned model is not finite"
        elif rank % 5 == 2:
            reason = "conflict"
            detail = (
                f"'return value' (from {score['row_id']}) and 'python function' (from {score['row_id']}) are "
                "both known but were never together; 2 of 5 known pairs are joined"
            )
        elif taken[cluster] < per_cluster:
            accepted, reason, detail = True, "selected", ""
            taken[cluster] += 1
        if accepted:
            row = by_id[score["row_id"]]
            keys = ("row_id", "instruction", "input", "output", "source", "source_row", "license", "label")
            selected.append({**{k: row[k] for k in keys}, "cluster": cluster, "tokens": row["tokens"]})
        decisions.append(
            {
                "row_id": score["row_id"],
                "cluster": cluster,
                "jsd": score["jsd"],
                "ies": None if score["jsd"] is None else score["jsd"] / 8,
                "rank": rank,
                "decision": "accepted" if accepted else "rejected",
                "reason": reason,
                "detail": detail,
            }
        )
    rng.shuffle(selected)
    at_random = [{**row, "cluster": clusters[row["row_id"]]} for row in pool[: len(selected)]]
    write_jsonl(data / "selected.jsonl", selected)
    write_jsonl(data / "control.jsonl", at_random if control else [])
    write_table(data / "decisions.parquet", "decisions", decisions)
    cds = [
        float(np.mean([s["jsd"] for s in scores if clusters[s["row_id"]] == k and s["jsd"] is not None]))
        for k in range(len(names))
    ]
    budget = per_cluster * len(names)
    reasons = [d["reason"] for d in decisions if d["decision"] == "rejected"]
    write_json(
        data / "contamination.json", {"pool_rows": len(pool), "overlapping": 0, "selected": 0, "rows": []}
    )
    write_json(
        data / "budget.json",
        {
            "requested": {"text": "20%", "unit": "share", "amount": 0.2},
            "unit": "rows",
            "budget": budget,
            "spent": len(selected),
            "unspent": budget - len(selected),
            "cause": None,
            "rows": len(selected),
            "tokens": sum(row["tokens"] for row in selected),
            "policy": "damage",
            "distance_from_uniform": 0.17,
            "clusters": [
                {
                    "cluster": k,
                    "name": name,
                    "rows": sum(c == k for c in clusters.values()),
                    "cds": cds[k],
                    "share": cds[k] / sum(cds),
                    "allocated": round(budget * cds[k] / sum(cds)),
                    "spent": taken[k],
                    "accepted": taken[k],
                }
                for k, name in enumerate(names)
            ],
            "moves": [{"step": "re-spread", "cluster": 1, "amount": 2}],
            "rejected": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
            "rejected_share": reasons.count("conflict") / len(decisions),
            "relaxed": {},
            "control": {"rows": len(at_random), "tokens": sum(row["tokens"] for row in at_random)},
        },
    )
    return selected, at_random


def _interval(value: float, width: float) -> dict[str, Any]:
    return {"value": value, "low": value - width, "high": value + width}


def _evaluate(
    data: Path,
    holdout: list[Row],
    names: tuple[str, ...],
    clusters: dict[str, int],
    selected: list[Row],
    pool: list[Row],
    control: bool,
    rng: np.random.Generator,
) -> None:
    models = ["original", "pruned", "recovered", *(["control"] if control else [])]
    left = {"original": 0.0, "pruned": 1.0, "recovered": 0.56, "control": 0.60}
    capabilities = []
    for label, (_, _, _, _, jsd, rise, _) in CAPABILITIES.items():
        averaged = label != "logic"
        factor = {m: left[m] * (0.9 + 0.2 * rng.random()) if left[m] % 1 else left[m] for m in models}
        if label == "conversation":
            factor["recovered"] = -0.12
        loss = {m: 1.1 + rise * factor[m] for m in models}
        divergence = {m: jsd * abs(factor[m]) for m in models}
        tuned = [m for m in models if m in ("recovered", "control")]
        capabilities.append(
            {
                "name": label,
                "rows": sum(row["label"] == label for row in holdout),
                "averaged": averaged,
                "why_not_averaged": None if averaged else "the interval of its damage includes 0",
                "damage": _interval(rise, 0.06),
                "loss": loss,
                "jsd": divergence,
                "gap_closed": {
                    m: {**_interval(1 - factor[m], 0.09), "above_one": factor[m] < 0} for m in tuned
                },
                "fidelity_gap": {m: _interval(1 - abs(factor[m]), 0.05) for m in tuned},
            }
        )
    counted = [c for c in capabilities if c["averaged"]]

    def overall(model: str) -> Row:
        loss = float(np.mean([c["loss"][model] for c in capabilities]))
        jsd = float(np.mean([c["jsd"][model] for c in capabilities]))
        if model in ("original", "pruned"):
            return {"loss": loss, "jsd": jsd, "gap_closed": None, "fidelity_gap": None}
        rise = sum(c["damage"]["value"] for c in counted)
        damage = float(np.mean([c["jsd"]["pruned"] for c in capabilities]))
        gap = sum(c["loss"]["pruned"] - c["loss"][model] for c in counted) / rise
        return {
            "loss": loss,
            "jsd": jsd,
            "gap_closed": {**_interval(gap, 0.05), "above_one": gap > 1},
            "fidelity_gap": _interval(1 - jsd / damage, 0.03),
        }

    write_json(
        data / "metrics.json",
        {
            "models": models,
            "capability_kind": "label",
            "seeds": 1,
            "budget": {
                "rows": len(selected),
                "tokens": sum(row["tokens"] for row in selected),
                "unit": "rows",
                "requested": "20%",
            },
            "interval": "95 % bootstrap over held-out rows",
            "overall": {model: overall(model) for model in models},
            "capabilities": capabilities,
            "benchmarks": sorted({row["benchmark"] for row in pool if row["benchmark"]}),
            "excluded_rows": 0,
            "notes": [],
        },
    )
    write_json(data / "scoreboard.json", [])
    write_json(data / "summary.json", {})
    (data / "scoreboard.csv").write_text("section,name\n", "utf-8")
    write_table(data / "tasks.parquet", "tasks", [])
    write_table(
        data / "evaluation.parquet",
        "evaluation",
        [
            {
                "row_id": row["row_id"],
                "split": "holdout",
                "capability": row["label"],
                "cluster": clusters[row["row_id"]],
                "model": model,
                "loss": 1.1,
                "jsd": 0.1,
                "response_tokens": row["tokens"] - 12,
                "status": "ok",
            }
            for row in holdout
            for model in models
        ],
    )
