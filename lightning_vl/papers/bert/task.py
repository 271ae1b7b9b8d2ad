"""BERT's pre-training: masked words and next sentences (Sec. 3.1), or words from left to right (Sec. 5.1)."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torchmetrics import Metric

from lightning_vl.data.stream import Batch
from lightning_vl.data.tokenizer import TextTokenizer
from lightning_vl.errors import UserError
from lightning_vl.evaluation.examples import Example
from lightning_vl.objectives import classification, masked_words
from lightning_vl.optim import Schedule
from lightning_vl.papers.bert.convert import BertInitialisation, stored_vocabulary
from lightning_vl.papers.bert.data import PreTrainingData
from lightning_vl.papers.bert.fill_in import fill_in_rows
from lightning_vl.papers.bert.model import Bert, BertPreTraining, PreTrainingOutput
from lightning_vl.task import Task


class PreTrainingMetrics(Metric):
    """Accuracy and perplexity of the words asked for, accuracy of next sentences, and the loss that both make.

    Means are over words, not over batches: neither batch size nor processes change them.

    Names: `loss` in nats, `word_accuracy`, `word_perplexity` and, with that head, `next_sentence_accuracy`.

    Args:
        next_sentence: whether the network says anything of next sentences.
    """

    full_state_update = False
    words: Tensor  # number, right ones, negative log-likelihood in nats
    sentences: Tensor  # likewise

    def __init__(self, next_sentence: bool) -> None:
        super().__init__()
        self.next_sentence = next_sentence
        self.add_state("words", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("sentences", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: PreTrainingOutput, batch: Mapping[str, Any]) -> None:
        """Counts a batch."""
        self.words += _counted(outputs.words, batch["words"])
        if outputs.next_sentence is not None:
            self.sentences += _counted(outputs.next_sentence, batch["next_sentence"])

    def compute(self) -> dict[str, Tensor]:
        """By name; nan where nothing was counted."""
        loss = self.words[2] / self.words[0]
        values = {"word_accuracy": self.words[1] / self.words[0], "word_perplexity": loss.exp()}
        if self.next_sentence:
            loss = loss + self.sentences[2] / self.sentences[0]
            values["next_sentence_accuracy"] = self.sentences[1] / self.sentences[0]
        return {name: value.float() for name, value in ({"loss": loss} | values).items()}


def _counted(logits: Tensor, answers: Tensor) -> Tensor:
    """(3,): how many, how many right, negative log-likelihood in nats."""
    right = (logits.argmax(-1) == answers).sum()
    loss = masked_words(logits.float(), answers)
    return torch.stack([loss.new_full((), len(answers)), right, loss])


class BertPreTrainingTask(Task):
    """The sum of the mean losses of the masked words and of the next sentences.

    Args:
        net: BERT with its pre-training heads.
        optimizer: Adam without bias correction in the released code.
        schedule: a warm-up laid over a line in the released code.
        init_from: a file whose weights training starts from.
    """

    net: BertPreTraining
    unit = "sequences"

    def __init__(
        self,
        net: BertPreTraining,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        init_from: BertInitialisation | None = None,
    ) -> None:
        metrics = {prefix: PreTrainingMetrics(net.next_sentence is not None) for prefix in ("val", "test")}
        super().__init__(net, optimizer, schedule, init_from, metrics)

    def setup(self, stage: str) -> None:
        """The network must have a row for every piece and every place of the data, and have learnt the same pieces."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, PreTrainingData):
            if self.from_weights and isinstance(self.init_from, BertInitialisation):
                check_vocabulary(self.init_from.path, data.tokenizer)
            check_fit(self.net.bert, len(data.tokenizer), data.longest)
        super().setup(stage)

    def forward(self, batch: Batch) -> PreTrainingOutput:
        """Packed sequences (t,)."""
        return self.net(batch["token_ids"], batch["segment_ids"], batch["packing"], batch["places"])

    def losses(self, batch: Batch, outputs: PreTrainingOutput) -> dict[str, Tensor]:
        """`words` and, with that head, `next_sentence`: nats."""
        total = masked_words(outputs.words.float(), batch["words"])
        words = total.new_full((), len(batch["words"]))
        if self.training and self.trainer.world_size > 1:
            # processes have unequal numbers of words, and gradients are averaged over processes
            counts = self.all_gather(words)
            assert isinstance(counts, Tensor)
            words = counts.mean()
        losses = {"words": total / words.clamp(min=1)}
        if outputs.next_sentence is not None:
            losses["next_sentence"] = classification(outputs.next_sentence, batch["next_sentence"])
        return losses

    def predictions(self, batch: Batch, outputs: PreTrainingOutput) -> list[dict[str, Any]]:
        """For each text the likeliest words at its masked places, and how well given options fit."""
        return fill_in_rows(batch, outputs.words, self.trainer.datamodule.tokenizer)  # type: ignore[attr-defined]

    def examples(self, batch: Batch, outputs: PreTrainingOutput) -> list[Example]:
        """The first word asked for of each sequence, in what the network has read."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, PreTrainingData):
            return []
        tokenizer, packing = data.tokenizer, batch["packing"]
        probabilities, said = outputs.words.float().softmax(-1).max(-1)
        sequence = torch.bucketize(batch["places"], packing.last.contiguous())
        examples = []
        for i, id in enumerate(batch["id"]):
            asked = (sequence == i).nonzero().flatten().tolist()
            if not asked:
                continue
            word = asked[0]
            read = batch["token_ids"][packing.first[i] : packing.last[i] + 1].tolist()
            place = int(batch["places"][word] - packing.first[i]) + (not self.net.bert.bidirectional)
            pieces = [tokenizer.pieces[piece] for piece in read]
            pieces[place] = f"<<{pieces[place]}>>"
            near = " ".join(pieces[max(0, place - 12) : place + 13])
            truth, answer = (tokenizer.pieces[int(piece)] for piece in (batch["words"][word], said[word]))
            examples.append(Example(id, near, truth, answer, float(probabilities[word])))
        return examples


def check_fit(net: Bert, vocabulary_size: int, longest: int) -> None:
    """The network must have a row for every piece and every place of the data.

    Raises:
        UserError: it has not.
    """
    if vocabulary_size != net.vocabulary_size:
        raise UserError(
            f"the network reads {net.vocabulary_size} pieces, the vocabulary has {vocabulary_size}",
            f"give the network's bert vocabulary_size {vocabulary_size}, or the data the vocabulary it was made for",
        )
    if longest > net.longest:
        raise UserError(
            f"the data has sequences of {longest} tokens, the network positions for {net.longest}",
            f"lower the data's length to {net.longest}, or give the network's bert positions {longest}",
        )


def check_vocabulary(path: str, tokenizer: TextTokenizer) -> None:
    """A checkpoint of ours that says its vocabulary must be given that; another's file says none.

    Raises:
        UserError: the file cannot be read, or its vocabulary is another one.
    """
    stored = stored_vocabulary(path)
    if stored is not None and stored != tokenizer.stored():
        raise UserError(
            f"the weights in {path} were trained with another vocabulary than the data's",
            "take the checkpoint's: a data.init_args.vocabulary with class_path CheckpointVocabulary and the same path",
        )
