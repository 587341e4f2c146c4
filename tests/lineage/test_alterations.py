"""Whatever is altered is detected, and nothing else: bytes, rows and parameters, a few hundred times."""

from __future__ import annotations

import copy
import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from synthetic_project import build

from paser.artifacts import read_json, read_jsonl, write_json, write_jsonl
from paser.lineage.lock import same_setting
from paser.lineage.verify import Check, verify
from paser.stages.graph import STAGES
from paser.stages.run import run_stage
from tests.project import ENVIRONMENT

MODEL = "data/models/recovered"
SEED = 20


def failures(project: Path) -> list[Check]:
    return [check for check in verify(project / MODEL) if not check.ok]


def lock_with_dvc(root: Path) -> None:
    """A real dvc.lock over the synthetic project: DVC hashes what lies there and calls it the stages'."""
    stages: dict[str, Any] = {}
    for spec in STAGES.values():
        if spec.name == "report":
            continue
        stages[spec.name] = {
            "cmd": f"paser stage {spec.name}",
            "deps": list(spec.inputs),
            "outs": [*spec.outputs, spec.record],
        }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}), "utf-8")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "commit", "-f", "-q"]):
        done = subprocess.run(command, cwd=root, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def with_params(root: Path) -> None:
    """The lock as it is when dvc.yaml also names the parameters."""
    lock = yaml.safe_load((root / "dvc.lock").read_text("utf-8"))
    for name, stage in lock["stages"].items():
        params = read_json(root / STAGES[name].record)["params"]
        flat = {
            (key if not isinstance(value, dict) else f"{key}.{leaf}"): inner
            for key, value in params.items()
            for leaf, inner in (value.items() if isinstance(value, dict) else [(None, value)])
        }
        if flat:
            stage["params"] = {"params.yaml": flat}
    (root / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False), "utf-8")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = build(tmp_path_factory.mktemp("locked") / "project", per_label=3)
    run_stage("audit", root)
    lock_with_dvc(root)
    with_params(root)
    return root


