"""The order in which samples are seen: one endless stream, a pure function of the seed, cut into steps.

Position p of the stream is sample `permutation(seed, epoch)[p % length]` of epoch `p // length`. An optimiser step takes the
next `batch_size` positions, whatever the number of processes and accumulated micro-batches: they only share the positions
out. So the same step sees the same samples on one device and on eight, in one epoch every sample is seen exactly once, and a
run is resumed by its position alone. All randomness of a sample (crop, flip, masking) comes from (seed, epoch, index): the
number of workers cannot change it.
"""

import atexit
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_vl.errors import CorruptSample, UserError

Sample = dict[str, Any]
Batch = dict[str, Any]


class Key(NamedTuple):
    """Names one draw of one sample: its randomness is seeded with both."""

    epoch: int
    index: int  # type: ignore[assignment]  # a tuple has a method of this name


class SeededDataset(Protocol):
    """A data set whose randomness comes from outside."""

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Sample `index`; raises `CorruptSample` where it cannot be read."""
        ...


Collate = Callable[[list[Sample]], Batch]


class KeyedDataset(Dataset):
    """Makes whole batches out of keys, in the worker.

    Args:
        dataset: gives the samples.
        collate: makes a batch of samples.
        seed: the run's seed.
        replace_corrupt: put the next readable sample in the place of an unreadable one (training: batches keep their size)
            instead of leaving it out (evaluation: nothing counts twice).
    """

    def __init__(self, dataset: SeededDataset, collate: Collate, seed: int, replace_corrupt: bool) -> None:
        self.dataset = dataset
        self.collate = collate
        self.seed = seed
        self.replace_corrupt = replace_corrupt

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: list[Key]) -> Batch:
        """The batch of these keys; what could not be read is listed under `skipped`."""
        samples: list[Sample] = []
        skipped: list[str] = []
        for key in keys:
            self._read(Key(*key), samples, skipped)
        batch = self.collate(samples) if samples else {"id": []}
        batch["skipped"] = skipped
        return batch

    def _read(self, key: Key, samples: list[Sample], skipped: list[str]) -> None:
        attempts = len(self.dataset) if self.replace_corrupt else 1
        for attempt in range(attempts):
            index = (key.index + attempt) % len(self.dataset)
            try:
                samples.append(self.draw(key.epoch, index, np.random.default_rng([self.seed, key.epoch, index])))
            except CorruptSample as error:
                skipped.append(str(error))
            else:
                return

    def draw(self, epoch: int, index: int, rng: np.random.Generator) -> Sample:
        """Sample `index`, the same image in every epoch."""
        return self.dataset.sample(index, rng)


class TrainingStream(Sampler[list[Key]]):
    """The keys of this process's micro-batches, from a position on.

    Args:
        length: samples of the data set.
        batch_size: samples of one optimiser step, over all processes and accumulated micro-batches.
        steps: optimiser steps of the run.
        seed: the run's seed.
        rank: this process.
        world_size: number of processes.
        accumulate: micro-batches of one optimiser step.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        steps: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
    ) -> None:
        if batch_size > length:
            raise UserError(
                f"a step takes {batch_size} samples and the training data has {length}",
                f"lower data.init_args.batch_size to {length} or less, or give more data",
            )
        if batch_size % (world_size * accumulate):
            raise UserError(
                f"batch_size {batch_size} cannot be shared out to {world_size} processes x {accumulate} micro-batches",
                "choose devices and trainer.accumulate_grad_batches whose product divides data.init_args.batch_size",
            )
        self.length = length
        self.micro_batch = batch_size // (world_size * accumulate)
        self.micro_batches = steps * accumulate
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.start = 0  # micro-batches already seen

    def __len__(self) -> int:
        return self.micro_batches

    def __iter__(self) -> Iterator[list[Key]]:
        for number in range(self.start, self.micro_batches):
            first = (number * self.world_size + self.rank) * self.micro_batch
            yield [self.key(position) for position in range(first, first + self.micro_batch)]

    def key(self, position: int) -> Key:
        """What stands at a position of the stream."""
        epoch, offset = divmod(position, self.length)
        return Key(epoch, int(_permutation(self.length, self.seed, epoch)[offset]))


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(length)


class TrainingLoader(DataLoader):
    """A loader over a `TrainingStream` that knows, and can be set to, its position.

    The position counts what was handed out, not what workers have read ahead.
    """

    def __init__(self, dataset: KeyedDataset, stream: TrainingStream, workers: int, pin_memory: bool) -> None:
        super().__init__(
            dataset,
            batch_sampler=stream,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            persistent_workers=False,
            worker_init_fn=leave_signals_to_the_parent,
        )
        self.stream = stream
        self.handed_out = 0
        self.seconds_waited = 0.0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.stream.start = self.handed_out
        batches = super().__iter__()
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.seconds_waited += time.perf_counter() - asked
            if batch is None:
                return
            self.handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Seed and position, in samples of the whole stream: another number of processes may go on from it."""
        return {
            "seed": self.stream.seed,
            "position": self.handed_out * self.stream.micro_batch * self.stream.world_size,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from a saved position."""
        if state["seed"] != self.stream.seed:
            raise UserError(
                f"the checkpoint's samples were drawn with seed {state['seed']}, this run has seed {self.stream.seed}",
                f"go on with --seed_everything {state['seed']}, or start a new run",
            )
        self.handed_out = state["position"] // (self.stream.micro_batch * self.stream.world_size)


class EvaluationKeys(Sampler[list[Key]]):
    """Every sample once: shared out over the processes without padding, so nothing counts twice."""

    def __init__(self, length: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, length, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for first in range(0, len(self.indices), self.batch_size):
            yield [Key(0, index) for index in self.indices[first : first + self.batch_size]]


def evaluation_loader(dataset: KeyedDataset, keys: EvaluationKeys, workers: int, pin_memory: bool) -> DataLoader:
    """A loader that reads every key once, in order."""
    return DataLoader(
        dataset,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_the_parent,
    )


def _as_it_is(batch: Any) -> Batch:
    return batch  # KeyedDataset has collated it


@atexit.register
def end_workers() -> None:
    """After an error workers may still be there; at exit Python asks them by SIGTERM, which they leave to their parent."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def leave_signals_to_the_parent(worker: int) -> None:
    """A signal to the terminal's or the job's processes reaches all: workers go on, and the parent decides when to stop."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
