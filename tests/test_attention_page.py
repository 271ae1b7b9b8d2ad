"""docs/attention.md: its examples print what it says, and the lines that it quotes are those of the code."""

import contextlib
import io
import re

from support import ROOT

PAGE = (ROOT / "docs" / "attention.md").read_text()
BLOCKS = re.findall(r"^```(python|text)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
QUOTE = re.compile(r"# (lightning_vl/\S+\.py)\n")


def test_examples_print_what_the_page_says() -> None:
    """Breaks if a reader who types the page's examples in order gets an error or other numbers."""
    names: dict[str, object] = {}
    printed, compared = "", 0
    for kind, code in BLOCKS:
        if kind == "text":
            assert printed == code
            printed, compared = "", compared + 1
        elif not QUOTE.match(code):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(code, "docs/attention.md", "exec"), names)
            assert not printed, f"the page does not show {printed!r}"
            printed = out.getvalue()
    assert not printed
    assert compared >= 6


def test_quoted_lines_are_the_codes() -> None:
    """Breaks if the code beside an equation is changed and the page goes on showing what it was."""
    quotes = [code for kind, code in BLOCKS if kind == "python" and QUOTE.match(code)]
    assert len(quotes) >= 9
    for quote in quotes:
        path, lines = quote.split("\n", 1)
        code = [line.strip() for line in (ROOT / path.removeprefix("# ")).read_text().splitlines()]
        for line in lines.splitlines():
            assert line.strip() in code, f"{path}: {line}"
