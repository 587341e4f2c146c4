"""The prune stage with schemes that change shapes: what it records and writes about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from paser.errors import StageError
from paser.stages.run import run_stage
from tests import project as projects


def project(root: Path, llama: Path, **prune: Any) -> Path:
    projects.make_prune_inputs(root, llama)
    settings = {"model": {"precision": "float32"}, "runtime": {"threads": 1}, "prune": prune}
    (root / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return root


def facts(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "data/records/prune.json").read_text())["facts"]
    return found


def test_a_narrower_model_is_measured_on_its_files_and_says_what_it_came_from(
    llama: Path, tmp_path: Path
) -> None:
    root = project(tmp_path, llama, scheme="flap", sparsity=0.25)
    record = run_stage("prune", root)
    assert facts(root)["removed"]["share"] == pytest.approx(0.25, abs=0.02)
    assert facts(root)["measured"]["kept_groups"] == [2, 2]
    card = (root / "data/models/pruned/README.md").read_text()
    digests = {each["path"]: each["sha256"] for each in record["inputs"]}
    assert digests["data/sources/original"] in card
    assert "pruning scheme: flap" in card
    assert str(root) not in card


def test_a_sliced_model_is_measured_by_the_width_of_its_stream(llama: Path, tmp_path: Path) -> None:
    root = project(tmp_path, llama, scheme="slicegpt", sparsity=0.25)
    run_stage("prune", root)
    assert facts(root)["stream_width"] == {"before": 32, "after": 24}
    assert facts(root)["measured"]["untied"] is True
    assert facts(root)["removed"]["parameters"] > facts(root)["removed"]["parameters_before"]


def test_a_share_that_widths_cannot_meet_fails_with_both_numbers(llama: Path, tmp_path: Path) -> None:
    options = {"multiple": 16}
    root = project(tmp_path, llama, scheme="slicegpt", sparsity=0.3, options=options)
    with pytest.raises(StageError, match=r"30\.0%, but the saved model keeps 16 of 32 dimensions"):
        run_stage("prune", root)
