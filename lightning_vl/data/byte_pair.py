"""CLIP's byte-pair encoding (Sec. 2.4): text to pieces of words with the ids of the released vocabulary, or a trained one.

Text is mended (ftfy), freed of HTML's entities, and lower-cased; white space is collapsed. Words are runs of letters,
single digits, runs of anything else, and English clitics. The bytes of a word are symbols, the last of them marked as
the word's end, and the pair of neighbours that is first in the list of merges becomes one piece, again and again. No text
is unknown: what no merge knows stays bytes.

As in the released code, "<|endoftext|>" written in a text is the end token. There the network reads a text off at the first
end token and attention is causal, so that nothing behind it counts: here `sequence` leaves it out. In open_clip's copy of
the code the two tokens are written otherwise, and this is punctuation and a word.
"""

import gzip
import hashlib
import html
import importlib.util
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import ftfy
import regex
import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lightning_vl.data.documents import DocumentSource
from lightning_vl.data.tokenizer import TextTokenizer, Vocabulary, trained_once, training_documents
from lightning_vl.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)
REMEMBERED = 2**16  # words whose pieces are kept at hand, in each process
SCHEMA = 1  # of trained vocabularies: a change of the training starts new ones

FILE = "bpe_simple_vocab_16e6.txt.gz"
SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
MERGES = 49152 - 256 - 2  # of the file's, so many are used


def _byte_symbols() -> dict[int, str]:
    """A printable character for each byte, in the order of their ids: those that are printable in Latin-1 come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + number) for number, byte in enumerate(others)}


BYTE_SYMBOLS = _byte_symbols()
BYTES = {symbol: byte for byte, symbol in BYTE_SYMBOLS.items()}
SYMBOLS = [*BYTE_SYMBOLS.values(), *(symbol + WORD_END for symbol in BYTE_SYMBOLS.values())]  # ids 0 to 511
SMALLEST = len(SYMBOLS) + 2  # pieces, with the start and the end


def clean(text: str) -> str:
    """What the released code splits into words; half of a surrogate pair is a replacement character."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # otherwise nothing would change
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


class BytePair(TextTokenizer):
    """A list of merges and the tokenisation with it.

    Args:
        merges: pairs of pieces, the first to be merged first; each makes a piece that no other one makes.
        unused: pieces that stand for nothing, to fill up a vocabulary of a given size.

    Attributes:
        merges: see above.
        unused: see above.
        pieces: the vocabulary by id: the 256 bytes, the same at the end of a word, the merges, the unused ones, start, end.
        start, end: ids of the tokens around a text.
        fingerprint: changes with the merges and the number of unused pieces.

    Raises:
        UserError: a merge is of pieces that are not there yet, or makes one that is.
    """

    def __init__(self, merges: Sequence[tuple[str, str]], unused: int = 0) -> None:
        self.merges = list(merges)
        self.unused = unused
        self.pieces = [
            *SYMBOLS,
            *(first + second for first, second in self.merges),
            *(f"[unused{number}]" for number in range(unused)),
            START,
            END,
        ]
        ids = {piece: id for id, piece in reversed(list(enumerate(self.pieces)))}  # of equal ones the first
        _check(self.merges, ids)
        self.start, self.end = ids[START], ids[END]
        self.fingerprint = hashlib.sha256(f"{unused}\n{_lines(self.merges)}".encode()).hexdigest()[:32]
        self._tokenizer = _tokenizer(ids, self.merges)
        self._pieces_of = lru_cache(REMEMBERED)(self._split)  # captions have few words, again and again

    def __len__(self) -> int:
        return len(self.pieces)

    def __reduce__(self) -> tuple[Any, ...]:
        return BytePair, (self.merges, self.unused)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end around it."""
        return [id for word in WORDS.findall(clean(text)) for id in self._pieces_of(word)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        return [self.encode(text) for text in texts]

    def sequence(self, text: str, longest: int) -> list[int]:
        """Start, the text, end; what follows an end written in the text is left out."""
        ids = self.encode(text)
        if self.end in ids:
            ids = ids[: ids.index(self.end)]
        return [self.start, *ids[: longest - 2], self.end]

    def stored(self) -> dict[str, Any]:
        """Merges, one a line, and the number of unused pieces."""
        return {"merges": _lines(self.merges), "unused": self.unused}

    @classmethod
    def restored(cls, stored: dict[str, Any]) -> "BytePair":
        """The inverse of `stored`."""
        return cls(_merges(stored["merges"].splitlines()), stored["unused"])

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text: a space behind every word, before a full stop too; start and end are shown."""
        written = bytearray()
        for id in map(int, ids):
            piece = self.pieces[id]
            if id < len(SYMBOLS) + len(self.merges):
                written += bytes(BYTES[symbol] for symbol in piece.removesuffix(WORD_END))
            else:
                written += piece.encode()
            if piece.endswith(WORD_END) or id >= len(SYMBOLS) + len(self.merges):
                written += b" "
        return written.decode("utf-8", "replace").rstrip()

    def _split(self, word: str) -> tuple[int, ...]:
        if word in (START, END):
            return (self.start if word == START else self.end,)
        return tuple(self._tokenizer.encode(word).ids)


def _tokenizer(ids: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ids, merges, end_of_word_suffix=WORD_END))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return tokenizer


def _check(merges: list[tuple[str, str]], ids: dict[str, int]) -> None:
    """What the library takes without a word, and the released code too, but only the latter's result is defined."""
    for number, (first, second) in enumerate(merges):
        made = len(SYMBOLS) + number
        if max(ids.get(first, made), ids.get(second, made)) >= made:
            raise UserError(
                f"merge {number} is of {first!r} and {second!r}, which are not both made by then",
                "give the merges in the order in which they were learned",
            )
        if ids[first + second] != made:
            raise UserError(
                f"merge {number} of {first!r} and {second!r} makes a piece that is there already",
                "give each piece one merge",
            )


