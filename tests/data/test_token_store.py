"""The token store: its arrays are the documents' tokens, it is built once, streaming, and shared with workers."""

import itertools
import json
import os
import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lightning_vl.data.cache import cache_folder
from lightning_vl.data.datasets.python_manual import PythonManual
from lightning_vl.data.documents import Document, DocumentSource
from lightning_vl.data.source import Split
from lightning_vl.data.token_store import TokenStore, token_store
from lightning_vl.data.tokenizer import SPECIAL, WordPiece
from lightning_vl.errors import UserError

WORDS = WordPiece([*SPECIAL, "a", "b", "c", "##c"])
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Given(DocumentSource):
    """These documents, in every split."""

    def __init__(self, *documents: Document) -> None:
        self.given = documents
        self.read = 0

    def documents(self, split: Split) -> Iterator[Document]:
        self.read += 1
        yield from self.given

    def fingerprint(self, split: Split) -> str:
        return split + repr(self.given)


def sentences(store: TokenStore, document: int) -> list[list[int]]:
    """A document's sentences, as the arrays say."""
    first, last = store.document_starts[document : document + 2]
    starts = store.sentence_starts[first : last + 1]
    return [store.tokens[start:end].tolist() for start, end in itertools.pairwise(starts)]


def test_arrays_are_the_documents() -> None:
    """Breaks if a token, a boundary or a name is not where the arrays say."""
    source = Given(Document("öne", ["a b", "cc"]), Document("two", ["c z c"]), Document("", ["b"]))
    store = token_store(source, "train", WORDS)
    assert [sentences(store, i) for i in range(3)] == [[[5, 6], [7, 8]], [[7, 1, 7]], [[6]]]
    assert store.tokens.dtype == np.uint16
    assert list(store.document_ids) == ["öne", "two", ""]
    assert (store.document_ids[-2], store.document_ids[:2]) == ("two", ["öne", "two"])
    assert store.contents["unknown"] == 1
    with pytest.raises(IndexError):
        store.document_ids[3]


def test_manual_as_it_is_encoded_by_itself() -> None:
    """Breaks if tokenising in batches mixes sentences or documents up."""
    source = PythonManual()
    letters = [*SPECIAL, *map(chr, range(33, 127)), *("##" + chr(code) for code in range(97, 123))]
    tokenizer = WordPiece(letters)
    for split in SPLITS:
        store = token_store(source, split, tokenizer)
        documents = list(source.documents(split))
        assert list(store.document_ids) == [document.id for document in documents]
        for number, document in enumerate(documents):
            assert sentences(store, number) == [tokenizer.encode(sentence) for sentence in document.sentences]


def test_empty_documents_and_sentences_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if an empty document becomes a sample, or nobody is told that there were some."""
    source = Given(
        Document("none", []), Document("some", ["", "a", "\x07\u200b", "b"]), Document("blank", [" ", "\x00"])
    )
    store = token_store(source, "train", WORDS)
    assert list(store.document_ids) == ["some"]
    assert sentences(store, 0) == [[5], [6]]
    said = capsys.readouterr().err
    assert (
        "train: 1 documents, 2 sentences, 2 tokens (0.00% unknown); left out 2 empty documents and 4 empty sentences"
        in said
    )


@pytest.mark.parametrize("documents", [[], [Document("empty", [""])]])
def test_no_document_at_all(documents: list[Document]) -> None:
    """Breaks if training starts on nothing."""
    with pytest.raises(UserError, match="the validation split has no document"):
        token_store(Given(*documents), "validation", WORDS)
    assert not [path for path in (cache_folder() / "tokens").iterdir() if path.is_dir()]


def test_built_once_for_a_text_and_a_vocabulary(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a second start reads the corpus again, or another vocabulary is served these tokens."""
    source = Given(Document("one", ["a b"]))
    first = token_store(source, "train", WORDS)
    again = token_store(Given(Document("one", ["a b"])), "train", WordPiece(WORDS.pieces))
    assert (again.folder, source.read) == (first.folder, 1)
    assert capsys.readouterr().err.count("1 documents") == 2
    folders = {
        token_store(source, "test", WORDS).folder,
        token_store(source, "train", WordPiece([*WORDS.pieces, "new"])).folder,
        token_store(Given(Document("one", ["a a"])), "train", WORDS).folder,
    }
    assert len(folders | {first.folder}) == 4


@pytest.mark.parametrize("harm", ["cut", "lost", "no contents", "half contents"])
def test_damaged_store_is_built_again(harm: str) -> None:
    """Breaks if a full disk or a copied cache gives tokens that are not the text's."""
    source = Given(Document("one", ["a b c a b c"]))
    folder = token_store(source, "train", WORDS).folder
    if harm == "cut":
        os.truncate(folder / "tokens", 4)
    elif harm == "lost":
        (folder / "document_starts").unlink()
    elif harm == "no contents":
        (folder / "contents.json").unlink()
    else:
        (folder / "contents.json").write_text("{")
    assert sentences(token_store(source, "train", WORDS), 0) == [[5, 6, 7, 5, 6, 7]]
    assert source.read == 2


def test_workers_open_the_files_themselves() -> None:
    """Breaks if a worker is sent the corpus instead of its path, or may change it."""
    source = Given(Document("one", ["a b c " * 20_000]))
    store = token_store(source, "train", WORDS)
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    copy = pickle.loads(sent)
    assert isinstance(copy.tokens, np.memmap)
    assert np.array_equal(copy.tokens, store.tokens)
    with pytest.raises(ValueError, match="read-only"):
        copy.tokens[0] = 1


def test_many_pieces_need_wider_numbers() -> None:
    """Breaks if ids past 65,535 wrap around."""
    tokenizer = WordPiece([*SPECIAL, *(f"w{number}" for number in range(70_000))])
    assert len(tokenizer) > 2**16
    tokenizer = WordPiece([*SPECIAL, *(chr(0x20000 + number) for number in range(2**16 - 5)), "a"])
    store = token_store(Given(Document("one", ["a"])), "train", tokenizer)
    assert (store.tokens.dtype, store.tokens.tolist()) == (np.uint32, [2**16])
    assert token_store(Given(Document("one", ["a"])), "train", WORDS).tokens.dtype == np.uint16


class Endless(Given):
    """Many documents that are made as they are asked for."""

    def documents(self, split: Split) -> Iterator[Document]:
        for number in range(6_000):
            yield Document(str(number), [f"{number} a b c " * 10] * 5)


def test_corpus_is_not_kept_in_memory() -> None:
    """Breaks if building a store needs memory for the whole text: it has to be of a batch of documents."""
    tracemalloc.start()
    store = token_store(Endless(), "train", WORDS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert store.contents["documents"] == 6_000
    assert store.contents["tokens"] == 6_000 * 5 * 40
    assert peak < 20e6  # the text alone is 4 times that much as numbers of Python


def test_contents_say_what_is_there() -> None:
    """Breaks if the counts that are printed are not those of the arrays."""
    store = token_store(Given(Document("one", ["a b", "c"]), Document("two", ["z"])), "train", WORDS)
    assert {key: store.contents[key] for key in ("documents", "sentences", "tokens", "unknown")} == {
        "documents": len(store.document_starts) - 1,
        "sentences": len(store.sentence_starts) - 1,
        "tokens": len(store.tokens),
        "unknown": 1,
    }
    assert json.loads(Path(store.folder, "contents.json").read_text()) == store.contents
