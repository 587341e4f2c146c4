"""The whole pipeline by DVC, on a two-layer model: what comes out, what re-runs, what survives a kill."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from paser.artifacts import file_digests, read_json, read_jsonl, read_rows, sha256_file
from paser.stages.graph import STAGES
from paser.stages.run import run_stage
from tests import project as projects

DATA_OUTPUTS = [
    "data/pool.parquet",
    "data/holdout.parquet",
    "data/quarantine.parquet",
    "data/embeddings.npy",
    "data/clusters.parquet",
    "data/scores.parquet",
    "data/decisions.parquet",
    "data/selected.jsonl",
    "data/control.jsonl",
]


@pytest.fixture(scope="module")
def done(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished project in a folder of its own: questions to the audit fill its catalogue."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("pipeline") / "p", symlinks=True))


def changed_stages(folder: Path) -> set[str]:
    status = json.loads(projects.run(folder, "dvc", "status", "--json").stdout)
    return {name.removeprefix("dvc.yaml:") for name in status}


def test_every_stage_leaves_its_outputs_and_records(done: Path) -> None:
    for spec in STAGES.values():
        for path in (*spec.outputs, spec.record, spec.run_record):
            assert (done / path).exists(), path
        record = read_json(done / spec.record)
        assert [a["path"] for a in record["inputs"]] == list(spec.inputs)
        assert [a["path"] for a in record["outputs"]] == list(spec.outputs)
    assert not list(done.rglob("*.partial-*"))


def test_a_second_run_does_nothing(done: Path) -> None:
    lock = sha256_file(done / "dvc.lock")
    again = projects.run(done, "dvc", "repro")
    assert "Data and pipelines are up to date" in again.stdout
    assert sha256_file(done / "dvc.lock") == lock
    assert changed_stages(done) == set()


def test_a_second_demo_says_that_nothing_is_to_do_and_shows_the_result(done: Path) -> None:
    again = projects.run(done, "paser", "demo")
    assert "nothing to do: every stage is up to date" in again.stderr
    assert "fidelity gap" in again.stdout
    assert "data/report/index.html" in again.stdout.replace("\n", "")


def test_pool_and_quarantine_account_for_every_row_that_was_read(done: Path) -> None:
    pool = read_rows(done / "data/pool.parquet", "pool")
    holdout = read_rows(done / "data/holdout.parquet", "pool")
    quarantine = read_rows(done / "data/quarantine.parquet", "quarantine")
    lines = (done / "data/raw/pool.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(pool) + len(holdout) + len(quarantine) == len(lines)
    reasons = {row["reason"] for row in quarantine}
    assert {"empty_response", "duplicate", "near_duplicate"} <= reasons
    assert {row["label"]: 0 for row in holdout} == {"animals": 0, "recipes": 0, "sums": 0}
    assert len(holdout) == 24
    ids = [row["row_id"] for row in pool]
    assert ids == sorted(ids)
    assert not set(ids) & {row["row_id"] for row in holdout}
    twice = [row for row in pool + holdout if len(row["occurrences"]) == 2]
    assert len(twice) == 1


def test_every_row_has_a_decision_and_the_budget_is_kept(done: Path) -> None:
    pool = read_rows(done / "data/pool.parquet", "pool")
    decisions = read_rows(done / "data/decisions.parquet", "decisions")
    selected = read_jsonl(done / "data/selected.jsonl")
    control = read_jsonl(done / "data/control.jsonl")
    budget = read_json(done / "data/budget.json")
    assert [d["row_id"] for d in decisions] == [row["row_id"] for row in pool]
    accepted = {d["row_id"] for d in decisions if d["decision"] == "accepted"}
    assert accepted == {row["row_id"] for row in selected}
    assert len(selected) == budget["rows"] == budget["spent"]
    assert budget["spent"] + budget["unspent"] == len(pool) // 5
    tokens = sum(row["tokens"] for row in selected)
    assert tokens == budget["tokens"]
    assert 0 <= tokens - sum(row["tokens"] for row in control) < max(row["tokens"] for row in control)


def test_the_recovered_model_keeps_every_zero_and_has_learned(done: Path) -> None:
    before = load_file(done / "data/models/pruned/model.safetensors")
    after = load_file(done / "data/models/recovered/model.safetensors")
    zeros = 0
    for name, weight in before.items():
        if name.endswith("_proj.weight"):
            assert (after[name][weight == 0] == 0).all(), name
            zeros += int((weight == 0).sum())
    assert zeros > 1000
    assert any((after[name] != before[name]).any() for name in before)
    metrics = read_json(done / "data/metrics.json")
    assert metrics["models"] == ["original", "pruned", "recovered", "control"]
    assert metrics["overall"]["original"]["jsd"] == 0
    assert metrics["overall"]["pruned"]["jsd"] > 0
    assert {c["name"] for c in metrics["capabilities"]} == {"animals", "recipes", "sums"}


def test_the_audit_verifies_and_notices_a_changed_byte(done: Path, tmp_path: Path) -> None:
    fine = projects.run(done, "paser", "audit", "verify", "data/models/recovered", "--json")
    assert json.loads(fine.stdout)["ok"]
    trace = projects.run(done, "paser", "audit", "trace", "data/models/recovered", "--json").stdout
    assert "handmade" in json.dumps(json.loads(trace))
    rows = [row["row_id"] for row in json.loads(trace)["selected"]]
    assert rows == [row["row_id"] for row in read_jsonl(done / "data/selected.jsonl")]
    proof = str(tmp_path / "proof.json")
    projects.run(done, "paser", "audit", "prove", "data/models/recovered", rows[-1], "--out", proof)
    projects.run(done, "paser", "audit", "check-proof", proof, "data/models/recovered")
    wrong = projects.run(done, "paser", "audit", "check-proof", proof, "--root", "0" * 64, check=False)
    assert wrong.returncode == 1
    assert "does not hold" in wrong.stdout
    unknown = projects.run(done, "paser", "audit", "prove", "data/models/recovered", "r1-x", check=False)
    assert unknown.returncode == 1
    assert "is not among the" in unknown.stderr
    copy = tmp_path / "altered"
    shutil.copytree(done, copy)
    weights = copy / "data/models/recovered/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    altered = projects.run(copy, "paser", "audit", "verify", "data/models/recovered", check=False)
    assert altered.returncode == 1
    assert "FAILED" in altered.stdout


def test_the_report_is_one_self_contained_page(done: Path) -> None:
    page = (done / "data/report/index.html").read_text(encoding="utf-8")
    assert "sums" in page
    for outside in ('src="http', "src='http", '<link rel="stylesheet"', "@import"):
        assert outside not in page


def test_a_changed_budget_touches_nothing_before_select(done: Path) -> None:
    projects.write_settings(done, {**projects.SETTINGS, "select": {"budget": "25%"}})
    try:
        assert changed_stages(done) == {"select"}
        plan = projects.run(done, "dvc", "repro", "--dry").stdout
        ran = {line.split("'")[1] for line in plan.splitlines() if line.startswith("Running stage")}
        assert "select" in ran
        assert not ran & {"fetch", "pool", "prune", "embed", "cluster", "score"}
    finally:
        projects.write_settings(done, projects.SETTINGS)


def test_settings_that_cannot_change_results_are_no_parameters(done: Path) -> None:
    projects.write_settings(done, {**projects.SETTINGS, "runtime": {"cache_gb": 3.0}})
    try:
        assert changed_stages(done) == set()
    finally:
        projects.write_settings(done, projects.SETTINGS)


def test_a_changed_source_list_re_runs_only_what_really_changed(done: Path, tmp_path: Path) -> None:
    copy = tmp_path / "p"
    shutil.copytree(done, copy)
    sources = copy / "data/sources.yaml"
    content = yaml.safe_load(sources.read_text(encoding="utf-8"))
    content["sources"][2]["label"] = None
    content["sources"][2]["license"] = "BSD-3-Clause"
    del content["sources"][2]["label"]
    sources.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert changed_stages(copy) == {"fetch"}
    projects.run(copy, "dvc", "repro", "pool", "prune", "embed")
    records = {n: read_json(copy / f"data/records/{n}.run.json") for n in ("fetch", "pool", "prune")}
    old = {n: read_json(done / f"data/records/{n}.run.json") for n in ("fetch", "pool", "prune")}
    assert records["fetch"] != old["fetch"]
    assert records["pool"] != old["pool"]
    assert records["prune"] == old["prune"]
    assert read_rows(copy / "data/pool.parquet", "pool")[0]["license"] == "BSD-3-Clause"


def test_withdrawn_rows_are_left_out_for_ever(done: Path, tmp_path: Path) -> None:
    """One row in each role: the next run has them in quarantine, with the reason, and nowhere else."""
    copy = tmp_path / "p"
    shutil.copytree(done, copy)
    selected = read_jsonl(copy / "data/selected.jsonl")[0]
    held, calibrated = (
        read_rows(copy / f"data/{name}.parquet", "pool")[0] for name in ("holdout", "calibration")
    )
    whole = json.dumps({key: selected[key] for key in ("instruction", "input", "output")})
    withdraw = ("paser", "audit", "withdraw", "--reason")
    shown = projects.run(copy, *withdraw, "poisoned", "--text", whole, "--json").stdout
    assert [model["verdict"] for model in json.loads(shown)["models"]] == ["retrain"]
    projects.run(copy, *withdraw, "consent", "--row", held["row_id"][:16])
    projects.run(copy, *withdraw, "consent", "--row", f"spare:{calibrated['source_row']}")
    again = projects.run(copy, *withdraw, "once more", "--row", selected["row_id"], check=False)
    assert again.returncode == 1
    assert "is withdrawn already: poisoned" in again.stderr
    projects.run(copy, "dvc", "repro", "select")
    quarantine = {
        row["row_id"]: row["detail"]
        for row in read_rows(copy / "data/quarantine.parquet", "quarantine")
        if row["reason"] == "withdrawn"
    }
    assert quarantine.keys() == {row["row_id"] for row in (selected, held, calibrated)}
    assert "poisoned" in quarantine[selected["row_id"]]
    for name in ("pool", "holdout", "calibration"):
        assert not quarantine.keys() & {r["row_id"] for r in read_rows(copy / f"data/{name}.parquet", "pool")}
    for name in ("selected", "control"):
        assert not quarantine.keys() & {row["row_id"] for row in read_jsonl(copy / f"data/{name}.jsonl")}


KILLED = """
import os, signal, sys
from pathlib import Path
import paser.models.passes as passes
import paser.models.shards as shards
from paser.stages.run import run_stage
kept, count = shards.staged, 0
def staged(path):
    global count
    count += 1
    if count > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return kept(path)
shards.staged = staged
shards.SHARD_SECONDS = 0.0
passes.GROUP = 300
run_stage(sys.argv[1], Path(sys.argv[2]))
"""


def test_a_killed_and_resumed_run_gives_the_same_bytes(
    done: Path, tmp_path: Path, llama: Path, encoder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = projects.make_project(tmp_path / "p", llama, encoder)
    outputs = {"embed": "data/embeddings.npy", "score": "data/scores.parquet"}
    for name in ("fetch", "pool", "prune", "embed", "cluster", "score", "select"):
        if name in outputs:
            killed = projects.run(copy, sys.executable, "-c", KILLED, name, str(copy), check=False)
            assert killed.returncode == -signal.SIGKILL
            assert not (copy / outputs[name]).exists()
            capfd.readouterr()
        run_stage(name, copy)
        if name in outputs:
            assert "rows are kept from an earlier run" in capfd.readouterr().err
    for path in DATA_OUTPUTS:
        assert sha256_file(copy / path) == sha256_file(done / path), path
    weights = "data/models/pruned"
    assert file_digests(copy / weights) == file_digests(done / weights)
