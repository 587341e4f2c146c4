from __future__ import annotations

import csv
import itertools
import re
import xml.dom.minidom
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_project import build

from paser.artifacts import read_array, read_json, sha256_file, write_array
from paser.errors import StageError
from paser.stages.run import run_stage

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.elements if tag in tags]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def html(reported: Path) -> str:
    return (reported / "data/report/index.html").read_text("utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_markup_in_the_data_is_shown_as_text(page: Page) -> None:
    assert page.all("script", "b") == []
    assert page.open == []
    assert '<script>alert(1)</script> & "quotes"' in page.words, "as an example of a conflict"
    assert "<b>bold</b>" in page.words, "as a source"
    assert page.words.count("$x$ <script>alert(1)") >= 3, "as a cluster name, in tables and figures"


def test_the_page_asks_for_nothing_else(html: str, page: Page) -> None:
    assert page.all("script", "iframe", "object", "embed", "img", "form") == []
    addresses = set(re.findall(r"(?:https?:)?//[\w.]+", html))
    assert addresses <= {"http://www.w3.org"}, "only the names of the SVG standard"
    assert all((a["href"] or "").startswith(("#", "figures/")) for a in page.all("a"))
    assert [a["href"] for a in page.all("link")] == ["data:,"]
    assert any("default-src 'none'" in (a.get("content") or "") for a in page.all("meta"))
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]+)\)", html))


