"""``experiments/README.md``: what every experiment file shows, needs and expects, read from the files themselves.

python -m lightning_vl.report.experiments_page
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_vl.errors import UserError
from lightning_vl.report.results import read_yaml
from lightning_vl.report.table import heading, is_share, markdown_row

EXPERIMENTS = Path("experiments")
PAGE = EXPERIMENTS / "README.md"
PARTS = ("Shows", "Command", "Hardware")  # that the header of an experiment must have
FREE_PARTS = ("Command",)  # that of a sweep or an overlay
CHAPTERS = {  # folder: heading, and what its files have in common
    ".": ("Embedded data", "Nothing to download; each ends in minutes on two CPU cores."),
    "real": ("Real data", "Small real data sets in a folder of yours, `DATA`; see [docs/data.md](../docs/data.md)."),
    "paper": (
        "The paper's size",
        "The paper's recipe for the paper's data in a folder of yours, `DATA`; see [docs/data.md](../docs/data.md).",
    ),
    "sweeps": ("Sweeps", "Families of runs that make one table: `python -m lightning_vl sweep FILE`."),
    "transfer": (
        "Transfer",
        "Tasks for a trained image classifier: a second `-c` after an experiment's; see [docs/transfer.md](../docs/transfer.md).",
    ),
    "overlays": ("Overlays", "How and where to run, never science: a second `-c` after an experiment's."),
}
FREE = ("sweeps", "transfer", "overlays")

_HEAD = """\
# Experiments

Generated from the files by `python -m lightning_vl.report.experiments_page`; do not edit. One file is one experiment and says
all of its science; its header gives the command and what differs from the paper. *Ours* was measured by this project, *paper*
is what the paper printed for its own data and size, in or out of reach; both are held against a run after its test.
"""
_LABEL = re.compile(r"([A-Z][a-z]+(?: [a-z]+){0,3}): +(.*)")


class Header(NamedTuple):
    """The comment at the top of a file.

    Attributes:
        title: its first paragraph.
        parts: what follows by its label (`Shows`, `Command`, `Hardware`, ...).
    """

    title: str
    parts: dict[str, str]


def read_header(path: Path) -> Header:
    """Reads a header: a title, then parts that start with a label and go on in indented lines.

    Raises:
        UserError: there is none, or a part is missing that every experiment must have.
    """
    title: list[str] = []
    parts: dict[str, list[str]] = {}
    current = title
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line[1:].strip()
        label = _LABEL.fullmatch(text) if not line.startswith("#  ") else None
        if label:
            current, text = parts.setdefault(label[1], []), label[2]
        elif text.startswith("python -m "):  # of a sweep or an overlay, without a label
            current = parts.setdefault("Command", [])
        elif current is parts.get("Command") and not text.startswith("--"):
            current = parts.setdefault("", [])  # remarks on the command
        current.append(text)
    required = FREE_PARTS if path.parent.name in FREE else PARTS
    missing = [name for name in required if name not in parts]
    if not title or missing:
        raise UserError(
            f"the header of {path} has no {', '.join(missing) or 'title'}",
            f"start the file with a comment: a title, then {', '.join(required)}",
        )
    return Header(" ".join(title).strip(), {label: " ".join(lines) for label, lines in parts.items()})


def page() -> str:
    """experiments/README.md, from the files that lie in the experiments' folders."""
    lines = [_HEAD.rstrip()]
    for folder, (title, text) in CHAPTERS.items():
        files = sorted((EXPERIMENTS / folder).glob("*.yaml"))
        if files:
            lines += ["", f"## {title}", "", text, "", *(_free(files) if folder in FREE else _table(files))]
    return "\n".join(lines) + "\n"


def _table(files: Sequence[Path]) -> list[str]:
    columns = ["experiment", "what", "hardware", "ours", "paper"]
    rows = [markdown_row(columns), "|" + "---|" * len(columns)]
    for file in files:
        header, expected = read_header(file), read_yaml(file).get("expected") or []
        cells = [_link(file), header.title, header.parts["Hardware"].split(". ")[0].rstrip(".")]
        rows.append(markdown_row([*cells, *(_expected(expected, kind) for kind in ("ours", "paper"))]))
    return rows


def _free(files: Sequence[Path]) -> list[str]:
    headers = {file: read_header(file) for file in files}
    return [f"- {_link(file)}: {header.title}  \n  `{header.parts['Command']}`" for file, header in headers.items()]


def _link(file: Path) -> str:
    return f"[{file.stem}]({file.relative_to(EXPERIMENTS).as_posix()})"


def _expected(entries: Sequence[dict[str, Any]], kind: str) -> str:
    """`test/top1 (%) 93.1 ± 0.5`, with a paper's value its source; several in turn."""
    texts = []
    for entry in entries:
        if entry["kind"] == kind:
            scale, digits = (100, 1) if is_share(entry["metric"]) else (1, 3)
            source = f" ({entry['source']})" if kind == "paper" else f" ± {scale * entry['tolerance']:.{digits}f}"
            texts.append(f"{heading(entry['metric'])} {scale * entry['value']:.{digits}f}{source}")
    return "; ".join(texts) or "-"


def main(argv: Sequence[str]) -> int:
    """Writes the page; gives the exit code."""
    argparse.ArgumentParser(
        prog="python -m lightning_vl.report.experiments_page",
        description="Write experiments/README.md anew from the experiment files.",
        epilog="example: python -m lightning_vl.report.experiments_page",
    ).parse_args(argv)
    try:
        PAGE.write_text(page(), encoding="utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
