"""Sentences to be filled in: what the network reads of them, and what is made of what it says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_vl.data.masking import MaskedWords, NextWords
from lightning_vl.data.stream import Batch
from lightning_vl.data.tokenizer import WordPiece
from lightning_vl.errors import UserError
from lightning_vl.nn.packing import pack
from lightning_vl.papers.bert.fill_in import Sentences, collate_sentences, fill_in_rows
from lightning_vl.papers.bert.model import Bert, BertPreTraining

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPECIAL, "the", "cat", "sat", "on", "mat", "a", "snow", "leopard", "##s", "##ed", "dog", "."]
MASK = 4


@pytest.fixture(scope="module")
def tokenizer() -> WordPiece:
    """A vocabulary in which `cats` and `snow leopards` are several pieces."""
    return WordPiece(PIECES)


def written(path: Path, *lines: str | dict[str, object]) -> str:
    """A file of these lines."""
    file = path / "sentences.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(file)


def read(path: str, tokenizer: WordPiece, length: int = 16) -> Batch:
    """All sentences of a file as one batch."""
    sentences = Sentences(path, tokenizer, MaskedWords(20), length)
    return collate_sentences([sentences.sample(i, np.random.default_rng(0)) for i in range(len(sentences))])


def tokens(batch: Batch, tokenizer: WordPiece) -> list[str]:
    """The sequences of a batch, readable."""
    packing = batch["packing"]
    return [
        " ".join(PIECES[id] for id in batch["token_ids"][first : last + 1].tolist())
        for first, last in zip(packing.first.tolist(), packing.last.tolist(), strict=True)
    ]


def test_what_the_network_reads(tmp_path: Path, tokenizer: WordPiece) -> None:
    """One sequence for each number of pieces; options of as many pieces share one, and masks are asked for alone."""
    options = ["dog", "cats", "mat", "snow leopards"]
    path = written(
        tmp_path, "The [MASK] sat on [MASK].", "", {"text": "a [MASK] sat", "options": options}, {"text": "[MASK]"}
    )
    batch = read(path, tokenizer)
    assert tokens(batch, tokenizer) == [
        "[CLS] the [MASK] sat on [MASK] . [SEP]",
        "[CLS] a [MASK] sat [SEP]",
        "[CLS] a [MASK] [MASK] sat [SEP]",
        "[CLS] a [MASK] [MASK] [MASK] sat [SEP]",
        "[CLS] [MASK] [SEP]",
    ]
    assert batch["id"] == [f"{path}:1", f"{path}:3", f"{path}:4"]
    assert batch["places"].tolist() == (batch["token_ids"] == MASK).nonzero().flatten().tolist()
    assert not batch["segment_ids"].any()
    assert len(batch["segment_ids"]) == len(batch["token_ids"])
    assert batch["asked"] == [{1: [0, 1]}, {1: [2], 2: [3, 4], 3: [5, 6, 7]}, {1: [8]}]


def test_a_network_that_reads_from_the_left_is_asked_one_place_before(tmp_path: Path, tokenizer: WordPiece) -> None:
    """Breaks if it is asked at [MASK] itself, where it would say the word after it."""
    path = written(tmp_path, "the cat [MASK]")
    sentences = Sentences(path, tokenizer, NextWords(20), 16)
    batch = collate_sentences([sentences.sample(0, np.random.default_rng(0))])
    assert batch["places"].tolist() == [2]


def test_rows(tmp_path: Path, tokenizer: WordPiece) -> None:
    """Against probabilities that are written down: words ranked, an option's score the mean over its pieces."""
    options = ["dog", "snow leopards", "cats"]
    path = written(tmp_path, "the [MASK] sat", {"text": "a [MASK]", "options": options})
    batch = read(path, tokenizer)
    probabilities = torch.full((7, len(PIECES)), 1e-3)

    def say(row: int, **words: float) -> None:
        for word, probability in words.items():
            probabilities[row, PIECES.index(word)] = probability

    say(0, cat=0.6, dog=0.3)
    say(1, dog=0.1, cat=0.7)  # one mask
    say(2, cat=0.5, snow=0.1)  # two masks: cat ##s
    probabilities[3, PIECES.index("##s")] = 0.5
    say(4, snow=0.9)  # three masks
    say(5, leopard=0.9)
    probabilities[6, PIECES.index("##s")] = 0.4
    probabilities /= probabilities.sum(1, keepdim=True)
    rows = fill_in_rows(batch, probabilities.log() + 3.0, tokenizer, k=2)  # logits know no scale
    first, second = rows
    assert first.keys() == {"id", "text", "words"}
    assert first["text"] == "the [MASK] sat"
    ((best, next_best),) = first["words"]
    assert (best["word"], next_best["word"]) == ("cat", "dog")
    assert best["probability"] == pytest.approx(probabilities[0, PIECES.index("cat")].item())
    assert second["words"][0][0]["word"] == "cat"
    assert second["text"] == "a [MASK]"
    at = {piece: probabilities[:, PIECES.index(piece)].log().tolist() for piece in PIECES}
    scores = {
        "dog": at["dog"][1],
        "cats": (at["cat"][2] + at["##s"][3]) / 2,
        "snow leopards": (at["snow"][4] + at["leopard"][5] + at["##s"][6]) / 3,
    }
    assert [option["option"] for option in second["options"]] == sorted(scores, key=lambda option: -scores[option])
    whole = sum(np.exp(score) for score in scores.values())
    for option in second["options"]:
        assert option["log_probability"] == pytest.approx(scores[option["option"]], rel=1e-5)
        assert option["probability"] == pytest.approx(np.exp(scores[option["option"]]) / whole, rel=1e-5)
    assert second["answer"] == "snow leopards"
    json.dumps(rows)