def test_every_link_inside_the_page_arrives_and_ids_are_unique(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = {(a["href"] or "")[1:] for a in page.all("a") if (a["href"] or "").startswith("#")}
    wanted |= {(a["xlink:href"] or "")[1:] for a in page.all("use")}
    assert wanted <= set(ids)


def test_a_screen_reader_finds_landmarks_captions_and_descriptions(page: Page) -> None:
    tags = [tag for tag, _ in page.elements]
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert tags.count(landmark) == 1
    assert tags.count("table") == tags.count("caption") >= 7
    assert all(attrs.get("scope") in ("row", "col") for attrs in page.all("th"))
    ids = {attrs.get("id") for _, attrs in page.elements}
    assert len(page.all("svg")) == tags.count("figure") == tags.count("figcaption") == 10
    for attrs in page.all("svg"):
        assert attrs["role"] == "img"
        assert set((attrs["aria-labelledby"] or "").split()) <= ids
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_sections_stand_in_the_order_of_a_readers_questions(page: Page) -> None:
    found = [attrs["id"] for attrs in page.all("section")]
    assert found == [
        "result", "pool", "funnel", "clusters", "damage", "budget", "reasons", "results", "tasks",
        "cost", "lineage", "glossary",
    ]  # fmt: skip


def test_figures_are_wellformed_and_follow_the_theme(html: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    for drawing in drawings:
        xml.dom.minidom.parseString(drawing)
        assert "<text" in drawing or "fig-map" in drawing, "text stays text"
        colours = re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", drawing)
        assert set(colours) <= {"#ffffff", "#16202b"}, "all others are variables of the theme"
    dark = html[html.index("prefers-color-scheme: dark") : html.index("* { box-sizing")]
    for variable in set(re.findall(r"var\((--fig-[a-z0-9]+),", "".join(drawings))) - {"--fig-font"}:
        assert f"{variable}:" in dark


def test_benchmark_items_are_warned_about_and_uncertain_capabilities_stand_apart(page: Page) -> None:
    assert "Benchmark items in the pool: BFCL, CHAMP, MMLU." in page.words
    assert "Listed apart, not averaged in gap closed" in page.words
    assert "the interval of its damage includes 0" in page.words
    assert "1.12†" in page.words
    assert "above 1: a format was learnt" in page.words


def test_lineage_names_the_root_and_how_to_verify(reported: Path, page: Page) -> None:
    entry = read_json(reported / "data/audit/entry.json")
    assert entry["merkle_root"] in page.words
    assert entry["model"]["sha256"] in page.words
    assert "paser audit verify data/models/recovered" in page.words


def test_plot_data_is_the_data_of_the_figures(reported: Path) -> None:
    folder = reported / "data/report"
    metrics = read_json(reported / "data/metrics.json")
    damage = list(csv.DictReader((folder / "damage.csv").open(encoding="utf-8")))
    assert list(damage[0]) == ["capability", "pruned", "recovered", "control"]
    assert [row["capability"] for row in damage] == [c["name"] for c in metrics["capabilities"]]
    for row, capability in zip(damage, metrics["capabilities"], strict=True):
        for model in ("pruned", "recovered", "control"):
            assert float(row[model]) == capability["jsd"][model]
    budget = list(csv.DictReader((folder / "budget.csv").open(encoding="utf-8")))
    assert list(budget[0]) == ["cluster", "allocated", "spent"]
    spent = sum(int(row["spent"]) for row in budget)
    assert spent == read_json(reported / "data/budget.json")["spent"]


def test_the_same_project_gives_the_same_bytes(reported: Path) -> None:
    files = sorted(path for path in (reported / "data/report").rglob("*") if path.is_file())
    assert {"budget.csv", "damage.csv", "index.html"} <= {path.name for path in files}
    before = [path.read_bytes() for path in files]
    run_stage("report", reported)
    assert [path.read_bytes() for path in files] == before


def test_a_project_without_control_has_a_report_that_says_so(tmp_path: Path) -> None:
    root = build(tmp_path / "project", per_label=2, control=False)
    run_stage("audit", root)
    run_stage("report", root)
    page = Page((root / "data/report/index.html").read_text("utf-8"))
    assert "There is no control" in page.words
    assert "The 3 models" in page.words
    damage = (root / "data/report/damage.csv").read_text("utf-8").splitlines()
    assert damage[0] == "capability,pruned,recovered"


def test_embeddings_of_another_pool_are_refused(tmp_path: Path) -> None:
    root = build(tmp_path / "project", per_label=2)
    run_stage("audit", root)
    path = root / "data/embeddings.npy"
    write_array(path, read_array(path)[:-1].copy())
    with pytest.raises(StageError, match=r"embeddings\.npy has 11 rows, the pool 12"):
        run_stage("report", root)


def test_every_figure_lies_beside_the_page_as_svg_with_its_data(reported_in_full: Path) -> None:
    folder = reported_in_full / "data/report"
    page = Page((folder / "index.html").read_text("utf-8"))
    links = {a["href"] for a in page.all("a") if (a["href"] or "").startswith("figures/")}
    files = {path.relative_to(folder).as_posix() for path in (folder / "figures").iterdir()}
    assert links == files
    assert len(files) == 2 * len(page.all("svg")) == 24
    for path in (folder / "figures").glob("*.svg"):
        text = path.read_text("utf-8")
        xml.dom.minidom.parseString(text)
        assert "var(" not in text, "a drawing program knows no variables"
        lines = list(csv.reader(path.with_suffix(".csv").open(encoding="utf-8")))
        assert len(lines) > 1
        assert {len(line) for line in lines} == {len(lines[0])}


def test_the_data_of_a_figure_are_the_values_that_it_shows(reported_in_full: Path) -> None:
    folder = reported_in_full / "data"
    metrics = read_json(folder / "metrics.json")
    lines = list(csv.DictReader((folder / "report/figures/abilities.csv").open(encoding="utf-8")))
    found = {line["capability"]: float(line["jsd_pruned"]) for line in lines}
    assert found == {c["name"]: c["jsd"]["pruned"] for c in metrics["capabilities"]}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    funnel = list(csv.DictReader((folder / "report/figures/funnel.csv").open(encoding="utf-8")))
    assert int(funnel[-1]["rows"]) == read_json(folder / "budget.json")["rows"]


def test_tasks_and_texts_are_shown_with_errors_and_gaps(reported_in_full: Path, page: Page) -> None:
    full = Page((reported_in_full / "data/report/index.html").read_text("utf-8"))
    assert "hellaswag-100 acc ↑ 100 0.600 ± 0.020 0.400 ± 0.020" in full.words
    assert "0.50 [0.40, 0.60]" in full.words
    assert "wiki log perplexity ↓ 100 3.100 – – – no gap no gap" in full.words
    assert "No task and no text was asked for" in page.words


def test_a_sweep_is_shown_when_there_is_one_and_is_on_record(reported_in_full: Path, page: Page) -> None:
    full = Page((reported_in_full / "data/report/index.html").read_text("utf-8"))
    assert "select.budget=20% 20,000 0.30 0.25 0.60 –" in full.words
    assert "90%" not in full.words, "a cell that failed has no gap"
    record = read_json(reported_in_full / "data/records/report.json")
    assert record["facts"]["sweep"]["sha256"] == sha256_file(reported_in_full / "sweep.csv")
    assert "Gap closed against budget" not in page.words


def test_a_sweep_that_is_not_there_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    root = build(tmp_path / "project", per_label=2)
    run_stage("audit", root)
    (root / "params.yaml").write_text("seed: 17\nreport: {sweep: gone.csv}\n", "utf-8")
    with pytest.raises(StageError, match=r"gone\.csv: no such file, which report\.sweep .*names"):
        run_stage("report", root)


def test_time_and_cost_of_every_stage_come_from_its_run_record(page: Page) -> None:
    assert "fetch 2 s" in page.words
    assert re.search(r"evaluate 15 s \d+ % 12 rows x86_64, 2 processors", page.words)
    assert "The stages took 1 min" in page.words
