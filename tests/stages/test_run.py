"""The stage runner: records, staging, and what happens when something goes wrong under way."""

from __future__ import annotations

import errno
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paser.artifacts import sha256_file
from paser.cache import Cache
from paser.errors import SourceError, StageError
from paser.stages import graph
from paser.stages.graph import Stage
from paser.stages.run import Context, run_stage

Body = Callable[[Context], None]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text("seed: 3\n", encoding="utf-8")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "in.txt").write_text("hello", encoding="utf-8")
    return tmp_path


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Body], None]]:
    """Makes `body` the stage `copy`, which reads data/in.txt and writes data/out.txt and data/dir."""
    spec = Stage("copy", ("data/in.txt",), ("data/out.txt", "data/dir"), ("seed", "select.budget"))

    def put(body: Body) -> None:
        module = types.ModuleType("paser.stages.copy")
        module.run = body  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "paser.stages.copy", module)
        monkeypatch.setitem(graph.STAGES, "copy", spec)
        monkeypatch.setattr(Stage, "all_code", property(lambda self: graph.CORE))

    return put


def good(context: Context) -> None:
    text = context.input("data/in.txt").read_text(encoding="utf-8")
    context.out("data/out.txt").write_text(text.upper(), encoding="utf-8")
    context.out("data/dir").mkdir()
    (context.out("data/dir") / "a.txt").write_text("a", encoding="utf-8")
    context.note(length=len(text))


def leftovers(project: Path) -> list[Path]:
    return list((project / "data").glob("*.partial-*"))


def test_record_has_digests_parameters_and_no_clock(project: Path, install: Callable[[Body], None]) -> None:
    install(good)
    record = run_stage("copy", project)
    path = project / "data/records/copy.json"
    assert json.loads(path.read_text(encoding="utf-8")) == record
    assert record["inputs"][0]["sha256"] == sha256_file(project / "data/in.txt")
    assert record["outputs"][0]["sha256"] == sha256_file(project / "data/out.txt")
    assert record["outputs"][1]["files"] == {"a.txt": sha256_file(project / "data/dir/a.txt")}
    assert record["params"] == {"seed": 3, "select.budget": "10%"}
    assert record["facts"] == {"length": 5}
    first = path.read_bytes()
    run_stage("copy", project)
    assert path.read_bytes() == first
    beside = json.loads((project / "data/records/copy.run.json").read_text(encoding="utf-8"))
    assert {"started", "seconds", "host"} <= set(beside)
    assert beside["host"] not in first.decode()


