from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from synthetic_project import build

from paser.artifacts import read_json
from paser.errors import PaserError
from paser.lineage.events import wanted
from paser.stages.run import run_stage

FLOW = "0190a3f6-3f39-7d38-a0f8-b11a5e6d4d0b"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "file")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__LOG_FILE_PATH", str(tmp_path / "events.json"))
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__APPEND", "true")
    return tmp_path / "events.json"


@contextmanager
def receiver(status: int) -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """A server on this machine that answers each event with `status`: its address, and what it was sent."""
    got: list[tuple[str, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, json.loads(body)))
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *values: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("status", [201, 403])
def test_events_go_over_http_to_whoever_accepts_them(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = build(tmp_path / "project")
    with receiver(status) as (address, got):
        monkeypatch.setenv("OPENLINEAGE_URL", address)
        monkeypatch.setenv("PASER_FLOW_RUN_ID", FLOW)
        monkeypatch.setenv("PASER_FLOW_NAME", "nightly")
        run_stage("select", root)
    assert [path for path, _ in got] == ["/api/v1/lineage"] * 2
    assert [event["eventType"] for _, event in got] == ["START", "COMPLETE"]
    for _, event in got:
        assert event["job"]["name"] == "paser.select"
        parent = event["run"]["facets"]["parent"]
        assert (parent["run"]["runId"], parent["job"]["name"]) == (FLOW, "nightly")
    record = read_json(root / "data/records/select.json")
    told = {d["name"]: d["facets"]["version"]["datasetVersion"] for d in got[1][1]["outputs"]}
    assert told == {a["path"]: f"sha256:{a['sha256']}" for a in record["outputs"]}
    assert ("was not delivered" in capsys.readouterr().err) == (status == 403)


def test_a_stage_tells_what_it_read_and_wrote_and_which_flow_started_it(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openlineage.client.serde import Serde

    monkeypatch.setenv("PASER_FLOW_RUN_ID", FLOW)
    root = build(tmp_path / "project")
    run_stage("select", root)
    start, complete = (json.loads(line) for line in log.read_text("utf-8").splitlines())
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == complete["run"]["runId"]
    assert complete["run"]["facets"]["parent"]["run"]["runId"] == FLOW
    record = read_json(root / "data/records/select.json")
    for side in ("inputs", "outputs"):
        told = {d["name"]: d["facets"]["version"]["datasetVersion"] for d in complete[side]}
        assert told == {a["path"]: f"sha256:{a['sha256']}" for a in record[side]}
    assert Serde.to_json(complete)


def test_a_failing_stage_tells_the_error(log: Path, tmp_path: Path) -> None:
    root = build(tmp_path / "project")
    (root / "data/clusters.json").write_text("{", "utf-8")
    with pytest.raises(PaserError):
        run_stage("select", root)
    last = json.loads(log.read_text("utf-8").splitlines()[-1])
    assert last["eventType"] == "FAIL"
    assert "clusters.json is not JSON" in last["run"]["facets"]["errorMessage"]["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("OPENLINEAGE_URL", "http://127.0.0.1:9"), ("OPENLINEAGE__TRANSPORT__TYPE", "no such transport")],
)
def test_a_receiver_that_fails_is_warned_about_and_fails_nothing(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    root = build(tmp_path / "project")
    run_stage("select", root)
    assert (root / "data/records/select.json").exists()
    assert "was not delivered" in capsys.readouterr().err


def test_events_are_off_by_default() -> None:
    assert not wanted({"PASER_FLOW_RUN_ID": FLOW})
    assert not wanted({"OPENLINEAGE_URL": "http://x", "OPENLINEAGE_DISABLED": "true"})
    assert wanted({"OPENLINEAGE_URL": "http://x"})
