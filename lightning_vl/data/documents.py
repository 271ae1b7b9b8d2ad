"""Where text comes from: documents of sentences, read one after another, and how running text becomes sentences."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from lightning_vl.data.source import Split
from lightning_vl.errors import UserError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Document(NamedTuple):
    """Sentences that follow each other.

    Attributes:
        id: names the document in reports and errors (a file and a number, say).
        sentences: its sentences, in order; for BERT any stretch of text that is not cut (Sec. 3.1: "sentence" is used
            for an arbitrary span of contiguous text).
    """

    id: str
    sentences: list[str]


class DocumentSource(ABC):
    """Documents in three splits, which need not fit into memory: one document must."""

    @abstractmethod
    def documents(self, split: Split) -> Iterator[Document]:
        """The documents of a split, in an order that never changes.

        Raises:
            UserError: the split cannot be had (no such file, wrong encoding, no such column).
        """

    @abstractmethod
    def fingerprint(self, split: Split) -> str:
        """Changes with the documents of the split, and with nothing else: what is made of them is kept under it."""


class SentenceSplit(ABC):
    """How a stretch of text becomes sentences."""

    @abstractmethod
    def sentences(self, text: str) -> list[str]:
        """The sentences of a text, in order: none is empty, and runs of white space within them are single spaces."""

    @property
    def description(self) -> str:
        """Rule and arguments, for fingerprints."""
        return f"{type(self).__name__} {sorted(vars(self).items())}"


class Lines(SentenceSplit):
    """A line is a sentence: the format that the paper's released code reads."""

    def sentences(self, text: str) -> list[str]:
        """One for each line that is not blank."""
        return [line for line in map(one_line, text.split("\n")) if line]


# a full stop after these ends no sentence, nor does one after a single capital letter
ABBREVIATIONS = re.compile(
    r"mr|mrs|ms|messrs|dr|prof|rev|hon|gen|col|lt|capt|sgt|maj|sen|rep|gov|pres|st|mt|ft|jr|sr|vs|etc|cf|eg|ie|e\.g|i\.e|al|"
    r"figs?|eqs?|sec|ch|vol|nos?|pp|eds?|inc|co|corp|ltd|bros|dept|approx|ca|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|"
    r"u\.s|u\.k|u\.n|d\.c|a\.m|p\.m|ph\.d",
    re.IGNORECASE,
)
# what may be the end of a sentence: a stop with the quotes and brackets that close after it, then white space (none after a
# CJK stop); the look-behind keeps long runs of dots from being tried again from each of them
END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]]*+(?P<gap>\s++)|[。！？]++[\"'”’」』）]*+(?P<none>\s*+)")
OPENING = "\"'“‘«([*_"


class Punctuation(SentenceSplit):
    """A sentence ends with a full stop, question or exclamation mark before what may begin another one.

    That is a capital letter, a digit or a letter without case, after quotes and brackets that open. Common abbreviations
    and initials end none. It is a small rule, for English and languages like it; texts that were split with more care are
    read with `Lines`.

    Args:
        wrapped: lines are wrapped to a width, so that only a blank line ends a paragraph; otherwise every line does.
    """

    def __init__(self, wrapped: bool = False) -> None:
        self.wrapped = wrapped

    def sentences(self, text: str) -> list[str]:
        """The sentences of all paragraphs."""
        paragraphs = re.split(r"\n\s*\n", text) if self.wrapped else text.split("\n")
        return [sentence for paragraph in paragraphs for sentence in self._of_paragraph(one_line(paragraph))]

    def _of_paragraph(self, text: str) -> Iterator[str]:
        start = 0
        for end in END.finditer(text):
            if end["gap"] is None or (
                _may_begin(text[end.end() : end.end() + 4]) and not _abbreviated(text, start, end)
            ):
                yield text[start : end.end()].rstrip()
                start = end.end()
        if start < len(text):
            yield text[start:]


def _may_begin(text: str) -> bool:
    first = text.lstrip(OPENING)[:1]
    return first.isdigit() or (first.isalpha() and not first.islower())


