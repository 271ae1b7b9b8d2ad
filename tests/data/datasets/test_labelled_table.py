"""Labelled texts from tables, and GLUE's own: rows, splits, and what is said of bad files."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lightning_vl.data.datasets.cola import CoLA
from lightning_vl.data.datasets.labelled_table import LabelledTable, class_indices
from lightning_vl.data.datasets.sst2 import SST2
from lightning_vl.data.labelled_text import LabelledText, LabelledTextSource, hold_out_texts, same_text
from lightning_vl.errors import UserError

SENTENCES = [(f'a "quoted, sentence number {number}', number % 2) for number in range(20)]


def table(folder: Path, content: bytes, name: str = "train.tsv", **arguments: Any) -> LabelledTable:
    """A file for training and test."""
    (folder / name).write_bytes(content)
    return LabelledTable(str(folder / name), str(folder / name), **arguments)


def test_a_table_without_quoting(tmp_path: Path) -> None:
    """Breaks if a quote in GLUE's files swallows lines, a Unicode line end splits one, or ids do not name the line."""
    rows = 'label\tsentence\n0\tsay "no\n\n1\tone\u2028line\n0\ta \x85 b\r\n1\t\n'
    texts = table(tmp_path, rows.encode(), class_names=["no", "yes"]).texts("test")
    assert texts == [
        LabelledText("train.tsv:2", 'say "no', None, 0),
        LabelledText("train.tsv:4", "one\u2028line", None, 1),
        LabelledText("train.tsv:5", "a \x85 b", None, 0),
        LabelledText("train.tsv:6", "", None, 1),
    ]


def test_a_quoted_table_of_pairs(tmp_path: Path) -> None:
    """Breaks if a cell over two lines shifts the numbers of those after it."""
    rows = 'a,b,gold\n"x, y","two\nlines",same\nz,w,other\n'
    source = table(tmp_path, b"\xef\xbb\xbf" + rows.encode(), "train.csv", first="a", second="b", label="gold")
    assert source.class_names == ["other", "same"]
    assert source.texts("test") == [
        LabelledText("train.csv:2", "x, y", "two\nlines", 1),
        LabelledText("train.csv:4", "z", "w", 0),
    ]


