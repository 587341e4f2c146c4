"""An auditor's questions: why, find, impact, withdraw and diff, on models with made-up rows."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic_project import build, sample
from typer.testing import CliRunner

from paser.artifacts import read_json, read_jsonl, read_rows, write_json, write_table
from paser.cli import app
from paser.errors import PaserError
from paser.lineage import diff as comparing
from paser.lineage.catalogue import Catalogue, sync
from paser.lineage.find import find, guess
from paser.lineage.impact import Withdrawal, impact
from paser.lineage.query import locate, read_text
from paser.lineage.trace import trace
from paser.lineage.why import parse_clash, why
from paser.lineage.withdraw import resolve, withdraw
from paser.method.concepts import Clash
from paser.pool.clean import read_withdrawals
from paser.records import row_id
from paser.stages.run import run_stage

MODEL = "data/models/recovered"
TWICE = {**sample("code", 777, "pool"), "occurrences": [
    {"source": "more-itertools", "source_row": "pool:777", "license": "MIT"},
    {"source": "mirror", "source_row": "a:b:3", "license": "Customer contract 7"},
]}  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose catalogue also holds a second model, with other settings and one row twice."""
    folder = tmp_path_factory.mktemp("two")
    first = build(folder / "first")
    second = build(folder / "second", seed=4, pool_rows=[TWICE])
    params = second / "data/records/recover.json"
    record = read_json(params)
    record["params"]["recover"]["rank"] = 16
    write_json(params, record)
    for root in (first, second):
        run_stage("audit", root)
    kept = Catalogue.of(first)
    sync(first, kept)
    kept.add(second / "data/audit")
    return first


def rows_with(project: Path, role: str) -> list[dict[str, Any]]:
    return [r for r in read_rows(project / "data/audit/rows.parquet", "rows") if r["role"] == role]


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


# why


def test_why_tells_how_an_accepted_row_came_in(finished: Path) -> None:
    selected = read_jsonl(finished / "data/selected.jsonl")
    (found,) = why(finished / MODEL, None, selected[2]["row_id"][:20])
    decision = next(
        d
        for d in read_rows(finished / "data/decisions.parquet", "decisions")
        if d["row_id"] == selected[2]["row_id"]
    )
    assert (found["role"], found["decision"], found["position"]) == ("trained", "accepted", 3)
    for key in ("jsd", "ies", "rank", "reason", "cluster"):
        assert found[key] == decision[key]
    assert found["tokens"] == selected[2]["tokens"]
    assert found["occurrences"][0]["source_row"] == selected[2]["source_row"]


def test_why_tells_what_training_could_win_back_where_the_entry_knows_it(project: Path) -> None:
    import pyarrow.parquet as pq

    model, row = project / MODEL, read_jsonl(project / "data/selected.jsonl")[0]["row_id"]
    (found,) = why(model, None, row)
    assert found["recoverability"] == pytest.approx(0.5 * found["jsd"])
    assert f"recoverability  {found['recoverability']:.4f}" in re.sub(
        " {3,}", "  ", invoke("audit", "why", str(model), row).output
    )
    scores = Path(trace(model).entry) / "scores.parquet"
    pq.write_table(pq.read_table(scores).drop_columns(["recoverability"]), scores)
    (older,) = why(model, None, row)
    assert older == found | {"recoverability": None}


def test_what_rows_were_ranked_by_has_the_name_of_its_order(project: Path) -> None:
    model, row = project / MODEL, read_jsonl(project / "data/selected.jsonl")[0]["row_id"]
    found = trace(model)
    assert found.ranked_by == "IES"
    assert "IES" in invoke("audit", "why", str(model), row).output
    path = Path(found.entry) / "budget.json"
    write_json(path, read_json(path) | {"order": "coverage"})
    assert trace(model).ranked_by == "coverage"
    for asked in (("why", str(model), row), ("trace", str(model))):
        shown = invoke("audit", *asked).output
        assert "coverage" in shown
        assert "IES" not in shown


