"""Images that are decoded once."""

from collections.abc import Sequence

import numpy as np

from lightning_vl.data.source import ImageSource, LabelledImage, Split


class InMemory(ImageSource):
    """Another source whose images stay in memory once they were read: for small images and many epochs.

    A JPEG of 32 px takes longer to decode than a small network takes to learn from it. Nothing is read ahead, so a run
    that sees few images pays for few. Each loader process keeps what it has read itself: data.init_args.workers 0 keeps
    every image once, and is fastest here.

    Args:
        source: where the images come from.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.kept: dict[tuple[Split, int], np.ndarray] = {}

    @property
    def class_names(self) -> list[str]:
        """Those of the source."""
        return self.source.class_names

    def images(self, split: Split) -> Sequence[LabelledImage]:
        """Those of the source."""
        return self.source.images(split)

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of the split: uint8 (h, w, 3), RGB; not to be written to.

        Raises:
            CorruptSample: it cannot be decoded.
        """
        image = self.kept.get((split, index))
        if image is None:
            image = self.kept[split, index] = self.source.read(split, index)
        return image
