"""Where samples come from: every data set of clips is one `VideoSource`, every one of images one `ImageSource`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

Split = Literal["train", "validation", "test"]


class Clip(NamedTuple):
    """One labelled stretch of video.

    Attributes:
        id: names the clip in reports and errors (a path relative to the root, say).
        frames: how many frames it has; frame indices run from 0 to frames - 1.
        labels: class index by head, in the source's order of heads.
    """

    id: str
    frames: int
    labels: dict[str, int]


class VideoSource(ABC):
    """Labelled clips in three splits; frames are read by index."""

    @property
    @abstractmethod
    def heads(self) -> dict[str, list[str]]:
        """Class names by head, in the order of the logits (one head called `class` unless the data has more)."""

    @abstractmethod
    def clips(self, split: Split) -> Sequence[Clip]:
        """The clips of a split.

        Raises:
            UserError: the split cannot be had (missing folder, empty manifest, too many corrupt files, wrong class count).
        """

    @abstractmethod
    def read(self, split: Split, index: int, frames: Sequence[int]) -> np.ndarray:
        """Frames of clip `index` of the split.

        Args:
            frames: frame indices in [0, clip.frames), not decreasing, repeats allowed.

        Returns:
            uint8 (t, h, w, 3), RGB.

        Raises:
            CorruptSample: the frames cannot be decoded.
        """


class LabelledImage(NamedTuple):
    """One labelled image.

    Attributes:
        id: names the image in reports and errors (a path relative to the root, say).
        label: class index.
    """

    id: str
    label: int


class ImageSource(ABC):
    """Labelled images in three splits; pixels are read by index."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Class names in the order of the logits."""

    @abstractmethod
    def images(self, split: Split) -> Sequence[LabelledImage]:
        """The images of a split; they are not opened yet.

        Raises:
            UserError: the split cannot be had (missing folder, no such column, wrong class count).
        """

    @abstractmethod
    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of the split: uint8 (h, w, 3), RGB.

        Raises:
            CorruptSample: it cannot be decoded.
        """
