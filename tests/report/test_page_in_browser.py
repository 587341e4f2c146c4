"""The report as a browser shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import DESK, PHONE, chromium, visit


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address(reported_in_full: Path) -> str:
    return (reported_in_full / "data/report/index.html").as_uri()


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_quiet_and_alone_in_both_themes_and_on_a_phone(
    browser: Any, address: str, scheme: str, size: dict[str, int]
) -> None:
    with visit(browser, scheme, size) as seen:
        seen.page.goto(address)
        for closed in seen.page.query_selector_all("summary"):
            closed.click()
        assert seen.violations() == []
        assert seen.said == []
        assert {url.split(":", 1)[0] for url in seen.asked} <= {"file", "data"}
        assert not seen.wider_than_the_window


def test_the_themes_differ_and_paper_is_white(browser: Any, address: str) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    colours = {}
    for scheme in ("light", "dark"):
        with visit(browser, scheme) as seen:
            seen.page.goto(address)
            colours[scheme] = seen.page.evaluate(background)
            seen.page.emulate_media(media="print")
            assert seen.page.evaluate(background) == "rgb(255, 255, 255)"
            assert not seen.page.is_visible("nav")
    assert colours["light"] != colours["dark"]


def test_markup_and_script_in_an_instruction_are_shown_and_not_run(browser: Any, address: str) -> None:
    with visit(browser) as seen:
        seen.page.goto(address)
        text = seen.page.inner_text("body")
        assert '<script>alert(1)</script> & "quotes"' in text
        assert "<img src=x onerror=alert(2)>" in text, "in a task's name, in a table and in a figure"
        assert seen.page.query_selector("script, img, b") is None
        assert seen.said == [], "no dialog, and nothing that the policy had to stop"


def test_all_is_reached_by_keyboard(browser: Any, address: str) -> None:
    with visit(browser) as seen:
        seen.page.goto(address)
        seen.page.keyboard.press("Tab")
        assert seen.page.evaluate("document.activeElement.className") == "skip"
        seen.page.keyboard.press("Enter")
        assert seen.page.evaluate("location.hash") == "#main"
        seen.page.focus("nav a[href='#glossary']")
        seen.page.keyboard.press("Enter")
        assert seen.page.evaluate("location.hash") == "#glossary"
        regions = "document.querySelectorAll('.drawing, .table').length"
        reached = 'document.querySelectorAll(\'.drawing[tabindex="0"], .table[tabindex="0"]\').length'
        assert seen.page.evaluate(regions) == seen.page.evaluate(reached) > 0