def test_a_batch_answers_as_each_sentence_alone(tmp_path: Path, tokenizer: WordPiece) -> None:
    """Breaks if a sentence's words are taken from another's masks: a network's answers, in one batch and one by one."""
    torch.manual_seed(0)
    net = BertPreTraining(Bert(len(PIECES), layers=1, dim=16, heads=2, mlp_dim=32, positions=16)).eval()
    lines = [
        "the [MASK] sat on a [MASK] .",
        {"text": "a [MASK] sat", "options": ["snow leopards", "dog", "mat", "cats"]},
        "[MASK]",
    ]

    def answers(path: str) -> list[dict[str, object]]:
        batch = read(path, tokenizer)
        with torch.no_grad():
            outputs = net(batch["token_ids"], batch["segment_ids"], batch["packing"], batch["places"])
        return [{**row, "id": ""} for row in fill_in_rows(batch, outputs.words, tokenizer)]

    together = answers(written(tmp_path, *lines))
    alone = [row for line in lines for row in answers(written(tmp_path, line))]
    assert [len(row["words"]) for row in together] == [2, 1, 1]
    assert len(together[0]["words"][0]) == 5
    for one, other in zip(together, alone, strict=True):
        assert _rounded(one) == _rounded(other)


def _rounded(row: object) -> object:
    if isinstance(row, dict):
        return {key: _rounded(value) for key, value in row.items()}
    if isinstance(row, list):
        return [_rounded(value) for value in row]
    return round(row, 4) if isinstance(row, float) else row


