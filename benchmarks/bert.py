"""BERT against transformers' with the same weights, in one process: turn by turn, ratios printed.

    PYTHONPATH=. python benchmarks/bert.py                                           # a tiny network, on whatever is here
    PYTHONPATH=. python benchmarks/bert.py --size base --lengths 128 512             # the paper's
    PYTHONPATH=. python benchmarks/bert.py --texts sst2/train.tsv --out bert.json    # lengths of real sentences; the record as a file

Batches:
    full         pre-training, every sequence has the whole length, 15 % of it asked for (19 of 128, 77 of 512)
    pairs        pre-training, lengths as the released code builds its pairs: 90 % whole, 10 % evenly shorter
    sentences    pre-training on single sentences
    fine-tuning  a classifier of two classes on the same sentences
Of each, a training step (forward, loss, backward, AdamW) and an evaluation (forward and loss, no gradients).

transformers gets what its collators make: sequences padded to the batch's longest, an attention mask, labels of -100 where
no word is asked for. Ours gets the packed line. Before any timing, and without dropout, losses of both must agree.
Ratio: their time over ours of one pass over the same batches, so above 1.0 ours is faster; the median of all turns, with
the quartiles. FLOP/s count what the paper's network needs: no padding, words only where asked for.
"""

import argparse
import csv
import json
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from timing import Bench, Run
from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining, BertForSequenceClassification

from lightning_vl.cli import quiet
from lightning_vl.data.tokenizer import WordPiece, train_pieces
from lightning_vl.nn.packing import Packing, pack
from lightning_vl.objectives import classification, masked_words
from lightning_vl.papers.bert.convert import from_transformers
from lightning_vl.papers.bert.model import Bert, BertClassifier, BertPreTraining
from lightning_vl.run import device_name

Row = dict[str, Any]
Loss = Callable[[], Tensor]
PRECISIONS = ("fp32", "bf16")
MODES = ("eager", "compiled")
BATCHES = ("full", "pairs", "sentences", "fine-tuning")
MIXED = 4  # batches of different lengths in a pass
CLASSES = 2
IGNORED = -100  # what transformers' collator writes where no word is asked for


class Size(NamedTuple):
    layers: int
    dim: int
    heads: int
    batch_size: int
    repeats: int


SIZES = {
    "tiny": Size(2, 128, 2, batch_size=16, repeats=11),
    "mini": Size(4, 256, 4, batch_size=16, repeats=11),
    "base": Size(12, 768, 12, batch_size=8, repeats=7),
}
VOCABULARY = 30522
POSITIONS = 512


class Batch(NamedTuple):
    """The same sequences for both.

    Attributes:
        token_ids: (t,) of the packed line.
        segment_ids: (t,).
        packing: where the sequences lie.
        places: (m,) tokens of the line at which words are asked for.
        words: (m,) the right ones.
        answers: (b,) next sentence or class.
        padded: what transformers' networks are called with.
    """

    token_ids: Tensor
    segment_ids: Tensor
    packing: Packing
    places: Tensor
    words: Tensor
    answers: Tensor
    padded: dict[str, Tensor]