def test_why_names_the_rows_and_concepts_that_clashed(finished: Path) -> None:
    decisions = read_rows(finished / "data/decisions.parquet", "decisions")
    refused = next(d for d in decisions if d["reason"] == "conflict")
    (found,) = why(finished / MODEL, None, refused["row_id"])
    assert (found["role"], found["reason"]) == ("rejected", "conflict")
    assert found["clash"] == {
        "first": "return value", "second": "python function", "first_row": refused["row_id"],
        "second_row": refused["row_id"], "joined": 2, "known": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    "first", ["plain words", "it's apostrophised", "a (from b) and 'c'", "both \" and '"]
)
def test_a_clash_is_read_back_as_it_was_written(first: str) -> None:
    clash = Clash(first, "other", "r1-aa", "r1-bb", 2, 5)
    assert parse_clash(f"relaxed; {clash}") == {
        "first": first, "second": "other", "first_row": "r1-aa", "second_row": "r1-bb",
        "joined": 2, "known": 5,
    }  # fmt: skip
    assert parse_clash("cluster 3 had spent its 5") is None


@pytest.mark.parametrize("role", ["held_out", "calibrated", "quarantined"])
def test_why_knows_rows_that_never_were_in_the_pool(finished: Path, role: str) -> None:
    row = rows_with(finished, role)[0]
    found = [r for r in why(finished / MODEL, None, row["row_id"]) if r["role"] == role]
    assert found[0]["decision"] is None
    assert found[0]["reason"] == row["reason"]
    assert found[0]["duplicate_of"] == row["duplicate_of"]


def test_why_finds_a_row_by_its_text_also_when_no_text_of_it_is_kept(finished: Path) -> None:
    pool = read_rows(finished / "data/pool.parquet", "pool")
    chosen = {row["row_id"] for row in read_jsonl(finished / "data/selected.jsonl")}
    row = next(row for row in pool if row["row_id"] not in chosen)
    whole = json.dumps({key: row[key] for key in ("instruction", "input", "output")})
    for text in (row["instruction"], f"  {row['output']}\r\n", whole):
        found = why(finished / MODEL, None, read_text(text))
        assert [r["row_id"] for r in found] == [row["row_id"]]
    assert why(finished / MODEL, None, read_text(row["instruction"][:-1])) == []


def test_why_of_a_control_says_whether_it_was_drawn(finished: Path) -> None:
    control = read_jsonl(finished / "data/control.jsonl")
    (found,) = why(finished / "data/models/control", None, control[1]["row_id"])
    assert (found["role"], found["reason"], found["position"]) == ("trained", "random", 2)
    drawn = {row["row_id"] for row in control}
    other = next(r for r in read_rows(finished / "data/pool.parquet", "pool") if r["row_id"] not in drawn)
    (found,) = why(finished / "data/models/control", None, other["row_id"])
    assert (found["role"], found["reason"]) == ("rejected", "not_drawn")


def test_a_beginning_of_several_rows_asks_for_more(finished: Path) -> None:
    with pytest.raises(PaserError, match="is not a row id or the beginning"):
        why(finished / MODEL, None, "r1-12")
    with pytest.raises(PaserError, match="is not a row id or the beginning"):
        why(finished / MODEL, None, "r1-xyzxyz")


@pytest.mark.parametrize("length", [67, 20], ids=["whole", "beginning"])
def test_a_row_id_is_understood_in_capitals(two: Path, length: int) -> None:
    """A false "never read" would be the worst answer of all."""
    row = read_jsonl(two / "data/selected.jsonl")[0]["row_id"]
    asked, kept = row[:length].upper(), Catalogue.of(two)
    (told,) = why(two / MODEL, None, asked)
    assert (told["row_id"], told["role"]) == (row, "trained")
    assert guess(asked, kept) == "row"
    assert [match["row_id"] for match in find(kept, asked, "row").matches] == [row, row]
    for kind in ("row", "text") if length == 67 else ("row",):
        assert resolve(kept, kind, asked) == [Withdrawal(kind, row)]
    if length == 67:
        assert impact(kept, [Withdrawal("row", asked)]) == impact(kept, [Withdrawal("row", row)])


