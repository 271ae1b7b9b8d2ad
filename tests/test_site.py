"""The site: built strictly, without a network, and what its pages promise holds."""

import ast
import importlib
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from support import ROOT, environment, verb

import lightning_vl.papers

PAPERS = sorted(path.parent.name for path in (ROOT / "lightning_vl" / "papers").glob("*/README.md"))
HERE = sorted((ROOT / "docs").rglob("*.md"))


class Page(HTMLParser):
    """What a page loads, where it links to and what can be linked to in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for each tag."""
        given = dict(attrs)
        self.tags.append(tag)
        self.ids |= {value for key in ("id", "name") if (value := given.get(key))}
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        elif tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loads.append(str(given["src"]))
        elif tag == "link" and given.get("rel") != "canonical":
            self.loads.append(str(given["href"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make site` does it."""
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=environment(folder, {"NO_MKDOCS_2_WARNING": "1"}),
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
    return folder


@cache
def parsed(path: Path) -> Page:
    """A page of the site."""
    return Page(path.read_text())


def pages(site: Path) -> Iterator[tuple[Path, Page]]:
    """Every page of the site."""
    for path in sorted(site.rglob("*.html")):
        if path.name != "404.html":  # its links are those of a server's root
            yield path, parsed(path)


def in_nav(entry: object) -> Iterator[str]:
    """The pages that a navigation names."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, list | dict):
        for item in entry.values() if isinstance(entry, dict) else entry:
            yield from in_nav(item)


def configuration() -> dict:
    """mkdocs.yml."""
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def test_every_page_is_in_the_navigation() -> None:
    """Breaks if a page is written, or a paper added, that no reader of the site finds."""
    settings = configuration()
    named = set(in_nav(settings["nav"]))
    assert {path.relative_to(ROOT / "docs").as_posix() for path in HERE} <= named
    elsewhere = settings["extra"]["pages"]
    assert set(elsewhere) <= named
    assert {f"lightning_vl/papers/{name}/README.md" for name in PAPERS} <= set(elsewhere.values())


@pytest.mark.slow
def test_the_site_builds_strictly(site: Path) -> None:
    """Breaks if a link, an anchor, a quoted line of code or a page of the navigation is not there."""
    assert (site / "index.html").exists()
    assert {path.stem for path in (site / "systems").glob("*.html")} == set(PAPERS)
    for path, _ in pages(site):  # a heading without an empty line above it is part of what stands there
        assert not re.search(r"<(td|p|li)>#+ ", path.read_text()), path


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    """Breaks if a script, style, font or picture needs a network: the site would be another thing on a train."""
    for path, page in pages(site):
        for target in page.loads:
            assert not re.match(r"(https?:)?//", target), f"{path}: {target}"
            assert target.startswith("data:") or (path.parent / unquote(target.partition("?")[0])).exists(), target
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", style.read_text()), style


@pytest.mark.slow
def test_links_and_anchors_lead_somewhere(site: Path) -> None:
    """Breaks if a link that is right in the repository leads nowhere on the site, opened from disk."""
    checked = 0
    for path, page in pages(site):
        for link in page.links:
            if re.match(r"https?:|mailto:|javascript:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / unquote(name)).resolve() if name else path
            assert target.is_file(), f"{path}: {link}"
            assert not anchor or target.suffix != ".html" or unquote(anchor) in parsed(target).ids, f"{path}: {link}"
            checked += 1
    assert checked > 1000


@pytest.mark.slow
def test_formulas_are_mathml(site: Path) -> None:
    """Breaks if a formula is left as LaTeX, which nothing on the site would draw."""
    for name in ("attention", *(f"systems/{paper}" for paper in PAPERS)):
        page = site / f"{name}.html"
        assert parsed(page).tags.count("math") >= 3, name
    for path, _ in pages(site):
        assert 'class="arithmatex' not in path.read_text(), path


@pytest.mark.slow
def test_equations_link_to_lines_of_code(site: Path) -> None:
    """Breaks if the line beside an equation is no longer where its link leads."""
    text = (site / "systems" / "vit.html").read_text()
    found = re.search(r'nn/blocks\.py</a>, lines? <a href="([^"]+)#__codelineno-0-(\d+)"', text)
    assert found
    lines = (ROOT / "lightning_vl" / "nn" / "blocks.py").read_text().splitlines()
    assert "# ViT, Eq. 2" in lines[int(found[2]) - 1]
    assert (site / "systems" / found[1]).is_file()


@pytest.mark.slow
def test_tables_show_what_was_measured(site: Path) -> None:
    """Breaks if a system's table lacks what RESULTS.md has, or shows the paper's number where nothing was run as ours."""
    text = (site / "systems" / "vivit.html").read_text()
    row = re.search(r"<tr>(?:(?!</tr>).)*>vivit_fact_encoder</a>.*?</tr>", text, flags=re.DOTALL)
    measured = re.search(r"^\| vivit_fact_encoder \|[^|]+\| 3 \|[^|]+\| ([^|]+) \|", results(), flags=re.MULTILINE)
    assert row
    assert measured
    assert f"<td>{measured[1]} (n = 3)</td>" in row[0].replace("\u00a0", " ")
    never = re.search(r"<tr>(?:(?!</tr>).)*>vivit_fact_encoder_k400</a>.*?</tr>", text, flags=re.DOTALL)
    assert never
    assert "<td>not run</td>" in never[0]
    assert "78.8 (arXiv:2103.15691v2, Table 2)" in never[0]


def results() -> str:
    """RESULTS.md."""
    return (ROOT / "RESULTS.md").read_text()


@pytest.mark.slow
def test_the_search_opens_from_disk(site: Path) -> None:
    """Breaks if the search needs a server, or finds nothing but code."""
    index = (site / "search" / "search_index.js").read_text()
    assert "tubelet" in index
    assert '"location":"source/' not in index
    assert "javascripts/iframe-worker.js" in parsed(site / "index.html").loads


def test_every_source_is_documented() -> None:
    """Breaks if a class that reads data is added and the data pages do not speak of it."""
    hooks = runpy.run_path(str(ROOT / "mkdocs_hooks.py"))
    files = [*ROOT.glob("lightning_vl/data/datasets/*.py"), *ROOT.glob("lightning_vl/data/synthetic/*.py")]
    classes = [node.name for file in files for node in hooks["source_classes"](file)]
    assert len(classes) > 35
    text = "\n".join(path.read_text() for path in HERE)
    assert not [name for name in classes if f"`{name}`" not in text]


def messages() -> list[re.Pattern[str]]:
    """What the first lines of errors look like."""
    found = []
    for file in (ROOT / "lightning_vl").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError":
                found += [_pattern(argument) for argument in node.args[:1]]
            elif file.name == "parser.py" and isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
                found.append(_pattern(node.value.elts[0]))  # of what the parser said
    return [re.compile(pattern) for pattern in found if len(re.findall("[a-z]", pattern)) > 5]


def _pattern(text: ast.expr) -> str:
    if isinstance(text, ast.Constant):
        return re.escape(str(text.value))
    parts = text.values if isinstance(text, ast.JoinedStr) else []
    return "".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+" for part in parts)


def test_quoted_errors_are_the_codes() -> None:
    """Breaks if a message is changed and who searches the troubleshooting page for it finds the old one."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^ +error: (.+)$", text, flags=re.MULTILINE)
    assert len(quoted) > 20
    known = messages()
    assert not [line for line in quoted if not any(pattern.fullmatch(line) for pattern in known)]
    source = "\n".join(file.read_text() for file in (ROOT / "lightning_vl").rglob("*.py"))
    for said in (
        "going on from",
        " is finished",
        "cannot agree on a new run's name",
        "W&B logs offline; `python -m lightning_vl wandb sync` sends it later",
    ):
        assert said in text
        assert said in source


@pytest.mark.slow
def test_the_paper_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if who follows docs/adding_a_paper.md file by file gets an error."""
    text = (ROOT / "docs" / "adding_a_paper.md").read_text()
    model, data, task = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    experiment, _ = re.findall(r"^```yaml\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    folder = tmp_path / "papers" / "pairs"
    folder.mkdir(parents=True)
    for name, code in (("__init__", ""), ("model", model), ("data", data), ("task", task)):
        (folder / f"{name}.py").write_text(code)
    (tmp_path / "pairs_tiny.yaml").write_text(experiment)
    monkeypatch.setattr(lightning_vl.papers, "__path__", [*lightning_vl.papers.__path__, os.fspath(folder.parent)])
    monkeypatch.chdir(tmp_path)
    for name in ("data", "task"):  # what the line in cli.py does
        importlib.import_module(f"lightning_vl.papers.pairs.{name}")
    small = ("train_images=256", "validation_images=40", "test_images=40")
    arguments = [f"--data.init_args.source.init_args.{value}" for value in small]
    arguments += ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.init_args.workers=0", "--run.id=a"]
    assert verb("fit", "-c", "pairs_tiny.yaml", *arguments) == 0
    assert (tmp_path / "runs" / "pairs_tiny" / "a" / "results.json").exists()
