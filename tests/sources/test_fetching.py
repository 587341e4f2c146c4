from __future__ import annotations

from pathlib import Path

import pytest

from paser.artifacts import file_digests
from paser.cache import Cache
from paser.errors import SourceError
from paser.sources.catalog import Source
from paser.sources.fetching import Fetched, fetch_one, read_index, write_index

from .conftest import Index


def pool(uri: str) -> Source:
    return Source("rows", uri, "pool", "auto", license="MIT")


def model(uri: str) -> Source:
    return Source("tiny", uri, "original")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "raw"
    (folder / "more").mkdir(parents=True)
    (folder / "more" / "pool.jsonl").write_text("{}\n")
    (folder / "more" / ".hidden").write_text("")
    return folder


def test_a_wheel_is_fixed_by_its_digest(index: Index, cache: Cache, tmp_path: Path) -> None:
    digest = index.add("demo_rows", {"demo_rows/a.json": "[]"})
    found = fetch_one(pool(f"pypi:demo_rows==1.0#{digest}:demo_rows/a.json"), None, cache, tmp_path / "out")
    assert found.resolved == f"demo_rows==1.0#{digest}"
    assert found.files == file_digests(tmp_path / "out")
    assert list(found.files) == ["a.json"]


def test_a_file_or_folder_below_the_base_is_copied(raw: Path, cache: Cache, tmp_path: Path) -> None:
    one = fetch_one(pool("file:more/pool.jsonl"), raw, cache, tmp_path / "one")
    folder = fetch_one(pool("file:more"), raw, cache, tmp_path / "folder")
    assert list(one.files) == list(folder.files) == ["pool.jsonl"]
    assert not (tmp_path / "one" / "pool.jsonl").is_symlink()
    (raw / "more" / "pool.jsonl").write_text("{} \n")
    assert fetch_one(pool("file:more"), raw, cache, tmp_path / "new").resolved != folder.resolved


@pytest.mark.parametrize("path", ["../outside.jsonl", "more/../../outside.jsonl", "ABSOLUTE", "link.jsonl"])
def test_a_path_that_leaves_the_base_is_refused(raw: Path, cache: Cache, tmp_path: Path, path: str) -> None:
    outside = raw.parent / "outside.jsonl"
    outside.write_text("{}\n")
    (raw / "link.jsonl").symlink_to(outside)
    path = str(outside) if path == "ABSOLUTE" else path
    with pytest.raises(SourceError, match="outside"):
        fetch_one(pool(f"file:{path}"), raw, cache, tmp_path / "out")


def test_a_link_inside_a_folder_that_leads_outside_is_refused(
    raw: Path, cache: Cache, tmp_path: Path
) -> None:
    (raw.parent / "outside.jsonl").write_text("{}\n")
    (raw / "more" / "link.jsonl").symlink_to(raw.parent / "outside.jsonl")
    with pytest.raises(SourceError, match="is a link that leads outside"):
        fetch_one(pool("file:more"), raw, cache, tmp_path / "out")


def test_without_a_base_any_path_will_do(raw: Path, cache: Cache, tmp_path: Path) -> None:
    found = fetch_one(pool(f"file:{raw / 'more' / 'pool.jsonl'}"), None, cache, tmp_path / "out")
    assert list(found.files) == ["pool.jsonl"]


def test_a_missing_path_is_named(raw: Path, cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"source rows: .*none\.jsonl does not exist"):
        fetch_one(pool("file:none.jsonl"), raw, cache, tmp_path / "out")


def test_an_empty_folder_is_named(raw: Path, cache: Cache, tmp_path: Path) -> None:
    (raw / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no files"):
        fetch_one(pool("file:empty"), raw, cache, tmp_path / "out")


def test_a_model_that_is_only_a_pickle_is_refused_with_the_reason(
    raw: Path, cache: Cache, tmp_path: Path
) -> None:
    (raw / "model").mkdir()
    (raw / "model" / "config.json").write_text("{}")
    (raw / "model" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(SourceError, match=r"pytorch_model\.bin is a pickle; loading it could run code"):
        fetch_one(model("file:model"), raw, cache, tmp_path / "out")


def test_a_pickle_beside_safetensors_is_left_out(raw: Path, cache: Cache, tmp_path: Path) -> None:
    (raw / "model").mkdir()
    for name in ("config.json", "model.safetensors", "training_args.bin"):
        (raw / "model" / name).write_text("{}")
    found = fetch_one(model("file:model"), raw, cache, tmp_path / "out")
    assert list(found.files) == ["config.json", "model.safetensors"]
    assert (raw / "model" / "training_args.bin").exists()


def test_a_model_without_weights_is_said(raw: Path, cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no weights"):
        fetch_one(model("file:more"), raw, cache, tmp_path / "out")


def test_the_index_gives_back_what_was_fetched(tmp_path: Path) -> None:
    source = Source(
        "rows", "file:r", "pool", "bfcl", "maths", "MIT", benchmark="X", max_rows=3, sample_seed=2
    )
    fetched = Fetched(source, "sha256:0", {"a.json": "0"})
    write_index(tmp_path, "pool", [fetched])
    assert read_index(tmp_path) == [fetched]
