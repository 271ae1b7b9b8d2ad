"""Text sets that `datasets` reads, from local files only."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from lightning_vl.data.datasets.hub_text import HubText
from lightning_vl.data.documents import Lines
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def no_user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's copies of tests' files stay out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(count: int, start: int = 0) -> datasets.Dataset:
    """Document n of two sentences."""
    texts = [f"Document {number} begins. It ends." for number in range(start, start + count)]
    return datasets.Dataset.from_dict({"body": texts, "number": list(range(count))})


def folder(root: Path, kind: str, **splits: datasets.Dataset) -> str:
    """A set on disk."""
    path = root / kind
    if kind == "saved":
        datasets.DatasetDict(splits).save_to_disk(path)
    else:
        path.mkdir(exist_ok=True)
        for name, rows in splits.items():
            (rows.to_parquet if kind == "parquet" else rows.to_json)(path / f"{name}.{kind}")
    return str(path)


@pytest.mark.parametrize(
    ("kind", "streaming"),
    [("parquet", False), ("parquet", True), ("jsonl", False), ("jsonl", True), ("saved", False)],
)
def test_rows_are_documents(tmp_path: Path, kind: str, streaming: bool) -> None:
    """Breaks if a kind of set cannot be read, or the set's own splits are not used."""
    path = folder(tmp_path, kind, train=table(5), valid=table(2, 5), test=table(3, 7))
    splits: dict[Split, str] = {"train": "train", "validation": "valid", "test": "test"}
    if kind != "saved":
        splits["validation"] = "validation"  # the library knows the file's split under its own name
    source = HubText(path, text_column="body", splits=splits, streaming=streaming)
    found = [list(source.documents(split)) for split in SPLITS]
    assert [len(documents) for documents in found] == [5, 2, 3]
    assert found[0][1] == ("train/1", ["Document 1 begins.", "It ends."])
    assert found[2][0].sentences[0] == "Document 7 begins."
    assert len({source.fingerprint(split) for split in SPLITS}) == 3
    lines = HubText(path, text_column="body", splits=splits, sentences=Lines(), streaming=streaming)
    assert next(lines.documents("train")).sentences == ["Document 0 begins. It ends."]
    assert lines.fingerprint("train") != source.fingerprint("train")
    assert next(pickle.loads(pickle.dumps(source)).documents("test")) == found[2][0]


def test_share_is_held_out(tmp_path: Path) -> None:
    """Breaks if a set with training rows only cannot be evaluated on, or is on what it was trained on."""
    source = HubText(folder(tmp_path, "parquet", train=table(300)), text_column="body", held_out=0.1)
    found = [[one.id for one in source.documents(split)] for split in SPLITS]
    assert sum(map(len, found)) == len({id for ids in found for id in ids}) == 300
    assert all(15 < len(ids) < 50 for ids in found[1:])


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    """Breaks if a changed set is served from the cache, streamed or not."""
    for streaming in (False, True):
        path = folder(tmp_path, "parquet", train=table(5))
        before = HubText(path, text_column="body", streaming=streaming).fingerprint("train")
        assert HubText(path, text_column="body", streaming=streaming).fingerprint("train") == before
        folder(tmp_path, "parquet", train=table(6, 1))
        assert HubText(path, text_column="body", streaming=streaming).fingerprint("train") != before


PRINT = """
import sys, datasets
from lightning_vl.data.datasets.hub_text import HubText
datasets.config.HF_DATASETS_CACHE = sys.argv[2]
print(HubText(sys.argv[1], text_column="body").fingerprint("train"))
"""


@pytest.mark.slow
def test_fingerprint_in_another_process(tmp_path: Path) -> None:
    """Breaks if every start, or every rank, tokenises the set anew."""
    path = folder(tmp_path, "parquet", train=table(5))
    words = [sys.executable, "-c", PRINT, path, str(tmp_path / "cache")]
    prints = [subprocess.run(words, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert prints[0] == prints[1]


@pytest.mark.parametrize(
    ("arguments", "what", "how"),
    [
        ({"text_column": "text"}, "has no column 'text'", "body"),
        ({"text_column": "number"}, "row 0, holds no text under 'number'", "text_column"),
        ({"splits": {"train": "training"}, "text_column": "body"}, "has no split 'training'", "train"),
        ({"splits": {"test": "test"}, "text_column": "body"}, "none for train", "train"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, Any], what: str, how: str) -> None:
    """Breaks if a wrong name is a traceback, or the right one is not said."""
    path = folder(tmp_path, "parquet", train=table(5))
    with pytest.raises(UserError, match=what) as error:
        next(HubText(path, **arguments).documents("train"))
    assert how in error.value.how


def test_rows_that_are_sentences(tmp_path: Path) -> None:
    """Breaks if a set of single sentences is documents of one sentence, in which nothing follows anything."""
    path = folder(tmp_path, "parquet", train=table(5), test=table(1), validation=table(1))
    splits: dict[Split, str] = {split: split for split in SPLITS}
    source = HubText(path, text_column="body", splits=splits, sentences=Lines(), rows_of_document=2)
    assert [(one.id, len(one.sentences)) for one in source.documents("train")] == [
        ("train/0", 2),
        ("train/2", 2),
        ("train/4", 1),
    ]
    other = HubText(path, text_column="body", splits=splits, sentences=Lines(), rows_of_document=3)
    assert other.fingerprint("train") != source.fingerprint("train")
    with pytest.raises(UserError, match="rows_of_document is 0"):
        HubText(path, rows_of_document=0)


def test_no_such_set(tmp_path: Path) -> None:
    """Breaks if a folder that is not there, or no network, is a traceback; nothing is asked for before the documents are."""
    source = HubText(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="cannot be had"):
        next(source.documents("train"))


def test_rows_without_text_are_empty_documents(tmp_path: Path) -> None:
    """Breaks if a null in a large set stops the run: it is an empty document, which is counted and left out."""
    rows = datasets.Dataset.from_dict({"text": ["One.", None, ""]})
    source = HubText(folder(tmp_path, "parquet", train=rows, test=rows, validation=rows), splits={s: s for s in SPLITS})
    assert [one.sentences for one in source.documents("train")] == [["One."], [], []]
