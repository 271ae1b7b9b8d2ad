"""CLIP's tokeniser: the released ids on everything that captions may hold; training gives one vocabulary in every process."""

import csv
import gzip
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from lightning_vl.data.byte_pair import (
    END,
    MERGES,
    SMALLEST,
    START,
    SYMBOLS,
    BytePair,
    ClipVocabulary,
    TrainedBytePair,
)
from lightning_vl.data.cache import cache_folder
from lightning_vl.data.documents import Document, DocumentSource
from lightning_vl.data.source import Split
from lightning_vl.data.tokenizer import SPECIAL, CheckpointVocabulary, WordPiece, word_pieces
from lightning_vl.errors import UserError

GOLDEN = {  # of the released tokeniser, without start and end
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "a photo of guacamole, a type of food.": [320, 1125, 539, 40115, 267, 320, 3877, 539, 1559, 269],
    "A Photo Of  a\tDOG!": [320, 1125, 539, 320, 1929, 256],
    'a photo of the number: "7".': [320, 1125, 539, 518, 2842, 281, 257, 278, 2811],
    "café naïve — it’s": [15304, 1097, 35689, 563, 2005, 585, 568],
    "&lt;b&gt;hello&amp;amp;": [283, 321, 285, 3306, 261],
    "itap of a television studio.": [529, 2728, 539, 320, 8608, 3155, 269],
    "2021 1234": [273, 271, 273, 272, 272, 273, 274, 275],
    "don't": [847, 713],
    "<|endoftext|> hi": [49407, 1883],
    "": [],
}
HOSTILE = [
    "emoji 😀👩‍👩‍👧‍👦🇩🇪 ❤️ ‽ ⁂ … “quotes” ‘single’ «guillemets» — dash",
    "control\x00characters\x07here\x1b[0m \x1c\x1d\x1e\x1f zero\u200bwidth\u200djoiner\ufeffbom soft\u00adhyphen \x7f\x85",
    "tabs\tand\nnew\rlines\x0b\x0cand\u00a0no-break\u2003em\u3000ideographic\u2028separator\u2029",
    "&lt;|x|&gt; &amp;amp;amp; &#28; &#xD800; &#x41; &nbsp;&nbsp; &bogus; &amp;#28;a &copy2021 & &",
    "half \ud83d pair \ude00 whole \ud83d\ude00",
    "日本語のテキスト 中文 한국어 русский ελληνικά עברית العربية हिन्दी",
    "x" * 5000 + " pneumonoultramicroscopicsilicovolcanoconiosis " + "!?" * 800 + "1" * 300,
    "ﬁne ½ ①② Ⅷ ² ³ ÅA\u030a e\u0301 \u0301alone 𝐀𝐁 İstanbul STRASSE straße ǅ ſ it'ſ IT'S WE'VE y'all'll'd",
    "don't stop-me now... (really?) [brackets] {braces} <tags> </w> a</w>b $5.99 + 10% = #1 @home ~`^|\\_",
    "!!<|endoftext|>!! <|endof text|> |endoftext|>",
    "schÃ¶n â€œmojibakeâ€\x9d donâ€™t \xa0 ï¼¡",
    " \n\t ",
    "".join(map(chr, range(32, 0x250))),
]


@cache
def clip() -> BytePair:
    """The released vocabulary."""
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip_torch is not installed (the test extra has it)")
    return ClipVocabulary().tokenizer(None)


def clip_file() -> Path:
    """The file of the released vocabulary."""
    clip()
    found = importlib.util.find_spec("open_clip")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "bpe_simple_vocab_16e6.txt.gz"


@cache
def encode_as_released() -> Callable[[str], list[int]]:
    """The released tokeniser as open_clip has it; its module alone, since the package takes long to import."""
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", clip_file().with_name("tokenizer.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer(str(clip_file())).encode


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


@pytest.mark.parametrize("text", GOLDEN)
def test_golden_ids(text: str) -> None:
    """Breaks if cleaning, splitting or merging differ from the released code."""
    assert clip().encode(text) == GOLDEN[text]


