"""The embedded text: its splits, and that it is English."""

import re
from collections import Counter

from lightning_vl.data.datasets.python_manual import PythonManual
from lightning_vl.data.documents import Document
from lightning_vl.data.source import Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def documents() -> dict[Split, list[Document]]:
    """Those of each split."""
    source = PythonManual()
    return {split: list(source.documents(split)) for split in SPLITS}


def test_shares_and_splits() -> None:
    """Breaks if a split gets too little to measure anything, or a document is in two."""
    found = documents()
    characters = {split: sum(len(sentence) for one in found[split] for sentence in one.sentences) for split in SPLITS}
    total = sum(characters.values())
    assert total > 200_000
    assert 0.7 < characters["train"] / total < 0.9
    assert min(characters["validation"], characters["test"]) > 0.05 * total
    assert all(len(found[split]) >= 8 for split in SPLITS)
    ids = [one.id for split in SPLITS for one in found[split]]
    assert len(ids) == len(set(ids)) >= 70


def test_no_paragraph_is_in_two_splits() -> None:
    """Breaks if chapters that repeat whole topics put the test's text into training."""
    found = documents()
    long = {
        split: {sentence for one in found[split] for sentence in one.sentences if len(sentence) > 60}
        for split in SPLITS
    }
    assert len(long["test"] & long["train"]) <= 0.02 * len(long["test"])
    assert len(long["validation"] & long["train"]) <= 0.02 * len(long["validation"])


def test_it_is_english() -> None:
    """Breaks if headings, code, grammar or tables are taken for sentences."""
    sentences = [sentence for split in SPLITS for one in documents()[split] for sentence in one.sentences]
    assert len(sentences) > 2000
    for mark in ("::=", ">>>", "****", "====", "~~~~", "+---"):
        assert sum(mark in sentence for sentence in sentences) <= 3, mark
    assert not [sentence for sentence in sentences if "\n" in sentence or "  " in sentence or not sentence]
    words = Counter(word for sentence in sentences for word in re.findall(r"[a-z]+", sentence.lower()))
    assert words.most_common(1)[0][0] == "the"


def test_the_same_every_time() -> None:
    """Breaks if two starts see other documents, or another order."""
    assert documents() == documents()
    prints = [PythonManual().fingerprint(split) for split in SPLITS]
    assert prints == [PythonManual().fingerprint(split) for split in SPLITS]
    assert len(set(prints)) == 3