def batch_of(lengths: Tensor, classify: bool, device: torch.device) -> Batch:
    """Random words in sequences of these lengths, the second half of each a segment of its own."""
    packing = pack(lengths)
    inside = torch.arange(packing.longest) < lengths[:, None]  # (b, n)
    token_ids = torch.randint(1000, VOCABULARY, (int(lengths.sum()),))
    segment_ids = (packing.positions >= (lengths // 2).repeat_interleave(lengths)).long()
    asked = (0.15 * lengths).round().long().clamp(min=1)
    order = torch.rand(inside.shape).masked_fill(~inside, 2).argsort().argsort()  # a random order of each one's tokens
    places = packing.unpad(order < asked[:, None]).nonzero().squeeze(1)
    words = torch.randint(1000, VOCABULARY, places.shape)
    answers = torch.randint(2, lengths.shape)
    labels = torch.full_like(token_ids, IGNORED)
    labels[places] = words
    padded = {
        "input_ids": packing.pad(token_ids).where(inside, 0),
        "token_type_ids": packing.pad(segment_ids).where(inside, 0),
        "attention_mask": inside.long(),
    }
    if classify:
        padded |= {"labels": answers}
    else:
        padded |= {"labels": packing.pad(labels).where(inside, IGNORED), "next_sentence_label": answers}
    on = [tensor.to(device) for tensor in (token_ids, segment_ids, places, words, answers)]
    moved = Packing(*(None if field is None else field.to(device) for field in packing))
    return Batch(*on[:2], moved, *on[2:], {name: tensor.to(device) for name, tensor in padded.items()})


def lengths_of_pairs(number: int, length: int) -> Tensor:
    """The released code shortens one document in ten to between 2 tokens and all, beside [CLS] and both [SEP]."""
    shorter = 3 + torch.randint(2, length - 2, (number,))
    return torch.where(torch.rand(number) < 0.1, shorter, length)


def lengths_of_sentences(number: int, length: int, texts: str | None) -> Tensor:
    """[CLS], a sentence, [SEP]: of a table of texts, or geometric with a mean of 15 tokens, from 5 to 60."""
    if texts is None:
        lengths = (5 - 10 * torch.rand(number).log()).long().clamp(max=60)
    else:
        lengths = lengths_in(texts)
        lengths = lengths[torch.randint(len(lengths), (number,))]
    return lengths.clamp(max=length)


def lengths_in(table: str) -> Tensor:
    """Of the first column of a .tsv with a header, in pieces of a vocabulary that is trained on it."""
    with open(table, encoding="utf-8", newline="") as file:
        texts = [row[0] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)][1:]
    tokenizer = WordPiece(train_pieces(lambda: texts, VOCABULARY, lowercase=True))
    return torch.tensor([2 + len(ids) for ids in tokenizer.encode_batch(texts)])


@dataclass(frozen=True)
class BertBench(Bench):
    """All networks have this size.

    Attributes:
        size: of the networks.
        batch_size: sequences.
        texts: a table of texts that lengths of sentences are taken from.
    """

    size: Size
    batch_size: int
    texts: str | None

    def networks(self, classify: bool) -> tuple[BertPreTraining | BertClassifier, nn.Module]:
        """Ours and transformers' with the same weights."""
        torch.manual_seed(0)
        s = self.size
        config = BertConfig(
            vocab_size=VOCABULARY,
            num_hidden_layers=s.layers,
            hidden_size=s.dim,
            num_attention_heads=s.heads,
            intermediate_size=4 * s.dim,
            max_position_embeddings=POSITIONS,
            num_labels=CLASSES,
        )
        theirs: nn.Module = BertForSequenceClassification(config) if classify else BertForPreTraining(config)
        bert = Bert(VOCABULARY, s.layers, s.dim, s.heads, 4 * s.dim, POSITIONS, gelu_approximation="none")
        ours = BertClassifier(bert, CLASSES) if classify else BertPreTraining(bert)
        ours.load_state_dict(from_transformers(theirs.state_dict()))
        return ours.to(self.device), theirs.to(self.device)

    def batches(self, kind: str, length: int) -> list[Batch]:
        torch.manual_seed(1)
        if kind == "full":
            lengths = torch.full((1, self.batch_size), length)
        elif kind == "pairs":
            lengths = lengths_of_pairs(MIXED * self.batch_size, length).view(MIXED, -1)
        else:
            lengths = lengths_of_sentences(MIXED * self.batch_size, length, self.texts).view(MIXED, -1)
        return [batch_of(each, kind == "fine-tuning", self.device) for each in lengths]

    def run(self, what: str, net: nn.Module, losses: list[Loss]) -> Run:
        """What is timed of a network: one pass over the batches."""
        net.train(what == "training step")
        if what == "training step":
            return self.steps(torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.01, fused=True), losses)

        def run() -> None:
            with torch.inference_mode(), self.autocast():
                for loss in losses:
                    loss()

        return run

    def multiply_adds(self, batches: list[Batch], classify: bool) -> int:
        """Of the forward pass over the batches, as the paper's network needs them."""
        s, counted = self.size, 0
        for batch in batches:
            tokens, sequences, words = len(batch.token_ids), len(batch.answers), len(batch.words)
            seen = int((batch.padded["attention_mask"].sum(1) ** 2).sum())  # pairs of query and key
            counted += s.layers * (12 * tokens * s.dim**2 + 2 * seen * s.dim)
            counted += sequences * (s.dim**2 + CLASSES * s.dim)
            counted += 0 if classify else words * (s.dim**2 + VOCABULARY * s.dim)
        return counted


def our_loss(net: BertPreTraining | BertClassifier, batch: Batch) -> Tensor:
    if isinstance(net, BertClassifier):
        return classification(net(batch.token_ids, batch.segment_ids, batch.packing).logits, batch.answers)
    outputs = net(batch.token_ids, batch.segment_ids, batch.packing, batch.places)
    assert outputs.next_sentence is not None
    words = masked_words(outputs.words, batch.words) / len(batch.words)
    return words + classification(outputs.next_sentence, batch.answers)


