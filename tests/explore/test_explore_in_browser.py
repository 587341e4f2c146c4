"""`paser explore` on a finished project of tiny models, in a real browser."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from paser.artifacts import read_rows, write_table
from paser.lineage.why import why
from tests.browser import DESK, PHONE, chromium, visit
from tests.project import ENVIRONMENT

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def folder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose most damaged row's instruction holds script and markup."""
    copied = tmp_path_factory.mktemp("explore") / "project"
    shutil.copytree(finished, copied, symlinks=True, ignore=shutil.ignore_patterns(".git", ".dvc", ".paser"))
    path = copied / "data/pool.parquet"
    pool = read_rows(path, "pool")
    next(row for row in pool if row["row_id"] == most_damaged(copied))["instruction"] = HOSTILE
    write_table(path, "pool", pool)
    return copied


def most_damaged(folder: Path) -> str:
    scores = read_rows(folder / "data/scores.parquet", "scores")
    return str(max(scores, key=lambda row: row["jsd"])["row_id"])


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "paser", "explore", "--project", str(folder), "--port", "0", "--no-open"]
    process = subprocess.Popen(
        [*command, "--longest", "12"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stdout is not None
    said = process.stdout.readline()
    where = re.search(r"http://127\.0\.0\.1:\d+/", said)
    assert where, said
    yield where[0]
    process.terminate()
    process.wait(timeout=20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def test_rows_come_by_damage_and_pages_are_turned(browser: Any, address: str, folder: Path) -> None:
    with visit(browser) as seen:
        seen.page.goto(address)
        damages = [
            float(cell) for cell in seen.page.locator("tbody tr td:nth-child(4)").all_inner_texts()[3:]
        ]
        assert len(damages) == 50
        assert damages == sorted(damages, reverse=True)
        seen.page.click("a[rel=next] >> nth=0")
        seen.page.wait_for_url("**page=2*")
        assert "page 2 of" in seen.page.inner_text("main")


def test_a_search_and_a_cluster_narrow_the_rows(browser: Any, address: str, folder: Path) -> None:
    pool = pq.read_table(folder / "data/pool.parquet", columns=["instruction"])["instruction"].to_pylist()
    expected = sum("recipe" in text for text in pool)
    with visit(browser) as seen:
        seen.page.goto(address)
        seen.page.fill("input[name=text]", "RECIPE")
        seen.page.keyboard.press("Enter")
        seen.page.wait_for_url("**text=RECIPE*")
        assert f"of {expected} found among {len(pool)}" in seen.page.inner_text("main")
        seen.page.goto(address)
        seen.page.click("details tbody a >> nth=0")
        seen.page.wait_for_url(lambda url: "cluster=" in url and "cluster=&" not in url)
        shown = set(seen.page.locator("tbody tr td:nth-child(2) .badge").all_inner_texts())
        assert len(shown) == 1


def test_a_row_shows_both_answers_its_tokens_and_why(browser: Any, address: str, folder: Path) -> None:
    scores = {row["row_id"]: row for row in read_rows(folder / "data/scores.parquet", "scores")}
    decisions = read_rows(folder / "data/decisions.parquet", "decisions")
    taken = next(row["row_id"] for row in decisions if row["decision"] == "accepted")
    reason = why(folder / "data/models/recovered", folder / "data/audit", taken)[0]
    with visit(browser) as seen:
        seen.page.goto(f"{address}row/{taken}")
        text = seen.page.inner_text("main")
        assert "Taken" in text
        assert re.search(rf"Training position\s+{reason['position']}\b", text)
        seen.page.click("button", timeout=120_000)
        seen.page.wait_for_selector("text=Divergence at each token", timeout=120_000)
        assert seen.page.locator("h3", has_text="Original").count() == 1
        assert seen.page.locator("h3", has_text="Pruned").count() == 1
        assert seen.page.locator(".tokens span").count() == scores[taken]["response_tokens"]
        mean = re.search(r"the mean is ([\d.]+)\.", seen.page.inner_text("main"))
        assert mean, "the tokens' mean is the row's score"
        assert float(mean[1]) == pytest.approx(scores[taken]["jsd"], abs=2e-4)
        assert seen.violations() == []


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_markup_is_text_and_pages_are_accessible(
    browser: Any, address: str, folder: Path, scheme: str, size: dict[str, int]
) -> None:
    with visit(browser, scheme, size) as seen:
        for place in ("", f"row/{most_damaged(folder)}"):
            seen.page.goto(address + place)
            assert HOSTILE in seen.page.inner_text("main")
            assert seen.page.query_selector("script, img") is None
            assert seen.violations() == []
            assert not seen.wider_than_the_window
        assert seen.said == []
        assert all(url.startswith((address, "data:")) for url in seen.asked)


def test_other_hosts_and_other_sites_are_refused(address: str, folder: Path) -> None:
    row = f"{address}row/{most_damaged(folder)}"
    assert httpx.get(address, headers={"Host": "rebound.example"}).status_code == 400
    assert httpx.post(row, headers={"Origin": "http://other.example"}).status_code == 403
    assert httpx.get(f"{address}?order=x").status_code == 400
    assert httpx.get(f"{address}row/nothing").status_code == 404
    assert "default-src 'none'" in httpx.get(row).headers["content-security-policy"]
    port = int(address.rsplit(":", 1)[1].strip("/"))
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for other in others - {"127.0.0.1", "127.0.1.1"}:
        with pytest.raises(ConnectionError):
            socket.create_connection((other, port), timeout=2)
