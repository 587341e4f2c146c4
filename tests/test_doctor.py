"""`paser doctor` says what is broken in a machine or project, and what to do; its exit code says whether."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paser import doctor
from paser.cli import app
from paser.starter.project import Wanted, start
from tests import project as projects


def examined(folder: Path, code: int) -> dict[str, dict[str, Any]]:
    found = CliRunner().invoke(app, ["doctor", "--project", str(folder), "--json"])
    assert found.exit_code == code, found.output
    content = json.loads(found.stdout)
    assert content["ok"] == (code == 0)
    return {check["name"]: check for check in content["checks"]}


@pytest.fixture
def mine(tmp_path: Path, llama: Path, encoder: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n', encoding="utf-8")
    wanted = Wanted(str(llama), None, [str(tmp_path / "rows.jsonl")], (), str(encoder), license="MIT")
    start(tmp_path / "mine", wanted)
    projects.run(tmp_path / "mine", "git", "init", "-q")
    projects.run(tmp_path / "mine", "dvc", "init", "-q")
    return tmp_path / "mine"


def test_outside_a_project_it_looks_at_the_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    found = examined(tmp_path, 0)
    assert {"Python", "packages", "extras", "torch", "device", "memory", "disk", "DVC", "Prefect"} <= set(
        found
    )
    assert "bfloat16 is" in found["device"]["found"]
    assert "`paser init FOLDER` makes one" in found["project"]["found"]
    assert "sources" not in found


def test_a_whole_project_is_fit_and_each_fault_names_its_remedy(mine: Path) -> None:
    found = examined(mine, 0)
    assert {name for name, check in found.items() if check["state"] == "warning"} <= {
        "DVC remote", "licences", "device", "memory", "disk",
    }  # fmt: skip
    assert found["licences"]["found"] == "unknown for encoder"
    projects.run(mine, "dvc", "remote", "add", "-d", "store", "/srv/store")
    assert examined(mine, 0)["DVC remote"]["found"] == "store: /srv/store"

    (mine / "data/raw/pool.jsonl").unlink()
    broken = examined(mine, 1)["sources"]
    assert broken["state"] == "broken"
    assert str(mine / "data/raw/pool.jsonl") in broken["found"]
    assert "correct its `uri`" in broken["remedy"]

    text = (mine / "params.yaml").read_text(encoding="utf-8")
    (mine / "params.yaml").write_text(text.replace("licenses_refused: []", "licenses_refused: [MIT]"))
    assert "pool (MIT)" in examined(mine, 1)["licences"]["found"]
    (mine / "params.yaml").write_text(text.replace("seed: 17", "seed: x"))
    assert "seed is 'x'" in examined(mine, 1)["settings"]["found"]

    (mine / "paser.yaml").write_text("code: {pool: 0}\n", encoding="utf-8")
    assert "paser init" in examined(mine, 1)["stages"]["remedy"]
    stages = (mine / "dvc.yaml").read_text(encoding="utf-8")
    (mine / "dvc.yaml").write_text(stages.replace("      - data/scores.parquet\n", "", 1))
    assert "data/scores.parquet" in examined(mine, 1)["stages"]["found"]


def test_git_and_dvc_are_asked_for(mine: Path) -> None:
    (mine / ".dvc").rename(mine.parent / "gone")
    assert examined(mine, 1)["DVC"]["remedy"] == "dvc init"
    (mine / ".git").rename(mine.parent / "gone-too")
    assert examined(mine, 1)["DVC"]["remedy"] == "git init && dvc init"


def test_other_versions_than_the_pinned_ones_are_named(tmp_path: Path) -> None:
    import torch

    (tmp_path / "constraints.txt").write_text("torch==1.0.0\nnot-installed==1\n", encoding="utf-8")
    found = examined(tmp_path, 0)["pinned versions"]
    assert found["state"] == "warning"
    assert found["found"] == f"torch {torch.__version__} (pinned 1.0.0)"


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    made = HTTPServer(("127.0.0.1", 0), Healthy)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}/api"
    made.shutdown()
    made.server_close()


def test_the_prefect_server_is_asked_where_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    pytest.importorskip("prefect")
    monkeypatch.setenv("PREFECT_API_URL", server)
    assert "answers" in examined(tmp_path, 0)["Prefect"]["found"]
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    found = examined(tmp_path, 1)["Prefect"]
    assert "does not answer" in found["found"]
    assert "make serve" in found["remedy"]


def test_for_people_each_line_has_a_state_and_below_it_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK", 1e18)
    found = CliRunner().invoke(app, ["doctor", "--project", str(tmp_path)])
    assert found.exit_code == 1
    lines = found.stdout.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("broken") and " disk " in line)
    assert "-> free some room" in lines[place + 1]
    assert lines[-1].startswith("1 broken, ")
