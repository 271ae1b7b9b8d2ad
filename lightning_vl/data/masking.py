"""Which words of a sequence a network is asked for: pure functions of the tokens and a generator."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

from lightning_vl.data.tokenizer import WordPiece


class Prepared(NamedTuple):
    """A sequence as the network reads it, and what it is asked.

    Attributes:
        token_ids: int64 (n,) what is read.
        places: int64 (m,) the tokens at which a word is to be said, in their order.
        words: int64 (m,) the right words.
    """

    token_ids: np.ndarray
    places: np.ndarray
    words: np.ndarray


class WordObjective(ABC):
    """What a network is asked about the words of a sequence."""

    @abstractmethod
    def prepare(
        self, token_ids: np.ndarray, tokenizer: WordPiece, rng: np.random.Generator, training: bool
    ) -> Prepared:
        """Asks for words of a sequence.

        Args:
            token_ids: int64 (n,) with [CLS] and [SEP]; stays as it is.
            tokenizer: gives the special tokens and the size of the vocabulary.
            rng: all randomness.
            training: whether the network learns from it.
        """

    @abstractmethod
    def said_at(self, places: np.ndarray) -> np.ndarray:
        """Where the network says the words that stand at these places."""


class MaskedWords(WordObjective):
    """Words hidden at random, told from both sides ("BERT", Sec. 3.1 and App. A.1; rules of the released code).

    Args:
        probability: share of the tokens that are asked for; [CLS] and [SEP] count, but are never chosen.
        max_predictions: the most words of a sequence.
        whole_words: choose all pieces of a word or none.
        mask: share of the words asked for in whose place [MASK] is read.
        same: share that is read as it is.
        random: share in whose place any piece of the vocabulary is read, special ones too.
    """

    def __init__(
        self,
        max_predictions: int,
        probability: float = 0.15,
        whole_words: bool = False,
        mask: float = 0.8,
        same: float = 0.1,
        random: float = 0.1,
    ) -> None:
        if min(mask, same, random) < 0 or abs(mask + same + random - 1) > 1e-9:
            raise ValueError(f"mask {mask}, same {same} and random {random} are not shares of one whole")
        self.max_predictions = max_predictions
        self.probability = probability
        self.whole_words = whole_words
        self.mask = mask
        self.same = same

    def prepare(
        self, token_ids: np.ndarray, tokenizer: WordPiece, rng: np.random.Generator, training: bool
    ) -> Prepared:
        """See `WordObjective`."""
        number = predictions(len(token_ids), self.probability, self.max_predictions)
        choose = choose_words if self.whole_words else choose_tokens
        places = choose(token_ids, tokenizer, number, rng)
        words = token_ids[places]
        replaced = rng.integers(len(tokenizer), size=len(places))
        share = rng.random(len(places))
        replaced = np.where(share < self.mask + self.same, words, replaced)
        read = token_ids.copy()
        read[places] = np.where(share < self.mask, tokenizer.mask, replaced)
        return Prepared(read, places, words)

    def said_at(self, places: np.ndarray) -> np.ndarray:
        """At the places themselves."""
        return places


class NextWords(WordObjective):
    """Every word told from those before it: the paper's left-to-right comparison (Sec. 5.1).

    In evaluation the words are those that `MaskedWords` asks for under the same generator, so that accuracies of both are
    of the same words.

    Args:
        probability: share of the tokens that are asked for in evaluation.
        max_predictions: the most words of a sequence in evaluation.
    """

    def __init__(self, max_predictions: int, probability: float = 0.15) -> None:
        self.max_predictions = max_predictions
        self.probability = probability

    def prepare(
        self, token_ids: np.ndarray, tokenizer: WordPiece, rng: np.random.Generator, training: bool
    ) -> Prepared:
        """See `WordObjective`."""
        if training:
            asked = np.arange(1, len(token_ids))
        else:
            number = predictions(len(token_ids), self.probability, self.max_predictions)
            asked = choose_tokens(token_ids, tokenizer, number, rng)
        return Prepared(token_ids, self.said_at(asked), token_ids[asked])

    def said_at(self, places: np.ndarray) -> np.ndarray:
        """One before each, from where it cannot be seen."""
        return places - 1


def predictions(length: int, probability: float, max_predictions: int) -> int:
    """How many words of a sequence of so many tokens, [CLS] and [SEP] among them, are asked for: at least one."""
    return min(max_predictions, max(1, round(probability * length)))


def choose_tokens(token_ids: np.ndarray, tokenizer: WordPiece, number: int, rng: np.random.Generator) -> np.ndarray:
    """So many places of a sequence, or all there are, in their order; none is [CLS] or [SEP]."""
    return np.sort(rng.permutation(_candidates(token_ids, tokenizer))[:number])


def choose_words(token_ids: np.ndarray, tokenizer: WordPiece, number: int, rng: np.random.Generator) -> np.ndarray:
    """The places of whole words, at most so many; a word that would go over it is left out, and the next one tried."""
    candidates = _candidates(token_ids, tokenizer)
    begins = ~tokenizer.continues[token_ids[candidates]]
    words = np.split(candidates, np.flatnonzero(begins[1:]) + 1)
    chosen: list[int] = []
    for word in rng.permutation(len(words)):
        if len(chosen) + len(words[word]) <= number:
            chosen.extend(words[word].tolist())
    return np.array(sorted(chosen), np.int64)


def _candidates(token_ids: np.ndarray, tokenizer: WordPiece) -> np.ndarray:
    return np.flatnonzero((token_ids != tokenizer.cls) & (token_ids != tokenizer.sep))
