"""BERT's data side against a plain `datasets` and transformers pipeline, in one process: tokens a second, ratio printed.

    PYTHONPATH=. python benchmarks/bert_data.py                              # CPython's manual, ten times over
    PYTHONPATH=. python benchmarks/bert_data.py wiki.txt books.txt           # UTF-8; a blank line ends a document
    PYTHONPATH=. python benchmarks/bert_data.py --length 512 --batch-size 64 --out bert_data.json

Parts:
    preparation  text to sequences, once before training. Ours: `token_store` and `stored_pairs`, pairs of segments. Theirs:
                 `Dataset.map` with transformers' tokenizer of the same vocabulary, and a second map that cuts the tokens
                 of many documents into sequences, without pairs (as transformers' run_mlm example does).
    training     batches, as a step gets them. Ours: the loader of `PreTrainingData`, with masks that stay (static) or change
                 with every epoch (dynamic). Theirs: a shuffling DataLoader with DataCollatorForLanguageModeling, which
                 masks dynamically.

Ratio: our tokens a second over theirs, so above 1.0 ours is faster; special tokens count, padding does not. Neither has
worker processes, and the tokenizers have one thread.
"""

import argparse
import contextlib
import io
import json
import os
import re
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from timing import Bench, Run
from torch.utils.data import DataLoader
from transformers import BertTokenizer, DataCollatorForLanguageModeling

from lightning_vl.cli import quiet
from lightning_vl.data.datasets.python_manual import PythonManual
from lightning_vl.data.documents import SPLITS, Document, DocumentSource, Punctuation
from lightning_vl.data.masking import MaskedWords, predictions
from lightning_vl.data.source import Split
from lightning_vl.data.stream import KeyedDataset, TrainingLoader, TrainingStream
from lightning_vl.data.token_store import token_store
from lightning_vl.data.tokenizer import WordPiece, train_pieces
from lightning_vl.papers.bert.data import Pairs, collate
from lightning_vl.papers.bert.pairs import NextSentencePairs, stored_pairs
from lightning_vl.run import device_name

Row = dict[str, Any]
VOCABULARY = 8192
SEED = 0


class Texts(DocumentSource):
    """Documents in memory, so that reading files is not timed.

    Args:
        documents: all of them are the training split.
        name: says that these are others than those before.
    """

    def __init__(self, documents: list[Document], name: str) -> None:
        self.all = documents
        self.name = name

    def documents(self, split: Split) -> Iterator[Document]:
        return iter(self.all)

    def fingerprint(self, split: Split) -> str:
        return self.name


def read(files: list[Path], repeat: int) -> list[Document]:
    """The files' documents, or the manual's, so many times."""
    if files:
        blocks = [block for file in files for block in re.split(r"\n\s*\n", file.read_text(encoding="utf-8"))]
        documents = [Document("", sentences) for sentences in map(Punctuation().sentences, blocks) if sentences]
    else:
        documents = [document for split in SPLITS for document in PythonManual().documents(split)]
    return [Document(str(number), each.sentences) for number, each in enumerate(documents * repeat)]


