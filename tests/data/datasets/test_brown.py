"""The Brown corpus in NLTK's files."""

from pathlib import Path

import pytest

from lightning_vl.data.datasets.brown import BrownCorpus
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError

TEXT = """

\tThe/at jury/nn said/vbd ``/`` no/at 1-1/2/cd evidence/nn ''/'' of/in Atlanta's/np$ it/pps ,/, Friday/nr ./.


\tWho/wps ?/. ?/. (/( It/pps did/dod not/* )/) ;/. ;/.
\tand/or/cc wanna/vb+to go/vb --/-- !/. !/.
"""
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def corpus(root: Path, *names: str) -> str:
    """A folder with files of this text."""
    for name in (*names, "CONTENTS", "README", "cats.txt", "ca100", "cz01"):
        (root / name).write_text(TEXT if name.startswith("c") and len(name) == 4 else "something else")
    return str(root)


def test_tags_are_taken_off(tmp_path: Path) -> None:
    """Breaks if a tag stays in the text, or a slash within a word is taken for one."""
    (document,) = BrownCorpus(corpus(tmp_path, "ca01")).documents("train")
    assert document.id == "news/ca01"
    assert document.sentences == [
        'The jury said "no 1-1/2 evidence" of Atlanta\'s it, Friday.',
        "Who? (It did not);",
        "and/or wanna go --!",
    ]


def test_splits_by_number(tmp_path: Path) -> None:
    """Breaks if a file is in two splits, or the splits change from start to start."""
    source = BrownCorpus(corpus(tmp_path, "ca08", "ca09", "ca10", "ca11", "cr09", "cj20"))
    found = {split: [document.id for document in source.documents(split)] for split in SPLITS}
    assert found == {
        "train": ["news/ca08", "news/ca11"],
        "validation": ["news/ca09", "humour/cr09"],
        "test": ["news/ca10", "learned/cj20"],
    }


def test_fingerprint(tmp_path: Path) -> None:
    """Breaks if changed files are served from the cache."""
    source = BrownCorpus(corpus(tmp_path, "ca01", "ca09"))
    before = [source.fingerprint(split) for split in SPLITS]
    (tmp_path / "ca09").write_text(TEXT + "More/jjr ./.\n")
    after = [source.fingerprint(split) for split in SPLITS]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]


def test_wrong_folder(tmp_path: Path) -> None:
    """Breaks if a wrong folder or untagged text is a corpus without words."""
    with pytest.raises(UserError, match="there is no folder"):
        list(BrownCorpus(str(tmp_path / "absent")).documents("train"))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "ca1.txt").touch()
    with pytest.raises(UserError, match="no file of the Brown corpus"):
        list(BrownCorpus(str(tmp_path / "plain")).documents("train"))
    root = corpus(tmp_path, "ca01")
    (tmp_path / "ca01").write_text("The/at\njury said/vbd\n")
    with pytest.raises(UserError, match="ca01:2 has 'jury' without a tag"):
        list(BrownCorpus(root).documents("train"))


def test_the_real_corpus(real_data: Path) -> None:
    """Breaks if a file of the real corpus is not read: it has 500 texts of 57,340 sentences and a million words."""
    root = real_data / "text" / "brown"
    if not root.is_dir():
        pytest.skip(f"{real_data} holds no Brown corpus")
    found = [list(BrownCorpus(str(root)).documents(split)) for split in SPLITS]
    assert [len(documents) for documents in found] == [414, 45, 41]
    sentences = [sentence for documents in found for document in documents for sentence in document.sentences]
    assert len(sentences) == 57_340
    assert 1_000_000 < sum(len(sentence.split()) for sentence in sentences) < 1_050_000
    assert not [sentence for sentence in sentences if "/nn" in sentence or "``" in sentence]