# find


def test_find_tells_a_row_s_role_in_every_model(two: Path) -> None:
    kept = Catalogue.of(two)
    row = read_jsonl(two / "data/selected.jsonl")[0]
    found = find(kept, row["row_id"], "row").matches
    models = kept.models()
    assert [f["model"] for f in found] == [m.id for m in models]
    assert found[0]["role"] == "trained"
    for model, line in zip(models, found, strict=True):
        entry = kept.entry(model)
        assert entry is not None
        (told,) = why(entry, entry, row["row_id"])
        assert (told["role"], told["reason"], told["cluster"]) == (
            line["role"],
            line["reason"],
            line["cluster"],
        )


@pytest.mark.parametrize("role", ["rejected", "held_out", "calibrated", "quarantined"])
def test_find_tells_roles_apart(two: Path, role: str) -> None:
    row = rows_with(two, role)[1]
    first = Catalogue.of(two).models()[0].id
    roles = [
        f["role"] for f in find(Catalogue.of(two), row["row_id"][:24], "row").matches if f["model"] == first
    ]
    assert role in roles


def test_find_gives_all_occurrences_and_the_strictest_licence(two: Path) -> None:
    (found,) = find(Catalogue.of(two), TWICE["row_id"], "row").matches
    assert found["occurrences"] == TWICE["occurrences"]
    assert found["license"] == "Customer contract 7"
    assert found["model"] == Catalogue.of(two).models()[1].id


def test_find_by_text_needs_no_text_in_the_catalogue(two: Path) -> None:
    row = sample("maths", 3, "pool")
    kept = Catalogue.of(two)
    assert row["instruction"].encode() not in kept.index.read_bytes()
    for text, match in ((row["instruction"], "prompt"), (row["output"], "response")):
        found = find(kept, text, "text").matches
        assert {(f["row_id"], f["match"]) for f in found} == {(row["row_id"], match)}
        assert len(found) == 2
    assert find(kept, row["instruction"] + "!", "text").matches == []


def test_find_near_finds_an_edited_text_and_its_role(two: Path) -> None:
    long = " ".join(f"word{i}" for i in range(60))
    row = {**sample("maths", 555, "pool"), "instruction": long}
    row["row_id"] = row_id(long, "", row["output"])
    extra = build(two.parent / "near", seed=6, pool_rows=[row])
    run_stage("audit", extra)
    kept = Catalogue(two.parent / "near-catalogue")
    kept.add(extra / "data/audit")
    edited = long.replace("word30", "another")
    (found,) = find(kept, edited, "near").matches
    assert (found["row_id"], found["match"], found["role"]) == (row["row_id"], "prompt", "rejected")
    assert 0.75 <= found["similarity"] < 1
    assert find(kept, edited, "text").matches == []
    whole = json.dumps({"instruction": edited, "output": row["output"]})
    assert find(kept, whole, "near").matches[0]["match"] == "row"
    assert find(kept, json.dumps({"instruction": edited, "output": "Nothing like it."}), "near").matches == []


