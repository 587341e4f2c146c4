from __future__ import annotations

import pytest

from paser.errors import SourceError
from paser.sources.uri import FileUri, HfUri, PypiUri, common_folder, glob_pattern, parse_uri

DIGEST = "ab" * 32


def test_pypi_uri_has_package_version_digest_and_globs() -> None:
    assert parse_uri(f"pypi:some-rows==1.2.post1#{DIGEST}:a/*.json, b/**") == PypiUri(
        "some-rows", "1.2.post1", DIGEST, ("a/*.json", "b/**")
    )


def test_file_uri_keeps_its_path() -> None:
    assert parse_uri("file:more/pool.jsonl") == FileUri("more/pool.jsonl")
    assert parse_uri("file:///abs/pool.jsonl") == FileUri("/abs/pool.jsonl")


def test_hub_uri_knows_whether_its_revision_can_move() -> None:
    commit = "0123456789" * 4
    assert parse_uri(f"hf:me/model@{commit}:sub/*.safetensors") == HfUri(
        "me/model", commit, ("sub/*.safetensors",)
    )
    fixed, branch = parse_uri(f"hf:me/model@{commit}"), parse_uri("hf:me/model")
    assert isinstance(fixed, HfUri)
    assert fixed.fixed
    assert isinstance(branch, HfUri)
    assert branch == HfUri("me/model", "main")
    assert not branch.fixed


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("https://example.org/x.json", "no known kind"),
        ("pool.jsonl", "no known kind"),
        (f"pypi:rows#{DIGEST}:a", "exact version"),
        ("pypi:rows==1.0:a", "exact version or a digest"),
        ("pypi:rows==1.0#abc:a", "'abc' is not a SHA-256"),
        (f"pypi:rows==1.0#{DIGEST}", "names no files"),
        (f"pypi:rows==1.0#{DIGEST}:../a", "'../a' is not a path inside"),
        (f"pypi:rows==1.0#{DIGEST}:/etc/passwd", "is not a path inside"),
        ("hf:model@main", "not a Hub repository"),
        ("file:", "names no path"),
    ],
)
def test_a_malformed_uri_is_refused_with_the_part_that_is_wrong(uri: str, said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        parse_uri(uri)
    assert "remedy" in str(caught.value)


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("a/*.json", "a/b.json", True),
        ("a/*.json", "a/b/c.json", False),
        ("a/**", "a/b/c.json", True),
        ("a/**/*.json", "a/c.json", True),
        ("a/**/*.json", "a/b/c.json", True),
        ("a/[a-m]*.py", "a/b.py", True),
        ("a/[a-m]*.py", "a/z.py", False),
        ("a/[!_]*.py", "a/_z.py", False),
        ("a.json", "aXjson", False),
    ],
)
def test_globs(glob: str, path: str, matches: bool) -> None:
    assert bool(glob_pattern(glob).fullmatch(path)) is matches


def test_the_folder_all_globs_share_ends_before_the_first_wildcard() -> None:
    assert common_folder(("a/b/*.json", "a/b/answers/x.json")) == "a/b/"
    assert common_folder(("a/b/x.json",)) == "a/b/"
    assert common_folder(("a/[xy]/z.json", "a/x/y.json")) == "a/"
    assert common_folder(("a/x.json", "b/x.json")) == ""