def test_json_lines(tmp_path: Path) -> None:
    """Numbers as labels count as classes in the order of their values."""
    rows = "".join(json.dumps({"sentence": f"s{i}", "label": i}) + "\n" for i in (10, 9, 2))
    source = table(tmp_path, rows.encode(), "train.jsonl")
    assert source.class_names == ["2", "9", "10"]
    assert [text.label for text in source.texts("test")] == [2, 1, 0]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("t.tsv", b"", "has no rows"),
        ("t.tsv", b"sentence\tlabel\n", "has no rows"),
        ("t.tsv", b"text\tlabel\na\t0\n", "line 2 of .*t.tsv has no column sentence; it has text, label"),
        ("t.tsv", b"sentence\tlabel\na\t0\nb\n", "line 3 of .*t.tsv has 1 columns, not 2"),
        ("t.tsv", b"sentence\tlabel\na\t0\nb\t2\n", "line 3 of .*t.tsv has a label '2', the classes are no, yes"),
        ("t.tsv", "sentence\tlabel\na\t0\ncafé\t1\n".encode("latin-1"), "line 3 of .*t.tsv is not UTF-8"),
        ("t.csv", b'sentence,label\na,0\n"b,1\n', "line 3 of .*t.csv cannot be read"),
        ("t.jsonl", b'{"sentence": "a", "label": 0}\n{"sentence"\n', "line 2 of .*t.jsonl is no JSON"),
        ("t.jsonl", b"[1]\n", "line 1 of .*t.jsonl is no JSON object"),
        ("t.jsonl", b'{"sentence": "a", "label": null}\n', "line 1 of .*t.jsonl has no column label"),
        ("t.txt", b"a\n", "is no .csv, .tsv or .jsonl"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    """Each is told with its file and its line; none is read half."""
    with pytest.raises(UserError, match=what):
        table(tmp_path, content, name, class_names=["no", "yes"]).texts("test")


def test_no_file(tmp_path: Path) -> None:
    """Breaks if a wrong path ends in a traceback."""
    with pytest.raises(UserError, match=r"nowhere.tsv cannot be read: No such file"):
        LabelledTable(str(tmp_path / "nowhere.tsv"), "").texts("train")


def test_held_out_texts_are_not_trained_on() -> None:
    """Breaks if a text that occurs twice, or in other case, lies on both sides, or a class is left out."""
    texts = [
        LabelledText(str(i), f"Text {i % 50}" if i % 3 else f" text  {i % 50}", None, i % 50 // 25) for i in range(100)
    ]
    train, validation = hold_out_texts(texts, ["a", "b"], 0.2, seed=0)
    assert (len(train), len(validation)) == (80, 20)
    assert not {same_text(text) for text in train} & {same_text(text) for text in validation}
    assert Counter(text.label for text in validation) == {0: 10, 1: 10}
    assert (train, validation) == hold_out_texts(texts, ["a", "b"], 0.2, seed=0)
    assert validation != hold_out_texts(texts, ["a", "b"], 0.2, seed=1)[1]
    assert same_text(LabelledText("", "a b", None, 0)) != same_text(LabelledText("", "a", "b", 0))


def check_splits(source: LabelledTextSource, sizes: dict[str, int]) -> None:
    """Sizes, classes, and no text in both training and validation."""
    splits = {split: source.texts(split) for split in ("train", "validation", "test")}
    assert {split: len(texts) for split, texts in splits.items()} == sizes
    assert {text.label for text in splits["validation"]} == {0, 1}
    assert not {same_text(text) for text in splits["train"]} & {same_text(text) for text in splits["validation"]}


def test_sst2_in_glues_files(tmp_path: Path) -> None:
    """Breaks if the test is not GLUE's dev.tsv, or quotes are read as CSV's."""
    for name, rows in (("train", SENTENCES), ("dev", SENTENCES[:3])):
        lines = [f"{sentence} \t{label}\n" for sentence, label in rows]
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(lines))
    source = SST2(str(tmp_path), validation_share=0.2)
    check_splits(source, {"train": 16, "validation": 4, "test": 3})
    assert source.texts("test")[1] == LabelledText("dev.tsv:3", 'a "quoted, sentence number 1 ', None, 1)


def test_cola_in_its_own_files(tmp_path: Path) -> None:
    """Breaks if columns are mixed up, the files' first line is taken for a header, or half of the test is missing."""
    for name, rows in (
        ("in_domain_train", SENTENCES),
        ("in_domain_dev", SENTENCES[:3]),
        ("out_of_domain_dev", SENTENCES[3:5]),
    ):
        lines = [f"gj04\t{label}\t{'' if label else '*'}\t{sentence}\n" for sentence, label in rows]
        (tmp_path / f"{name}.tsv").write_text("".join(lines))
    source = CoLA(str(tmp_path), validation_share=0.2)
    check_splits(source, {"train": 16, "validation": 4, "test": 5})
    assert source.texts("test")[3] == LabelledText("out_of_domain_dev.tsv:1", SENTENCES[3][0], None, 1)


def test_the_real_files() -> None:
    """Breaks if a line of the real SST-2 or CoLA is lost: sizes are GLUE's."""
    folder = os.environ.get("LIGHTNING_VL_DATA")
    if not folder or not (Path(folder) / "text" / "sst2").is_dir():
        pytest.skip("LIGHTNING_VL_DATA names no folder with text/sst2 and text/cola")
    check_splits(SST2(f"{folder}/text/sst2"), {"train": 66001, "validation": 1348, "test": 872})
    check_splits(CoLA(f"{folder}/text/cola"), {"train": 7698, "validation": 853, "test": 1043})


def test_names_that_are_numbers_are_names() -> None:
    """Breaks if stars from 1 to 5 are taken for places from 0 to 4."""
    assert class_indices(["1", "2", "3"]) == {"1": 0, "2": 1, "3": 2}
    assert class_indices(["bad", "good"]) == {"0": 0, "1": 1, "bad": 0, "good": 1}
