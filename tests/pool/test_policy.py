from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from paser.errors import SettingsError
from paser.pool.build import Built, Rows, build, quarantine_rows
from paser.pool.policy import BUILT_IN, policy_of
from paser.records import Sample
from paser.settings import PolicySettings, parse_settings
from paser.sources.catalog import Source
from tests.pool.test_build import CALIBRATION, RULES, many, source


def settings(**policy: Any) -> PolicySettings:
    return parse_settings({"policy": policy}, "test").policy


def built(*pool: Rows, **policy: Any) -> Built:
    return build(pool, CALIBRATION, replace(RULES, policy=policy_of(settings(**policy))))


def licensed(name: str, license: str, texts: list[tuple[str, str]]) -> Rows:
    entry = Source(name, f"file:{name}", "pool", "auto", label="a", license=license)
    samples = [Sample(name, str(i), license, p, "", o, "a") for i, (p, o) in enumerate(texts)]
    return Rows(entry, samples)


def refused(found: Built, reason: str) -> list[tuple[str, str]]:
    return [(row.sample.source, row.detail) for row in found.quarantine if row.reason == reason]


def test_without_a_policy_no_row_is_refused() -> None:
    found = built(licensed("s", "CC-BY-NC-4.0", [("mail me at a@b.org", "ok"), *many(6)]))
    assert not refused(found, "license")
    assert not refused(found, "pattern")


def test_a_refused_licence_and_its_wildcard_take_their_rows_whatever_the_case() -> None:
    found = built(
        licensed("nc", "cc-by-nc-4.0", many(3, "nc")),
        licensed("ok", "MIT", many(8)),
        licenses_refused=["CC-BY-NC-*"],
    )
    assert refused(found, "license") == [("nc", "cc-by-nc-4.0 is refused (CC-BY-NC-*)")] * 3
    assert {row.sample.source for row in found.pool + found.holdout} == {"ok"}


def test_only_allowed_licences_are_taken_when_some_are_named() -> None:
    found = built(
        licensed("a", "MIT", many(8)),
        licensed("b", "unknown", many(2, "b")),
        licenses_allowed=["MIT", "L-cal"],
    )
    assert refused(found, "license") == [("b", "unknown is not among the allowed licences")] * 2


@pytest.mark.parametrize("first", [True, False])
def test_the_strictest_licence_over_all_occurrences_counts_in_either_order(first: bool) -> None:
    free, bound = licensed("free", "MIT", many(8)), licensed("bound", "CC-BY-NC-4.0", many(1))
    pool = (bound, free) if first else (free, bound)
    found = built(*pool, licenses_refused=["CC-BY-NC-*"])
    text = many(1)[0]
    assert all((row.sample.instruction, row.sample.output) != text for row in found.pool + found.holdout)
    details = dict(refused(found, "license"))
    assert set(details) == {"free", "bound"}
    assert "bound:0" in details["free"]


@pytest.mark.parametrize("license", [
        "MIT OR CC-BY-NC-4.0", "(MIT AND CC-BY-NC-4.0)", "MIT/CC-BY-NC-4.0", "MIT, CC-BY-NC-4.0",
        "MIT;CC-BY-NC-4.0", "MIT & CC-BY-NC-4.0", "MIT + CC-BY-NC-4.0", "MIT|CC-BY-NC-4.0",
    ],
)  # fmt: skip
def test_every_part_of_a_compound_licence_counts(license: str) -> None:
    policy = policy_of(settings(licenses_refused=["CC-BY-NC-*"]))
    assert policy.against_license(license)
    assert policy.against_license("MIT AND Apache-2.0") is None
    allowed = policy_of(settings(licenses_allowed=["MIT", "CC-BY-SA-4.0", "GPL-2.0+"]))
    assert allowed.against_license(license) == "CC-BY-NC-4.0 is not among the allowed licences"
    for whole in ("MIT", "MIT/CC-BY-SA-4.0", "GPL-2.0+ OR MIT", "GPL-2.0+, MIT"):
        assert allowed.against_license(whole) is None


