"""Text files: documents between blank lines, splits by file or held out, and files that are not what they should be."""

import os
from pathlib import Path
from typing import Any

import pytest

from lightning_vl.data.datasets.text_files import TextFiles
from lightning_vl.data.documents import Document, Punctuation
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError

BOTH: dict[Split, list[str]] = {"train": ["train*.txt"], "validation": ["val.txt"], "test": ["test.txt"]}


def files(root: Path, **texts: str | bytes) -> str:
    """Files by stem."""
    for stem, text in texts.items():
        (root / f"{stem}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(root)


def read(source: TextFiles, split: Split = "train") -> list[Document]:
    """A split's documents."""
    return list(source.documents(split))


def test_documents_between_blank_lines(tmp_path: Path) -> None:
    """Breaks if a blank line, the end of a file, or their absence is taken for something else."""
    files(tmp_path, train1="\n\nFirst line.\nSecond line.\n\n \t\nAnother.\n\n", train2="Third. One", val="v", test="t")
    assert read(TextFiles(str(tmp_path), BOTH)) == [
        ("train1.txt:3", ["First line.", "Second line."]),
        ("train1.txt:7", ["Another."]),
        ("train2.txt:1", ["Third. One"]),
    ]
    assert read(TextFiles(str(tmp_path), BOTH), "validation") == [("val.txt:1", ["v"])]
    assert read(TextFiles(str(tmp_path), BOTH, Punctuation()))[2].sentences == ["Third.", "One"]
    assert read(TextFiles(str(tmp_path), BOTH, Punctuation(wrapped=True)))[0].sentences == [
        "First line.",
        "Second line.",
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(tmp_path: Path, end: str) -> None:
    """Breaks if Windows' or old line ends glue lines together, or a byte order mark or NEL stays in the text."""
    text = "\ufeff" + end.join(["one\x85a", "two", "", "three\u2028b", ""])
    files(tmp_path, train=text, val="v", test="t")
    assert [one.sentences for one in read(TextFiles(str(tmp_path), BOTH))] == [["one a", "two"], ["three b"]]


def test_share_is_held_out(tmp_path: Path) -> None:
    """Breaks if text without a split of its own cannot be trained on, or is tested on what it was trained on."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    files(tmp_path / "deep" / "er", a="\n\n".join(f"document {number}" for number in range(300)))
    source = TextFiles(str(tmp_path), held_out=0.2)
    splits: tuple[Split, ...] = ("train", "validation", "test")
    found = [[one.id for one in read(source, split)] for split in splits]
    assert sum(map(len, found)) == len({id for ids in found for id in ids}) == 300
    assert all(40 < len(ids) < 80 for ids in found[1:])
    assert found[0][0].startswith(os.path.join("deep", "er", "a.txt:"))


def test_wrong_encoding(tmp_path: Path) -> None:
    """Breaks if Latin letters are read as something else, or nobody is told which line of which file is wrong."""
    files(tmp_path, train="plain\n\ncafé\n".encode("latin-1"), val="v", test="t")
    with pytest.raises(UserError, match=r"train\.txt, line 3, is no utf-8: byte 0xe9") as error:
        read(TextFiles(str(tmp_path), BOTH))
    assert "iconv" in error.value.how
    assert read(TextFiles(str(tmp_path), BOTH, encoding="latin-1"))[1].sentences == ["café"]
    files(tmp_path, train="wide".encode("utf-16"))
    with pytest.raises(UserError, match="line 1, is no utf-8"):
        read(TextFiles(str(tmp_path), BOTH))
    with pytest.raises(UserError, match="unknown encoding: latin-77"):
        read(TextFiles(str(tmp_path), BOTH, encoding="latin-77"))


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"train": ["absent*.txt"]}, r"fits 'absent\*\.txt'"),
        ({"train": ["*.txt"], "test": ["test.txt"]}, r"test\.txt is in the train and in the test split"),
        ({"train": ["train.txt"], "test": ["folder"]}, "fits 'folder'"),
    ],
)
def test_wrong_splits(tmp_path: Path, splits: Any, said: str) -> None:
    """Breaks if a pattern that fits nothing is an empty split, or a file is trained and tested on."""
    (tmp_path / "folder").mkdir()
    root = files(tmp_path, train="a", test="b")
    with pytest.raises(UserError, match=said):
        read(TextFiles(root, splits))


def test_wrong_root(tmp_path: Path) -> None:
    """Breaks if a folder that is not there is a corpus without files."""
    with pytest.raises(UserError, match="there is no folder"):
        read(TextFiles(str(tmp_path / "absent")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    """Breaks if a file without permission is a traceback."""
    root = files(tmp_path, train="a")
    (tmp_path / "train.txt").chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        TextFiles(root).fingerprint("train")
    with pytest.raises(UserError, match="cannot be read"):
        read(TextFiles(root))


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    """Breaks if changed text is served from the cache, or the same text elsewhere is tokenised again."""
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    roots = [files(tmp_path / name, train="text", val="v", test="t") for name in ("one", "other")]
    first, moved = (TextFiles(root, BOTH) for root in roots)
    before = first.fingerprint("train")
    assert before == moved.fingerprint("train") != first.fingerprint("test")
    assert before != TextFiles(roots[0], BOTH, Punctuation()).fingerprint("train")
    assert before != TextFiles(roots[0], BOTH, encoding="latin-1").fingerprint("train")
    files(tmp_path / "one", train="Text")
    os.utime(tmp_path / "one" / "train.txt", (1, 1))
    assert first.fingerprint("train") != before
    assert first.fingerprint("test") == moved.fingerprint("test")