def test_what_is_not_listed_is_counted(two: Path) -> None:
    """Every code row resembles every other: the listing stops, the counts and the closing line do not."""
    kept, text = Catalogue.of(two), sample("code", 3, "pool")["output"]
    everything = find(kept, text, "near", 0.3)
    some = find(kept, text, "near", 0.3, limit=5)
    assert len(everything.matches) > 20
    assert everything.more == 0
    assert some.matches == everything.matches[:5]
    assert some.more == len(everything.matches) - 5
    assert some.models == everything.models
    for model in everything.models:
        rows = [row for row in everything.matches if row["model"] == model["model"]]
        assert model["roles"] == {role: sum(r["role"] == role for r in rows) for role in model["roles"]}
        assert sum(model["roles"].values()) == len(rows)
        assert [r["similarity"] for r in rows] == sorted((r["similarity"] for r in rows), reverse=True)
    words = ("audit", "find", text, "--near", "--similarity", "0.3", "--project", str(two), "--limit", "5")
    assert f"and {some.more} more" in invoke(*words).stdout
    told = json.loads(invoke(*words, "--json").stdout)
    assert (len(told["matches"]), told["more"], len(told["models"])) == (5, some.more, 2)


def test_near_matches_beyond_the_limit_take_no_memory(tmp_path: Path) -> None:
    """A text that 500 rows of each of 100 models resemble: 50,000 places, of which ten are kept."""
    import sqlite3
    import tracemalloc

    rows = [
        {**(row := sample("code", 10_000 + n, "pool")), "output": "same answer", "row_id": row_id(
            row["instruction"], "", "same answer")}
        for n in range(500)
    ]  # fmt: skip
    project = build(tmp_path / "many", pool_rows=rows)
    run_stage("audit", project)
    kept = Catalogue.of(project)
    sync(project, kept)
    with sqlite3.connect(kept.index) as connection:
        columns = "merkle_root, model, provenance, control, rows, tokens, roles, commit_id, added"
        for number in range(2, 101):
            connection.execute(
                f"INSERT INTO model SELECT ?, ?, {columns} FROM model WHERE id = 1", (number, f"m{number}")
            )
            connection.execute(
                "INSERT INTO member SELECT ?, sample, role, cluster, reason, twin FROM member "
                "WHERE model = 1",
                (number,),
            )
    tracemalloc.start()
    found = find(kept, "same answer", "near", limit=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.more == 100 * 500 - 10
    assert len(found.models) == 100
    assert peak < 10e6


def test_find_counts_a_source_and_a_licence_by_role(two: Path) -> None:
    kept = Catalogue.of(two)
    first, _ = find(kept, "champ", "source").matches
    rows = [r for r in read_rows(two / "data/audit/rows.parquet", "rows") if r["source"] == "champ"]
    assert first["roles"] == {role: sum(r["role"] == role for r in rows) for role in first["roles"]}
    assert sum(first["roles"].values()) == len(rows)
    (contract,) = find(kept, "Customer contract 7", "license").matches
    assert sum(contract["roles"].values()) == sum(contract["counts_as"].values()) == 1
    mit = find(kept, "MIT", "license").matches[1]
    assert sum(mit["roles"].values()) == sum(mit["counts_as"].values()) + 1


def test_a_query_without_a_flag_is_understood(two: Path) -> None:
    kept = Catalogue.of(two)
    queries = {TWICE["row_id"]: "row", "champ": "source", "MIT": "license", "some words": "text"}
    assert {query: guess(query, kept) for query in queries} == queries


def test_find_says_by_its_exit_code_whether_there_is_any(two: Path) -> None:
    there = invoke("audit", "find", "champ", "--project", str(two), "--json")
    assert there.exit_code == 0
    assert json.loads(there.stdout)["kind"] == "source"
    none = invoke("audit", "find", "--source", "champs", "--project", str(two))
    assert none.exit_code == 3
    assert "known names like it: champ" in none.stdout


# models that are not in the project any more


def test_an_earlier_model_is_answered_from_the_catalogue(two: Path, tmp_path: Path) -> None:
    kept = Catalogue.of(two)
    second = kept.models()[1]
    folder, entry = locate(second.id[:10], None, kept)
    assert trace(folder, entry).merkle_root == second.merkle_root
    copied = Path(shutil.copytree(two.parent / "second" / MODEL, tmp_path / "deployed"))
    folder, entry = locate(str(copied), None, kept)
    assert trace(folder, entry).merkle_root == second.merkle_root
    with pytest.raises(PaserError, match="neither a folder nor a model"):
        locate("0123456789", None, kept)


# impact


@pytest.mark.parametrize(
    ("role", "verdict", "runs", "spared"),
    [
        ("trained", "retrain", {"pool", "score", "recover"}, {"prune"}),
        ("rejected", "decisions may change", {"pool", "select"}, {"prune"}),
        ("calibrated", "prune again", {"prune", "score", "recover"}, {"embed"}),
        ("held_out", "evaluate again", {"pool", "embed", "evaluate"}, {"prune", "score"}),
    ],
)
def test_the_role_of_a_row_decides_what_follows(
    two: Path, role: str, verdict: str, runs: set[str], spared: set[str]
) -> None:
    ids = {r["row_id"] for r in rows_with(two, "quarantined")}
    row = next(r for r in rows_with(two, role) if r["row_id"] not in ids)
    found = impact(Catalogue.of(two), [Withdrawal("row", row["row_id"])])[0]
    assert found["verdict"] == verdict
    assert runs <= set(found["stages"])
    assert not spared & set(found["stages"])
    assert found["rows"] == {role: 1}


def test_a_text_that_also_stands_elsewhere_stays_unless_the_text_is_withdrawn(two: Path) -> None:
    kept = Catalogue.of(two)
    for item in (Withdrawal("source", "mirror"), Withdrawal("row", "mirror:a:b:3"),
                 Withdrawal("license", "Customer contract 7")):  # fmt: skip
        (found,) = impact(kept, [item])
        assert found["verdict"] == "stays through another source"
        assert sum(found["staying"].values()) == 1
        assert found["rows"] == {}
    both = [Withdrawal("source", "mirror"), Withdrawal("row", "more-itertools:pool:777")]
    for items in (both, [Withdrawal("text", TWICE["row_id"])]):
        (found,) = impact(kept, items)
        assert sum(found["rows"].values()) == 1
        assert found["staying"] == {}


def test_impact_counts_near_copies_that_would_come_in(two: Path) -> None:
    copy = next(r for r in rows_with(two, "quarantined") if r["reason"] == "near_duplicate")
    found = impact(Catalogue.of(two), [Withdrawal("row", copy["duplicate_of"])])[0]
    expected = [
        r
        for r in rows_with(two, "quarantined")
        if r["reason"] == "near_duplicate" and r["duplicate_of"] == copy["duplicate_of"]
    ]
    assert found["near_copies"] == len(expected)


def test_impact_of_a_source_counts_its_rows(two: Path) -> None:
    rows = [r for r in read_rows(two / "data/audit/rows.parquet", "rows") if r["source"] == "bfcl"]
    found = impact(Catalogue.of(two), [Withdrawal("source", "bfcl")])[0]
    assert sum(found["rows"].values()) == len(rows)
    assert found["verdict"] == "retrain"
    nobody = invoke("audit", "impact", "--source", "nobody", "--project", str(two))
    assert nobody.exit_code == 3


# withdraw


def test_withdrawals_are_written_for_the_pool_to_read(two: Path, tmp_path: Path) -> None:
    path = tmp_path / "withdrawn.csv"
    path.write_text("kind,value,reason,date", "utf-8")
    kept = Catalogue.of(two)
    row = read_jsonl(two / "data/selected.jsonl")[0]
    asked = [("row", row["row_id"][:20]), ("source", 'with, comma "and" quotes'), ("text", row["output"])]
    for kind, value in asked[:2]:
        withdraw(path, resolve(kept, kind, value), "asked for", "2026-11-25")
    reasons = read_withdrawals(path).reasons
    assert reasons == {("row", row["row_id"]): "asked for", asked[1]: "asked for"}
    with pytest.raises(PaserError, match="is withdrawn already: asked for"):
        withdraw(path, resolve(kept, *asked[2]), "again", "2026-11-26")
    assert read_withdrawals(path).reasons == reasons


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("row", "r1-0000ffff00", "0 rows of the catalogue begin with"),
        ("row", "nonsense", "is not a row id"),
        ("text", "nobody ever wrote this", "no row of the catalogue has this text"),
        ("source", "  ", "--source is empty"),
    ],
)
def test_what_cannot_be_withdrawn_is_said(two: Path, kind: str, value: str, message: str) -> None:
    with pytest.raises(PaserError, match=message):
        resolve(Catalogue.of(two), kind, value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("row", "r1-0123abcd"),
        ("row", "0" * 64),
        ("row", "r1-" + "0" * 63 + "g"),
        ("row", "r1-" + "0" * 65),
        ("row", "r1-" + "0" * 64 + ":7"),
        ("text", "0" * 63),
        ("text", "r2-" + "0" * 64),
        ("text", "alpaca:7"),
        ("row", "alpaca:"),
    ],
)
def test_a_withdrawal_that_could_never_match_is_refused(tmp_path: Path, kind: str, value: str) -> None:
    path = tmp_path / "withdrawn.csv"
    path.write_text("kind,value,reason,date\n", "utf-8")
    with pytest.raises(
        PaserError,
        match=f"withdrawn.csv: {kind} '{value}' is (neither a|no) row id[\\s\\S]*the whole id",
    ):
        withdraw(path, [Withdrawal("source", "bfcl"), Withdrawal(kind, value)], "asked for", "2026-11-25")
    assert path.read_text("utf-8") == "kind,value,reason,date\n"


