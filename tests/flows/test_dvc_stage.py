"""What the flows know of stages is what DVC knows."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from flows import dvc_stage
from flows.errors import Busy, FlowError
from tests import project as projects

ROOT = Path(__file__).parent.parent.parent


def test_the_order_and_the_arrows_are_those_of_dvc_yaml(done: Path) -> None:
    entries = yaml.safe_load((done / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    nodes = dvc_stage.read_graph(done)
    assert [node.name for node in nodes] == list(entries)
    writers = {path: node.name for node in nodes for path in node.outputs}
    for node in nodes:
        read = {dep for dep in entries[node.name]["deps"] if dep in writers}
        assert set(node.inputs) == read
        assert set(node.upstream) == {writers[path] for path in read}


def test_every_stage_that_needs_a_gpu_at_scale_says_so(done: Path) -> None:
    gpu = {node.name for node in dvc_stage.read_graph(done) if node.gpu}
    assert gpu == {"prune", "embed", "score", "recover", "control", "evaluate"}
    fetch = dvc_stage.read_graph(done)[0]
    assert (fetch.name, fetch.retries) == ("fetch", 3)


def test_targets_bring_what_they_depend_on(done: Path) -> None:
    nodes = dvc_stage.read_graph(done)
    chosen = dvc_stage.with_upstream(nodes, ["cluster"])
    assert [node.name for node in chosen] == ["fetch", "pool", "embed", "cluster"]
    with pytest.raises(FlowError, match=r"no stage 'scores'[\s\S]*one of fetch"):
        dvc_stage.with_upstream(nodes, ["scores"])


def test_fresh_stages_have_digests_and_a_key_and_stale_ones_reasons(done: Path) -> None:
    before = dvc_stage.look(done, "select")
    assert before.fresh
    assert "data/selected.jsonl" in before.digests
    assert before.key == dvc_stage.look(done, "select").key
    assert before.key != dvc_stage.look(done, "cluster").key
    altered = done / "data/selected.jsonl"
    content = altered.read_bytes()
    altered.write_bytes(content + b"{}\n")
    after = dvc_stage.look(done, "select")
    assert (after.fresh, after.key) == (False, None)
    assert [reason.endswith("selected.jsonl modified") for reason in after.reasons] == [True]
    altered.write_bytes(content)
    assert dvc_stage.look(done, "select") == before
    altered.unlink()
    assert dvc_stage.look(done, "select").reasons[0].endswith("selected.jsonl deleted")


def test_a_changed_setting_is_the_reason(done: Path) -> None:
    projects.write_settings(done, {**projects.SETTINGS, "select": {"budget": "25%"}})
    assert dvc_stage.look(done, "select").reasons == ("select.budget modified",)
    assert dvc_stage.look(done, "score").fresh


def test_a_locked_repository_is_waited_for_and_then_named(done: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(done / ".dvc/tmp/lock"), "6"], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(Busy, match="another DVC command"):
        dvc_stage.look(done, "select", wait=0.0)
    started = time.monotonic()
    assert dvc_stage.look(done, "select", wait=60.0).fresh
    assert time.monotonic() - started > 0.5
    holder.wait()


HOLD = textwrap.dedent("""
    import sys, time, zc.lockfile
    lock = zc.lockfile.LockFile(sys.argv[1])
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
""")


def test_flows_import_no_torch() -> None:
    modules = sorted(f"flows.{path.stem}" for path in (ROOT / "flows").glob("*.py"))
    code = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    assert projects.run(ROOT, sys.executable, "-c", code).stdout.strip() == "False"


def test_only_one_module_touches_dvc() -> None:
    for path in (ROOT / "flows").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        touches = any(line.strip().startswith(("from dvc", "import dvc")) for line in text.splitlines())
        assert touches == (path.name == "dvc_stage.py"), path.name


def test_a_folder_without_dvc_is_named(tmp_path: Path) -> None:
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    with pytest.raises(FlowError, match="no DVC repository"):
        dvc_stage.read_graph(tmp_path)