def check(ours: list[Loss], theirs: list[Loss]) -> None:
    """The same losses, in whatever precision torch's matrix products have."""
    with torch.inference_mode():
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our(), their(), atol=1e-3, rtol=1e-4)


def peers(bench: BertBench, kind: str, length: int, modes: list[str]) -> Iterator[Row]:
    """Training step and evaluation of both, in each mode."""
    classify = kind == "fine-tuning"
    batches = bench.batches(kind, length)
    tokens = sum(len(batch.token_ids) for batch in batches)
    padded = sum(batch.padded["input_ids"].numel() for batch in batches)
    ours, theirs = bench.networks(classify)
    losses: dict[str, list[Loss]] = {
        "ours": [lambda batch=batch: our_loss(ours, batch) for batch in batches],
        "theirs": [lambda batch=batch: theirs(**batch.padded).loss for batch in batches],
    }
    ours.eval()
    theirs.eval()
    check(**losses)
    for how in modes:
        if how == "compiled":
            ours.compile()
            theirs.compile()
        for what, passes in (("training step", 3), ("evaluation", 1)):  # a backward pass is two forward passes
            times = bench.times(
                {name: bench.run(what, net, losses[name]) for name, net in (("ours", ours), ("theirs", theirs))}
            )
            ratios = [their / our for our, their in zip(times["ours"], times["theirs"], strict=True)]
            seconds = {name: statistics.median(values) for name, values in times.items()}
            yield {
                "batches": kind,
                "length": length,
                "what": what,
                "mode": how,
                "precision": bench.precision,
                "ratio": statistics.median(ratios),
                "ratio_quartiles": statistics.quantiles(ratios)[::2] if len(ratios) > 1 else ratios * 2,
                "aim": 1.0 if kind == "full" else 1.3,
                "ours_ms": 1e3 * seconds["ours"],
                "theirs_ms": 1e3 * seconds["theirs"],
                "padding": 1 - tokens / padded,
                "tokens_per_second": tokens / seconds["ours"],
                "flops_per_second": 2 * passes * bench.multiply_adds(batches, classify) / seconds["ours"],
            }
    torch.compiler.reset()


def print_table(header: str, rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "what", "padding", "ratio", "quartiles", "aim", "ours ms", "theirs ms", "tokens/s", "GFLOP/s", box=None
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for each in rows:
        low, high = each["ratio_quartiles"]
        table.add_row(
            f"{each['batches']} {each['length']}, {each['what']}, {each['mode']}, {each['precision']}",
            f"{each['padding']:.0%}",
            f"{each['ratio']:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{each['aim']:.1f}",
            f"{each['ours_ms']:.1f}",
            f"{each['theirs_ms']:.1f}",
            f"{each['tokens_per_second']:,.0f}",
            f"{each['flops_per_second'] / 1e9:,.0f}",
        )
    console = Console(width=140)
    console.print(header)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batches", nargs="+", choices=BATCHES, default=BATCHES)
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=[128], help="of full and pairs; sentences are shorter"
    )
    parser.add_argument("--texts", help="a .tsv with a header and texts in its first column, for lengths of sentences")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--batch-size", type=int, help="sequences in a batch; the size has its own")
    parser.add_argument("--repeats", type=int, help="timed passes of each; the size has its own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU; all cores if not given")
    parser.add_argument("--out", type=Path, help="write a .json record too")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    quiet()
    torch.set_float32_matmul_precision("high")  # as the command does
    device, size = torch.device(arguments.device), SIZES[arguments.size]
    batch_size, repeats = arguments.batch_size or size.batch_size, arguments.repeats or size.repeats
    cases = [
        (kind, length)
        for kind in arguments.batches
        for length in (arguments.lengths if kind in ("full", "pairs") else arguments.lengths[:1])
    ]
    about: Row = {
        "device": device_name(device.type),
        "size": arguments.size,
        "batch_size": batch_size,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "load": [round(os.getloadavg()[0], 1)],
    }
    rows = []
    for precision in arguments.precision:
        bench = BertBench(device, precision, repeats, size, batch_size, arguments.texts)
        for kind, length in cases:
            rows += peers(bench, kind, length, arguments.modes)
    about["load"].append(round(os.getloadavg()[0], 1))  # before and after, of the whole machine
    print_table(", ".join(f"{name} {value}" for name, value in about.items()), rows)
    if arguments.out:
        arguments.out.write_text(
            json.dumps({**about, "texts": arguments.texts and Path(arguments.texts).name, "rows": rows})
        )


if __name__ == "__main__":
    main()
