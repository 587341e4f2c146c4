"""The demo fits itself to a slow processor, in the open, and only before its first run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paser.demo import _fit_to_machine, run_demo
from paser.errors import PaserError
from paser.settings import load_settings

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    return tmp_path


@pytest.mark.parametrize(("speedup", "share"), [(0.4, 0.5), (1.1, 0.5), (6.0, 1.0)])
def test_a_processor_without_bfloat16_gets_half_of_the_rows(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    speedup: float,
    share: float,
) -> None:
    monkeypatch.setattr("paser.models.precision.bfloat16_speedup", lambda device, cache: speedup)
    before = (folder / "params.yaml").read_text(encoding="utf-8")
    _fit_to_machine(folder)
    after = (folder / "params.yaml").read_text(encoding="utf-8")
    assert load_settings(folder / "params.yaml").pool.share == share
    assert (before != after) == (share == 0.5)
    assert ("half of its rows" in capsys.readouterr().err) == (share == 0.5)


def test_a_project_that_ran_keeps_its_settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paser.models.precision.bfloat16_speedup", lambda device, cache: 0.4)
    (folder / "dvc.lock").write_text("", encoding="utf-8")
    _fit_to_machine(folder)
    assert load_settings(folder / "params.yaml").pool.share == 1.0


def test_outside_a_project_the_demo_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(PaserError, match=r"no dvc\.yaml[\s\S]*clone"):
        run_demo(tmp_path)
