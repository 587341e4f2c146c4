"""A folder that `paser init` made is a project: for DVC, for PASER, and after an upgrade."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from paser.artifacts import read_json, read_jsonl
from paser.cli import app
from paser.errors import PaserError
from paser.settings import Settings, load_settings
from paser.sources.catalog import load_sources
from paser.stages.graph import STAGES
from paser.starter.project import CODE, Wanted, misfitting, outdated, refresh, start
from tests import project as projects
from tests import tiny


def init(*words: str) -> dict[str, object]:
    found = CliRunner().invoke(app, ["init", *words, "--json"])
    assert found.exit_code == 0, f"{found.output} {found.exception}"
    content: dict[str, object] = json.loads(found.stdout)
    return content


def test_an_empty_folder_becomes_a_commented_project(tmp_path: Path) -> None:
    found = init(str(tmp_path / "mine"))
    folder = tmp_path / "mine"
    assert found["missing"] == [str(folder / "data/raw/original"), str(folder / "data/raw/pool.jsonl")]
    assert load_settings(folder / "params.yaml") == Settings()
    for name in ("params.yaml", "dvc.yaml", "data/sources.yaml", CODE):
        assert (folder / name).read_text(encoding="utf-8").startswith("# ")
    assert "# Largest" not in (folder / "dvc.yaml").read_text(encoding="utf-8")
    roles = {source.role: source.uri for source in load_sources(folder / "data/sources.yaml")}
    assert roles["calibration"] == roles["pool"] == "file:pool.jsonl"
    with pytest.raises(PaserError, match="is not empty"):
        start(folder, Wanted())


def test_its_stages_are_those_of_the_package_with_digests_for_code(tmp_path: Path) -> None:
    start(tmp_path, Wanted())
    content = yaml.safe_load((tmp_path / "dvc.yaml").read_text(encoding="utf-8"))
    original = yaml.safe_load((projects.ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    assert list(content) == list(original)
    assert {k: v for k, v in content.items() if k != "stages"} == {
        k: v for k, v in original.items() if k != "stages"
    }
    digests = yaml.safe_load((tmp_path / CODE).read_text(encoding="utf-8"))["code"]
    assert list(digests) == list(STAGES)
    for name, stage in content["stages"].items():
        source = original["stages"][name]
        assert stage["deps"] == list(STAGES[name].inputs)
        assert stage["params"] == [*source.get("params", []), {CODE: [f"code.{name}"]}]
        left = {key: value for key, value in stage.items() if key not in ("deps", "params")}
        assert left == {key: value for key, value in source.items() if key not in ("deps", "params")}
    assert misfitting(tmp_path) == []
    assert outdated(tmp_path) == []


def test_models_and_rows_come_below_data_raw_or_stay_uris(tmp_path: Path, llama: Path, encoder: Path) -> None:
    rows = tiny.write_jsonl(tmp_path / "mine.jsonl", tiny.rows(3))
    words = ["--pool", str(rows), "--pool", f"file:{rows}", "--calibration", "hf:o/n@main:a.jsonl"]
    folder = tmp_path / "p"
    init(
        str(folder), "--original", str(llama), "--pruned", "hf:owner/pruned@main", "--encoder", str(encoder),
        "--license", "CC-BY-4.0", *words,
    )  # fmt: skip
    sources = {source.name: source for source in load_sources(folder / "data/sources.yaml")}
    assert sources["pool-2"].uri == "file:pool-2.jsonl"
    assert sources["calibration"].uri == "hf:o/n@main:a.jsonl"
    assert (sources["pool-1"].license, sources["encoder"].license) == ("CC-BY-4.0", "unknown")
    raw = folder / "data/raw"
    assert read_jsonl(raw / "pool-1.jsonl") == tiny.rows(3)
    assert (raw / "original/model.safetensors").read_bytes() == (llama / "model.safetensors").read_bytes()
    assert (raw / "encoder/1_Pooling/config.json").exists()
    assert load_settings(folder / "params.yaml").prune.external == "hf:owner/pruned@main"
    words = ["plan", "--project", str(folder), "--rows", "1000", "--tflops", "1", "--json"]
    planned = json.loads(CliRunner().invoke(app, words).stdout)
    assert planned["pool"]["rows"] == 1000
    assert planned["model"]["layers"] == 2


def test_what_is_not_there_or_in_the_way_is_an_error(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["init", str(tmp_path / "a"), "--original", "nowhere"])
    assert isinstance(found.exception, PaserError)
    assert "nowhere does not exist" in str(found.exception)
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b/notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(PaserError, match="is not empty"):
        start(tmp_path / "b", Wanted())
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["notes.txt"]


def test_after_an_upgrade_only_stages_whose_code_changed_are_stale(tmp_path: Path) -> None:
    start(tmp_path, Wanted())
    path = tmp_path / CODE
    fresh = path.read_text(encoding="utf-8")
    path.write_text(fresh.replace("  select: ", "  select: 0"), encoding="utf-8")
    assert outdated(tmp_path) == ["select"]
    assert init(str(tmp_path), "--refresh")["changed"] == ["select"]
    assert path.read_text(encoding="utf-8") == fresh
    dvc = (tmp_path / "dvc.yaml").read_text(encoding="utf-8")
    (tmp_path / "dvc.yaml").write_text(dvc.replace("      - data/contamination.json\n", ""))
    with pytest.raises(PaserError, match=r"data/contamination\.json"):
        refresh(tmp_path)


@pytest.mark.slow
def test_dvc_runs_it_and_an_auditor_believes_it(
    tmp_path: Path, llama: Path, sparse_llama: Path, encoder: Path
) -> None:
    """The whole way of a user with a pruned model, with the package somewhere else than the project."""
    rows = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.rows(240))
    folder = tmp_path / "mine"
    init(
        str(folder), "--original", str(llama), "--pruned", str(sparse_llama), "--pool", str(rows),
        "--encoder", str(encoder), "--license", "MIT",
    )  # fmt: skip
    assert not (folder / "paser").exists()

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return projects.run(folder, *words)

    run("git", "init", "-q")
    run("dvc", "init", "-q")
    run("git", "add", ".")
    assert "data/raw" not in run("git", "diff", "--cached", "--name-only").stdout
    run("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "start")
    run("dvc", "repro")
    assert {row["source"] for row in read_jsonl(folder / "data/selected.jsonl")} == {"pool"}
    assert read_json(folder / "data/records/prune.json")["facts"]["scheme"] == "external"
    assert "all " in run("paser", "audit", "verify", "data/models/recovered").stdout
    assert "up to date" in run("dvc", "repro").stdout
    path = folder / CODE
    path.write_text(path.read_text(encoding="utf-8").replace("  report: ", "  report: 0"))
    status = json.loads(run("dvc", "status", "--json").stdout)
    assert list(status) == ["report"]
    assert "report" in run("paser", "init", ".", "--refresh").stdout
    assert json.loads(run("dvc", "status", "--json").stdout) == {}
