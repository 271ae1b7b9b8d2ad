"""WikiText: articles of Wikipedia, as its word-level and raw releases have them."""

import re
from collections.abc import Iterator

from lightning_vl.data.datasets.text_files import FileSource
from lightning_vl.data.documents import Document, Punctuation, detokenised
from lightning_vl.data.source import Split

TITLE = re.compile(r" ?= (?P<title>[^=].*?) = *")
HEADING = re.compile(r" ?(?:= ){2,}.*")
UNKNOWN = re.compile(r"<unk>(?: 's?(?= ))?")
JOINED = re.compile(r" @([-,.])@ ")


class WikiText(FileSource):
    """WikiText-2 or -103: a document is an article, which ` = Title = ` begins; headings are left out.

    The marks @-@ @,@ @.@ are undone, quotes and stops move to their words, and paragraphs are split by `Punctuation`. Words
    that the word-level release replaced by <unk> are left out: as words of their own they would be what a network learns
    to say first.

    Args:
        root: the folder.
        splits: names or globs of files, relative to the root, by split.
        held_out: share of the training articles for each of validation and test that has no files.
        split_seed: seed of the choice, which is part of the experiment.
    """

    def __init__(self, root: str, splits: dict[Split, list[str]], held_out: float = 0.05, split_seed: int = 0) -> None:
        super().__init__(root, splits, held_out, split_seed, "utf-8")

    def documents_of(self, name: str, lines: Iterator[str]) -> Iterator[Document]:
        """The articles of a file."""
        article = Document(f"{name}: before the first title", [])
        blank = True
        for line in lines:
            title = TITLE.fullmatch(line) if blank else None  # within a paragraph it is a formula
            blank = not line.strip()
            if title:
                if article.sentences:
                    yield article
                article = Document(f"{name}: {title['title']}", [])
            elif not HEADING.fullmatch(line):
                article.sentences.extend(Punctuation().sentences(_text(line)))
        if article.sentences:
            yield article


def _text(line: str) -> str:
    return detokenised(UNKNOWN.sub(" ", JOINED.sub(r"\1", line)).split())
