from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paser.artifacts import read_json, read_jsonl, sha256_file
from paser.cli import app
from paser.errors import PaserError
from paser.lineage.documents.bom import validate
from paser.lineage.documents.export import FORMATS, export

MODEL = "data/models/recovered"


@pytest.fixture(scope="module")
def documents(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("documents")
    export(finished / "data/audit", target)
    return target


def output_digest(project: Path, stage: str, path: str) -> str:
    outputs = read_json(project / f"data/records/{stage}.json")["outputs"]
    return next(str(item["sha256"]) for item in outputs if item["path"] == path)


def test_the_same_entry_gives_the_same_bytes(finished: Path, documents: Path, tmp_path: Path) -> None:
    for path in export(finished / "data/audit", tmp_path):
        assert path.read_bytes() == (documents / path.name).read_bytes(), path.name


def test_the_bill_of_materials_is_valid_and_names_what_the_model_was_made_from(
    finished: Path, documents: Path
) -> None:
    text = (documents / "bom.cdx.json").read_text("utf-8")
    validate(text)
    bom = json.loads(text)
    model = bom["metadata"]["component"]
    assert bom["specVersion"] == "1.6"
    assert "timestamp" not in bom["metadata"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": output_digest(finished, "recover", MODEL)}]
    components = {c["bom-ref"]: c for c in bom["components"]}
    rows = read_jsonl(finished / "data/selected.jsonl")
    properties = {p["name"]: p["value"] for p in components["selected-rows"]["properties"]}
    assert properties["paser:rows"] == str(len(rows))
    assert properties["paser:merkle_root"] == read_json(finished / MODEL / "provenance.json")["merkle_root"]
    assert components["selected-rows"]["hashes"][0]["content"] == sha256_file(
        finished / "data/selected.jsonl"
    )
    for source in {row["source"] for row in rows}:
        component = components[f"source-{source}"]
        licenses = {item["license"]["name"] for item in component["licenses"]}
        assert licenses == {row["license"] for row in rows if row["source"] == source}
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {m["slice"] for m in metrics} >= {"overall", "code"}


def test_a_bill_of_materials_of_another_shape_is_refused(documents: Path) -> None:
    bom = json.loads((documents / "bom.cdx.json").read_text("utf-8"))
    bom["metadata"]["component"]["modelCard"]["colour"] = "blue"
    with pytest.raises(PaserError, match="not valid CycloneDX"):
        validate(json.dumps(bom))


def test_prov_links_every_output_to_the_stage_that_wrote_it(finished: Path, documents: Path) -> None:
    from prov.model import ProvActivity, ProvDocument, ProvEntity, ProvGeneration, ProvUsage

    text = (documents / "prov.json").read_text("utf-8")
    document = ProvDocument.deserialize(content=text, format="json")
    records = [read_json(p) for p in sorted((finished / "data/audit/records").glob("*.json"))]
    activities = {str(a.identifier) for a in document.get_records(ProvActivity)}
    assert activities == {f"paser:stage-{r['stage']}" for r in records}
    outputs, inputs = (sum(len(r[side]) for r in records) for side in ("outputs", "inputs"))
    assert len(list(document.get_records(ProvGeneration))) == outputs
    assert len(list(document.get_records(ProvUsage))) == inputs
    digests = {str(next(iter(e.get_attribute("paser:sha256")))) for e in document.get_records(ProvEntity)}
    assert digests == {a["sha256"] for r in records for side in ("inputs", "outputs") for a in r[side]}


def test_the_cards_load_in_the_hub_library_and_tell_rows_digests_and_limits(
    finished: Path, documents: Path
) -> None:
    from huggingface_hub import DatasetCard, ModelCard

    card = ModelCard((documents / "model-card.md").read_text("utf-8"))
    rows = read_jsonl(finished / "data/selected.jsonl")
    assert card.data.library_name == "transformers"
    assert "pruned" in card.data.tags
    assert f"{len(rows):,} rows" in card.text
    assert sha256_file(finished / "data/selected.jsonl") in card.text
    assert "paser audit reproduce" in card.text
    assert "BFCL" in card.text
    data = DatasetCard((documents / "dataset-card.md").read_text("utf-8"))
    assert data.data.license == "other"
    assert data.data.size_categories == ["n<1K"]
    for license in {row["license"] for row in rows}:
        assert f"| {license} |" in data.text


def test_croissant_loads_the_selected_rows(finished: Path, documents: Path) -> None:
    import mlcroissant as mlc

    dataset = mlc.Dataset(jsonld=documents / "croissant.json")
    assert not dataset.metadata.ctx.issues.errors
    content: dict[str, Any] = read_json(documents / "croissant.json")
    assert content["distribution"][0]["sha256"] == sha256_file(finished / "data/selected.jsonl")
    rows = read_jsonl(finished / "data/selected.jsonl")
    loaded = list(dataset.records("rows"))
    assert [r["rows/row_id"].decode() for r in loaded] == [row["row_id"] for row in rows]
    assert sum(r["rows/tokens"] for r in loaded) == sum(row["tokens"] for row in rows)


def test_the_command_writes_one_format_or_all(finished: Path, tmp_path: Path) -> None:
    model = str(finished / MODEL)
    done = CliRunner().invoke(app, ["audit", "export", model, str(tmp_path / "a"), "--format", "prov"])
    assert done.exit_code == 0, done.output
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["prov.json"]
    done = CliRunner().invoke(app, ["audit", "export", model, str(tmp_path / "b"), "--json"])
    assert done.exit_code == 0, done.output
    assert {Path(p).name for p in json.loads(done.stdout)} == {f for f, _ in FORMATS.values()} | {
        "selected.jsonl"
    }


def test_an_unknown_format_names_the_known_ones(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(PaserError, match="one of cyclonedx, prov"):
        export(finished / "data/audit", tmp_path, ["spdx"])