class Ours:
    """Our pipeline."""

    def __init__(self, documents: list[Document], tokenizer: WordPiece, length: int, batch_size: int) -> None:
        self.documents = documents
        self.tokenizer = tokenizer
        self.length = length
        self.batch_size = batch_size
        self.prepared = 0

    def prepare(self) -> int:
        """Text to sequences, anew at every call. Gives their tokens."""
        self.prepared += 1
        self.store = token_store(Texts(self.documents, str(self.prepared)), "train", self.tokenizer)
        self.pairs = stored_pairs(self.store, NextSentencePairs(), self.length, duplicates=1, seed=SEED)
        return int((self.pairs[:, 1] - self.pairs[:, 0] + self.pairs[:, 3] - self.pairs[:, 2] + 3).sum())

    def batches(self, dynamic: bool) -> Iterator[int]:
        """The tokens of each batch of an epoch."""
        asked = MaskedWords(predictions(self.length, 0.15, self.length))
        pairs = Pairs(
            self.store, self.pairs, self.tokenizer, asked, None if dynamic else (SEED, self.length, 1), training=True
        )
        keyed = KeyedDataset(pairs, lambda samples: dict(collate(samples)), SEED, replace_corrupt=True)
        stream = TrainingStream(len(pairs), self.batch_size, len(pairs) // self.batch_size, SEED)
        for batch in TrainingLoader(keyed, stream, workers=0, pin_memory=False):
            yield len(batch["token_ids"])


class Theirs:
    """The plain pipeline."""

    def __init__(self, documents: list[Document], tokenizer: WordPiece, length: int, batch_size: int) -> None:
        self.texts = datasets.Dataset.from_dict({"text": [" ".join(document.sentences) for document in documents]})
        vocabulary = {piece: id for id, piece in enumerate(tokenizer.pieces)}
        self.tokenizer = BertTokenizer(vocabulary, do_lower_case=tokenizer.lowercase)
        self.length = length
        self.batch_size = batch_size

    def prepare(self) -> int:
        """Text to sequences. Gives their tokens."""
        tokens = self.texts.map(
            lambda rows: self.tokenizer(rows["text"], return_special_tokens_mask=True),
            batched=True,
            remove_columns="text",
            load_from_cache_file=False,
        )
        self.sequences = tokens.map(self.cut, batched=True, load_from_cache_file=False)
        return len(self.sequences) * self.length

    def cut(self, rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        """Documents end to end, cut at the length; what is left over is dropped."""
        lines = {name: [item for row in column for item in row] for name, column in rows.items()}
        whole = len(lines["input_ids"]) // self.length * self.length
        return {
            name: [line[start : start + self.length] for start in range(0, whole, self.length)]
            for name, line in lines.items()
        }

    def batches(self) -> Iterator[int]:
        """The tokens of each batch of an epoch."""
        collator = DataCollatorForLanguageModeling(self.tokenizer)
        loader = DataLoader(self.sequences, self.batch_size, shuffle=True, drop_last=True, collate_fn=collator)
        for batch in loader:
            yield int(batch["attention_mask"].sum())


def first(batches: Iterable[int], number: int) -> int:
    """The tokens of so many batches, or of all there are."""
    return sum(tokens for _, tokens in zip(range(number), batches, strict=False))


def rows(bench: Bench, ours: Ours, theirs: Theirs, batches: int) -> Iterator[Row]:
    """Both parts; their training batches are timed beside each of ours."""
    plain = "theirs", lambda: first(theirs.batches(), batches)
    parts: dict[str, dict[str, Run]] = {
        "preparation": {"ours": ours.prepare, "theirs": theirs.prepare},
        "training, static": {"ours": lambda: first(ours.batches(dynamic=False), batches), **dict([plain])},
        "training, dynamic": {"ours": lambda: first(ours.batches(dynamic=True), batches), **dict([plain])},
    }
    for name, rivals in parts.items():
        tokens = {rival: run() for rival, run in rivals.items()}
        times = bench.times(rivals)
        rates = {rival: [tokens[rival] / seconds for seconds in times[rival]] for rival in rivals}
        ratios = [our / their for our, their in zip(rates["ours"], rates["theirs"], strict=True)]
        yield {
            "part": name,
            "ratio": statistics.median(ratios),
            "ratio_quartiles": statistics.quantiles(ratios)[::2] if len(ratios) > 1 else ratios * 2,
            "ours_tokens_per_second": statistics.median(rates["ours"]),
            "theirs_tokens_per_second": statistics.median(rates["theirs"]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="UTF-8 texts; CPython's manual if none is given")
    parser.add_argument("--repeat", type=int, default=10, help="how many times over the texts are taken")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=50, help="of each timed pass, at most")
    parser.add_argument("--passes", type=int, default=5, help="timed passes of each")
    parser.add_argument("--out", type=Path, help="write a .json record too")
    arguments = parser.parse_args()
    quiet()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    documents = read(arguments.files, arguments.repeat)
    tokenizer = WordPiece(
        train_pieces(lambda: (line for each in documents for line in each.sentences), VOCABULARY, True)
    )
    bench = Bench(torch.device("cpu"), "fp32", arguments.passes)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIGHTNING_VL_CACHE"] = folder
        sizes = (arguments.length, arguments.batch_size)
        ours, theirs = Ours(documents, tokenizer, *sizes), Theirs(documents, tokenizer, *sizes)
        load = os.getloadavg()[0]
        with contextlib.redirect_stderr(io.StringIO()):  # what each preparation says of its documents
            timed = list(rows(bench, ours, theirs, arguments.batches))
    about = {
        "device": device_name("cpu"),
        "texts": ", ".join(file.name for file in arguments.files) or "CPython's manual",
        "documents": len(documents),
        "length": arguments.length,
        "batch_size": arguments.batch_size,
        "datasets": datasets.__version__,
        "transformers": transformers.__version__,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],  # before and after, of the whole machine
    }
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for row in timed:
        low, high = row["ratio_quartiles"]
        print(
            f"{row['part']:<18} ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f}); tokens/s:"
            f" ours {row['ours_tokens_per_second']:,.0f}, theirs {row['theirs_tokens_per_second']:,.0f}"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps({**about, "rows": timed}))


if __name__ == "__main__":
    main()
