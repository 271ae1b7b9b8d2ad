"""The HTML page: one file, no network, nothing that a run's own text can inject."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lightning_vl.report.compare import compare
from lightning_vl.report.figure import beside
from lightning_vl.report.page import render
from lightning_vl.report.results import find_runs

LOADING = {"src", "href", "xlink:href", "data", "action", "poster", "srcset"}


class Page(HTMLParser):
    """Collects what a browser would load, the text, and tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "br", "link", "img", "input"):
            self.open.append(tag)
        for name, value in attrs:
            if name in LOADING and not (value or "").startswith("#"):
                self.loads.append(f"{tag} {name}={value}")
            if name == "style" and "url(" in (value or "") and "url(#" not in (value or ""):
                self.loads.append(f"{tag} {value}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def page(make_run, tmp_path: Path) -> str:
    """A page of two experiments, one of which has names as a joker would choose them."""
    curve = {"val/top1": {10: 0.2, 20: 0.4}, "train/loss": {10: 2.0, 20: 1.0}}
    for seed in range(3):
        make_run("plain", seed, {"test/top1": 0.5, "test/loss": 1.0}, curve=curve)
        make_run(
            "odd",
            seed,
            {"test/top1": 0.7, "<script>alert(1)</script>": 1.0},
            config={"data": {"note": "<img src=x onerror=alert(1)>"}},
            curve=curve,
            device="<b>GPU</b>",
            expected=[
                {"metric": "test/top1", "value": 0.7, "tolerance": 0.1, "kind": "ours", "source": "<i>", "met": True}
            ],
        )
    unfinished = make_run("plain", 9, {})
    (unfinished / "results.json").unlink()
    comparison = compare(*find_runs([tmp_path / "runs"]))
    return render(comparison, beside(comparison))


def test_loads_nothing(page: str) -> None:
    """It opens from disk without a network: no address but names of XML vocabularies, no script, no link, no import."""
    parsed = Page(page)
    assert parsed.loads == []
    assert not parsed.tags & {"script", "link", "iframe", "object", "embed", "img"}
    assert "@import" not in page
    assert set(re.findall(r"\w+://[^\"'\s<>)]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert parsed.open == []


def test_escapes_what_runs_say(page: str) -> None:
    """A metric's or a device's name is text, never markup."""
    assert "<script>" not in page
    assert "onerror=alert(1)>" not in page.replace("&gt;", "")
    assert "&lt;b&gt;GPU&lt;/b&gt;" in page


def test_hundreds_of_runs_are_a_small_page(make_run, tmp_path: Path) -> None:
    """Curves of thousands of steps and a table of hundreds of rows stay under a megabyte, each table in its own window."""
    curve = {"train/loss": {step: 1 / step for step in range(1, 3001)}, "val/top1": dict.fromkeys((1, 2, 3), 0.5)}
    for number in range(100):
        width = {"model": {"width": number}}
        for seed in range(3):
            some = curve if number < 3 else {}
            make_run(f"e{number:03d}", seed, {"test/top1": 1 - number / 200}, config=width, curve=some)
    comparison = compare(*find_runs([tmp_path / "runs"]))
    page = render(comparison, beside(comparison))
    assert len(page) < 1_000_000
    assert "Runs (300)" in page
    assert page.count('class="scroll tall"') == 4  # table, metrics, keys, runs
    assert "At most 300 steps of a curve are drawn" in Page(page).text or "At most 300 steps" in page


def test_more_metrics_than_rows_stand_in_lines(make_run, tmp_path: Path) -> None:
    """Sixty columns could not be read, and their headings were a letter wide."""
    make_run("a", 0, {f"zero_shot/set{number}/top1": 0.5 for number in range(60)})
    comparison = compare(*find_runs([tmp_path / "runs"]))
    page = render(comparison, beside(comparison))
    assert "<tr><th>zero_shot/set7/top1 (%)</th><td>50.0</td></tr>" in page


def test_shows_what_a_reader_needs(page: str) -> None:
    """Means, spread and what it is, expectation, differing keys, every run, what was left out, two figures."""
    text = " ".join(Page(page).text.split())
    for part in (
        "70.0 ± 0.0 *",
        "sample standard deviation",
        "70.0 ± 10.0",
        "3 of 3 runs",
        "model.init_args.net",
        "the experiments differ in more than is declared",
        "Runs (6)",
        "Left out (1)",
        "01234567",
        "torch 2.15.0",
    ):
        assert part in text
    assert page.count("<svg") == 2