def test_layout_of_the_released_vocabulary() -> None:
    """Breaks if a row of the released embeddings stands for another piece."""
    ours = clip()
    assert len(ours) == len(set(ours.pieces)) == 49408
    assert (ours.start, ours.end, ours.pieces[0], ours.pieces[256]) == (49406, 49407, "!", "!</w>")
    assert ours.pieces[512:514] == ["in", "th"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_has_the_released_ids(text: str) -> None:
    """Breaks if a caption of the web has other ids here than in open_clip, or is refused."""
    assert clip().encode(text) == encode_as_released()(text)


def test_captions_have_the_released_ids() -> None:
    """Breaks if any of some thousand captions that people wrote has other ids than in open_clip."""
    folder = os.environ.get("LIGHTNING_VL_DATA")
    if not folder:
        pytest.skip("LIGHTNING_VL_DATA names no folder with tuxpaint, emoji and musiccaps")
    root = Path(folder)
    captions = [one["caption"] for one in json.loads((root / "tuxpaint" / "captions.json").read_text())]
    captions += [one["name"] for one in json.loads((root / "emoji" / "emoji.json").read_text())]
    with (root / "musiccaps" / "musiccaps-public.csv").open(newline="") as rows:
        captions += [row["caption"] for row in csv.DictReader(rows)][:2000]
    assert len(captions) > 4000
    assert clip().encode_batch(captions) == [encode_as_released()(caption) for caption in captions]


def test_sequence() -> None:
    """Breaks if a text has no end to be read off at, is longer than the network, or goes on behind the end it is read at."""
    ours = clip()
    assert ours.sequence("a photo of a cat", 77) == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert ours.sequence("a photo of a cat", 4) == [49406, 320, 1125, 49407]
    assert ours.sequence("", 77) == [49406, 49407]
    assert ours.sequence("hi <|ENDOFTEXT|> there", 77) == [49406, 1883, 49407]


def test_decode() -> None:
    """Breaks if pieces are not put together to the text, bytes of one character among them."""
    ours = clip()
    assert ours.decode(ours.sequence("A café, 東京 !", 77)) == f"{START} a café , 東京 ! {END}"
    assert ours.decode(ours.encode("東")[:1]) == "\ufffd"
    assert BytePair([], unused=2).decode([SYMBOLS.index("a</w>"), 512, 513]) == "a [unused0] [unused1]"


def test_pickled_and_told_apart() -> None:
    """Breaks if a worker gets another tokeniser, or two vocabularies pass for one."""
    ours = BytePair([("a", "b</w>"), ("b", "a")], unused=3)
    copy = pickle.loads(pickle.dumps(ours))
    assert copy.encode("ab baba") == ours.encode("ab baba")
    assert len(copy) == len(ours) == 519
    assert (copy.start, copy.end) == (517, 518)
    assert copy.fingerprint == ours.fingerprint
    others = [BytePair([("b", "a"), ("a", "b</w>")], 3), BytePair([("a", "b</w>"), ("b", "a")]), BytePair([], 3)]
    assert len({ours.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize(
    ("merges", "said"),
    [
        ([("ab", "c")], "merge 0 is of 'ab' and 'c'"),
        ([("a", "ab")], "merge 0 is of 'a' and 'ab'"),
        ([("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")], "merge 3 of 'ab' and 'c'"),
        ([("日", "本")], "not both made"),
    ],
)
def test_bad_merges(merges: list[tuple[str, str]], said: str) -> None:
    """Breaks if merges of which no order can be made give ids that no row of the network has."""
    with pytest.raises(UserError, match=said):
        BytePair(merges)


def test_bad_files(tmp_path: Path) -> None:
    """Breaks if a wrong file is a traceback."""
    path = tmp_path / "bpe.txt.gz"

    def said(content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            ClipVocabulary(str(path)).tokenizer(None)
        assert str(path) in error.value.what
        assert "\n" not in error.value.what
        return error.value.what

    with pytest.raises(UserError, match="No such file"):
        ClipVocabulary(str(path)).tokenizer(None)
    with pytest.raises(UserError, match="cannot be read"):
        ClipVocabulary(str(tmp_path)).tokenizer(None)
    assert "no gzip" in said(b"#version\na b\n")
    assert "no gzip" in said(gzip.compress("é".encode("latin-1")))
    assert "broken" in said(gzip.compress(b"#version\na b\n")[:-12])
    assert f"has 1 merges, CLIP's vocabulary {MERGES}" in said(gzip.compress(b"#version\na b\n"))
    assert "'one' is no merge" in said(gzip.compress(b"one\n" * (MERGES + 1)))
    assert "merge 1 of 'a' and 'b'" in said(gzip.compress(b"a b\n" * (MERGES + 1)))


def test_another_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if other merges are taken for the released ones without a word, or those with one."""
    lines = gzip.decompress(clip_file().read_bytes()).split(b"\n")
    path = tmp_path / "bpe.txt.gz"
    path.write_bytes(clip_file().read_bytes())
    ClipVocabulary(str(path)).tokenizer(None)
    assert capsys.readouterr().err == ""
    path.write_bytes(gzip.compress(b"\n".join([b"another header", *lines[1 : MERGES + 1]])))
    assert ClipVocabulary(str(path)).tokenizer(None).fingerprint == clip().fingerprint
    assert "not the file of the released CLIP" in capsys.readouterr().err


TRAIN = """
import sys
from lightning_vl.data.byte_pair import TrainedBytePair
from lightning_vl.data.datasets.python_manual import PythonManual
sys.stdout.buffer.write("\\n".join(TrainedBytePair(1500).tokenizer(PythonManual()).pieces).encode())
"""


def test_two_processes_train_the_same_vocabulary(tmp_path: Path) -> None:
    """Breaks if training depends on the order of a hash map: ids would differ between runs, and weights not fit."""
    found = set()
    for number in range(2):
        environment = os.environ | {"LIGHTNING_VL_CACHE": str(tmp_path / str(number)), "PYTHONHASHSEED": str(number)}
        found.add(
            subprocess.run([sys.executable, "-c", TRAIN], env=environment, capture_output=True, check=True).stdout
        )
    (pieces,) = (one.decode().split("\n") for one in found)
    assert len(pieces) == len(set(pieces)) == 1500
    assert {"the</w>", "ing</w>", "object</w>"} <= set(pieces)


def test_trained_vocabulary_has_the_size_asked_for() -> None:
    """Breaks if a small corpus gives fewer pieces than the network has rows, or learns the marks around a text."""
    few = Few("the cat the cat <|endoftext|> <|endoftext|>", "Café &amp; café")
    ours = TrainedBytePair(540, few).tokenizer(None)
    assert len(ours) == len(set(ours.pieces)) == 540
    assert {"the</w>", "cat</w>", "cafÃ©</w>"} <= set(ours.pieces)
    assert not any("endoftext" in piece for piece in ours.pieces[:-1])
    assert ours.pieces[-3:] == [f"[unused{ours.unused - 1}]", START, END]
    assert ours.decode(ours.encode("The CAFÉ <3")) == "the café < 3"
    assert len(TrainedBytePair(520, few).tokenizer(None)) == 520
    assert TrainedBytePair(SMALLEST, few).tokenizer(None).merges == []


def test_trained_vocabulary_is_kept() -> None:
    """Breaks if a second start trains again, another size or text takes the kept one, or a damaged file is used."""
    source = Few("one two three one two three")
    first = TrainedBytePair(530, source=source).tokenizer(Few("other words"))
    assert source.read == 1
    assert TrainedBytePair(530).tokenizer(source).pieces == first.pieces
    assert source.read == 1
    assert len(TrainedBytePair(521).tokenizer(source)) == 521
    assert TrainedBytePair(530).tokenizer(Few("other words other words")).pieces != first.pieces
    for path in (cache_folder() / "vocabularies").glob("*.txt"):
        path.write_text(path.read_text()[:-2])
    assert TrainedBytePair(530).tokenizer(source).pieces == first.pieces


@pytest.mark.parametrize(
    ("vocabulary", "source", "said"),
    [
        (TrainedBytePair(600), None, "no documents"),
        (TrainedBytePair(SMALLEST - 1), Few("text"), "513 pieces"),
        (TrainedBytePair(600), Few(), "no text"),
        (TrainedBytePair(600), Few("\x00 \x07", "", "<|endoftext|>"), "no text"),
    ],
)
def test_nothing_to_train_on(vocabulary: TrainedBytePair, source: DocumentSource | None, said: str) -> None:
    """Breaks if an empty corpus gives a vocabulary of nothing."""
    with pytest.raises(UserError, match=said):
        vocabulary.tokenizer(source)
    assert not list((cache_folder() / "vocabularies").glob("*.txt"))


def test_checkpoint_vocabulary(tmp_path: Path) -> None:
    """Breaks if a checkpoint cannot be read without the text it was trained on, or a BERT is given its pieces."""
    path = tmp_path / "best.ckpt"
    ours = TrainedBytePair(560, Few("one two three one two three")).tokenizer(None)
    torch.save({"state_dict": {}, "CaptionData": {"preprocessing": {}, "vocabulary": ours.stored()}}, path)
    kept = CheckpointVocabulary(str(path)).tokenizer(None)
    assert isinstance(kept, BytePair)
    assert (kept.fingerprint, kept.pieces) == (ours.fingerprint, ours.pieces)
    torch.save({"state_dict": {}, "CaptionData": {"vocabulary": BytePair([]).stored()}}, path)
    assert len(CheckpointVocabulary(str(path)).tokenizer(None)) == SMALLEST
    with pytest.raises(UserError, match="WordPieces"):
        word_pieces(kept)
    pieces = WordPiece(SPECIAL)
    assert word_pieces(pieces) is pieces
