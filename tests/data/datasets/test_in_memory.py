"""Images that are decoded once."""

import numpy as np
import pytest

from lightning_vl.data.datasets.in_memory import InMemory
from lightning_vl.data.source import ImageSource, LabelledImage, Split
from lightning_vl.errors import CorruptSample


class Counted(ImageSource):
    """Three images in each split that count how often they are read; the last is unreadable."""

    def __init__(self) -> None:
        self.reads: list[tuple[Split, int]] = []

    @property
    def class_names(self) -> list[str]:
        return ["a", "b"]

    def images(self, split: Split) -> list[LabelledImage]:
        return [LabelledImage(f"{split}/{i}", i % 2) for i in range(3)]

    def read(self, split: Split, index: int) -> np.ndarray:
        self.reads.append((split, index))
        if index == 2:
            raise CorruptSample(f"{split}/2", "torn")
        return np.full((2, 2, 3), index + 10 * (split == "test"), np.uint8)


def test_each_image_is_read_once() -> None:
    """Breaks if splits are mixed up, or the source is asked again; what is unreadable stays so."""
    inner = Counted()
    source = InMemory(inner)
    assert source.class_names == inner.class_names
    assert source.images("train") == inner.images("train")
    assert inner.reads == []
    for _ in range(3):
        assert [int(source.read(split, index)[0, 0, 0]) for split in ("train", "test") for index in (0, 1)] == [
            0,
            1,
            10,
            11,
        ]
    assert len(inner.reads) == 4
    for _ in range(2):
        with pytest.raises(CorruptSample, match="torn"):
            source.read("train", 2)
