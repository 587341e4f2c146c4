"""`import paser` from a notebook: objects in, objects out, the same answers as on the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import paser
from paser.artifacts import read_jsonl
from paser.errors import PaserError
from paser.standalone import FILES, select_rows
from tests import tiny

HEAVY = ("torch", "transformers", "datasets", "pandas", "numpy", "pyarrow", "pydantic", "yaml")
SMALL: dict[str, Any] = {
    "model": {"precision": "float32"}, "cluster": {"k": 3, "stability_runs": 0}, "runtime": {"threads": 1},
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def tokenizer_of(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def test_importing_it_is_instant_and_help_is_there() -> None:
    code = f"import sys, paser; print([m for m in {HEAVY!r} if m in sys.modules]); print(dir(paser))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "[]"
    assert all(f"'{name}'" in done.stdout for name in paser.__all__)
    assert "budget" in str(paser.select.__doc__)
    with pytest.raises(AttributeError, match="selct"):
        paser.selct  # noqa: B018


def test_objects_give_what_the_command_line_gives(
    here: Path, llama: Path, sparse_llama: Path, encoder: Path
) -> None:
    import datasets
    import torch

    rows = [row | {"mine": number} for number, row in enumerate(tiny.rows(60))]
    rows.append(dict(rows[3], mine=60))
    original, pruned = loaded(llama).train(), loaded(sparse_llama)
    before = {name: weight.clone() for name, weight in pruned.state_dict().items()}
    found = paser.select(
        original, pruned, datasets.Dataset.from_list(rows), budget=0.2, tokenizer=tokenizer_of(llama),
        encoder=encoder, settings=SMALL,
    )  # fmt: skip
    assert isinstance(found.selected, datasets.Dataset)
    assert set(found.selected.column_names) == set(rows[0])
    assert len(found.selected) == found.budget["spent"] == 12
    assert sorted(found.decisions["position"]) == list(range(60))
    accepted = found.decisions[found.decisions["decision"] == "accepted"]
    assert sorted(found.selected["mine"]) == sorted(accepted["position"])
    assert list(found.quarantine["position"]) == [60]
    assert found.damage["jsd"].is_monotonic_decreasing
    assert found.damage["jsd"].between(0, 0.694).all()
    assert found.damage["spent"].sum() == 12
    assert original.training
    assert not pruned.training
    assert all(torch.equal(weight, before[name]) for name, weight in pruned.state_dict().items())
    assert "12 of 60 rows selected" in repr(found)

    tiny.write_jsonl(here / "pool.jsonl", rows)
    (here / "small.yaml").write_text(
        "model: {precision: float32}\ncluster: {k: 3, stability_runs: 0}\nruntime: {threads: 1}\n",
        encoding="utf-8",
    )
    select_rows(
        str(llama), str(sparse_llama), "pool.jsonl", "20%", here / "picked",
        encoder=str(encoder), params=here / "small.yaml",
    )  # fmt: skip
    texts = [row["instruction"] for row in read_jsonl(here / "picked/selected.jsonl")]
    assert texts == found.selected["instruction"][:]
    assert sorted(path.name for path in found.write("mine").iterdir()) == sorted(FILES)
    for name in ("scores.parquet", "decisions.parquet", "clusters.json", "budget.json"):
        assert (here / "mine" / name).read_bytes() == (here / "picked" / name).read_bytes()
    with pytest.raises(PaserError, match="mine exists and is not empty"):
        found.write("mine")


def test_lists_frames_files_and_paths_are_the_same_to_it(
    here: Path, llama: Path, sparse_llama: Path, encoder: Path
) -> None:
    import pandas as pd

    rows = tiny.rows(40)
    rows[5]["label"] = None
    path = tiny.write_jsonl(here / "pool.jsonl", rows)
    kept = [row["instruction"] for row in rows[:3]]
    selected = []
    for samples in (rows, pd.DataFrame(rows), path):
        found = paser.select(
            llama, str(sparse_llama), samples, 10, encoder=encoder, settings=SMALL,
            evaluation=[[{"prompt": row["instruction"] + "\n\n" + row["input"], "completion": "-"}
                         for row in rows[:3]]],
        )  # fmt: skip
        selected.append(found.selected["instruction"][:])
        refused = found.decisions[found.decisions["reason"] == "contaminated"]
        assert len(refused) >= 3
        assert refused["detail"].str.contains("evaluation-0").all()
    assert len(selected[0]) == 10
    assert selected[0] == selected[1] == selected[2]
    assert not set(selected[0]) & set(kept)
    everything = paser.select(llama, sparse_llama, rows, 1.0, encoder=encoder, settings=SMALL)
    assert everything.budget["budget"] == 40


def test_damage_of_several_models(here: Path, llama: Path, sparse_llama: Path) -> None:
    mild = tiny.make_sparse(llama, here / "mild", share=0.1)
    found = paser.damage(llama, {"half": loaded(sparse_llama), "mild": mild}, tiny.rows(30), settings=SMALL)
    assert list(dict.fromkeys(found.table["scheme"])) == ["half", "mild"]
    worse = found.table.set_index(["scheme", "capability"])["jsd"]
    assert (worse["half"] > worse["mild"]).all()
    assert (found.write(here / "out") / "damage.svg").exists()


def test_recover_from_a_selection_and_verify(llama: Path, sparse_llama: Path, encoder: Path) -> None:
    pruned, tokenizer = loaded(sparse_llama), tokenizer_of(llama)
    chosen = paser.select(
        llama, pruned, tiny.rows(30), "8", tokenizer=tokenizer, encoder=encoder, settings=SMALL
    )
    how = SMALL | {"recover": {"epochs": 1, "rank": 2, "weighting": "damage", "distill": {"weight": 0.5}}}
    found = paser.recover(pruned, chosen, "again", original=llama, tokenizer=tokenizer, settings=how)
    assert found.provenance["rows"] == 8
    assert set(found.provenance["row_ids"]) == set(
        chosen.decisions[chosen.decisions["decision"] == "accepted"]["row_id"]
    )
    assert all(check.ok for check in paser.verify(found.path))
    assert loaded(found.path).num_parameters() == pruned.num_parameters()
    (found.path / "config.json").write_text("{}", encoding="utf-8")
    assert not all(check.ok for check in paser.verify("again"))
    with pytest.raises(PaserError, match="have no scores"):
        paser.recover(pruned, tiny.rows(8), "more", original=llama, tokenizer=tokenizer, settings=how)


def test_mistakes_name_cause_and_remedy(llama: Path, sparse_llama: Path, encoder: Path) -> None:
    import datasets

    rows, pruned = tiny.rows(6), loaded(sparse_llama)
    typo, distil = {"cluster": {"kk": 1}}, {"recover": {"distill": {"weight": 0.5}}}
    tokenizer = tokenizer_of(llama)
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})
    other = tiny.make_tokenizer(extra=("<|extra|>",))
    cases: list[tuple[str, Any]] = [
        ("tokenizer=AutoTokenizer", lambda: paser.select(pruned, pruned, rows)),
        ("different vocabularies", lambda: paser.select(llama, pruned, rows, tokenizer=other)),
        ("overflows", lambda: paser.select(llama, pruned.half(), rows, tokenizer=tokenizer)),
        ('samples\\["train"\\]', lambda: paser.select(llama, sparse_llama, splits)),
        ("samples are empty", lambda: paser.damage(llama, sparse_llama, [])),
        ("unknown shape", lambda: paser.damage(llama, sparse_llama, [{"question": "?"}])),
        ("not a share", lambda: paser.select(llama, sparse_llama, rows, 1.5)),
        ("unknown key 'cluster.kk'", lambda: paser.damage(llama, sparse_llama, rows, settings=typo)),
        ("nowhere does not exist", lambda: paser.damage(llama, "nowhere", rows)),
        ("no response", lambda: paser.recover(sparse_llama, [*rows, {**rows[0], "output": " "}], "none")),
        ("there is no teacher", lambda: paser.recover(sparse_llama, rows, "none", settings=distil)),
    ]  # fmt: skip
    for message, call in cases:
        with pytest.raises(PaserError, match=message):
            call()
