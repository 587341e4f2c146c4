"""The catalogue takes in every entry once, by however many processes, and never forgets."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from synthetic_project import build
from typer.testing import CliRunner

from paser.artifacts import file_digests, read_json, read_jsonl, sha256_file, write_json
from paser.cli import app
from paser.errors import PaserError
from paser.lineage.catalogue import Catalogue, sync
from paser.lineage.entry import MODEL, ROLES
from paser.lineage.history import rebuild
from paser.stages.run import run_stage
from tests import project as projects


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second finished project with other scores and weights on the same rows."""
    root = build(tmp_path_factory.mktemp("other") / "project", seed=4)
    run_stage("audit", root)
    return root


def test_an_entry_is_taken_in_whole_and_only_once(project: Path, other: Path) -> None:
    kept = Catalogue.of(project)
    first = sync(project, kept)
    assert first is not None
    assert first[1]
    assert sync(project, kept) == (first[0], False)
    (model,) = kept.models()
    entry = kept.entry(model)
    assert entry is not None
    written = file_digests(project / "data/audit")
    del written["model-card.md"]  # it follows from the rest
    assert file_digests(entry) == written
    assert model.roles == read_json(project / "data/audit/entry.json")["summary"]["roles"]
    kept.add(other / "data/audit")
    assert kept.models()[0].id == first[0]
    assert len(kept.models()) == 2


def test_entries_share_the_bytes_of_equal_files(project: Path, other: Path) -> None:
    kept = Catalogue.of(project)
    sync(project, kept)
    kept.add(other / "data/audit")
    one, two = (kept.entry(model) for model in kept.models())
    assert one is not None
    assert two is not None
    assert (one / "texts.parquet").samefile(two / "texts.parquet")
    assert not (one / "selected.jsonl").samefile(two / "selected.jsonl")


def test_every_row_of_the_entry_is_in_the_index_with_its_role(project: Path) -> None:
    kept = Catalogue.of(project)
    sync(project, kept)
    (model,) = kept.models()
    with kept.reading() as connection:
        found = dict(connection.execute("SELECT role, count(*) FROM member GROUP BY role"))
        places = connection.execute("SELECT group_concat(places) FROM sample").fetchone()[0]
    assert {ROLES[role]: count for role, count in found.items()} == model.roles
    assert "pool:1" in places
    assert "case pool" not in places


@pytest.mark.parametrize("table", ["model", "member", "sample", "text", "share", "sketch", "reason"])
def test_nothing_can_be_changed_or_removed(project: Path, table: str) -> None:
    kept = Catalogue.of(project)
    sync(project, kept)
    with sqlite3.connect(kept.index) as connection:
        column = connection.execute(f"SELECT name FROM pragma_table_info('{table}')").fetchone()[0]
        for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET {column} = 7"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)


