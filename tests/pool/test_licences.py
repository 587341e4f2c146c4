from __future__ import annotations

import pytest

from paser.pool.licences import names_in, strictest, strictness


def test_the_more_a_licence_asks_the_stricter_it_is() -> None:
    order = ["CC0-1.0", "MIT", "MPL-2.0", "GPL-3.0-only", "AGPL-3.0-only", "CC-BY-NC-4.0", "our own terms"]
    assert [strictness(name) for name in order] == sorted({strictness(name) for name in order})


def test_an_unknown_licence_is_the_strictest() -> None:
    assert strictest(["MIT", "Customer contract 7", "AGPL-3.0-only"]) == "Customer contract 7"
    assert strictest(["Apache-2.0", "MIT"]) == strictest(["MIT", "Apache-2.0"]) == "Apache-2.0"


@pytest.mark.parametrize(
    ("license", "alone"),
    [
        ("MIT OR GPL-3.0-only", "GPL-3.0-only"),
        ("(MIT AND CC0-1.0)", "MIT"),
        ("CC-BY-4.0/CC-BY-SA-4.0", "CC-BY-SA-4.0"),
        ("MIT, AGPL-3.0-only; ISC", "AGPL-3.0-only"),
        ("MIT & CC-BY-NC-4.0", "CC-BY-NC-4.0"),
        ("MIT|MPL-2.0", "MPL-2.0"),
        ("MIT + Apache-2.0", "MIT"),
        ("MIT+GPL-3.0-only", "GPL-3.0-only"),
        ("MIT and/or CC0-1.0", "MIT"),
        ("Apache-2.0 WITH LLVM-exception", "Apache-2.0"),
        ("MIT WITH Commons-Clause", "our own terms"),
        ("MIT/our own terms", "our own terms"),
        ("()", "our own terms"),
    ],
)
def test_a_compound_licence_is_as_strict_as_the_strictest_in_it(license: str, alone: str) -> None:
    assert strictness(license) == strictness(alone)


def test_of_compound_licences_the_strictest_is_found() -> None:
    assert strictest(["MIT/Apache-2.0", "GPL-3.0-only"]) == "GPL-3.0-only"
    assert strictest(["MPL-2.0", "MIT, CC-BY-NC-4.0"]) == "MIT, CC-BY-NC-4.0"


@pytest.mark.parametrize(
    "name", ["CC-BY-SA-4.0", "GPL-2.0+", "BSD-3-Clause", "https://creativecommons.org/licenses/by/4.0/"]
)
def test_a_name_stays_whole(name: str) -> None:
    assert names_in(name) == [name]
    assert (
        names_in(f"{name} OR MIT") == names_in(f"{name}, MIT") == names_in(f"{name} + MIT") == [name, "MIT"]
    )


def test_case_does_not_matter() -> None:
    assert strictness("mit") == strictness("MIT") < strictness("mit-ish")
