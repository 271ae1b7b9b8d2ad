"""Tables of captions: open_clip's, Conceptual Captions', quoted cells, and tables that cannot be read."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lightning_vl.data.datasets.caption_tables import CaptionTable
from lightning_vl.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images in a folder."""
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (3, 2), (number, number, number)).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def read(root: Path, text: str, name: str = "t.csv", **arguments: Any) -> list[tuple[str, tuple[str, ...]]]:
    """What the test split of a table says."""
    (root / name).write_bytes(text.encode())
    source = CaptionTable(str(root), name, name, name, **arguments)
    return [tuple(image) for image in source.images("test")]


def test_open_clip(root: Path) -> None:
    """Tabs, columns filepath and title whatever else there is, rows of one image together, a byte-order mark."""
    text = '\ufefftitle\tsize\tfilepath\r\na "red" cat, here\t1\timages/1.png\r\nlater\t1\timages/0.png\r\nagain\t2\timages/1.png\r\n'
    assert read(root, text) == [("images/1.png", ('a "red" cat, here', "again")), ("images/0.png", ("later",))]
    absolute = root / "images" / "2.png"
    assert read(root, f"filepath\ttitle\n{absolute}\ttwo\n") == [(str(absolute), ("two",))]


def test_conceptual_captions(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No header, columns by number; a quotation mark at a caption's start is one; files that were never fetched are said."""
    text = '" the best " of all\thttp://a\timages/0.png\na "b\thttp://b\timages/9.png\nc\thttp://c\timages/3.png\n'
    found = read(root, text, "train.tsv", image_column=2, caption_column=0)
    assert found == [("images/0.png", ('" the best " of all',)), ("images/3.png", ("c",))]
    assert "left out 1 of 3 images, no such file: images/9.png" in capsys.readouterr().err
    source = CaptionTable(str(root), "train.tsv", "train.tsv", "train.tsv", image_column=2, caption_column=0)
    assert source.read("train", 1)[0, 0, 0] == 3


def test_quoted_cells(root: Path) -> None:
    """Between commas always, between tabs on demand: commas, line ends and doubled quotes within."""
    text = 'filepath,title\nimages/1.png,"one, ""two""\nthree"\nimages/2.png,four\n'
    expected = [("images/1.png", ('one, "two" three',)), ("images/2.png", ("four",))]
    assert read(root, text) == expected
    tabs = 'filepath\ttitle\nimages/1.png\t"one, ""two""\nthree"\nimages/2.png\tfour\n'
    assert read(root, tabs, quoted=True) == expected


@pytest.mark.parametrize(
    ("text", "arguments", "what", "how"),
    [
        ("file\ttitle\na\tb\n", {}, "has no column 'filepath'", "did you mean 'file'"),
        ("a cat\thttp://a\n", {}, "has no column 'filepath'", "give numbers, from 0"),
        ("filepath\ttitle\na\tb\nc\n", {}, "line 3 of .* has 1 cells", "mend the line"),
        ("a\tb\n", {"image_column": 2, "caption_column": 0}, "line 1 of .* has 2 cells", "image_column"),
        ('filepath,title\na,"b\n', {}, "cannot be read", "mend its quotes"),
        ("", {}, "has no column", "numbers"),
        ("filepath\ttitle\n", {}, "has no image with a caption", "files and columns"),
    ],
)
def test_mistakes_take_two_lines(root: Path, text: str, arguments: dict[str, Any], what: str, how: str) -> None:
    """Each names the line or the nearest column."""
    with pytest.raises(UserError, match=what) as error:
        read(root, text, **arguments)
    assert how in error.value.how
    assert "\n" not in error.value.what + error.value.how


def test_another_encoding_is_refused(root: Path) -> None:
    """Breaks if letters are replaced or a traceback is printed."""
    (root / "t.csv").write_bytes("filepath\ttitle\nimages/1.png\tcafé\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"line 2 of .* is not UTF-8"):
        CaptionTable(str(root), "t.csv").images("train")
    with pytest.raises(UserError, match="cannot be read"):
        CaptionTable(str(root), "u.csv").images("train")
