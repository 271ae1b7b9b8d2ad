"""Training data without random access: each epoch is read from its start to its end, in an order of its own.

The stream of `stream.py` stays what it is, position p of epoch p // length, but place and sample are one: what stands at a
place is what the source gives there. Every process reads the whole epoch and keeps what is its own, so processes and
workers share samples out without repeats, their number changes nothing, and a run is resumed by its position alone. The
price: each worker of each process reads (and downloads) all encoded images, though it decodes its own only, and a resumed
run first reads on to where it stopped.
"""

from abc import ABC, abstractmethod

import numpy as np

from lightning_vl.data.source import ImageSource, LabelledImage
from lightning_vl.data.stream import Key, KeyedDataset, Sample, TrainingStream


class StreamedSource(ImageSource):
    """A source of images whose training split can only be read in order; the other two are as in any."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Images of an epoch."""

    @abstractmethod
    def read_in_order(self, seed: int, epoch: int, index: int) -> tuple[LabelledImage, np.ndarray]:
        """Training image number `index` of an epoch: its name and label, uint8 (h, w, 3).

        It is cheap where the last one asked for was of the same epoch and not after it; otherwise the epoch is read anew.

        Raises:
            CorruptSample: it cannot be decoded, or the epoch has ended.
        """


class StreamedDataset(ABC):
    """`SeededDataset` of a `StreamedSource`."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sample_in_order(self, seed: int, epoch: int, index: int, rng: np.random.Generator) -> Sample:
        """Sample `index` of an epoch; raises `CorruptSample` where it cannot be read."""


class StreamedKeys(TrainingStream):
    """A `TrainingStream` that leaves the order to the source."""

    def key(self, position: int) -> Key:
        """What stands at a position of the stream."""
        return Key(*divmod(position, self.length))


class StreamedKeyedDataset(KeyedDataset):
    """A `KeyedDataset` that is asked in the order of `StreamedKeys`."""

    dataset: StreamedDataset  # type: ignore[assignment]

    def draw(self, epoch: int, index: int, rng: np.random.Generator) -> Sample:
        """Sample `index` of an epoch."""
        return self.dataset.sample_in_order(self.seed, epoch, index, rng)
