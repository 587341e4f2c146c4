"""`dvc.yaml`, the stage table and the code say the same."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from paser.errors import StageError
from paser.settings import Settings
from paser.stages.graph import CORE, STAGES, stage

ROOT = Path(__file__).parent.parent.parent
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
NAMES = [
    "fetch", "pool", "prune", "embed", "cluster", "score", "select", "recover", "control", "evaluate",
    "audit", "report",
]  # fmt: skip


def leaves(key: str) -> list[str]:
    group, _, leaf = key.partition(".")
    kind = Settings.model_fields[group].annotation
    if leaf or not hasattr(kind, "model_fields"):
        return [key]
    return [f"{group}.{name}" for name in kind.model_fields]


def test_the_twelve_stages_in_order() -> None:
    assert list(STAGES) == list(DVC["stages"]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_dvc_yaml_says_what_the_stage_table_says(name: str) -> None:
    spec, entry = STAGES[name], DVC["stages"][name]
    outs = [*entry["outs"], *entry.get("metrics", [])]
    assert entry["cmd"] == f"paser stage {name}"
    assert entry["deps"] == [*spec.inputs, *spec.all_code]
    assert sorted(outs) == sorted([*spec.outputs, spec.record, spec.run_record])
    assert sorted(entry.get("params", [])) == sorted(leaf for key in spec.params for leaf in leaves(key))
    assert entry["desc"]


@pytest.mark.parametrize("name", NAMES)
def test_every_module_a_stage_imports_is_a_declared_dependency(name: str) -> None:
    declared = STAGES[name].all_code
    for module in sorted(closure(ROOT / f"paser/stages/{name}.py")):
        relative = module.relative_to(ROOT).as_posix()
        covered = any(relative == d or relative.startswith(f"{d}/") for d in declared)
        assert covered or module.name == "__init__.py", f"{name} imports {relative}, not declared"


def closure(start: Path) -> set[Path]:
    """The package's files that `start` imports, directly or not; late imports included."""
    seen: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for module in names:
                file = ROOT / (module.replace(".", "/") + ".py")
                if module.startswith("paser.") and file.exists():
                    waiting.append(file)
    return seen


def test_every_input_is_written_by_an_earlier_stage_or_given() -> None:
    written = {"data/sources.yaml", "data/raw", "data/withdrawn.csv"}
    for spec in STAGES.values():
        assert set(spec.inputs) <= written, f"{spec.name}: {set(spec.inputs) - written}"
        written.add(spec.run_record)
        written |= {*spec.outputs, spec.record}


def test_core_and_declared_code_exist() -> None:
    for path in {*CORE, *(p for spec in STAGES.values() for p in spec.all_code)}:
        assert (ROOT / path).exists(), path


def test_the_method_room_stands_alone() -> None:
    for path in sorted((ROOT / "paser/method").glob("*.py")):
        for found in closure(path):
            room = found.relative_to(ROOT).parts[1]
            assert room in ("method", "records.py", "errors.py"), f"{path.name} imports {found}"


def test_an_unknown_stage_names_the_known_ones() -> None:
    with pytest.raises(StageError, match="one of fetch, pool"):
        stage("scores")