def test_a_name_with_a_divider_in_it_can_be_allowed_and_refused_as_it_is_written() -> None:
    terms = "Terms of 1 May, annex B"
    assert policy_of(settings(licenses_allowed=[terms.lower()])).against_license(terms) is None
    assert policy_of(settings(licenses_allowed=["Terms*"])).against_license(terms)
    assert policy_of(settings(licenses_refused=[terms])).against_license(terms)
    url = "https://creativecommons.org/licenses/by-nc/4.0/"
    assert policy_of(settings(licenses_refused=["https://*/by-nc/*"])).against_license(f"MIT or {url}")


FOUND = {
    "email": [
        "write to jo.doe+x@mail.example.org now",
        "_jo@example.org",
        "Jörg.Müller@example.org",
        "жук@пример.рф",
        "jo@müller.example",
        "请联系jo@example.org谢谢您的来信",
        "（jo@example.org）",
    ],
    "phone": ["call +44 20 7946 0958", "(555) 010-0199 or so", "555-010-0199"],
    "card": ["card 4111 1111 1111 1111, thanks", "5500005555555559"],
    "iban": ["to DE89 3704 0044 0532 0130 00 please", "GB29NWBK60161331926819"],
}
CLEAN = {
    "email": ["@decorator.name", "a @ b", "x@localhost", "é@b", "a@b.1é", "m @decorator.näme"],
    "phone": ["3.14159265358979", "2026-11-24", "12 + 345 - 6789", "10-20-30"],
    "card": ["4111 1111 1111 1112", "1234567890123456789012", "0000 0000 0000 0000"],
    "iban": ["DE89 3704 0044 0532 0130 01", "AB12 CDEF"],
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_patterns_find_what_they_name_and_leave_the_rest(name: str) -> None:
    for text in FOUND[name]:
        assert BUILT_IN[name].count(text) == 1, text
    for text in CLEAN[name]:
        assert BUILT_IN[name].count(text) == 0, text


def test_a_pattern_refuses_the_row_and_nothing_that_it_matched_is_written() -> None:
    secret = "jo@mail.example.org"
    found = built(
        source("s", [(f"Write to {secret}", f"KD-12345678 and {secret}"), *many(8)]),
        personal=["email"],
        patterns={"customer": "KD-[0-9]{8}"},
    )
    (row,) = (row for row in quarantine_rows(found.quarantine) if row["reason"] == "pattern")
    assert row["detail"] == "email: 1 in instruction, 1 in output; customer: 1 in output"
    assert row["instruction"] == "Write to [email]"
    assert row["output"] == "[customer] and [email]"
    assert row["row_id"] == Sample("", "", "", f"Write to {secret}", "", f"KD-12345678 and {secret}").row_id
    assert secret not in str(row)


def test_a_long_row_with_personal_data_is_refused_for_that_and_redacted() -> None:
    found = built(source("s", [("long", "x " * 60 + "jo@mail.example.org"), *many(8)]), personal=["email"])
    assert "example.org" not in str(quarantine_rows(found.quarantine))


def test_calibration_rows_are_refused_too() -> None:
    calibration = [source("cal", [("hello", "a@mail.example.org"), *many(4, "cal")])]
    rules = replace(RULES, policy=policy_of(settings(personal=["email"])))
    found = build([source("s", many(8))], calibration, rules)
    assert len(found.calibration) == 4


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"patterns": {"x": "("}}, "'x' is not a regular expression"),
        ({"patterns": {"x": "a*"}}, "matches the empty text"),
        ({"patterns": {"email": "a"}, "personal": ["email"]}, "name of a built-in"),
        ({"personal": ["passport"]}, "policy.personal"),
        ({"license_refused": []}, "unknown key"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings(**policy)
