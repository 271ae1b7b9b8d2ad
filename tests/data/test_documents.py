"""Sentences of running text, documents that are held out, and text put together from words."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from lightning_vl.data.documents import (
    Document,
    HeldOutSource,
    Lines,
    Punctuation,
    SentenceSplit,
    detokenised,
    fingerprint_of,
)
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError


class Stored(HeldOutSource):
    """So many documents in each stored split."""

    def __init__(self, counts: dict[Split, int], held_out: float = 0.1, split_seed: int = 0, start: int = 0) -> None:
        super().__init__(counts, held_out, split_seed)
        self.counts = counts
        self.start = start

    def stored(self, split: Split) -> Iterator[Document]:
        for number in range(self.start, self.counts[split]):
            yield Document(f"{split}/{number}", [f"document {number} of {split}"])

    def stored_fingerprint(self, split: Split) -> str:
        return f"{split} {self.counts[split]} {self.start}"

    def ids(self, split: Split) -> list[str]:
        """Names of a split's documents."""
        return [document.id for document in self.documents(split)]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It rains. It pours! Why? Because.", ["It rains.", "It pours!", "Why?", "Because."]),
        ("Mr. Smith met Dr. J. R. Jones in Washington, D.C. They ate.", ["Mr. Smith met Dr. J. R. Jones in Washington, D.C. They ate."]),
        ("It is I. He left.", ["It is I.", "He left."]),
        ("He said “Go.” She went. (It was late.) 12 left.", ["He said “Go.”", "She went.", "(It was late.)", "12 left."]),
        ('"Is it?" he asked. "Yes."', ['"Is it?" he asked.', '"Yes."']),
        ("version 3.5 and e.g. this, i.e. That is one", ["version 3.5 and e.g. this, i.e. That is one"]),
        ("Wait... What?! No... never", ["Wait...", "What?!", "No... never"]),
        ("今日は。元気?「はい。」終わり", ["今日は。", "元気?「はい。」", "終わり"]),
        ("a heading\nA  sentence\there.\n\n", ["a heading", "A sentence here."]),
        ("one\u2028line\x85and a\u00a0space", ["one line and a space"]),
        ("", []),
        (" \n\n ", []),
    ],
)  # fmt: skip
def test_punctuation(text: str, sentences: list[str]) -> None:
    """Breaks if abbreviations, quotes or decimals end a sentence, or its end is not seen."""
    assert Punctuation().sentences(text) == sentences


def test_wrapped_lines() -> None:
    """Breaks if the end of a line in wrapped text ends a sentence, or a blank line does not."""
    assert Punctuation(wrapped=True).sentences("A long\nsentence. And\nanother\n \nA heading\n\n") == [
        "A long sentence.",
        "And another",
        "A heading",
    ]


def test_lines() -> None:
    """Breaks if a line is not one sentence."""
    assert Lines().sentences("One. Two.\n\n  three\tfour \n") == ["One. Two.", "three four"]


@pytest.mark.parametrize("text", ["." * 200_000, "a. " * 70_000, "?" * 100_000 + " " * 100_000, '."' * 100_000])
def test_punctuation_takes_time_in_proportion(text: str) -> None:
    """Breaks if a long run of dots, as in tables of contents, takes hours."""
    start = time.process_time()  # of this process alone, however busy the machine is
    Punctuation().sentences(text)
    assert time.process_time() - start < 10


def test_descriptions_differ() -> None:
    """Breaks if documents that were split by one rule are taken for those of another."""
    rules: list[SentenceSplit] = [Lines(), Punctuation(), Punctuation(wrapped=True)]
    assert len({rule.description for rule in rules}) == 3


def test_share_is_held_out() -> None:
    """Breaks if a document is in two splits or none, the shares are wrong, or every start draws others."""
    source = Stored({"train": 2000})
    found = [source.ids(split) for split in ("train", "validation", "test")]
    assert sorted(id for ids in found for id in ids) == sorted(f"train/{number}" for number in range(2000))
    assert [150 < len(ids) < 250 for ids in found] == [False, True, True]
    assert (
        source.ids("test") == Stored({"train": 2000}).ids("test") != Stored({"train": 2000}, split_seed=1).ids("test")
    )
    later = Stored({"train": 2000}, start=500)  # documents that go change nothing for those that stay
    assert later.ids("test") == [id for id in found[2] if int(id[6:]) >= 500]


def test_stored_splits_are_taken_as_they_are() -> None:
    """Breaks if training documents are held out though there are files, or the files are not read."""
    source = Stored({"train": 500, "validation": 3, "test": 4})
    assert [len(source.ids(split)) for split in ("train", "validation", "test")] == [500, 3, 4]
    source = Stored({"train": 500, "test": 4})
    assert len(source.ids("test")) == 4
    assert len(source.ids("train")) + len(source.ids("validation")) == 500
    assert 25 < len(source.ids("validation")) < 75


def test_fingerprints_follow_the_documents() -> None:
    """Breaks if changed documents are served from the cache, or unchanged ones are tokenised again."""
    first = Stored({"train": 50})
    assert first.fingerprint("train") == Stored({"train": 50}).fingerprint("train")
    others: list[Stored] = [
        Stored({"train": 51}),
        Stored({"train": 50}, held_out=0.2),
        Stored({"train": 50}, split_seed=1),
        Stored({"train": 50, "test": 50}),
    ]
    assert len({source.fingerprint("train") for source in [first, *others]}) == 5
    assert len({first.fingerprint(split) for split in ("train", "validation", "test")}) == 3
    one, other = Stored({"train": 9, "test": 9}), Stored({"train": 8, "test": 9})
    assert one.fingerprint("test") == other.fingerprint("test")
    assert fingerprint_of("ab", "c") != fingerprint_of("a", "bc")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"counts": {"test": 1}}, "none for train"), ({"counts": {"train": 1}, "held_out": 0.5}, "0.5")],
)
def test_splits_that_cannot_be(arguments: dict[str, Any], said: str) -> None:
    """Breaks if a source without training documents, or one that holds all of them out, is only noticed later."""
    with pytest.raises(UserError, match=said):
        Stored(**arguments)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("`` Well , '' he said , `` do n't ( ever ) ! ''", '"Well," he said, "do n\'t (ever)!"'),
        ('He said " no " , and " yes " .', 'He said "no", and "yes".'),
        ("Teddy 's Story costs $ 5 ; 50 %", "Teddy's Story costs $5; 50%"),
        ("", ""),
    ],
)
def test_detokenised(words: str, text: str) -> None:
    """Breaks if corpora that keep words apart look unlike text."""
    assert detokenised(words.split()) == text
