"""Pairs of segments for next-sentence prediction (Sec. 3.1, Task #2), packed to a length as the released code does it.

A pair is a row of five numbers: the tokens of the store at which A begins and ends, those of B, and 1 where B is a random
one. Rows hold no text, so the pairs of a large corpus fit on disk and are read memory-mapped.
"""

from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lightning_vl.data.cache import built_once, cache_folder
from lightning_vl.data.documents import fingerprint_of
from lightning_vl.data.token_store import TokenStore
from lightning_vl.errors import UserError

SPECIAL = 3  # [CLS] A [SEP] B [SEP]
BLOCK = 1 << 18  # pairs that are made at once
VERSION = 1  # of the rules below: a change of them makes all pairs anew


class NextSentencePairs:
    """The rules by which documents become pairs of segments.

    Sentences are gathered until they reach the length, and cut in two at random between sentences. What follows A is B, or B
    is read from a random sentence of another document on; the sentences then left over are gathered again.

    Args:
        next: share of pairs whose B follows A.
        short: share of documents that are cut to a random shorter length, as fine-tuning's sequences are.
        single_sentence_random: a chunk of one sentence always gets a random B, as in the released code, so random pairs are
            more than 1 - `next`. False cuts the sentence itself in two where B is to follow, which keeps the share (but for
            sentences of one token, that cannot be cut).
    """

    def __init__(self, next: float = 0.5, short: float = 0.1, single_sentence_random: bool = True) -> None:
        if not (0 <= next <= 1 and 0 <= short <= 1):
            raise ValueError(f"next {next} and short {short} are shares, from 0 to 1")
        self.next = next
        self.short = short
        self.single_sentence_random = single_sentence_random

    @property
    def rules(self) -> tuple[float, float, bool]:
        """What the pairs depend on."""
        return self.next, self.short, self.single_sentence_random

    def pack(self, store: TokenStore, length: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """The pairs of all documents, each sentence of which is in an A or in a B that follows one.

        Args:
            store: the documents' tokens.
            length: the most tokens of a sequence, with [CLS] and both [SEP].
            rng: all randomness.

        Yields:
            int64 (pairs, 5): start and end of A, start and end of B, 1 where B is random.

        Raises:
            UserError: there is no other document to read a random B from.
        """
        documents, starts = np.asarray(store.document_starts), np.asarray(store.sentence_starts)
        if len(documents) < 3:
            raise UserError(
                f"next-sentence pairs need two documents, and there are {len(documents) - 1}",
                "give more documents, with a blank line between them in a text file",
            )
        rows: list[tuple[int, ...]] = []
        draws = _draws(rng)
        for document in range(len(documents) - 1):
            bounds = starts[documents[document] : documents[document + 1] + 1].tolist()
            self._cut(document, bounds, length - SPECIAL, draws, rows)
            if len(rows) >= BLOCK:
                yield _finish(np.array(rows), documents, starts, length - SPECIAL, rng)
                rows.clear()
        if rows:
            yield _finish(np.array(rows), documents, starts, length - SPECIAL, rng)

    def _cut(
        self, document: int, bounds: list[int], longest: int, draws: Iterator[float], rows: list[tuple[int, ...]]
    ) -> None:
        """The pairs of one document; a random B is asked for by (document, tokens that it should have)."""
        target = longest
        if next(draws) < self.short:
            target = 2 + int(next(draws) * (longest - 1))  # 2 to longest
        last = len(bounds) - 1
        first = 0  # sentence
        while first < last:
            start = bounds[first]
            # the chunk's sentences are those before `end`: until the target is reached, or the document ends
            end = min(bisect_left(bounds, start + target, first + 1), last)
            if end - first > 1:
                cut = first + 1 + int(next(draws) * (end - first - 1))
                middle = bounds[cut]
                follows = next(draws) < self.next
            else:
                cut, middle = end, bounds[end]
                follows = not self.single_sentence_random and middle - start > 1 and next(draws) < self.next
                if follows:
                    middle = start + 1 + int(next(draws) * (middle - start - 1))
            if follows:
                rows.append((start, middle, middle, bounds[end], 0))
                first = end
            else:
                rows.append((start, middle, document, target - (middle - start), 1))
                first = cut


def _draws(rng: np.random.Generator) -> Iterator[float]:
    """Numbers in [0, 1): one at a time is what a generator is slow at."""
    while True:
        yield from rng.random(4096).tolist()


def _finish(
    rows: np.ndarray, documents: np.ndarray, starts: np.ndarray, longest: int, rng: np.random.Generator
) -> np.ndarray:
    """Reads the random Bs, and cuts all pairs to the length."""
    random = rows[:, 4] == 1
    rows[random, 2:4] = _random_segments(rows[random, 2], rows[random, 3], documents, starts, rng)

    # From the longer one a token is dropped, from both if they are as long, until the pair fits.
    a, b = rows[:, 1] - rows[:, 0], rows[:, 3] - rows[:, 2]
    half = longest // 2
    kept_a = np.minimum(a, np.maximum(longest - b, longest - half))
    kept_b = np.minimum(b, longest - kept_a)
    for column, dropped in ((0, a - kept_a), (2, b - kept_b)):
        front = rng.binomial(dropped, 0.5)  # each dropped token is the first or the last one, evenly
        rows[:, column] += front
        rows[:, column + 1] -= dropped - front
    return rows


def _random_segments(
    document: np.ndarray, target: np.ndarray, documents: np.ndarray, starts: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(n, 2) start and end of sentences of another document, from a random one on until they reach the target."""
    other = rng.integers(len(documents) - 2, size=len(document))
    other += other >= document  # the released code tries ten times to hit another one
    first = rng.integers(documents[other], documents[other + 1])
    end = np.searchsorted(starts, starts[first] + target)
    end = np.clip(end, first + 1, documents[other + 1])
    return np.stack([starts[first], starts[end]], axis=1)


def stored_pairs(store: TokenStore, pairs: NextSentencePairs, length: int, duplicates: int, seed: int) -> np.ndarray:
    """The pairs of so many passes over the documents, memory-mapped from the cache, made first where they are not there.

    Args:
        store: the documents' tokens.
        pairs: how they are made.
        length: the most tokens of a sequence.
        duplicates: passes over the documents, each with pairs of its own.
        seed: the run's seed.

    Returns:
        int64 (pairs, 5), see `NextSentencePairs.pack`.

    Raises:
        UserError: there is no other document to read a random B from, or the cache cannot be written.
    """
    rules = [store.folder.name, *pairs.rules, length, duplicates, seed, VERSION]
    path = cache_folder() / "pairs" / fingerprint_of(*map(str, rules))

    def build(aside: Path) -> None:
        with open(aside, "wb") as file:
            count = 0
            np.zeros(5, np.int64).tofile(file)
            for duplicate in tqdm(range(duplicates), "packing pairs", disable=None, leave=False, delay=1):
                for block in pairs.pack(store, length, np.random.default_rng([seed, length, duplicate, VERSION])):
                    block.tofile(file)
                    count += len(block)
            file.seek(0)
            np.full(5, count).tofile(file)  # the first row says how many follow

    built_once(path, _whole, build)
    return _read(path)[1:]


def _read(path: Path) -> np.ndarray:
    return np.memmap(path, np.int64, "r").reshape(-1, 5)


def _whole(path: Path) -> bool:
    try:
        rows = _read(path)
    except (OSError, ValueError):  # not there, empty, or no whole number of rows
        return False
    return bool(rows[0, 0] == len(rows) - 1)
