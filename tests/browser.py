"""A real browser for tests of pages: what it said, what it asked for, and what axe-core finds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


@dataclass
class Visit:
    """One page; `said` are errors and warnings of the console, `asked` the addresses of its requests."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def violations(self) -> list[str]:
        """What axe-core finds, contrast included: rule, place and remedy, one line each."""
        from axe_playwright_python.sync_playwright import Axe

        return [
            f"{found['id']}: {node['target']} {node['failureSummary']}"
            for found in Axe().run(self.page).response["violations"]
            for node in found["nodes"]
        ]

    @property
    def wider_than_the_window(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium of the system; the test is skipped where there is none.

    One a module, and no longer: playwright keeps an event loop running, beside which Prefect's cannot start.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH (`apt-get install chromium`)")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@contextmanager
def visit(browser: Any, scheme: str = "light", size: dict[str, int] | None = None) -> Iterator[Visit]:
    """A new page in a context of its own, in the light or the dark theme."""
    # axe-core is put into the page, which its content security policy would forbid.
    context = browser.new_context(color_scheme=scheme, viewport=size or DESK, bypass_csp=True)
    seen = Visit(context.new_page())
    seen.page.on("console", lambda message: seen.said.append(f"{message.type}: {message.text}"))
    seen.page.on("pageerror", lambda error: seen.said.append(f"error: {error}"))
    seen.page.on("dialog", lambda dialog: (seen.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    seen.page.on("request", lambda request: seen.asked.append(request.url))
    yield seen
    context.close()