class ClipVocabulary(Vocabulary):
    """The vocabulary of the released CLIP models, 49,408 pieces.

    Args:
        path: bpe_simple_vocab_16e6.txt.gz of the released code; None for the one in an installed open_clip_torch.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def tokenizer(self, source: DocumentSource | None) -> BytePair:
        """The tokenisation with the file's merges; the source plays no part."""
        path = Path(self.path) if self.path else _of_open_clip()
        try:
            content = path.read_bytes()
            lines = gzip.decompress(content).decode("utf-8").split("\n")
        except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise UserError(
                f"{path} is broken or no gzip file of UTF-8: {error}", f"fetch CLIP's {FILE} anew"
            ) from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}", f"give the path of CLIP's {FILE}") from error
        released = hashlib.sha256(content).hexdigest() == SHA256
        if not released and self.path is None:
            raise UserError(f"{path} is not CLIP's", "install open_clip_torch anew, or give ClipVocabulary a path")
        if len(lines) < 1 + MERGES or not lines[MERGES]:
            raise UserError(
                f"{path} has {sum(map(bool, lines[1:]))} merges, CLIP's vocabulary {MERGES}",
                f"give CLIP's {FILE}, or train a vocabulary with TrainedBytePair",
            )
        try:
            made = BytePair(_merges(lines[1 : 1 + MERGES]))  # behind the header; the file goes on
        except UserError as error:
            raise UserError(f"{path}: {error.what}", f"give CLIP's {FILE}") from error
        if not released:
            from lightning_vl.terminal import say  # it needs torch

            say(f"{path} is not the file of the released CLIP: its ids fit no released weights")
        return made


def _of_open_clip() -> Path:
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        raise UserError(
            f"CLIP's vocabulary is not here: no path of {FILE} is given, and open_clip_torch, which has it, not installed",
            "give ClipVocabulary a path, pip install open_clip_torch, or take TrainedBytePair",
        )
    return Path(found.origin).parent / FILE


class TrainedBytePair(Vocabulary):
    """Merges learned from the training texts, and kept in the cache for them.

    Text is cleaned and split as CLIP's is. Where it gives fewer merges, [unused0], ... fill up to size.

    Args:
        size: number of pieces, the 512 of single bytes and the two around a text among them: the network's vocabulary size.
        source: documents to train on, for a vocabulary that several data sets share; None for the run's own.
    """

    def __init__(self, size: int, source: DocumentSource | None = None) -> None:
        self.size = size
        self.source = source

    def tokenizer(self, source: DocumentSource | None) -> BytePair:
        """The tokenisation with the kept merges, learned first where there are none."""
        source = training_documents(self.source, source)
        if self.size < SMALLEST:
            raise UserError(
                f"a vocabulary of {self.size} pieces does not hold the bytes", f"give it a size of {SMALLEST} or more"
            )
        name = f"byte pair {SCHEMA} {source.fingerprint('train')} {self.size} {tokenizers.__version__}"
        return self._read(trained_once(name, self._is_whole, lambda aside: self._train(source, aside)))

    def _is_whole(self, path: Path) -> bool:
        try:
            return len(self._read(path)) == self.size
        except (OSError, ValueError, UserError):
            return False

    def _read(self, path: Path) -> BytePair:
        count, *lines, end = path.read_text(encoding="utf-8").split("\n")
        if len(lines) != int(count) or end:
            raise ValueError(f"{path} is cut short")
        return BytePair(_merges(lines), self.size - SMALLEST - len(lines))

    def _train(self, source: DocumentSource, path: Path) -> None:
        merges = train_merges((text for one in source.documents("train") for text in one.sentences), self.size)
        path.write_text("\n".join([str(len(merges)), *map(" ".join, merges), ""]), encoding="utf-8", newline="\n")


def train_merges(texts: Iterable[str], size: int) -> list[tuple[str, str]]:
    """The merges of a vocabulary of at most this size.

    The library learns other merges when its symbols have other numbers, and would number those at the end of a word in the
    order of a hash map: they are numbered beforehand. It may also make one piece in two ways, of which the first is kept.

    Args:
        texts: any texts; those that merge nothing twice give no merge.
        size: number of pieces, those of single bytes, the start and the end among them.

    Raises:
        UserError: there is no text.
    """
    spoken = False

    def cleaned() -> Iterator[str]:
        nonlocal spoken
        for text in texts:
            words = [word for word in WORDS.findall(clean(text)) if word not in (START, END)]
            spoken = spoken or bool(words)
            yield " ".join(words)

    tokenizer = _tokenizer({}, [])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), tokenizer.pre_tokenizer])
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        min_frequency=2,  # what occurs once is no piece
        show_progress=False,
        special_tokens=SYMBOLS,
        end_of_word_suffix=WORD_END,
    )
    tokenizer.train_from_iterator(cleaned(), trainer)
    if not spoken:
        raise UserError(
            "there is no text to train a vocabulary on", "check the paths and the train split of the source"
        )
    made: dict[str, tuple[str, str]] = {}
    for first, second in json.loads(tokenizer.to_str())["model"]["merges"]:
        made.setdefault(first + second, (first, second))
    return list(made.values())


def _lines(merges: Iterable[tuple[str, str]]) -> str:
    return "\n".join(map(" ".join, merges))


def _merges(lines: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of pieces, one a line.

    Raises:
        UserError: a line is no pair.
    """
    merges = []
    for line in lines:
        first, _, second = line.strip().partition(" ")
        if not second or " " in second:
            raise UserError(f"{line[:80]!r} is no merge of two pieces", "give two pieces a line, a space between them")
        merges.append((first, second))
    return merges