def test_ids_are_written_as_the_pool_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "withdrawn.csv"
    path.write_text("kind,value,reason,date\n", "utf-8")
    asked = [Withdrawal("row", "R1-" + "AB" * 32), Withdrawal("text", "CD" * 32), Withdrawal("row", "A:B:7")]
    withdraw(path, asked, "asked for", "2026-11-25")
    assert [*read_withdrawals(path).reasons] == [
        ("row", "r1-" + "ab" * 32), ("text", "r1-" + "cd" * 32), ("row", "A:B:7"),
    ]  # fmt: skip
    for again in asked[:2]:
        with pytest.raises(PaserError, match="is withdrawn already"):
            withdraw(path, [again], "again", "2026-11-26")


@pytest.mark.parametrize("sign", ["\u2028", "\x85", "\x0b", "\x1c", "\n", '"', ","], ids=ascii)
def test_any_name_can_be_withdrawn_and_read_again(tmp_path: Path, sign: str) -> None:
    path = tmp_path / "withdrawn.csv"
    path.write_text("kind,value,reason,date\n", "utf-8")
    withdraw(path, [Withdrawal("source", f"a{sign}b")], "asked for", "2026-11-25")
    withdraw(path, [Withdrawal("source", "c")], "asked for", "2026-11-25")
    assert [*read_withdrawals(path).reasons] == [("source", f"a{sign}b"), ("source", "c")]


