"""The order of samples: a pure function of the seed, the same for any number of processes, workers and restarts."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from lightning_vl.data.stream import (
    EvaluationKeys,
    Key,
    KeyedDataset,
    TrainingLoader,
    TrainingStream,
    evaluation_loader,
)
from lightning_vl.errors import CorruptSample, UserError


class Numbers:
    """A data set of indices with a random number each; some cannot be read."""

    def __init__(self, length: int, corrupt: tuple[int, ...] = ()) -> None:
        self.length = length
        self.corrupt = corrupt

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        if index in self.corrupt:
            raise CorruptSample(f"item {index}", "torn")
        return {"id": index, "drawn": float(rng.random())}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Lists."""
    return {key: [s[key] for s in samples] for key in ("id", "drawn")}


def read(stream: TrainingStream, dataset: Numbers, workers: int = 0, start: int = 0) -> list[dict[str, Any]]:
    """All batches from a position on."""
    loader = TrainingLoader(KeyedDataset(dataset, collate, stream.seed, True), stream, workers, pin_memory=False)
    loader.handed_out = start
    return list(loader)


def test_every_sample_once_an_epoch_over_ranks_workers_and_an_interruption() -> None:
    """Breaks if ranks overlap, a worker repeats, or a restart skips or repeats: the ledger of an epoch has every id once."""
    length, batch, steps = 60, 12, 5
    ledger: Counter[int] = Counter()
    for rank in range(2):
        stream = TrainingStream(length, batch, steps, seed=3, rank=rank, world_size=2)
        loader = TrainingLoader(KeyedDataset(Numbers(length), collate, 3, True), stream, 2, pin_memory=False)
        for batch_number, data in enumerate(loader):
            ledger.update(data["id"])
            if batch_number == 1:
                break  # workers have read ahead; the state must not count that
        state = loader.state_dict()
        stream = TrainingStream(length, batch, steps, seed=3, rank=rank, world_size=2)
        loader = TrainingLoader(KeyedDataset(Numbers(length), collate, 3, True), stream, 2, pin_memory=False)
        loader.load_state_dict(state)
        for data in loader:
            ledger.update(data["id"])
    assert ledger == Counter(range(length))


def test_a_batch_may_straddle_epochs_without_losing_a_sample() -> None:
    """Breaks if the rest of an epoch is dropped: 3 steps of 10 over 15 samples are exactly two epochs."""
    stream = TrainingStream(15, 10, 3, seed=0)
    keys = [key for batch in stream for key in batch]
    assert Counter(key.index for key in keys[:15]) == Counter(range(15))
    assert Counter(key.index for key in keys[15:]) == Counter(range(15))
    assert [key.epoch for key in keys] == [0] * 15 + [1] * 15
    assert [key.index for key in keys[:15]] != [key.index for key in keys[15:]]


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_a_step_sees_the_same_samples_however_they_are_shared_out(world_size: int, accumulate: int) -> None:
    """Breaks if devices or accumulation change the science: step k is the same set of samples."""
    steps, batch = 4, 12
    seen = [[] for _ in range(steps)]
    for rank in range(world_size):
        stream = TrainingStream(50, batch, steps, 7, rank, world_size, accumulate)
        for number, keys in enumerate(stream):
            seen[number // accumulate] += keys
    plain = list(TrainingStream(50, batch, steps, 7))
    assert [sorted(keys) for keys in seen] == [sorted(keys) for keys in plain]


def test_workers_do_not_change_what_is_drawn() -> None:
    """Breaks if randomness comes from a worker's own generator."""
    stream = TrainingStream(20, 4, 8, seed=5)
    assert read(stream, Numbers(20), workers=0) == read(stream, Numbers(20), workers=2)


def test_randomness_differs_between_epochs_and_seeds() -> None:
    """Breaks if augmentation repeats every epoch or ignores the seed."""
    first = read(TrainingStream(4, 4, 2, seed=0), Numbers(4))
    drawn = [dict(zip(batch["id"], batch["drawn"], strict=True)) for batch in first]
    assert all(drawn[0][i] != drawn[1][i] for i in range(4))
    assert read(TrainingStream(4, 4, 2, seed=1), Numbers(4)) != first


def test_a_run_goes_on_with_another_number_of_processes() -> None:
    """Breaks if the saved position is in batches of one process."""
    stream = TrainingStream(40, 8, 5, seed=0)
    loader = TrainingLoader(KeyedDataset(Numbers(40), collate, 0, True), stream, 0, pin_memory=False)
    whole = [sorted(batch["id"]) for batch in loader]
    loader = TrainingLoader(KeyedDataset(Numbers(40), collate, 0, True), TrainingStream(40, 8, 5, 0), 0, False)
    for number, _ in enumerate(loader):
        if number == 1:
            break
    state = loader.state_dict()
    rest: list[list[int]] = [[] for _ in range(3)]
    for rank in range(2):
        stream = TrainingStream(40, 8, 5, 0, rank, 2)
        loader = TrainingLoader(KeyedDataset(Numbers(40), collate, 0, True), stream, 0, False)
        loader.load_state_dict(state)
        for number, batch in enumerate(loader):
            rest[number] += batch["id"]
    assert [sorted(ids) for ids in rest] == whole[2:]


def test_another_seed_is_refused_on_resume() -> None:
    """Breaks if a run silently goes on with another order."""
    loader = TrainingLoader(KeyedDataset(Numbers(8), collate, 1, True), TrainingStream(8, 4, 2, 1), 0, False)
    with pytest.raises(UserError, match="seed 0, this run has seed 1"):
        loader.load_state_dict({"seed": 0, "position": 4})


def test_what_cannot_be_read_is_replaced_in_training_and_left_out_in_evaluation() -> None:
    """Breaks if batches shrink in training, or a neighbour counts twice in evaluation."""
    dataset = Numbers(10, corrupt=(3, 4))
    keys = [Key(0, 2), Key(0, 3)]
    training = KeyedDataset(dataset, collate, 0, replace_corrupt=True).__getitems__(keys)
    assert training["id"] == [2, 5]
    assert training["skipped"] == ["item 3: torn", "item 4: torn"]
    evaluation = KeyedDataset(dataset, collate, 0, replace_corrupt=False).__getitems__(keys)
    assert evaluation["id"] == [2]
    assert evaluation["skipped"] == ["item 3: torn"]
    nothing = KeyedDataset(dataset, collate, 0, replace_corrupt=False).__getitems__([Key(0, 3), Key(0, 4)])
    assert nothing["id"] == []


def test_evaluation_counts_seven_samples_on_two_ranks_once_each() -> None:
    """Breaks if an uneven last batch is padded."""
    ids = []
    for rank in range(2):
        keys = EvaluationKeys(7, 2, rank, 2)
        loader = evaluation_loader(KeyedDataset(Numbers(7), collate, 0, False), keys, 0, False)
        batches = list(loader)
        assert len(batches) == len(keys) == 2
        ids += [i for batch in batches for i in batch["id"]]
    assert sorted(ids) == list(range(7))


@pytest.mark.parametrize(
    ("length", "batch", "world", "message"),
    [(10, 16, 1, "takes 16 samples and the training data has 10"), (100, 9, 2, "cannot be shared out to 2 processes")],
)
def test_impossible_batches_are_refused_before_training(length: int, batch: int, world: int, message: str) -> None:
    """Breaks if a batch larger than the data, or one that processes cannot share, is found out late."""
    with pytest.raises(UserError, match=message):
        TrainingStream(length, batch, 10, 0, 0, world)
