"""WikiText: articles, marks and unknown words."""

from pathlib import Path

import pytest

from lightning_vl.data.datasets.wikitext import WikiText
from lightning_vl.data.source import Split

LINES = """
= Homarus gammarus =

It is a co @-@ star of 20 @,@ 000 and 0 @.@ 5 m . He 's " blue " , <unk> 's and here .
Another paragraph
= 1 + <unk> is no title =

= = Life = =

= = = 2000 – 2005 = = =

It lived .

= Empty =

= Robert <unk> ( film ) =

It ended .
"""
TEXT = "".join(f" {line} \n" for line in LINES.split("\n"))  # the release has these spaces


def test_articles(tmp_path: Path) -> None:
    """Breaks if a title or heading is text, a formula begins an article, or the release's marks stay in the text."""
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text(LINES)
    source = WikiText(str(tmp_path), {"train": ["a.txt"], "validation": ["b.txt"], "test": ["c.txt"]})
    (tmp_path / "c.txt").write_text("No title . \n")
    documents = [
        (
            "Homarus gammarus",
            [
                "It is a co-star of 20,000 and 0.5 m.",
                'He\'s "blue", and here.',
                "Another paragraph",
                "= 1 + is no title =",
                "It lived.",
            ],
        ),
        ("Robert <unk> ( film )", ["It ended."]),
    ]
    assert list(source.documents("train")) == [(f"a.txt: {title}", sentences) for title, sentences in documents]
    assert list(source.documents("validation")) == [(f"b.txt: {title}", sentences) for title, sentences in documents]
    assert list(source.documents("test")) == [("c.txt: before the first title", ["No title."])]


def test_the_real_articles(real_data: Path) -> None:
    """Breaks if the articles of the release are cut or joined: either file has 60."""
    root = real_data / "text" / "wikitext-2-eval"
    if not root.is_dir():
        pytest.skip(f"{real_data} holds no WikiText-2")
    source = WikiText(str(root), {"train": ["valid.txt"], "test": ["test.txt"]}, held_out=0.1)
    splits: tuple[Split, ...] = ("train", "validation", "test")
    found = [list(source.documents(split)) for split in splits]
    assert len(found[0]) + len(found[1]) == len(found[2]) == 60
    sentences = [sentence for documents in found for document in documents for sentence in document.sentences]
    assert not [
        sentence for sentence in sentences if "<unk>" in sentence or " @" in sentence or sentence.startswith("= =")
    ]
