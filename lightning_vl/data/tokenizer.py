"""WordPiece: text as pieces of words, and where its vocabulary comes from.

BERT's tokenisation (Sec. 3.1, and the released code where the paper is silent): control characters are removed, CJK
characters stand alone, an uncased vocabulary lowers case and strips accents, words are split at white space and at
punctuation, and of each word the longest piece that the vocabulary has is taken from the left, again and again. Pieces
within a word begin with ##. A word of more than 100 characters, or with a stretch that no piece fits, is one [UNK]; the
limit is that of transformers, the released code's is 200.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lightning_vl.data.cache import built_once, cache_folder
from lightning_vl.data.documents import DocumentSource
from lightning_vl.errors import UserError

# threads of the library do not survive the fork that starts a loader's workers; a user who prepares a large corpus may set it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUES = "##"
LONGEST_WORD = 100  # characters
ALPHABET = 1000  # most characters that a trained vocabulary has pieces of their own for
SMALLEST = 32  # pieces of a trained vocabulary
SCHEMA = 1  # of trained vocabularies: a change of the training starts new ones


class TextTokenizer(ABC):
    """Text as tokens, for networks that read one text at a time.

    Attributes:
        fingerprint: changes with whatever changes a text's tokens.
    """

    fingerprint: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sequence(self, text: str, longest: int) -> list[int]:
        """A text's tokens, with those that begin and end it.

        Args:
            text: any text.
            longest: most tokens there may be; of a longer text the last ones are left out, but not the one that ends it.
        """

    def fitted(self, text: str, longest: int) -> tuple[list[int], bool]:
        """`sequence`, and whether the text was too long for it."""
        tokens = self.sequence(text, longest + 1)
        return (tokens, False) if len(tokens) <= longest else (self.sequence(text, longest), True)

    @abstractmethod
    def stored(self) -> dict[str, Any]:
        """What a checkpoint keeps of the vocabulary, plain values; `CheckpointVocabulary` makes the tokeniser of it again."""


class WordPiece(TextTokenizer):
    """A vocabulary and the tokenisation with it.

    Args:
        pieces: the vocabulary in the order of its ids; [PAD], [UNK], [CLS], [SEP] and [MASK] are among them.
        lowercase: lower case and strip accents first, for an uncased vocabulary.

    Attributes:
        pieces: the vocabulary by id.
        lowercase: whether it is uncased.
        pad, unknown, cls, sep, mask: ids of the special tokens.
        special: these five ids.
        continues: (v,) bool, True for pieces that go on within a word.
        fingerprint: changes with pieces and lowercase.

    Raises:
        UserError: a special token is missing, or a piece is empty or there twice.
    """

    def __init__(self, pieces: Sequence[str], lowercase: bool = True) -> None:
        self.pieces = list(pieces)
        self.lowercase = lowercase
        ids = {piece: id for id, piece in enumerate(self.pieces)}
        _check(self.pieces, ids)
        self.pad, self.unknown, self.cls, self.sep, self.mask = self.special = [ids[piece] for piece in SPECIAL]
        self.continues = np.array([piece.startswith(CONTINUES) for piece in self.pieces])
        self.fingerprint = hashlib.sha256("\n".join([str(lowercase), *self.pieces]).encode()).hexdigest()[:32]
        self._plain = _tokenizer(ids, lowercase)
        self._with_special = _tokenizer(ids, lowercase)
        self._with_special.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in SPECIAL])

    def __len__(self) -> int:
        return len(self.pieces)

    def __reduce__(self) -> tuple[Any, ...]:
        return WordPiece, (self.pieces, self.lowercase)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The ids of a text, without [CLS] and [SEP] around it.

        Args:
            text: any text; half of a surrogate pair counts as a question mark.
            special: special tokens written in the text, as [MASK], are these tokens; otherwise they are brackets and words.
        """
        return (self._with_special if special else self._plain).encode(_encodable(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, see `encode`; many texts at once are faster."""
        encoded = self._plain.encode_batch_fast([_encodable(text) for text in texts], add_special_tokens=False)
        return [one.ids for one in encoded]

    def sequence(self, text: str, longest: int) -> list[int]:
        """[CLS], the text, [SEP]."""
        return [self.cls, *self.encode(text)[: longest - 2], self.sep]

    def stored(self) -> dict[str, Any]:
        """Pieces and case."""
        return {"pieces": self.pieces, "lowercase": self.lowercase}

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text: pieces joined to words, no space before a full stop; special tokens are shown."""
        return self._plain.decode(list(map(int, ids)), skip_special_tokens=False)


def _tokenizer(ids: dict[str, int], lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordPiece(
            ids, unk_token=UNKNOWN, max_input_chars_per_word=LONGEST_WORD, continuing_subword_prefix=CONTINUES
        )
    )
    tokenizer.normalizer = _normalizer(lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES)
    return tokenizer


def _normalizer(lowercase: bool) -> normalizers.BertNormalizer:
    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
    )


def _encodable(text: str) -> str:
    """Half of a surrogate pair is no character, and the library refuses it; JSON may carry some."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def _check(pieces: list[str], ids: dict[str, int]) -> None:
    missing = [piece for piece in SPECIAL if piece not in ids]
    if missing:
        raise UserError(
            f"the vocabulary of {len(pieces)} pieces has no {' and no '.join(missing)}",
            "give BERT's vocab.txt, one piece a line, with [PAD], [UNK], [CLS], [SEP] and [MASK]",
        )
    for id, piece in enumerate(pieces):
        if not piece or ids[piece] != id:
            wrong = f"{piece!r} twice, as {id} and {ids[piece]}" if piece else f"an empty piece, number {id}"
            raise UserError(f"the vocabulary has {wrong}", "give a vocabulary whose pieces differ, one a line")


class Vocabulary(ABC):
    """Where a vocabulary comes from."""

    @abstractmethod
    def tokenizer(self, source: DocumentSource | None) -> TextTokenizer:
        """The tokenisation with it.

        Args:
            source: the run's documents, for a vocabulary that is trained; None where there are none.

        Raises:
            UserError: the vocabulary cannot be had.
        """


class VocabularyFile(Vocabulary):
    """BERT's vocab.txt: one piece a line, the first is number 0.

    Args:
        path: the file, UTF-8.
        lowercase: lower case and strip accents; False for a cased vocabulary.
    """

    def __init__(self, path: str, lowercase: bool = True) -> None:
        self.path = path
        self.lowercase = lowercase

    def tokenizer(self, source: DocumentSource | None) -> WordPiece:
        """The tokenisation with the file's pieces; the source plays no part."""
        try:
            pieces = _read(Path(self.path))
        except OSError as error:
            raise UserError(
                f"the vocabulary {self.path} cannot be read: {error.strerror}", "give the path of a vocab.txt"
            ) from error
        except UnicodeDecodeError as error:
            raise UserError(
                f"the vocabulary {self.path} is no UTF-8: {error.reason} at byte {error.start}",
                "give BERT's vocab.txt, or convert it with iconv",
            ) from error
        if not pieces:
            raise UserError(f"the vocabulary {self.path} is empty", "give BERT's vocab.txt, one piece a line")
        try:
            return WordPiece(pieces, self.lowercase)
        except UserError as error:
            raise UserError(f"{self.path}: {error.what}", error.how) from error


class TrainedVocabulary(Vocabulary):
    """A vocabulary that is trained on the training documents, and kept in the cache for them.

    Neither the paper nor its code has a trainer, any is a choice of ours: this is that of `tokenizers`, which merges the
    most frequent pair of pieces again and again. The library numbers the characters in the order of a hash map that differs
    in every process, and breaks ties by these numbers; here they are numbered beforehand, so that one corpus gives one
    vocabulary. Special tokens come first, [PAD] is 0. Where the corpus gives fewer pieces, [unused0], ... fill up to size.

    Args:
        size: number of pieces: the network's vocabulary size.
        lowercase: lower case and strip accents first.
        source: documents to train on, for a vocabulary that several data sets share; None for the run's own.
    """

    def __init__(self, size: int, lowercase: bool = True, source: DocumentSource | None = None) -> None:
        self.size = size
        self.lowercase = lowercase
        self.source = source

    def tokenizer(self, source: DocumentSource | None) -> WordPiece:
        """The tokenisation with the kept vocabulary, trained first where there is none."""
        source = training_documents(self.source, source)
        if self.size < SMALLEST:
            raise UserError(
                f"a vocabulary of {self.size} pieces holds no words", f"give it a size of {SMALLEST} or more"
            )
        name = f"{SCHEMA} {source.fingerprint('train')} {self.size} {self.lowercase} {tokenizers.__version__}"
        path = trained_once(name, self._is_whole, lambda aside: self._train(source, aside))
        return WordPiece(_read(path), self.lowercase)

    def _is_whole(self, path: Path) -> bool:
        try:
            pieces = _read(path)
            return len(pieces) == self.size and bool(WordPiece(pieces, self.lowercase))
        except (OSError, UnicodeDecodeError, UserError):
            return False

    def _train(self, source: DocumentSource, path: Path) -> None:
        pieces = train_pieces(lambda: _sentences(source), self.size, self.lowercase)
        path.write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8", newline="\n")


class CheckpointVocabulary(Vocabulary):
    """The vocabulary that a checkpoint of a run carries along.

    Args:
        path: the checkpoint.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def tokenizer(self, source: DocumentSource | None) -> TextTokenizer:
        """The tokenisation with what the checkpoint keeps; the source plays no part."""
        from lightning_vl.checkpoints import load_whole  # it needs torch

        kept = kept_vocabulary(load_whole(Path(self.path)))
        if kept is None:
            raise UserError(
                f"the checkpoint {self.path} carries no vocabulary",
                "give one of a run on text, or the vocabulary's file with VocabularyFile",
            )
        if "merges" in kept:
            from lightning_vl.data.byte_pair import BytePair  # it is made of this module's classes

            return BytePair.restored(kept)
        return WordPiece(kept["pieces"], kept["lowercase"])


def kept_vocabulary(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The vocabulary that a checkpoint of ours keeps, as its tokeniser's `stored` gives it; None where it has none."""
    kept = (state["vocabulary"] for state in checkpoint.values() if isinstance(state, dict) and "vocabulary" in state)
    kinds = ({"pieces", "lowercase"}, {"merges", "unused"})
    return next((one for one in kept if isinstance(one, dict) and any(kind <= one.keys() for kind in kinds)), None)


def word_pieces(tokenizer: TextTokenizer) -> WordPiece:
    """The tokeniser itself, for networks that need [CLS], [SEP] and [MASK].

    Raises:
        UserError: it is of another kind.
    """
    if not isinstance(tokenizer, WordPiece):
        raise UserError(
            "a network like BERT reads WordPieces, which this vocabulary does not make",
            "give data.init_args.vocabulary VocabularyFile, TrainedVocabulary, or a checkpoint of a run on such pieces",
        )
    return tokenizer


def training_documents(own: DocumentSource | None, run: DocumentSource | None) -> DocumentSource:
    """What a vocabulary is trained on: documents of its own, or else the run's.

    Raises:
        UserError: there are neither.
    """
    source = own or run
    if source is None:
        raise UserError(
            "a trained vocabulary has no documents to be trained on",
            "give the vocabulary a source of documents, or take one from a file or CheckpointVocabulary",
        )
    return source


def trained_once(name: str, whole: Callable[[Path], bool], train: Callable[[Path], None]) -> Path:
    """The file of a trained vocabulary in the cache, trained first where there is none.

    Args:
        name: says everything that the vocabulary depends on.
        whole: says whether what is there is whole.
        train: writes it to the path that it is given.
    """
    path = cache_folder() / "vocabularies" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.txt"
    built_once(path, whole, train)
    return path


def train_pieces(texts: Callable[[], Iterable[str]], size: int, lowercase: bool) -> list[str]:
    """A WordPiece vocabulary of exactly this size.

    Args:
        texts: gives the texts from their first on; called twice.
        size: number of pieces, special tokens and filling among them.
        lowercase: lower case and strip accents first.

    Raises:
        UserError: there is no text.
    """
    normalizer = _normalizer(lowercase)
    counts: Counter[str] = Counter()
    for text in texts():
        counts.update(normalizer.normalize_str(text))
    characters = _alphabet(counts, min(ALPHABET, (size - len(SPECIAL)) // 4))
    if not characters:
        raise UserError(
            "there is no text to train a vocabulary on", "check the paths and the train split of the source"
        )
    # given as special tokens, characters are numbered in this order before the trainer looks at any word
    first = [*SPECIAL, *characters, *(CONTINUES + c for c in characters if _goes_on(c))]
    tokenizer = _tokenizer({piece: id for id, piece in enumerate(SPECIAL)}, lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,  # what occurs once is no piece
        show_progress=False,
        special_tokens=first,
        limit_alphabet=len(characters),
        initial_alphabet=characters,
        continuing_subword_prefix=CONTINUES,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    by_id = {id: piece for piece, id in tokenizer.get_vocab(with_added_tokens=False).items()}
    pieces = [by_id[id] for id in range(len(by_id))]
    return pieces + [f"[unused{number}]" for number in range(size - len(pieces))]


def _alphabet(counts: Counter[str], most: int) -> list[str]:
    frequent = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    return sorted(frequent[:most])


def _goes_on(character: str) -> bool:
    """Whether a character can stand within a word: punctuation and CJK never do."""
    words = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(_normalizer(False).normalize_str(f"a{character}a"))
    return len(words) == 1


def _sentences(source: DocumentSource) -> Iterator[str]:
    for document in source.documents("train"):
        yield from map(_encodable, document.sentences)


def _read(path: Path) -> list[str]:
    """The lines of a file; a piece may be any character but a line feed, so nothing else ends a line."""
    lines = path.read_bytes().decode("utf-8-sig").split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
