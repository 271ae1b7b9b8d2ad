"""The Brown corpus: 500 American texts of 1961."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from lightning_vl.data.datasets.text_files import file_hash, read_lines
from lightning_vl.data.documents import Document, DocumentSource, detokenised, fingerprint_of
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError

SCHEMA = "brown 1"  # a change of the rules below changes the fingerprint
CATEGORIES = {
    "a": "news",
    "b": "editorial",
    "c": "reviews",
    "d": "religion",
    "e": "hobbies",
    "f": "lore",
    "g": "belles lettres",
    "h": "government",
    "j": "learned",
    "k": "fiction",
    "l": "mystery",
    "m": "science fiction",
    "n": "adventure",
    "p": "romance",
    "r": "humour",
}
FILE = re.compile(f"c([{''.join(CATEGORIES)}])([0-9]{{2}})")


class BrownCorpus(DocumentSource):
    """The Brown corpus in NLTK's files, ca01 to cr09: `word/tag` separated by spaces, one sentence a line.

    Tags are taken off, stops and quotes move to their words, and what the corpus doubles ("? ?") is there once. A file is a
    document, its name's second letter its category. Of each category the files whose number ends in 9 are for validation,
    those that end in 0 for the test: about a tenth each.

    Args:
        root: the folder.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def documents(self, split: Split) -> Iterator[Document]:
        """The texts of a split, by name."""
        for name in self._files(split):
            sentences = []
            for number, line in enumerate(read_lines(Path(self.root, name), "utf-8"), start=1):
                if sentence := detokenised(_words(f"{name}:{number}", line)):
                    sentences.append(sentence)
            yield Document(f"{CATEGORIES[name[1]]}/{name}", sentences)

    def fingerprint(self, split: Split) -> str:
        """Of the files of the split."""
        names = self._files(split)
        return fingerprint_of(SCHEMA, *names, *(file_hash(Path(self.root, name)) for name in names))

    def _files(self, split: Split) -> list[str]:
        if not os.path.isdir(self.root):
            raise UserError(f"there is no folder {self.root}", "give the corpus's folder as the source's root")
        names = sorted(name for name in os.listdir(self.root) if FILE.fullmatch(name))
        if not names:
            raise UserError(
                f"{self.root} holds no file of the Brown corpus",
                "give the folder with ca01, ca02, ..., cr09 as the source's root",
            )
        return [name for name in names if _split_of(name) == split]


def _split_of(name: str) -> Split:
    return "validation" if name.endswith("9") else "test" if name.endswith("0") else "train"


def _words(place: str, line: str) -> Iterator[str]:
    last = ""
    for token in line.split():
        word, slash, _ = token.rpartition("/")
        if not slash:
            raise UserError(f"{place} has {token!r} without a tag", "give the corpus's tagged files, as NLTK has them")
        if word != last or word not in ("?", "!", ";", ":"):
            yield word
        last = word
