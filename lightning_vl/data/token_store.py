"""Documents as numbers on disk: tokenised once, then read at random by every process from the same pages of memory."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from tqdm import tqdm

from lightning_vl.data.cache import built_once, cache_folder
from lightning_vl.data.documents import Document, DocumentSource
from lightning_vl.data.source import Split
from lightning_vl.data.tokenizer import WordPiece
from lightning_vl.errors import UserError
from lightning_vl.terminal import say

SCHEMA = 1  # a change of the files' meaning starts new stores
CONTENTS = "contents.json"  # written last: a store without it is none
BATCH = 256  # documents that are tokenised together


class DocumentIds(Sequence[str]):
    """The ids of a store's documents, read from disk as they are asked for.

    Args:
        letters: (bytes,) uint8, all ids in UTF-8, one after another.
        starts: (d + 1,) where each begins.
    """

    def __init__(self, letters: np.ndarray, starts: np.ndarray) -> None:
        self.letters = letters
        self.starts = starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self.letters[self.starts[place] : self.starts[place + 1]].tobytes().decode("utf-8", "surrogatepass")


class TokenStore:
    """The tokens of a split, memory-mapped: what is not looked at takes no memory, and processes share what is.

    Args:
        folder: where `token_store` has put it.

    Attributes:
        folder: that folder.
        tokens: (t,) ids of all sentences, one after another; uint16 where the vocabulary fits, else uint32.
        sentence_starts: (s + 1,) int64, in tokens: sentence i is tokens[sentence_starts[i] : sentence_starts[i + 1]].
        document_starts: (d + 1,) int64, in sentences.
        document_ids: (d,) names of the documents.
        contents: what is in the store and what was left out, by name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.contents: dict[str, Any] = json.loads((folder / CONTENTS).read_text())
        self.tokens = self._array("tokens", self.contents["dtype"])
        self.sentence_starts = self._array("sentence_starts", "int64")
        self.document_starts = self._array("document_starts", "int64")
        self.document_ids = DocumentIds(self._array("ids", "uint8"), self._array("id_starts", "int64"))

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.folder,)  # a worker opens the files itself

    def _array(self, name: str, dtype: str) -> np.ndarray:
        return np.memmap(self.folder / name, dtype, mode="r")


def token_store(source: DocumentSource, split: Split, tokenizer: WordPiece) -> TokenStore:
    """The tokens of a split, made at the first call and kept in the cache for that text and that vocabulary.

    Documents are read and written one after another, so that the largest document and not the corpus must fit into memory.
    Sentences without a token (empty ones, control characters alone) and documents without a sentence are left out; a line
    says how many.

    Raises:
        UserError: the documents or the cache cannot be had, or there is no document.
    """
    name = f"{SCHEMA} {source.fingerprint(split)} {tokenizer.fingerprint}"
    folder = cache_folder() / "tokens" / hashlib.sha256(name.encode()).hexdigest()[:32]
    built_once(folder, _is_whole, lambda aside: _build(aside, source, split, tokenizer))
    store = TokenStore(folder)
    say(f"{split}: {_report(store.contents)}")
    return store


def _report(contents: dict[str, Any]) -> str:
    report = "{documents:,} documents, {sentences:,} sentences, {tokens:,} tokens".format_map(contents)
    report += f" ({contents['unknown'] / contents['tokens']:.2%} unknown)"
    left_out = [f"{count:,} empty {what}" for what, count in contents["left_out"].items() if count]
    return f"{report}; left out {' and '.join(left_out)}" if left_out else report


def _is_whole(folder: Path) -> bool:
    try:
        contents = json.loads((folder / CONTENTS).read_text())
        return all((folder / name).stat().st_size == size for name, size in contents["bytes"].items())
    except (OSError, ValueError, KeyError):
        return False


class _Column:
    """One array of a store, growing on disk."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.file: BinaryIO = path.open("wb")

    def append(self, values: Any) -> None:
        self.file.write(np.asarray(values, self.dtype).tobytes())


def _build(folder: Path, source: DocumentSource, split: Split, tokenizer: WordPiece) -> None:
    folder.mkdir()
    dtype = "uint16" if len(tokenizer) <= 2**16 else "uint32"
    kinds = {
        "tokens": dtype,
        "sentence_starts": "int64",
        "document_starts": "int64",
        "ids": "uint8",
        "id_starts": "int64",
    }
    columns = {name: _Column(folder / name, kind) for name, kind in kinds.items()}
    count = {"documents": 0, "sentences": 0, "tokens": 0, "unknown": 0}
    letters = 0
    left_out = {"documents": 0, "sentences": 0}
    for name in ("sentence_starts", "document_starts", "id_starts"):
        columns[name].append([0])
    try:
        for id, encoded in _encoded(source, split, tokenizer):
            sentences = [ids for ids in encoded if ids]
            left_out["sentences"] += len(encoded) - len(sentences)
            if not sentences:
                left_out["documents"] += 1
                continue
            line = np.concatenate(sentences)
            columns["tokens"].append(line)
            columns["sentence_starts"].append(count["tokens"] + np.cumsum([len(ids) for ids in sentences]))
            count["documents"] += 1
            count["sentences"] += len(sentences)
            count["tokens"] += len(line)
            count["unknown"] += int(np.count_nonzero(line == tokenizer.unknown))
            columns["document_starts"].append([count["sentences"]])
            utf8 = id.encode("utf-8", "surrogatepass")
            letters += len(utf8)
            columns["ids"].append(np.frombuffer(utf8, np.uint8))
            columns["id_starts"].append([letters])
    finally:
        for column in columns.values():
            column.file.close()
    if not count["documents"]:
        raise UserError(
            f"the {split} split has no document with a sentence ({left_out['documents']:,} are empty)",
            "check the paths and splits of the source, or hold out a greater share of a small corpus",
        )
    sizes = {name: column.path.stat().st_size for name, column in columns.items()}
    contents = {**count, "left_out": left_out, "dtype": dtype, "bytes": sizes}
    (folder / CONTENTS).write_text(json.dumps(contents))


def _encoded(source: DocumentSource, split: Split, tokenizer: WordPiece) -> Iterator[tuple[str, list[list[int]]]]:
    """Each document's id and the ids of its sentences."""
    documents: Iterator[Document] = iter(
        tqdm(source.documents(split), f"tokenising {split}", unit=" documents", disable=None, leave=False, delay=1)
    )
    while batch := list(islice(documents, BATCH)):
        encoded = iter(tokenizer.encode_batch([sentence for document in batch for sentence in document.sentences]))
        for document in batch:
            yield document.id, list(islice(encoded, len(document.sentences)))
