"""The pruning benchmark: every scheme has a case and a source, and its table says met, missed or failed."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import pruning
from paser.pruning.protocol import schemes


def cell(label: str, perplexity: float, **more: Any) -> dict[str, Any]:
    return {
        "label": label, "perplexity": perplexity, "protocol": "the protocol", "seconds": 100.0,
        "peak_gb": 2.0, "processor_seconds": 90.0, "threads": 2, "parameters": 134_500_000,
        "sparsity": {"overall": 0.5, "pattern": "2:4"}, **more,
    }  # fmt: skip


def test_every_scheme_is_measured_and_has_its_source() -> None:
    assert {case.scheme for case in pruning.CASES if case.scheme} == set(schemes()) == set(pruning.ABOUT)
    assert all(case.settings.scheme == case.scheme for case in pruning.CASES if case.scheme)
    labels = {case.label for case in pruning.CASES}
    assert labels >= {label for pair in pruning.ORDER for label in pair}


def test_the_table_says_what_is_met_missed_failed_and_not_measured() -> None:
    cells = [
        {"label": "dense", "perplexity": 20.0, "protocol": "the protocol"},
        cell("SparseGPT 50 %", 30.0),
        cell("Wanda 50 %", 40.5, seconds=301.0),
        cell("magnitude 50 %", 39.0, peak_gb=4.0),
        {"label": "depth 25 %", "failed": "no blocks"},
        cell("SliceGPT 25 %", 50.0, width=[576, 432]) | {"sparsity": None},
    ]
    del cells[-1]["sparsity"]
    text = pruning.table(cells)
    assert "Wanda 50 % | 50.0% zeros, 2:4 | 134.5 | 40.5 | 20.0 | 301 | 90 | 2 | 2.0 |" in text
    assert "SliceGPT 25 % | width 432 of 576 |" in text
    assert "depth 25 % | failed: no blocks |" in text
    assert "SparseGPT 50 % against Wanda 50 % | 30.0, 40.5 | the first is not higher | met |" in text
    assert "Wanda 50 % against magnitude 50 % | 40.5, 39.0 | the first is not higher | missed |" in text
    assert "magnitude 50 % against random" not in text
    assert "slowest scheme (Wanda 50 %) | 301 s | at most 300 s | missed |" in text
    assert "largest scheme (magnitude 50 %) | 4.0 GB | at most 4 GB | met |" in text
    assert "Not measured: SparseGPT 2:4, Wanda 4:8" in text
    assert "the protocol" in text


@pytest.mark.parametrize(("name", "inside", "outside"), [
    ("wanda", "compressor.py", "slicegpt.py"),
    ("random", "masks.py", "compressor.py"),
    ("slicegpt", "coupled.py", "gblm.py"),
])  # fmt: skip
def test_a_cell_depends_on_the_code_of_its_own_scheme(name: str, inside: str, outside: str) -> None:
    files = [path.rpartition("/")[2] for path in pruning.scheme_code(name)]
    assert inside in files
    assert outside not in files
    assert "protocol.py" not in files
