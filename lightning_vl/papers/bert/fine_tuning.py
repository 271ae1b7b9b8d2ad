"""BERT's fine-tuning on single sentences and pairs (Sec. 4.1): the batches and the task."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, TypedDict

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_vl.data.labelled_text import LabelledText, LabelledTextSource
from lightning_vl.data.source import Split
from lightning_vl.data.stream import Batch, Sample
from lightning_vl.data.text import TextData
from lightning_vl.data.tokenizer import Vocabulary, WordPiece, word_pieces
from lightning_vl.errors import CorruptSample, UserError
from lightning_vl.evaluation.bag_of_words import bag_of_words
from lightning_vl.evaluation.examples import Example
from lightning_vl.evaluation.sentence_metrics import SentenceMetrics
from lightning_vl.nn.packing import Packing, pack
from lightning_vl.objectives import classification
from lightning_vl.optim import Schedule
from lightning_vl.papers.bert.convert import BertInitialisation
from lightning_vl.papers.bert.model import BertClassifier, ClassifierOutput
from lightning_vl.papers.bert.task import check_fit, check_vocabulary
from lightning_vl.task import Task
from lightning_vl.terminal import say

SHORTEST = 5  # tokens of [CLS] A [SEP] B [SEP] with a word each


class SentenceBatch(TypedDict):
    """What the task gets: b sequences in one line of t tokens, without padding.

    token_ids: int64 (t,).
    segment_ids: int64 (t,), 0 for [CLS] A [SEP], 1 for B [SEP].
    packing: where the sequences lie.
    label: class index, int64 (b,).
    id: b names.
    """

    token_ids: Tensor
    segment_ids: Tensor
    packing: Packing
    label: Tensor
    id: list[str]


def cut_pair(first: list[int], second: list[int], most: int) -> tuple[list[int], list[int]]:
    """Takes tokens from the end of the longer text, of the second when they are equally long (the released code).

    Args:
        first: tokens of the first text.
        second: tokens of the second.
        most: how many both together may have.
    """
    a, b = len(first), len(second)
    while a + b > most:
        if a > b:
            a -= 1
        else:
            b -= 1
    return first[:a], second[:b]


class TokenisedTexts:
    """Labelled texts as BERT's inputs, [CLS] A [SEP] or [CLS] A [SEP] B [SEP]; tokenised once.

    Args:
        texts: the texts.
        tokenizer: their WordPieces.
        length: the most tokens of a sequence; longer ones are cut at the end, pairs where they are longer.

    Attributes:
        cut: how many texts were too long.
    """

    def __init__(self, texts: Sequence[LabelledText], tokenizer: WordPiece, length: int) -> None:
        self.texts = texts
        firsts = tokenizer.encode_batch([text.first for text in texts])
        seconds = iter(tokenizer.encode_batch([text.second for text in texts if text.second is not None]))
        self.lengths = np.zeros(
            (len(texts), 2), np.int64
        )  # tokens of both segments; 0 where a text has none of its own
        self.cut = 0
        line: list[np.ndarray] = []
        for row, (text, first) in enumerate(zip(texts, firsts, strict=True)):
            second = None if text.second is None else next(seconds)
            if not first or second == []:
                continue
            whole = len(first) + 2 if second is None else len(first) + len(second) + 3  # with [CLS] and [SEP]
            self.cut += whole > length
            if second is None:
                a, b = [tokenizer.cls, *first[: length - 2], tokenizer.sep], []
            else:
                first, second = cut_pair(first, second, length - 3)
                a, b = [tokenizer.cls, *first, tokenizer.sep], [*second, tokenizer.sep]
            self.lengths[row] = len(a), len(b)
            line.append(np.array(a + b, np.int32))
        self.token_ids = np.concatenate(line) if line else np.empty(0, np.int32)
        self.starts = [0, *accumulate(self.lengths.sum(1).tolist())]

    def __len__(self) -> int:
        return len(self.texts)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """`token_ids`, `lengths` of both segments, `label`, `id`; nothing is drawn from `rng`.

        Raises:
            CorruptSample: a text has no words.
        """
        text = self.texts[index]
        if not self.lengths[index].any():
            raise CorruptSample(text.id, "there are no words in it")
        return {
            "token_ids": self.token_ids[self.starts[index] : self.starts[index + 1]],
            "lengths": self.lengths[index],
            "label": text.label,
            "id": text.id,
        }


def collate(samples: Sequence[Sample]) -> SentenceBatch:
    """Samples of `TokenisedTexts` as one line of tokens."""
    lengths = np.stack([sample["lengths"] for sample in samples])  # (b, 2)
    return SentenceBatch(
        token_ids=torch.from_numpy(np.concatenate([sample["token_ids"] for sample in samples])).long(),
        segment_ids=torch.from_numpy(np.tile([0, 1], len(samples)).repeat(lengths.flatten())),
        packing=pack(torch.from_numpy(lengths.sum(1))),
        label=torch.tensor([sample["label"] for sample in samples]),
        id=[sample["id"] for sample in samples],
    )


class SentenceData(TextData):
    """Labelled sentences or pairs in three splits for BERT.

    A text without words, or a pair one of whose texts has none, is skipped and counted.

    Args:
        source: where the texts come from.
        vocabulary: the WordPieces, of the network that is fine-tuned; one that is trained needs a source of its own.
        length: the most tokens of a sequence, [CLS] and [SEP] among them; longer ones are cut and counted, see
            `TokenisedTexts`.
        batch_size: texts of one optimiser step, over all devices and accumulated micro-batches.
        evaluation_batch_size: texts of one forward pass in evaluation, on each device.
        workers: processes that read ahead, on each device; there is little to do for one.
        max_corrupt: largest share of texts that may have no words before the run stops.
    """

    tokenizer: WordPiece  # once it is set up

    def __init__(
        self,
        source: LabelledTextSource,
        vocabulary: Vocabulary,
        length: int,
        batch_size: int,
        evaluation_batch_size: int = 128,
        workers: int = 0,
        max_corrupt: float = 0.01,
    ) -> None:
        super().__init__(batch_size, evaluation_batch_size, workers, max_corrupt)
        self.source = source
        self.vocabulary = vocabulary
        self.length = length

    def setup(self, stage: str) -> None:
        """The vocabulary, then the data sets; see `DataModule`."""
        if self.length < SHORTEST:
            raise UserError(
                f"sequences of {self.length} tokens are too short for [CLS] A [SEP] B [SEP]",
                f"set data.init_args.length to {SHORTEST} or more",
            )
        if not hasattr(self, "tokenizer"):
            self.tokenizer = word_pieces(self.vocabulary.tokenizer(None))
        super().setup(stage)

    def dataset(self, split: Split) -> TokenisedTexts:
        """The split's texts, tokenised; a line says how many were too long."""
        texts = TokenisedTexts(self.source.texts(split), self.tokenizer, self.length)
        if texts.cut:
            say(f"{split}: {texts.cut:,} of {len(texts):,} texts have more than {self.length} tokens and were cut")
        return texts

    def collate(self, samples: list[Sample]) -> Batch:
        """See `collate`."""
        return dict(collate(samples))

    def baselines(self) -> dict[str, float]:
        """On the test texts: `bag_of_words` trained on all training texts, and the training texts' most frequent class."""
        from sklearn.metrics import accuracy_score, matthews_corrcoef

        train, test = (self._readable(split) for split in ("train", "test"))
        labels = np.array([text.label for text in test])
        said = bag_of_words(train, test)
        majority = np.bincount([text.label for text in train]).argmax()
        return {
            "majority_accuracy": float((labels == majority).mean()),
            "bag_of_words_accuracy": float(accuracy_score(labels, said)),
            "bag_of_words_matthews": float(matthews_corrcoef(labels, said)),
        }

    def _readable(self, split: Split) -> list[LabelledText]:
        """The texts that the network sees, too."""
        if split not in self.datasets:  # a test by itself has no training texts yet
            self.datasets[split] = self.dataset(split)
        dataset: TokenisedTexts = self.datasets[split]
        return [text for text, lengths in zip(dataset.texts, dataset.lengths, strict=True) if lengths.any()]


