"""English that every Python carries: CPython's own manual."""

import re
from collections.abc import Iterator
from functools import cached_property

from lightning_vl.data.documents import (
    Document,
    DocumentSource,
    Punctuation,
    fingerprint_of,
    one_line,
    share,
)
from lightning_vl.data.source import Split

SALT = "189"  # of the split: the first with shares near 80, 10 and 10 % and ten documents or more in each
PROSE = 0.7  # share of a paragraph's words that are plain words; code and grammar have fewer
LIST_MARK = re.compile(r"^(?:[*•-]|\d+\.|\[\d+\]|[a-z]\)) +")
FOOTNOTE = re.compile(r"\s*\[\d+\]$")
WORD = re.compile(r"[\"'“‘(*]*[A-Za-z][A-Za-z’'/-]*[\"'”’)*]*[.,;:!?]*[\"'”’)]*")


class PythonManual(DocumentSource):
    """The English of CPython's manual, `pydoc_data.topics`: some 75 documents of 270 thousand characters in all.

    It needs no file and no network, and is too small to teach a network a language: it shows that everything works.
    Headings, code, grammar and tables are left out. Chapters repeat whole topics, so a paragraph that stands in several
    is kept in the shortest of them, and none is in two splits. About 80 % of the characters are for training, 10 % for
    validation and 10 % for the test; a hash of the topic's name decides. Every Python version has another text of its own:
    results are compared under one.
    """

    def documents(self, split: Split) -> Iterator[Document]:
        """The topics of a split, by name."""
        return iter([document for document in self._documents if _split_of(document.id) == split])

    def fingerprint(self, split: Split) -> str:
        """Of the text of the split."""
        return fingerprint_of(*(part for name, sentences in self.documents(split) for part in (name, *sentences)))

    @cached_property
    def _documents(self) -> list[Document]:
        from pydoc_data.topics import topics

        seen: set[str] = set()
        documents = []
        for name in sorted(topics, key=lambda name: (len(topics[name]), name)):
            paragraphs = [text for text in _paragraphs(topics[name]) if text not in seen]
            seen.update(paragraphs)
            sentences = [sentence for text in paragraphs for sentence in Punctuation().sentences(text)]
            if sentences:
                documents.append(Document(name, sentences))
        return sorted(documents)


def _paragraphs(text: str) -> Iterator[str]:
    """The paragraphs that are English, each in one line."""
    for block in re.split(r"\n\s*\n", text):
        paragraph = FOOTNOTE.sub("", LIST_MARK.sub("", one_line(block)))
        words = paragraph.split()
        plain = sum(WORD.fullmatch(word) is not None for word in words)
        begins = paragraph[:1].isupper() or paragraph[:1] in tuple('"“*(')
        if len(words) >= 4 and plain >= PROSE * len(words) and begins and paragraph[-1] in '.:!?)"”':
            yield paragraph


def _split_of(name: str) -> Split:
    place = share(f"{SALT}/{name}")
    return "validation" if place < 0.1 else "test" if place < 0.2 else "train"