def test_the_run_record_says_who_started_the_run(
    project: Path, install: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(good)
    path = project / "data/records/copy.run.json"
    run_stage("copy", project)
    assert not {"flow_run", "worker", "deployment"} & set(json.loads(path.read_text(encoding="utf-8")))
    monkeypatch.setenv("PASER_FLOW_RUN_ID", "7c1d")
    monkeypatch.setenv("PASER_WORKER", "night shift")
    run_stage("copy", project)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert (found["flow_run"], found["worker"]) == ("7c1d", "night shift")
    assert "deployment" not in found
    assert "7c1d" not in (project / "data/records/copy.json").read_text(encoding="utf-8")


def test_an_input_edited_during_the_run_fails_the_stage(
    project: Path, install: Callable[[Body], None]
) -> None:
    def edits(context: Context) -> None:
        good(context)
        context.input("data/in.txt").write_text("other", encoding="utf-8")

    install(edits)
    with pytest.raises(StageError, match=r"data/in\.txt changed while stage copy ran"):
        run_stage("copy", project)
    assert not (project / "data/out.txt").exists()
    assert not (project / "data/records/copy.json").exists()
    assert leftovers(project) == []


def test_after_a_failure_nothing_half_written_and_the_way_back_is_said(
    project: Path, install: Callable[[Body], None]
) -> None:
    install(good)
    run_stage("copy", project)

    def fails(context: Context) -> None:
        context.out("data/out.txt").write_text("half", encoding="utf-8")
        raise SourceError("row 3 is broken", remedy="mend it")

    install(fails)
    with pytest.raises(SourceError, match="row 3 is broken") as first:
        run_stage("copy", project)
    assert "dvc checkout" not in str(first.value)
    (project / "dvc.lock").write_text("", encoding="utf-8")
    with pytest.raises(SourceError, match=r"row 3 is broken[\s\S]*mend it; .*dvc checkout"):
        run_stage("copy", project)
    assert (project / "data/out.txt").read_text(encoding="utf-8") == "HELLO"
    assert leftovers(project) == []


def test_a_killed_run_leaves_only_a_partial_file_which_the_next_removes(
    project: Path, install: Callable[[Body], None], dead: str, alive: str
) -> None:
    """But not that of another run, which still writes it."""
    (project / f"data/out.txt.partial-{dead}").write_text("half", encoding="utf-8")
    other = project / f"data/out.txt.partial-{alive}"
    other.write_text("half", encoding="utf-8")
    install(good)
    run_stage("copy", project)
    assert leftovers(project) == [other]


def test_an_interrupted_swap_keeps_earlier_and_new_outputs(
    project: Path, install: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    install(good)
    run_stage("copy", project)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def other(context: Context) -> None:
            good(context)
            (context.out("data/dir") / "a.txt").write_text("new", encoding="utf-8")
            patch.setattr(os, "replace", interrupted)

        install(other)
        run_stage("copy", project)
    assert (project / "data/dir/a.txt").read_text(encoding="utf-8") == "a"
    assert [(p / "a.txt").read_text(encoding="utf-8") for p in leftovers(project) if p.is_dir()] == ["new"]


def test_a_cache_that_cannot_be_pruned_fails_no_stage(
    project: Path,
    install: Callable[[Body], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    install(good)
    monkeypatch.setattr(Cache, "prune", fails)
    assert run_stage("copy", project)["stage"] == "copy"
    assert "was not pruned to runtime.cache_gb" in capsys.readouterr().err


def test_a_stage_leaves_in_the_cache_what_others_use(project: Path, install: Callable[[Body], None]) -> None:
    (project / "params.yaml").write_text("seed: 3\nruntime: {cache_gb: 0}\n", encoding="utf-8")
    cache = Cache.of(project)
    for name in ("old", "new"):
        cache.entry("room", name).write_bytes(b"x")
    os.utime(cache.root / "room/old", (0, 0))
    install(good)
    run_stage("copy", project)
    assert [path.name for path in (cache.root / "room").iterdir()] == ["new"]


def test_a_full_disk_is_a_clear_error(project: Path, install: Callable[[Body], None]) -> None:
    def full(context: Context) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    install(full)
    with pytest.raises(Exception, match=r"no space left on the disk[\s\S]*free some space"):
        run_stage("copy", project)


def test_a_really_full_disk(tmp_path: Path) -> None:
    """/dev/full fails every write, as a full disk does."""
    if not Path("/dev/full").is_char_device():
        pytest.skip("this system has no /dev/full")
    from paser.artifacts import disk_errors
    from paser.errors import PaserError

    with (
        pytest.raises(PaserError, match="no space left"),
        disk_errors(tmp_path / "x"),
        open("/dev/full", "w", encoding="utf-8") as stream,
    ):
        stream.write("x" * 100_000)
        stream.flush()


def test_missing_inputs_and_outputs_are_named(project: Path, install: Callable[[Body], None]) -> None:
    install(lambda context: None)
    with pytest.raises(StageError, match=r"did not write data/out\.txt"):
        run_stage("copy", project)
    (project / "data/in.txt").unlink()
    with pytest.raises(StageError, match=r"needs data/in\.txt[\s\S]*dvc repro copy"):
        run_stage("copy", project)


def test_undeclared_paths_are_refused(project: Path, install: Callable[[Body], None]) -> None:
    install(lambda context: context.input("data/secret.txt").touch())
    with pytest.raises(StageError, match="does not declare the input"):
        run_stage("copy", project)
    install(lambda context: context.out("data/extra.txt").touch())
    with pytest.raises(StageError, match="does not declare the output"):
        run_stage("copy", project)