class BertSentenceMetrics(SentenceMetrics):
    """`SentenceMetrics` of what a fine-tuned BERT gives."""

    def update(self, outputs: ClassifierOutput, batch: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Counts a batch."""
        super().update(outputs.logits, batch["label"])


class BertClassificationTask(Task):
    """Cross-entropy of one label a sentence or pair; all weights are fine-tuned (Sec. 4.1).

    Args:
        net: BERT with a classifier.
        optimizer: Adam with weight decay in the paper (App. A.3).
        schedule: linear warm-up and decay in the released code.
        init_from: a file whose encoder and pooler training starts from; the classifier starts anew.
    """

    net: BertClassifier
    unit = "texts"

    def __init__(
        self,
        net: BertClassifier,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        init_from: BertInitialisation | None = None,
    ) -> None:
        metrics = {prefix: BertSentenceMetrics(net.classes) for prefix in ("val", "test")}
        super().__init__(net, optimizer, schedule, init_from, metrics)

    def setup(self, stage: str) -> None:
        """Classes, vocabulary and length must be the data's, and the vocabulary that of the weights to start from."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, SentenceData):
            names = data.source.class_names
            if len(names) != self.net.classes:
                raise UserError(
                    f"the network has {self.net.classes} classes, the data {len(names)}",
                    f"set --model.init_args.net.init_args.classes {len(names)}",
                )
            if self.from_weights and isinstance(self.init_from, BertInitialisation):
                check_vocabulary(self.init_from.path, data.tokenizer)
            check_fit(self.net.bert, len(data.tokenizer), data.length)
        super().setup(stage)

    def forward(self, batch: Batch) -> ClassifierOutput:
        """Packed sequences (t,)."""
        return self.net(batch["token_ids"], batch["segment_ids"], batch["packing"])

    def losses(self, batch: Batch, outputs: ClassifierOutput) -> dict[str, Tensor]:
        """`classification`, nats."""
        return {"classification": classification(outputs.logits, batch["label"])}

    def predictions(self, batch: Batch, outputs: ClassifierOutput) -> list[dict[str, Any]]:
        """For each text its id and all classes with probabilities, the likeliest first."""
        values, indices = outputs.logits.float().softmax(-1).sort(descending=True)
        names = self._class_names
        return [
            {"id": id, "class": [{"class": names[i], "probability": p} for i, p in zip(index, value, strict=True)]}
            for id, value, index in zip(batch["id"], values.tolist(), indices.tolist(), strict=True)
        ]

    def examples(self, batch: Batch, outputs: ClassifierOutput) -> list[Example]:
        """Each text, as the network has read it, with the first answer."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, SentenceData):
            return []
        packing, names = batch["packing"], self._class_names
        values, indices = outputs.logits.float().softmax(-1).max(-1)
        examples = []
        for i, id in enumerate(batch["id"]):
            read = batch["token_ids"][
                packing.first[i] + 1 : packing.last[i]
            ].tolist()  # without [CLS] and the last [SEP]
            truth, said = names[batch["label"][i]], names[indices[i]]
            examples.append(Example(id, data.tokenizer.decode(read), truth, said, float(values[i])))
        return examples

    @property
    def _class_names(self) -> list[str]:
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, SentenceData):
            return data.source.class_names
        return [str(i) for i in range(self.net.classes)]
