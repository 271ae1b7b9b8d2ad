"""BERT's pre-training batches: pairs of segments with words hidden in them (Sec. 3.1, App. A.1 and A.2)."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from lightning_vl.data.documents import DocumentSource
from lightning_vl.data.masking import WordObjective
from lightning_vl.data.source import Split
from lightning_vl.data.stream import Batch, Key, KeyedDataset, Sample, SeededDataset, TrainingLoader, TrainingStream
from lightning_vl.data.text import TextData
from lightning_vl.data.token_store import TokenStore, token_store
from lightning_vl.data.tokenizer import Vocabulary, WordPiece, word_pieces
from lightning_vl.errors import UserError
from lightning_vl.nn.packing import Packing, pack
from lightning_vl.papers.bert.fill_in import Sentences, collate_sentences
from lightning_vl.papers.bert.pairs import NextSentencePairs, stored_pairs

SHORTEST = 8  # tokens of a sequence with two segments and something to tell a word from


class PreTrainingBatch(TypedDict):
    """What the task gets: b sequences in one line of t tokens, without padding.

    token_ids: int64 (t,), some of them [MASK].
    segment_ids: int64 (t,), 0 for [CLS] A [SEP], 1 for B [SEP].
    packing: where the sequences lie.
    places: int64 (m,) tokens of the line at which a word is to be said.
    words: int64 (m,) the right ones.
    next_sentence: int64 (b,), 0 where B follows A, 1 where it is a random one.
    id: b names, document/number of the pair.
    """

    token_ids: Tensor
    segment_ids: Tensor
    packing: Packing
    places: Tensor
    words: Tensor
    next_sentence: Tensor
    id: list[str]


@dataclass
class Phase:
    """A stretch of training with sequences of one length (App. A.2: 90 % of the steps at 128, the rest at 512).

    Args:
        length: the most tokens of a sequence.
        steps: optimiser steps.
    """

    length: int
    steps: int


class Pairs:
    """Sequences of one length over the documents of a split.

    Args:
        store: the documents' tokens.
        pairs: int64 (pairs, 5), see `NextSentencePairs.pack`.
        tokenizer: gives the special tokens.
        objective: what is asked of their words.
        mask_seed: with the number of the pair seeds what is asked, always the same; None asks anew each time.
        training: whether the network learns from them.
    """

    def __init__(
        self,
        store: TokenStore,
        pairs: np.ndarray,
        tokenizer: WordPiece,
        objective: WordObjective,
        mask_seed: Sequence[int] | None,
        training: bool,
    ) -> None:
        self.store = store
        self.pairs = pairs
        self.tokenizer = tokenizer
        self.objective = objective
        self.mask_seed = mask_seed
        self.training = training
        # the token at which each document begins
        self.documents = np.asarray(store.sentence_starts)[np.asarray(store.document_starts)]

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """`token_ids`, `lengths` of both segments, `places`, `words`, `next_sentence`, `id`."""
        a, a_end, b, b_end, random = self.pairs[index].tolist()
        first, length = a_end - a + 2, a_end - a + b_end - b + 3
        token_ids = np.empty(length, np.int64)  # [CLS] A [SEP] B [SEP]
        token_ids[0] = self.tokenizer.cls
        token_ids[1 : first - 1] = self.store.tokens[a:a_end]
        token_ids[first - 1] = self.tokenizer.sep
        token_ids[first:-1] = self.store.tokens[b:b_end]
        token_ids[-1] = self.tokenizer.sep
        if self.mask_seed is not None:
            rng = np.random.default_rng([*self.mask_seed, index])
        read, places, words = self.objective.prepare(token_ids, self.tokenizer, rng, self.training)
        document = int(np.searchsorted(self.documents, a, side="right")) - 1
        return {
            "token_ids": read,
            "lengths": (first, length - first),
            "places": places,
            "words": words,
            "next_sentence": random,
            "id": f"{self.store.document_ids[document]}/{index}",
        }


class PairsOfPhases:
    """The sequences of all phases of a training, one phase after another.

    Args:
        phases: of each its sequences.
    """

    def __init__(self, phases: Sequence[Pairs]) -> None:
        self.phases = phases
        self.first = [0, *accumulate(len(phase) for phase in phases)]  # number of each phase's first sequence

    def __len__(self) -> int:
        return self.first[-1]

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """See `Pairs`."""
        phase = bisect_right(self.first, index) - 1
        return self.phases[phase].sample(index - self.first[phase], rng)


class PhasedStream(TrainingStream):
    """A `TrainingStream` that goes through the phases of a training, each over all of its own sequences.

    Args:
        phases: of the training; their steps are its steps.
        first: number of each phase's first sequence, and last the number of all.
        batch_size: samples of one optimiser step.
        seed: the run's seed.
        rank: this process.
        world_size: number of processes.
        accumulate: micro-batches of one optimiser step.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        first: Sequence[int],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
    ) -> None:
        processes = (seed, rank, world_size, accumulate)
        super().__init__(first[-1], batch_size, sum(phase.steps for phase in phases), *processes)
        sizes = np.diff(first).tolist()
        self.phases = [
            TrainingStream(size, batch_size, phase.steps, *processes) for size, phase in zip(sizes, phases, strict=True)
        ]
        self.first = first
        self.begins = np.cumsum([0] + [phase.steps * batch_size for phase in phases]).tolist()  # positions

    def key(self, position: int) -> Key:
        """What stands at a position of the stream."""
        phase = bisect_right(self.begins, position) - 1
        epoch, index = self.phases[phase].key(position - self.begins[phase])
        return Key(epoch, self.first[phase] + index)


