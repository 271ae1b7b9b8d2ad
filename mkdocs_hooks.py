"""What the site needs beyond mkdocs: pages that lie elsewhere in the repository, notebooks, links into the code, formulas, tables.

The same Markdown is read in the repository and on the site, so it has no macros. Links are those of the repository: one to a
page leads to its place on the site, one to any other file to a copy of it, with numbered lines. The name of a class or
function as a link's text leads to its line, and so does every line of a code block that begins with the file that it quotes.
HTML comments, which the repository does not show, stand where the site has tables of its own:

    <!-- results: bert -->                     expected, measured and the paper's, of experiments of a name
    <!-- recipes: FILE FILE -->                the keys in which experiments differ, side by side
    <!-- sources -->                           every source class of data, its arguments and who uses it
"""

import ast
import html
import json
import posixpath
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import yaml
from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent
WIDE = {"published.md", "experiments.md"}  # tables need the room of the list of pages
PICTURES = {".png", ".svg", ".jpg", ".gif"}
LANGUAGES = {"yml": "yaml", "sbatch": "sh", "": "text"}  # others are called as the files end
LINK = re.compile(r"\]\(([^()\s]+)\)")
QUOTE = re.compile(r"^```python\n# (lightning_vl/\S+\.py)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"^<!-- (results|recipes|sources)(?:: (.*?))? -->$", flags=re.MULTILINE)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)

places: dict[str, str] = {}  # file of the repository: page of the site
open_page: list[str] = [""]  # the file of the repository that is being made a page


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Takes the link processor in, and makes the anchors of headings those of the repository's own view."""
    config.markdown_extensions.append(Links())
    config.mdx_configs["toc"]["slugify"] = anchor
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from elsewhere, and a copy of every file that pages link to."""
    places.clear()
    own = (file.src_uri for file in files if (ROOT / "docs" / file.src_uri).exists())  # the theme has files, too
    places.update({f"docs/{uri}": uri for uri in own})
    notebooks = {f"notebooks/{file.stem}.md": f"notebooks/{file.name}" for file in ROOT.glob("notebooks/*.ipynb")}
    for page, path in {**config.extra["pages"], **notebooks}.items():
        files.append(File.generated(config, page, content=text_of(path)))
        places[path] = page
    for path in sorted(linked()):
        if (ROOT / path).suffix in PICTURES:
            files.append(File.generated(config, f"source/{path}", content=(ROOT / path).read_bytes()))
            places[path] = f"source/{path}"
        else:
            files.append(File.generated(config, f"source/{path}.md", content=copy(path)))
            places[path] = f"source/{path}.md"
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts the site's own tables in, and the numbers of quoted lines over a quotation."""
    src = page.file.src_uri
    open_page[0] = next((path for path, place in places.items() if place == src), f"docs/{src}")
    if src.startswith("source/"):
        return markdown
    if src in WIDE:
        page.meta["hide"] = ["navigation"]
    markdown = COMMENT.sub(lambda match: TABLES[match[1]](match[2] or ""), markdown)
    return QUOTE.sub(lambda match: quotation(match[1], match[2]), markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML, which browsers draw by themselves; anchors of lines are made known to mkdocs."""
    lines = set(re.findall(r'id="(__codelineno-[\d-]+)"', html))
    page.present_anchor_ids = (page.present_anchor_ids or set()) | lines
    return FORMULA.sub(lambda match: formula(match[2], "block" if match[1] == "div" else "inline"), html)


def text_of(path: str) -> str:
    """A page's file as Markdown: a notebook's cells one after the other."""
    text = (ROOT / path).read_text()
    if not path.endswith(".ipynb"):
        return text
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n\n".join(source if kind == "markdown" else f"```python\n{source}\n```" for kind, source in cells)


def anchor(title: str, separator: str) -> str:
    """A heading's anchor as GitHub makes it, so that one link is right in both views."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def formula(latex: str, display: str) -> str:
    """LaTeX, as it stands in HTML, to MathML; the LaTeX is kept for who copies it."""
    latex = html.unescape(latex).strip()
    math: str = convert(latex, display=display)
    return math.replace("<math ", f'<math alttext="{html.escape(latex)}" ', 1)


# links


class Links(Extension):  # type: ignore[misc]
    """Links of the repository to those of the site."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.treeprocessors.register(
            LinkProcessor(md), "repository_links", 5
        )  # after inline Markdown, before mkdocs' own


class LinkProcessor(Treeprocessor):  # type: ignore[misc]
    """Works on the tree, where code is not taken for links."""

    def run(self, root: Element) -> None:
        for element in root.iter():
            key = {"a": "href", "img": "src"}.get(element.tag)
            target = element.get(key) if key else None
            if key and target and not re.match(r"[a-z]+:|#|/", target):
                element.set(key, site_link(target, "".join(element.itertext())))


def site_link(target: str, text: str) -> str:
    """A link of the open page, as the site has it.

    Args:
        target: path relative to the page's file, with an anchor or without.
        text: what the link says; where it names a class or function of the file, its line is found.
    """
    name, _, heading = target.partition("#")
    path = repository_path(name)
    if path not in places:
        return target  # mkdocs says that it leads nowhere
    if not heading and path.endswith(".py"):
        line = definitions(path).get(text.partition("(")[0])
        heading = f"__codelineno-0-{line}" if line else ""
    here = posixpath.dirname(places.get(open_page[0], open_page[0]))
    return posixpath.relpath(places[path], here or ".") + (f"#{heading}" if heading else "")


def repository_path(target: str) -> str:
    """Of a link of the open page."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(open_page[0]), target))


def linked() -> set[str]:
    """Files of the repository that a page links to or quotes, and that are no pages."""
    found = set()
    for path, place in places.items():
        if place.endswith(".md") and not place.startswith("source/"):
            open_page[0] = path
            text = COMMENT.sub(lambda match: TABLES[match[1]](match[2] or ""), text_of(path))
            found |= {repository_path(target.partition("#")[0]) for target in LINK.findall(text)}
            found |= {match[1] for match in QUOTE.finditer(text)}
    return {path for path in found if path not in places and (ROOT / path).exists() and not path.startswith("..")}


def copy(path: str) -> str:
    """A page that shows a file of the repository with numbered lines, or what lies in a folder of it."""
    top = f"---\ntitle: {posixpath.basename(path)}\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n# `{path}`\n\n"
    if (ROOT / path).is_dir():
        names = sorted(file.name for file in (ROOT / path).iterdir() if file.name[0] not in "._")
        return top + "".join(f"- `{name}`\n" for name in names)
    suffix = (ROOT / path).suffix.removeprefix(".")
    language = LANGUAGES.get(suffix, suffix)
    return f'{top}~~~~~~ {{.{language} linenums="1"}}\n{(ROOT / path).read_text()}\n~~~~~~\n'


def definitions(path: str) -> dict[str, int]:
    """Line of every class, function and `Class.method` of a Python file."""
    found = {}
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node.lineno
            members = node.body if isinstance(node, ast.ClassDef) else []
            found |= {
                f"{node.name}.{member.name}": member.lineno for member in members if isinstance(member, ast.FunctionDef)
            }
    return found


def quotation(path: str, code: str) -> str:
    """Quoted lines, under links to where they stand.

    Raises:
        PluginError: the file has no such line; the page shows what the code was.
    """
    lines = [line.strip() for line in (ROOT / path).read_text().splitlines()]
    numbers: list[int] = []
    for quoted in filter(None, map(str.strip, code.splitlines())):
        if quoted not in lines:
            raise PluginError(f"{open_page[0]} quotes a line that {path} does not have: {quoted}")
        after = numbers[-1] if numbers else 0
        numbers.append(lines.index(quoted, after if quoted in lines[after:] else 0) + 1)
    here = posixpath.dirname(places.get(open_page[0], open_page[0]))
    page = posixpath.relpath(posixpath.splitext(places[path])[0] + ".html", here or ".")
    links = ", ".join(f'<a href="{page}#__codelineno-0-{number}">{number}</a>' for number in numbers)
    name = f'<p class="quoted"><a href="{page}">{path}</a>, line{"s" * (len(numbers) > 1)} {links}</p>'
    return f"{name}\n\n```python\n{textwrap.dedent(code)}```"


# tables


def link(path: str, text: str) -> str:
    """Markdown for a link from the open page to a file of the repository."""
    return f"[{text}]({posixpath.relpath(path, posixpath.dirname(open_page[0]) or '.')})"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    cells = [columns, ["---"] * len(columns), *rows]
    # a stroke within code is no border
    return "\n".join(
        "| " + " | ".join(re.sub(r"(`[^`]*`)|\|", lambda m: m[1] or "\\|", cell) for cell in row) + " |"
        for row in cells
    )


def results(prefixes: str) -> str:
    """What RESULTS.md says of experiments whose names begin so, and of the paper's that nobody ran."""
    text = (ROOT / "RESULTS.md").read_text()
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    head, *body = lines[: next(i for i, line in enumerate(lines) if len(line) != len(lines[0]))]
    measured = [dict(zip(head, row, strict=True)) for row in body if set(row[0]) - {"-"}]
    rows = []
    for row in measured:
        stem = row["experiment"].split()[0]
        if stem.startswith(tuple(prefixes.split())) and (file := experiment(stem)):
            name = link(file, stem) + row["experiment"].removeprefix(stem)
            numbers = re.sub(
                " ([±=]) ", "\u00a0\\1\u00a0", f"{row['measured']} (n = {row['n']})"
            )  # not cut at a line's end
            rows.append([name, row["data"], row["metric"], numbers, baselines_of(row), row["paper"]])
    done = {row["experiment"].split()[0] for row in measured}
    for recipe in sorted((ROOT / "experiments" / "paper").glob("*.yaml")):
        if recipe.stem.startswith(tuple(prefixes.split())) and recipe.stem not in done:
            path = recipe.relative_to(ROOT).as_posix()
            expected = yaml.safe_load(recipe.read_text()).get("expected", [])
            for metric, number in in_few_rows([value for value in expected if value["kind"] == "paper"]):
                rows.append([link(path, recipe.stem), "the paper's", metric, "not run", "-", number])
    return table(["experiment", "data", "metric", "ours", "without learning", "paper"], rows)


def baselines_of(row: dict[str, str]) -> str:
    """Those of the row's metric: RESULTS.md has the others."""
    last = row["metric"].removesuffix(" (%)").rpartition("_")[2].rpartition("/")[2]
    fitting = [entry for entry in row["baselines"].split(", ") if entry.split()[0].rpartition("_")[2] == last]
    return ", ".join(fitting) or "-"


def in_few_rows(values: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Metric and printed number of each; many of one table, as of CLIP's data sets, are one row."""
    if len(values) < 5:
        return [(f"{value['metric']} (%)", f"{100 * value['value']:.1f} ({value['source']})") for value in values]
    numbers = ", ".join(f"{value['metric'].split('/')[1]} {100 * value['value']:.1f}" for value in values)
    sources = ", ".join(dict.fromkeys(value["source"] for value in values))
    return [("zero-shot, by each set's own metric (%)", f"{numbers} ({sources})")]


def recipes(paths: str) -> str:
    """The keys in which experiments differ, and their values."""
    files = [flat(yaml.safe_load((ROOT / path).read_text())) for path in paths.split()]
    keys = [
        key for key in dict.fromkeys(key for file in files for key in file) if not key.startswith(("expected", "run."))
    ]
    differing = [key for key in keys if len({str(file.get(key)) for file in files}) > 1]
    rows = [[f"`{key}`", *(f"`{file[key]}`" if key in file else "-" for file in files)] for key in differing]
    return table(["key", *(link(path, f"`{posixpath.basename(path)}`") for path in paths.split())], rows)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested keys joined by dots; `init_args` and `class_path` add nothing that a reader wants."""
    if not isinstance(value, dict):
        return {name: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        inner = name if key in ("init_args", "class_path") else f"{name}.{key}".lstrip(".")
        found |= flat(item, inner)
    return found


def experiment(stem: str) -> str | None:
    """The file of an experiment."""
    found = sorted((ROOT / "experiments").rglob(f"{stem}.yaml"))
    return found[0].relative_to(ROOT).as_posix() if found else None


def sources(_: str) -> str:
    """Every source class: what it reads, its arguments with their defaults, and the experiments that use it."""
    parts = []
    for folder, title in (("datasets", "On disk and from the hub"), ("synthetic", "Made as it is read")):
        parts.append(f"## {title}\n")
        for file in sorted((ROOT / "lightning_vl" / "data" / folder).glob("*.py")):
            path = file.relative_to(ROOT).as_posix()
            for node in source_classes(file):
                parts.append(described(path, node))
    return "\n".join(parts)


def source_classes(file: Path) -> Iterator[ast.ClassDef]:
    """The public classes of a file that an experiment can name as its data."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name[0] != "_":
            bases = " ".join(map(ast.unparse, node.bases))
            is_source = re.search(r"(Source|Captions|Videos|Classes|Scenes|Scattered)$", bases)
            if is_source and "ABC" not in bases and "@abstractmethod" not in ast.unparse(node):
                yield node


def described(path: str, node: ast.ClassDef) -> str:
    """A source class as a section."""
    text, _, rest = (ast.get_docstring(node) or "").partition("\n\nArgs:\n")
    meanings = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", rest, flags=re.MULTILINE))
    init = next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    rows = []
    if init:
        arguments = init.args.args[1:]
        defaults = [None] * (len(arguments) - len(init.args.defaults)) + init.args.defaults
        for argument, default in zip(arguments, defaults, strict=True):
            meaning = " ".join(meanings.get(argument.arg, "").split())
            kind = f"`{ast.unparse(argument.annotation)}`" if argument.annotation else ""
            rows.append([f"`{argument.arg}`", kind, f"`{ast.unparse(default)}`" if default else "", meaning])
    used = ", ".join(link(file, f"`{posixpath.basename(file)}`") for file in users().get(node.name, []))
    parts = [f"### {node.name}\n", f"{link(path, f'`{node.name}`')} in `{path}`\n", text + "\n"]
    parts += [table(["argument", "type", "default", "what it is"], rows) + "\n"] if rows else []
    return "\n".join([*parts, f"Used by {used}.\n" if used else ""])


@cache
def users() -> dict[str, list[str]]:
    """Class name: files of experiments that name it."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "experiments").rglob("*.yaml")):
        for name in set(re.findall(r"class_path: (?:[\w.]+\.)?(\w+)", file.read_text())):
            found.setdefault(name, []).append(file.relative_to(ROOT).as_posix())
    return found


TABLES = {"results": results, "recipes": recipes, "sources": sources}