@pytest.fixture(scope="module")
def shared(locked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that tests alter and put back."""
    return Path(shutil.copytree(locked, tmp_path_factory.mktemp("altered") / "project", symlinks=True))


@pytest.fixture
def altered(shared: Path) -> Iterator[Callable[[str, bytes], list[Check]]]:
    """Writes other bytes to a file, verifies, and puts the file back."""

    def alter(relative: str, content: bytes) -> list[Check]:
        path = shared / relative
        before = path.read_bytes()
        path.write_bytes(content)
        try:
            return failures(shared)
        finally:
            path.write_bytes(before)

    yield alter
    assert failures(shared) == []


def recorded_files(root: Path) -> list[str]:
    data = root / "data"
    return sorted(p.relative_to(root).as_posix() for p in data.rglob("*") if recorded(p))


def recorded(path: Path) -> bool:
    return path.is_file() and not path.name.endswith(".run.json") and path.name != ".gitignore"


def test_no_false_alarm_with_a_lock(locked: Path) -> None:
    assert failures(locked) == []
    assert any(check.name == "dvc.lock, stage recover" for check in verify(locked / MODEL))


def test_every_changed_byte_is_detected(shared: Path, altered: Callable[[str, bytes], list[Check]]) -> None:
    """Also in the record of `audit`, whose digest is in dvc.lock alone."""
    rng, missed, tried = random.Random(SEED), [], 0
    for relative in recorded_files(shared):
        content = (shared / relative).read_bytes()
        for _ in range(4):
            position, change = rng.randrange(len(content)), rng.randrange(1, 256)
            other = bytearray(content)
            other[position] ^= change
            tried += 1
            if not altered(relative, bytes(other)):
                missed.append((relative, position, change))
    assert missed == []
    assert tried > 150


def test_every_truncation_and_extension_is_detected(
    shared: Path, altered: Callable[[str, bytes], list[Check]]
) -> None:
    for relative in recorded_files(shared):
        content = (shared / relative).read_bytes()
        assert altered(relative, content[:-1]), relative
        assert altered(relative, content + b"\n"), relative


def test_every_changed_digest_size_or_parameter_of_the_lock_is_detected(
    shared: Path, altered: Callable[[str, bytes], list[Check]]
) -> None:
    rng, text = random.Random(SEED), (shared / "dvc.lock").read_text("utf-8")
    digests = [m.start() for m in re.finditer(r"(?<=md5: )[0-9a-f]{32}", text)]
    sizes = [m.start(1) for m in re.finditer(r"(?:size|nfiles): (\d+)", text)]
    places = [place + rng.randrange(32) for place in rng.sample(digests, 25)] + rng.sample(sizes, 15)
    for place in places:
        digit = rng.choice([d for d in "123456789" if d != text[place]])
        assert altered("dvc.lock", (text[:place] + digit + text[place + 1 :]).encode()), text[
            place - 60 : place
        ]
    lock = yaml.safe_load(text)
    for name, stage in lock["stages"].items():
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            other = copy.deepcopy(lock)
            other["stages"][name]["params"]["params.yaml"][key] = another(value)
            assert altered("dvc.lock", yaml.safe_dump(other).encode()), (name, key)


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return (
        [*value, "x"] if isinstance(value, list) else {"x": "y"} if isinstance(value, dict) else f"{value}x"
    )


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict) and value:
        for key in value:
            yield from leaves(value[key], (*path, key))
    else:
        yield path


def test_every_edited_parameter_of_a_record_is_detected(
    shared: Path, altered: Callable[[str, bytes], list[Check]], tmp_path: Path
) -> None:
    """In the project's record and in the entry's copy of it."""
    for name in STAGES:
        for folder in ("data/records", "data/audit/records"):
            relative = f"{folder}/{name}.json"
            if not (shared / relative).exists():
                continue
            record = read_json(shared / relative)
            for path in leaves(record["params"]):
                other = copy.deepcopy(record)
                group = other["params"]
                for key in path[:-1]:
                    group = group[key]
                if path:
                    group[path[-1]] = another(group[path[-1]])
                    write_json(tmp_path / "record.json", other)
                    assert altered(relative, (tmp_path / "record.json").read_bytes()), (name, path)


def test_every_edited_setting_of_params_yaml_is_detected(
    altered: Callable[[str, bytes], list[Check]],
) -> None:
    edits = {
        "seed: 18": "seed is 18",
        "pool: {share: 0.5}": "pool.share is 0.5",
        "select: {gamma: 3.0}": "select.gamma is 3.0",
        "recover: {rank: 4}": "recover.rank is 4",
        "policy: {personal: [email]}": "policy.personal is ['email']",
    }
    for edit, told in edits.items():
        base = "" if edit.startswith("seed") else "seed: 17\n"
        text = f"{base}{edit}\nreport: {{map_rows: 400}}\n"
        found = altered("params.yaml", text.encode())
        assert any(told in check.detail for check in found), edit
    assert altered("params.yaml", b"seed: 17\nreport: {map_rows: 400}\nruntime: {threads: 2}\n") == []


@pytest.mark.parametrize(
    "relative", ["data/selected.jsonl", "data/audit/selected.jsonl", "data/control.jsonl"]
)
def test_rows_removed_added_swapped_or_reordered_are_detected(
    relative: str, shared: Path, altered: Callable[[str, bytes], list[Check]], tmp_path: Path
) -> None:
    rng, rows = random.Random(SEED), read_jsonl(shared / relative)
    assert len(rows) > 2
    for _ in range(8):
        a, b = rng.sample(range(len(rows)), 2)
        swapped = list(rows)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        changes = [
            rows[:a] + rows[a + 1 :],
            [*rows[:a], {**rows[b], "output": "slipped in"}, *rows[a:]],
            [*rows[:a], rows[b], *rows[a:]],
            swapped,
            rows[::-1],
        ]
        for change in changes:
            write_jsonl(tmp_path / "rows.jsonl", change)
            assert altered(relative, (tmp_path / "rows.jsonl").read_bytes())


@pytest.mark.parametrize(
    "name", ["pool", "holdout", "calibration", "quarantine", "clusters", "scores", "decisions", "evaluation"]
)
def test_rows_of_every_table_removed_added_or_reordered_are_detected(
    name: str, shared: Path, altered: Callable[[str, bytes], list[Check]], tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    relative, rng = f"data/{name}.parquet", random.Random(SEED)
    table = pq.read_table(shared / relative)
    for _ in range(3):
        place = rng.randrange(table.num_rows)
        order = list(range(table.num_rows))
        order[0], order[-1] = order[-1], order[0]
        for other in (
            pa.concat_tables([table.slice(0, place), table.slice(place + 1)]),
            pa.concat_tables([table, table.slice(place, 1)]),
            table.take(order),
        ):
            pq.write_table(other, tmp_path / "table.parquet", compression="zstd")
            assert altered(relative, (tmp_path / "table.parquet").read_bytes())


def test_a_lock_that_cannot_be_read_is_a_failed_check(altered: Callable[[str, bytes], list[Check]]) -> None:
    assert any(check.name == "dvc.lock" for check in altered("dvc.lock", b"schema: '1.0'\nstages: {}\n"))


def test_a_stage_that_is_missing_in_the_lock_is_named(
    shared: Path, altered: Callable[[str, bytes], list[Check]]
) -> None:
    lock = yaml.safe_load((shared / "dvc.lock").read_text("utf-8"))
    del lock["stages"]["score"]
    found = altered("dvc.lock", yaml.safe_dump(lock).encode())
    assert any("stage score has a record, but is not in" in check.detail for check in found)


def test_the_records_own_digests_in_the_lock_are_compared(locked: Path) -> None:
    lock = json.dumps(yaml.safe_load((locked / "dvc.lock").read_text("utf-8")))
    assert all(spec.record in lock for spec in STAGES.values() if spec.name != "report")


def test_a_setting_as_written_is_the_validated_one_and_no_other() -> None:
    same = [("10", 10), (1.0, 1), ({}, None), (None, None), ({"a.b": 1}, {"a": {"b": 1}}), ({}, {})]
    assert all(same_setting(recorded, stated) for recorded, stated in same)
    other = [("10%", "11%"), (0, None), ({"a": 1}, None), ({"a.b": 1}, {"a": {"b": 2}}), (1, 2)]
    assert not any(same_setting(recorded, stated) for recorded, stated in other)