def test_withdraw_warns_of_what_matches_nothing_and_records_it(project: Path) -> None:
    """Nor in tables that no model has seen yet."""
    path = project / "data/withdrawn.csv"
    path.write_text("kind,value,reason,date\n", "utf-8")
    new = {**sample("code", 4321, "pool"), "occurrences": TWICE["occurrences"]}
    pool = [*read_rows(project / "data/pool.parquet", "pool"), new]
    write_table(project / "data/pool.parquet", "pool", pool)
    unknown = ("r1-" + "0" * 64, "bfcl:pool:99999", "bfc", "Nobody-1.0")
    known = (new["row_id"], "mirror:a:b:3", "bfcl", "Customer contract 7")
    kinds = ("row", "row", "source", "license")
    given = [w for n in (unknown, known) for k, v in zip(kinds, n, strict=True) for w in (f"--{k}", v)]
    given += ["--text", new["row_id"]]
    words = ("audit", "withdraw", *given, "--reason", "asked", "--project", str(project), "--json")
    done = invoke(*words)
    assert done.exit_code == 0, done.exception
    for kind, value in zip(kinds, unknown, strict=True):
        assert f"warning: {kind} {value} matches no row of the pool nor of any model" in done.stderr
    assert done.stderr.count("matches no row") == len(unknown)
    assert len(read_withdrawals(path).reasons) == 9