def collate(samples: Sequence[Sample]) -> PreTrainingBatch:
    """Samples of `Pairs` as one line of tokens."""
    segments = np.array([sample["lengths"] for sample in samples])  # (b, 2)
    lengths = segments.sum(1)
    begins = np.cumsum(lengths) - lengths
    places = np.concatenate([sample["places"] + begin for sample, begin in zip(samples, begins, strict=True)])
    return PreTrainingBatch(
        token_ids=torch.from_numpy(np.concatenate([sample["token_ids"] for sample in samples])),
        segment_ids=torch.from_numpy(np.tile([0, 1], len(samples)).repeat(segments.flatten())),
        packing=pack(torch.from_numpy(lengths)),
        places=torch.from_numpy(places),
        words=torch.from_numpy(np.concatenate([sample["words"] for sample in samples])),
        next_sentence=torch.tensor([sample["next_sentence"] for sample in samples]),
        id=[sample["id"] for sample in samples],
    )


class PreTrainingData(TextData):
    """Documents in three splits as BERT's pre-training sequences.

    Args:
        source: where the documents come from.
        vocabulary: the WordPieces.
        objective: what the network is asked about words.
        length: the most tokens of a sequence, [CLS] and [SEP] among them; with phases the last one's.
        batch_size: sequences of one optimiser step, over all devices and accumulated micro-batches.
        pairs: how documents become sequences; None for the released code's rules.
        duplicates: passes over the training documents that make up an epoch, each with pairs and masks of its own.
        dynamic: ask for other words of a training sequence in every epoch; otherwise they stay what they are, as in the paper.
        phases: lengths of training, one after another; None for `length` throughout.
        sentences: file for `predict`: texts with [MASK] to be filled in, see `Sentences`. None for the test split.
        evaluation_duplicates: passes over the documents of an evaluation; with several, small sets are told apart better.
        evaluation_batch_size: sequences of one forward pass in evaluation, on each device.
        workers: processes that read ahead, on each device.
        max_corrupt: largest share of sequences that may turn out unreadable before the run stops.
    """

    def __init__(
        self,
        source: DocumentSource,
        vocabulary: Vocabulary,
        objective: WordObjective,
        length: int,
        batch_size: int,
        pairs: NextSentencePairs | None = None,
        duplicates: int = 10,
        dynamic: bool = False,
        phases: list[Phase] | None = None,
        sentences: str | None = None,
        evaluation_duplicates: int = 1,
        evaluation_batch_size: int = 128,
        workers: int = 1,
        max_corrupt: float = 0.01,
    ) -> None:
        super().__init__(batch_size, evaluation_batch_size, workers, max_corrupt)
        self.source = source
        self.vocabulary = vocabulary
        self.objective = objective
        self.length = length
        self.pairs = pairs or NextSentencePairs()
        self.duplicates = duplicates
        self.evaluation_duplicates = evaluation_duplicates
        self.dynamic = dynamic
        self.phases = phases
        self.sentences = sentences
        self.stores: dict[Split, TokenStore] = {}

    @property
    def longest(self) -> int:
        """The most tokens of a sequence in any phase."""
        return max([self.length, *(phase.length for phase in self.phases or ())])

    def setup(self, stage: str) -> None:
        """The vocabulary, then the data sets; see `DataModule`."""
        self._check()
        if not hasattr(self, "tokenizer"):
            self.tokenizer = word_pieces(self.vocabulary.tokenizer(self.source))
        if stage == "predict" and self.sentences is not None:
            self.datasets = {"test": Sentences(self.sentences, self.tokenizer, self.objective, self.length)}
        else:
            super().setup(stage)
        if stage == "fit":
            self._store("test")  # what is wrong with the test's documents is found before training, too

    def _check(self) -> None:
        shortest = min([self.length, *(phase.length for phase in self.phases or ())])
        if shortest < SHORTEST:
            raise UserError(
                f"sequences of {shortest} tokens are too short for [CLS] A [SEP] B [SEP]",
                f"set data.init_args.length, and that of every phase, to {SHORTEST} or more",
            )
        for name, passes in (("duplicates", self.duplicates), ("evaluation_duplicates", self.evaluation_duplicates)):
            if passes < 1:
                raise UserError(f"{name} is {passes}", f"set data.init_args.{name} to 1 or more")
        if self.phases is None:
            return
        if not self.phases or min(phase.steps for phase in self.phases) < 1:
            raise UserError("a phase without steps", "give every one of data.init_args.phases its steps, 1 or more")
        if self.phases[-1].length != self.length:
            raise UserError(
                f"length is {self.length}, the last phase's is {self.phases[-1].length}",
                "give data.init_args.length the last phase's: evaluation is at this length",
            )

    def dataset(self, split: Split) -> SeededDataset:
        """Training sequences of all phases; evaluation sequences, whose masks the seed fixes."""
        store = self._store(split)
        if split != "train":
            return self._pairs(split, store, self.length)
        return PairsOfPhases([self._pairs(split, store, length) for length in self._lengths])

    @property
    def _lengths(self) -> list[int]:
        return [self.length] if self.phases is None else [phase.length for phase in self.phases]

    def _store(self, split: Split) -> TokenStore:
        if split not in self.stores:
            self.stores[split] = token_store(self.source, split, self.tokenizer)
        return self.stores[split]

    def _pairs(self, split: Split, store: TokenStore, length: int) -> Pairs:
        training = split == "train"
        duplicates = self.duplicates if training else self.evaluation_duplicates
        try:
            pairs = stored_pairs(store, self.pairs, length, duplicates, self.seed)
        except UserError as error:
            raise UserError(f"{split} split: {error.what}", error.how) from error
        return Pairs(
            store,
            pairs,
            self.tokenizer,
            self.objective,
            mask_seed=None if training and self.dynamic else (self.seed, length, int(training)),
            training=training,
        )

    def train_dataloader(self) -> TrainingLoader:
        """The run's stream from its first to its last step, through its phases."""
        trainer = self._trainer
        if trainer.max_steps < 1:
            raise UserError("trainer.max_steps is not set", "say how long to train: --trainer.max_steps 1000")
        dataset = self.datasets["train"]
        phases = self.phases or [Phase(self.length, trainer.max_steps)]
        steps = sum(phase.steps for phase in phases)
        if steps != trainer.max_steps:
            raise UserError(
                f"the phases have {steps} steps, trainer.max_steps is {trainer.max_steps}",
                f"set --trainer.max_steps {steps}, or change the steps of data.init_args.phases",
            )
        stream = PhasedStream(
            phases,
            dataset.first,
            self.batch_size,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            trainer.accumulate_grad_batches,
        )
        keyed = KeyedDataset(dataset, self.collate, self.seed, replace_corrupt=True)
        return TrainingLoader(keyed, stream, self.workers, self._pin_memory)

    def collate(self, samples: list[Sample]) -> Batch:
        """See `collate`, and `collate_sentences` for sentences to be filled in."""
        return collate_sentences(samples) if "sentence" in samples[0] else dict(collate(samples))

    def baselines(self) -> dict[str, float]:
        """What is reached without reading: the commonest word of the training documents for each word asked for, the
        perplexity of their distribution (every piece counted once more), and the larger class of next sentences."""
        counts = np.ones(len(self.tokenizer))
        tokens = self._store("train").tokens
        for begin in range(0, len(tokens), 1 << 24):
            counts += np.bincount(tokens[begin : begin + (1 << 24)], minlength=len(counts))
        test = self.datasets["test"]
        rng = np.random.default_rng(0)  # not drawn from: masks are fixed
        words = np.concatenate([test.sample(index, rng)["words"] for index in range(len(test))])
        random = float(test.pairs[:, 4].mean())
        return {
            "unigram_accuracy": float((words == counts.argmax()).mean()),
            "unigram_perplexity": float(np.exp(-np.log(counts / counts.sum())[words].mean())),
            "next_sentence_majority": max(random, 1 - random),
        }
