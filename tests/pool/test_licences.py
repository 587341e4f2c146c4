from __future__ import annotations

from paser.pool.licences import strictest, strictness


def test_the_more_a_licence_asks_the_stricter_it_is() -> None:
    order = ["CC0-1.0", "MIT", "MPL-2.0", "GPL-3.0-only", "AGPL-3.0-only", "CC-BY-NC-4.0", "our own terms"]
    assert [strictness(name) for name in order] == sorted({strictness(name) for name in order})


def test_an_unknown_licence_is_the_strictest() -> None:
    assert strictest(["MIT", "Customer contract 7", "AGPL-3.0-only"]) == "Customer contract 7"
    assert strictest(["Apache-2.0", "MIT"]) == strictest(["MIT", "Apache-2.0"]) == "Apache-2.0"


def test_case_does_not_matter() -> None:
    assert strictness("mit") == strictness("MIT") < strictness("mit-ish")