def test_each_verdict_is_counted_once(two: Path) -> None:
    row = read_jsonl(two / "data/selected.jsonl")[0]["row_id"]
    done = invoke("audit", "impact", "--row", row, "--project", str(two))
    assert done.stdout.count("retrain: ") == 1


def test_a_text_nobody_has_read_can_be_withdrawn_as_a_whole_row(two: Path) -> None:
    row = {"instruction": "Never seen", "input": "", "output": "before"}
    (found,) = resolve(Catalogue.of(two), "text", json.dumps(row))
    assert found == Withdrawal("text", row_id("Never seen", "", "before"))


def test_withdraw_shows_the_impact(project: Path) -> None:
    row = read_jsonl(project / "data/selected.jsonl")[0]["row_id"]
    (project / "data/withdrawn.csv").write_text("kind,value,reason,date\n", "utf-8")
    words = ("audit", "withdraw", "--row", row[:16], "--reason", "poisoned", "--project", str(project))
    done = json.loads(invoke(*words, "--date", "2026-11-25", "--json").stdout)
    assert done["withdrawn"] == [{"kind": "row", "value": row, "reason": "poisoned", "date": "2026-11-25"}]
    assert [m["verdict"] for m in done["models"]] == ["retrain"]
    assert isinstance(invoke(*words).exception, PaserError)


# diff


def test_diff_tells_rows_in_and_out_and_the_settings(two: Path) -> None:
    kept = Catalogue.of(two)
    a, b = (comparing.read_side(m.id, kept) for m in kept.models())
    found = comparing.diff(a, b)
    chosen = [
        {r["row_id"] for r in read_jsonl(p / "data/selected.jsonl")} for p in (two, two.parent / "second")
    ]
    assert {r["row_id"] for r in found["added"]} == chosen[1] - chosen[0]
    assert {r["row_id"] for r in found["removed"]} == chosen[0] - chosen[1]
    assert found["same"] == len(chosen[0] & chosen[1])
    assert found["settings"] == [{"key": "recover.recover.rank", "a": 8, "b": 16}]
    for row in found["removed"]:
        (before,) = why(*locate(kept.models()[0].id, None, kept), row["row_id"])
        (after,) = why(*locate(kept.models()[1].id, None, kept), row["row_id"])
        assert row["before"] == f"trained: {before['reason']}"
        assert row["after"] == f"{after['role']}: {after['reason']}"
    assert sum(c["added"] for c in found["by_cluster"]) == len(found["added"])
    assert sum(r["rows"] for r in found["by_reason"]) == len(found["added"]) + len(found["removed"])
    console = Console(file=io.StringIO(), width=140)
    comparing.render(found, console)
    assert "recover.recover.rank" in console.file.getvalue()  # type: ignore[attr-defined]


def test_diff_of_a_selection_folder_and_a_model(two: Path, tmp_path: Path) -> None:
    for name in ("decisions.parquet", "clusters.json"):
        shutil.copy(two / "data" / name, tmp_path / name)
    same = invoke("audit", "diff", str(tmp_path), str(two / MODEL), "--project", str(two))
    assert same.exit_code == 0, same.stdout
    assert f"warning: {tmp_path} records no settings, so none were compared" in same.stderr
    other = invoke("audit", "diff", str(tmp_path), str(two.parent / "second" / MODEL), "--project", str(two))
    assert other.exit_code == 3
