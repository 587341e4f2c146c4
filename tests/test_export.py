"""A finished tiny project with early stopping: its proof holds, and its export loads, verifies and tells."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from paser.artifacts import file_digests, read_json, read_jsonl
from paser.cli import app
from paser.errors import PaserError
from paser.export import export_model, push
from paser.lineage.entry import Entry
from paser.lineage.trace import trace
from paser.lineage.verify import verify
from paser.lineage.why import why
from paser.stages.graph import STAGES
from paser.stages.run import run_stage
from tests import project as projects

MODEL = "data/models/recovered"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, llama: Path, encoder: Path) -> Path:
    folder = projects.make_project(tmp_path_factory.mktemp("export") / "p", llama, encoder, rows=120)
    recover = {
        "epochs": 2, "learning_rate": 0.01,
        "early_stopping": {"share": 0.2, "patience": 3, "steps": 1},
    }  # fmt: skip
    projects.write_settings(folder, projects.SETTINGS | {"recover": recover})
    for stage in list(STAGES)[: list(STAGES).index("audit") + 1]:
        run_stage(stage, folder)
    return folder


def failures(model: Path) -> list[str]:
    return [f"{check.name}: {check.detail}" for check in verify(model) if not check.ok]


def test_rows_held_out_are_proved_apart_from_the_trained_ones(done: Path) -> None:
    model = done / MODEL
    held_out = read_json(model / "provenance.json")["held_out"]
    selected = read_jsonl(done / "data/selected.jsonl")
    assert failures(model) == []
    entry = Entry(done / "data/audit")
    summary = entry.content()["summary"]
    assert summary["rows"] == summary["roles"]["trained"] == len(selected) - len(held_out)
    assert summary["roles"]["stopped_by"] == len(held_out) > 0
    traced = trace(model)
    assert traced.rows == len(traced.selected) == summary["rows"]
    assert not {row["row_id"] for row in traced.selected} & {*held_out}
    texts = {row["row_id"]: row["instruction"] for row in selected}
    assert all(texts[row["row_id"]].startswith(row["instruction"][:20]) for row in traced.selected)
    (found,) = why(model, None, held_out[0])
    assert (found["role"], found["position"], found["decision"]) == ("stopped_by", None, "accepted")


def test_a_row_moved_from_held_out_to_trained_is_detected(done: Path, tmp_path: Path) -> None:
    from paser.artifacts import write_json
    from paser.lineage.merkle import merkle_root

    copy = Path(shutil.copytree(done, tmp_path / "p"))
    path = copy / MODEL / "provenance.json"
    content = read_json(path)
    content["row_ids"].append(content["held_out"].pop())
    content |= {"rows": content["rows"] + 1, "merkle_root": merkle_root(content["row_ids"])}
    write_json(path, content)
    assert any("Merkle roots agree" in failure for failure in failures(copy / MODEL))


def test_the_export_loads_in_plain_transformers_and_computes_the_same(done: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "shared"
    export_model(done / MODEL, out)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        found, expected = (
            AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
            for folder in (out, done / MODEL)
        )
    assert torch.equal(found, expected)
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert (out / "adapter/adapter_model.safetensors").exists()


def test_the_export_verifies_and_traces_by_itself_wherever_it_is(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "far" / "away"
    export_model(done / MODEL, out)
    assert failures(out) == []
    assert trace(out).merkle_root == trace(done / MODEL).merkle_root
    (out / "config.json").write_text("{}", encoding="utf-8")
    assert any("config.json" in failure for failure in failures(out))


def test_the_card_says_what_the_model_is(done: Path, tmp_path: Path) -> None:
    export_model(done / MODEL, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert card == (done / "data/audit/model-card.md").read_text(encoding="utf-8")
    provenance = read_json(done / MODEL / "provenance.json")
    for expected in (
        "`wanda`", "50%", "`tiny-llama`", provenance["merkle_root"],
        provenance["inputs"]["data/selected.jsonl"], "recover.learning_rate=0.01", "held out of training",
        "## Results", "## Limits",
    ):  # fmt: skip
        assert expected in card, expected
    assert not list((done / MODEL).glob("README*"))


def test_a_card_that_was_touched_up_is_detected(done: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(done, tmp_path / "p"))
    card = copy / "data/audit/model-card.md"
    card.write_text(card.read_text(encoding="utf-8") + "Better than the original.\n", encoding="utf-8")
    assert any("model card follows" in failure for failure in failures(copy / MODEL))


def test_nothing_is_left_where_an_export_is_refused(done: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(PaserError, match="taken exists and is not empty"):
        export_model(done / MODEL, taken)
    altered = Path(shutil.copytree(done, tmp_path / "p"))
    (altered / MODEL / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(PaserError, match=r"config.json is not what its provenance names"):
        export_model(altered / MODEL, tmp_path / "out")
    with pytest.raises(PaserError, match="is a control"):
        export_model(done / "data/models/control", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "taken"]


def test_pushing_without_a_token_says_how_to_get_one_and_exports_nothing(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PaserError, match=r"no access token[\s\S]*hf auth login"):
        push(done / MODEL, "me/model")
    given = ["export", str(done / MODEL), str(tmp_path / "out"), "--push", "me/model"]
    found = CliRunner().invoke(app, given)
    assert isinstance(found.exception, PaserError)
    assert not (tmp_path / "out").exists()


def test_a_hub_that_cannot_be_reached_is_a_clear_error(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.__init__", _nowhere)
    export_model(done / MODEL, tmp_path / "out")
    with pytest.raises(PaserError, match=r"me/model was not pushed[\s\S]*the export is whole in"):
        push(tmp_path / "out", "me/model")
    assert "audit/ goes with it: texts of the selected rows" in capsys.readouterr().err


def _nowhere(self: Any, *_: Any, **__: Any) -> None:
    """A Hub on this machine's port 9, where nothing listens."""
    self.endpoint, self.token = "http://127.0.0.1:9", None
    self.library_name = self.library_version = self.user_agent = None
    self.headers = None
    self._thread_pool = None


def test_the_command_lists_what_it_wrote(done: Path, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["export", str(done / MODEL), str(tmp_path / "out"), "--json"])
    assert found.exit_code == 0, found.output
    assert {"README.md", "provenance.json", "model.safetensors", "audit/entry.json"} <= {
        *file_digests(tmp_path / "out")
    }
    assert f"{tmp_path}/out/README.md" in found.output