def test_pairs_of_pre_training_are_filled_in_too(tokenizer: WordPiece) -> None:
    """Without a file, `predict` shows the words hidden in the test split, each at its own sequence."""
    ids = [2, 5, MASK, 3, 7, 3, 2, MASK, 3, MASK, 9, 3]
    logits = torch.zeros(3, len(PIECES))
    logits[[0, 1, 2], [6, 15, 8]] = 9.0
    batch = {"token_ids": torch.tensor(ids), "packing": pack(torch.tensor([6, 6])), "id": ["one", "other"]}
    batch["places"] = torch.tensor([2, 7, 9])
    one, other = fill_in_rows(batch, logits, tokenizer, k=1)
    assert one["text"] == "the [MASK] [SEP] sat"
    assert [[word["word"] for word in words] for words in one["words"]] == [["cat"]]
    assert [[word["word"] for word in words] for words in other["words"]] == [["dog"], ["on"]]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("the cat sat", r":2 has no \[MASK\]"),
        ("the [ MASK ] sat", r":2 has no \[MASK\]"),
        ("the [MASK] " + "cat " * 20, ":2 has 24 tokens, the longest sequence is of 16"),
        ({"text": "the [MASK] sat " * 3, "options": ["a", "cat"]}, r":2 has 3 \[MASK\], and options are for one"),
        ({"text": "a [MASK]", "options": ["cat", ""]}, ":2 has an empty option, ''"),
        ({"text": "a [MASK]", "options": ["cat", " "]}, ":2 has an empty option, ' '"),
        ({"text": "a [MASK]", "options": ["cat"]}, ":2: options are no list of two texts or more"),
        ({"text": "a [MASK]", "options": "cat"}, ":2: options are no list"),
        ({"text": "a [MASK]", "options": [1, 2]}, ":2: options are no list"),
        ({"text": "a [MASK]", "options": ["cat " * 14, "dog"]}, ":2 has 17 tokens"),
        ({"text": "a [MASK]", "choices": ["cat", "dog"]}, ":2 has keys text, choices"),
        ({"options": ["cat", "dog"]}, ":2 has keys options"),
        ('{"text": "a [MASK]"', ":2 is no JSON: "),
    ],
)
def test_a_wrong_line_is_named(line: str | dict[str, object], what: str, tmp_path: Path, tokenizer: WordPiece) -> None:
    """Breaks if a user has to look for it among thousands."""
    with pytest.raises(UserError, match=what):
        read(written(tmp_path, "the [MASK]", line), tokenizer)


def test_files_that_cannot_be_read(tmp_path: Path, tokenizer: WordPiece) -> None:
    """No such file, none of its lines a sentence, or another encoding: refused in words; a byte order mark is none."""
    with pytest.raises(UserError, match=r"nowhere\.txt cannot be read: No such file"):
        read(str(tmp_path / "nowhere.txt"), tokenizer)
    with pytest.raises(UserError, match="has no sentence"):
        read(written(tmp_path, "", "  "), tokenizer)
    path = tmp_path / "latin.txt"
    path.write_bytes("the [MASK]\nthe caf\xe9 [MASK]\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt:2 is no UTF-8: .* at byte 7"):
        read(str(path), tokenizer)
    path.write_bytes(b'\xef\xbb\xbf{"text": "the [MASK]"}\r\nthe [MASK]\r\n')
    assert tokens(read(str(path), tokenizer), tokenizer) == ["[CLS] the [MASK] [SEP]"] * 2


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({"text": "a [MASK] sat", "options": ["dog", "zzz"]}, "cannot tell the option 'zzz'"),
        ({"text": "a [MASK] sat", "options": ["dog", "Dog"]}, "cannot tell the option 'dog'"),
        ({"text": "a [MASK] sat", "options": ["dog", "[MASK]"]}, r"cannot tell the option '\[MASK\]'"),
    ],
)
def test_options_that_are_the_same_to_the_network_are_refused(
    line: dict[str, object], what: str, tmp_path: Path, tokenizer: WordPiece
) -> None:
    """Breaks if unknown words, all the same to the vocabulary, are ranked, and the first of them wins."""
    with pytest.raises(UserError, match=what):
        read(written(tmp_path, line), tokenizer)


@pytest.mark.parametrize("line", ["the [MASK] sat [MASK]", {"text": "a [MASK] sat", "options": ["dog", "cats"]}])
def test_a_left_to_right_network_says_one_piece(
    line: str | dict[str, object], tmp_path: Path, tokenizer: WordPiece
) -> None:
    """Breaks if it is asked what follows a [MASK], which it has never read."""
    with pytest.raises(UserError, match="asks for several pieces"):
        Sentences(written(tmp_path, line), tokenizer, NextWords(20), 16)