@pytest.mark.parametrize(
    "words",
    [
        "trace MODEL", "why MODEL ROW", "find ROW --row", "impact --row ROW", "diff MODEL MODEL",
        "withdraw --row ROW --reason asked", "verify MODEL", "prove MODEL ROW", "sign MODEL --key none.pem",
        "export MODEL out --format none", "reproduce MODEL --entry none",
    ],
)  # fmt: skip
def test_every_question_takes_the_entry_in_first(
    words: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that then fails."""
    row = read_jsonl(project / "data/selected.jsonl")[0]["row_id"]
    monkeypatch.chdir(project)
    CliRunner().invoke(app, ["audit", *words.replace("MODEL", MODEL).replace("ROW", row).split()])
    assert [m.id for m in Catalogue.of(project).models()] == [sha256_file(Path("data/audit/entry.json"))]


def test_an_altered_entry_is_not_taken_in(project: Path) -> None:
    scores = project / "data/audit/scores.parquet"
    scores.write_bytes(scores.read_bytes()[:-1] + b"x")
    kept = Catalogue.of(project)
    with pytest.raises(PaserError, match=r"scores.parquet is not what entry.json says"):
        sync(project, kept)
    assert kept.models() == []


def test_a_file_that_was_added_to_an_entry_is_noticed(project: Path) -> None:
    (project / "data/audit/notes.txt").write_text("more", "utf-8")
    with pytest.raises(PaserError, match=r"notes.txt is not what entry.json says"):
        sync(project, Catalogue.of(project))


def test_an_entry_whose_own_words_were_altered_is_not_taken_in(project: Path) -> None:
    """All digests hold: `entry.json` itself says less than the files beside it."""
    path = project / "data/audit/entry.json"
    content = read_json(path)
    content["summary"]["tokens"] -= 1
    write_json(path, content)
    kept = Catalogue.of(project)
    with pytest.raises(PaserError, match=r"entry.json does not follow from the files beside it"):
        sync(project, kept)
    assert kept.models() == []


def test_verify_takes_in_only_what_it_found_whole(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    weights = project / MODEL / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    assert CliRunner().invoke(app, ["audit", "verify", MODEL]).exit_code == 1
    assert Catalogue.of(project).models() == []
    weights.write_bytes(content)
    assert CliRunner().invoke(app, ["audit", "verify", MODEL]).exit_code == 0
    assert len(Catalogue.of(project).models()) == 1


def broken(content: Any, path: tuple[str | int, ...], value: Any) -> Any:
    for key in path[:-1]:
        content = content[key]
    content[path[-1]] = value


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        ("entry.json", (), []),
        ("entry.json", ("files",), None),
        ("entry.json", ("files",), ["provenance.json"]),
        ("entry.json", ("summary",), "none"),
        ("entry.json", ("model",), 7),
        ("records/recover.json", (), [1]),
        ("records/recover.json", ("outputs",), {}),
        ("records/recover.json", ("outputs", 0), "data/models/recovered"),
        ("records/pool.json", ("facts",), None),
        ("provenance.json", ("held_out",), 3),
        ("provenance.json", ("merkle_root",), ["0"]),
        ("clusters.json", ("clusters",), {"0": "zero"}),
    ],
    ids=str,
)
def test_an_entry_of_another_shape_is_named_and_left(
    project: Path, monkeypatch: pytest.MonkeyPatch, file: str, path: tuple[str | int, ...], value: Any
) -> None:
    """Digests are mended, so only the shape is wrong; a question says so and is answered nonetheless."""
    place = project / "data/audit" / file
    content = read_json(place)
    if path:
        broken(content, path, value)
    write_json(place, content if path else value)
    if file != "entry.json":
        entry = read_json(project / "data/audit/entry.json")
        entry["files"][file] = sha256_file(place)
        write_json(project / "data/audit/entry.json", entry)
    monkeypatch.chdir(project)
    with pytest.raises(PaserError, match="data/audit"):
        sync(project, Catalogue.of(project))
    listed = CliRunner().invoke(app, ["catalogue", "list", "--json"])
    assert listed.exit_code == 0, listed.exception
    assert "warning: data/audit was not taken into the catalogue" in listed.stderr
    assert CliRunner().invoke(app, ["audit", "verify", MODEL]).exit_code == 1


@pytest.mark.parametrize("content", ["[]", "{", '{"commit": ["a"]}', '"commit"'])
def test_a_broken_record_of_the_run_is_warned_of_and_the_entry_taken_in(
    project: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (project / "data/records/audit.run.json").write_text(content, "utf-8")
    kept = Catalogue.of(project)
    assert sync(project, kept) is not None
    assert [model.commit for model in kept.models()] == [None]
    assert "warning: " in (said := capsys.readouterr().err)
    assert "audit.run.json" in said


def test_a_catalogue_that_cannot_be_written_is_warned_of(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index of the right version that has lost a table."""
    kept = Catalogue.of(project)
    kept.root.mkdir(parents=True)
    with sqlite3.connect(kept.index) as connection:
        connection.execute("CREATE TABLE model (id INTEGER PRIMARY KEY, entry TEXT)")
        connection.execute("PRAGMA user_version = 1")
    monkeypatch.chdir(project)
    done = CliRunner().invoke(app, ["audit", "verify", MODEL])
    assert done.exit_code == 0, done.exception
    assert "cannot be written to" in done.stderr
    assert "catalogue.sqlite" in done.stderr


def test_a_newer_schema_is_refused(project: Path) -> None:
    kept = Catalogue.of(project)
    sync(project, kept)
    with sqlite3.connect(kept.index) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(PaserError, match="has schema 99"):
        kept.models()


def test_a_file_that_is_no_catalogue_is_named(project: Path) -> None:
    kept = Catalogue.of(project)
    kept.root.mkdir(parents=True)
    kept.index.write_text("not a database, but long enough to be looked at " * 50, "utf-8")
    with pytest.raises(PaserError, match="is not a catalogue"):
        kept.models()


WRITER = """
import sys, time
from pathlib import Path
from paser.lineage.catalogue import Catalogue
kept, go = Catalogue(Path(sys.argv[1])), Path(sys.argv[2])
while not go.exists():
    time.sleep(0.001)
for entry in sys.argv[3:]:
    kept.add(Path(entry))
"""


def test_writers_at_the_same_moment_lose_nothing(finished: Path, other: Path, tmp_path: Path) -> None:
    """Four processes, two models, both orders: each model is there once and whole."""
    entries = [str(finished / "data/audit"), str(other / "data/audit")]
    root, go = tmp_path / "catalogue", tmp_path / "go"
    running = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(root), str(go), *order], env=projects.ENVIRONMENT)
        for order in (entries, entries[::-1], entries, entries[::-1])
    ]
    go.touch()
    assert [process.wait(300) for process in running] == [0, 0, 0, 0]
    kept = Catalogue(root)
    models = kept.models()
    assert sorted(m.merkle_root for m in models) == sorted(
        read_json(Path(entry) / "entry.json")["merkle_root"] for entry in entries
    )
    for model in models:
        entry = kept.entry(model)
        assert entry is not None
        assert {model.id} == {d for n, d in file_digests(entry).items() if n == "entry.json"}
    with kept.reading() as connection:
        counts = [n for (n,) in connection.execute("SELECT count(*) FROM member GROUP BY model")]
        assert counts == [sum(model.roles.values()) for model in models]
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert not list((root / "incoming").iterdir())