def _abbreviated(text: str, start: int, end: re.Match[str]) -> bool:
    """Whether the stop belongs to the word before it."""
    if text[end.start() : end.end()].strip() != ".":
        return False
    word = text[max(start, end.start() - 12) : end.start()].rpartition(" ")[2].lstrip(OPENING)
    return ABBREVIATIONS.fullmatch(word) is not None or (len(word) == 1 and word.isupper() and word != "I")


def one_line(text: str) -> str:
    """The text with single spaces for runs of white space, among it the line ends that Unicode adds (NEL, U+2028)."""
    return " ".join(text.split())


class HeldOutSource(DocumentSource):
    """A source whose stored splits may lack validation or test: a share of the training documents takes their place.

    A document's own text decides, with the seed, so the order of documents changes nothing, and copies of one are on one
    side.

    Args:
        splits: where each stored split lies, by split; `train` at least.
        held_out: share of the training documents for each split that is not stored.
        split_seed: seed of the choice, which is part of the experiment.
    """

    def __init__(self, splits: Mapping[Split, object], held_out: float, split_seed: int) -> None:
        if "train" not in splits:
            raise UserError(f"splits {dict(splits)} name none for train", "say where it lies: {train: ...}")
        if not 0 < held_out < 0.5:
            raise UserError(f"held_out is {held_out}", "give a share above 0 and below 0.5")
        self.stored_splits = tuple(split for split in SPLITS if split in splits)
        self.held_out = held_out
        self.split_seed = split_seed

    @abstractmethod
    def stored(self, split: Split) -> Iterator[Document]:
        """The documents of a stored split."""

    @abstractmethod
    def stored_fingerprint(self, split: Split) -> str:
        """Changes with the documents of a stored split."""

    def documents(self, split: Split) -> Iterator[Document]:
        """The stored documents of the split, or its share of the training documents."""
        if split in self.stored_splits and split != "train":
            return self.stored(split)
        return (document for document in self.stored("train") if self._split_of(document) == split)

    def fingerprint(self, split: Split) -> str:
        """Of the stored split, and of how training documents are held out where that touches it."""
        if split in self.stored_splits and split != "train":
            return fingerprint_of(self.stored_fingerprint(split))
        rule = (split, self.stored_splits, self.held_out, self.split_seed)
        return fingerprint_of(self.stored_fingerprint("train"), *map(str, rule))

    def _split_of(self, document: Document) -> Split:
        """Which split a training document is in."""
        lacking = [split for split in ("validation", "test") if split not in self.stored_splits]
        if lacking:
            place = share(f"{self.split_seed}\n" + "\n".join(document.sentences)) / self.held_out
            if place < len(lacking):
                return lacking[int(place)]  # type: ignore[return-value]
        return "train"


def share(text: str) -> float:
    """A number in [0, 1) that is drawn with the text for a seed."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:6]) / 2**48


def fingerprint_of(*parts: str) -> str:
    """A hash of texts, in order."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8))
        digest.update(encoded)
    return digest.hexdigest()[:32]


CLOSING = {".", ",", ";", ":", "?", "!", ")", "]", "}", "%", "...", "''", "’", "”"}
OPENERS = {"(", "[", "{", "``", "$", "£", "‘", "“"}
SUFFIX = re.compile(r"['’](?:s|t|re|ve|ll|d|m|S|T|RE|VE|LL|D|M)")


def detokenised(words: Iterable[str]) -> str:
    """Text of words that a corpus keeps apart from their punctuation: spaces go, and quotes are plain ones."""
    text = ""
    space = quoted = False
    for word in words:
        closes = word in CLOSING or (word == '"' and quoted) or (word[0] in "'’" and SUFFIX.fullmatch(word) is not None)
        text += (" " if space and not closes else "") + ('"' if word in ("``", "''") else word)
        space = not (word in OPENERS or (word == '"' and not quoted))
        quoted ^= word == '"'
    return text