def test_rebuild_finds_entries_of_the_git_history_and_says_what_is_missing(
    finished: Path, tmp_path: Path
) -> None:
    """Two models in the history, of which DVC's cache has lost the older one's entry."""
    folder = tmp_path / "p"
    folder.mkdir()
    for words in ("git init -q", "git config user.email a@b.c", "git config user.name a", "dvc init -q"):
        projects.run(folder, *words.split())
    (folder / "dvc.yaml").write_text(
        "stages:\n  audit:\n    cmd: cp -r ../entry data/audit\n    outs: [data/audit]\n", "utf-8"
    )
    older = build(tmp_path / "older", seed=9)
    run_stage("audit", older)
    for source in (older, finished):
        shutil.rmtree(tmp_path / "entry", ignore_errors=True)
        shutil.copytree(source / "data/audit", tmp_path / "entry")
        (folder / "data").mkdir(exist_ok=True)
        projects.run(folder, "dvc", "repro", "-q", "-f")
        projects.run(folder, "git", "add", "-A")
        projects.run(folder, "git", "commit", "-qm", "run")
    done = projects.run(folder, "paser", "catalogue", "rebuild")
    # The workspace's own entry is taken in before the history is read.
    assert "1 added, 1 known" in done.stdout
    assert {m.merkle_root for m in Catalogue.of(folder).models()} == {
        read_json(p / "data/audit/entry.json")["merkle_root"] for p in (older, finished)
    }
    again = projects.run(folder, "paser", "catalogue", "rebuild")
    assert "0 added, 2 known" in again.stdout
    shutil.rmtree(folder / ".paser")
    projects.run(folder, "dvc", "gc", "-q", "-f", "-w")
    lost = projects.run(folder, "paser", "catalogue", "rebuild", check=False)
    assert lost.returncode == 3
    assert "1 missing" in lost.stdout
    assert "ERROR" in lost.stdout


def test_rebuild_lists_a_lock_that_cannot_be_read_and_goes_on(project: Path) -> None:
    """A conflict that was committed, a lock that is a list, bytes that are no text; then a sound one."""
    for words in ("git init -q", "git config user.email a@b.c", "git config user.name a"):
        projects.run(project, *words.split())
    locks = (
        b"<<<<<<< HEAD\nstages:\n=======\n", b"[1, 2]\n", b"stages: \xff\n", b"stages: {audit: {}}\n",
        b"stages:\n  audit:\n    outs:\n    - {path: data/audit, md5: 0a.dir}\n",
    )  # fmt: skip
    for lock in locks:
        (project / "dvc.lock").write_bytes(lock)
        projects.run(project, "git", "add", "dvc.lock")
        projects.run(project, "git", "commit", "-qm", "run")
    found = rebuild(project, Catalogue.of(project))
    assert [item.state for item in found] == ["missing"] * 5
    assert [item.digest for item in found] == ["0a.dir", "", "", "", ""]
    for item in found[1:]:
        assert f"dvc.lock of commit {item.commit} cannot be read" in item.detail
