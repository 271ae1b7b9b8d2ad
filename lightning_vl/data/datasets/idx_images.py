"""Images in MNIST's idx files: MNIST itself, Fashion-MNIST, KMNIST."""

import gzip
import os
import struct
import zlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from lightning_vl.data.datasets.tables import check_classes
from lightning_vl.data.source import ImageSource, LabelledImage, Split
from lightning_vl.data.subset import balanced_subset
from lightning_vl.errors import UserError

IMAGES, LABELS = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"
UNSIGNED_BYTE = 8  # idx's code for the type of its values


class IdxImages(ImageSource):
    """Images of a pair of idx files, as they are or gzipped: `train-images-idx3-ubyte.gz`, `t10k-labels-idx1-ubyte`, ...

    `t10k` is the test split. The data set has no validation split: some training images, the same number of each class,
    are kept for it. All images are held in memory, which loader processes share.

    Args:
        root: the folder of the four files.
        class_names: name of class 0, 1, ...
        validation_images: how many training images are for validation.
        split_seed: seed of their choice, which is part of the experiment.
    """

    def __init__(self, root: str, class_names: list[str], validation_images: int = 5000, split_seed: int = 0) -> None:
        self.root = root
        self._class_names = class_names
        self.validation_images = validation_images
        self.split_seed = split_seed

    @property
    def class_names(self) -> list[str]:
        """As given."""
        return self._class_names

    def images(self, split: Split) -> Sequence[LabelledImage]:
        """The images of a split.

        Raises:
            UserError: a file is missing, is damaged or no idx file, or its labels have no name.
        """
        return self._images[split]

    @cached_property
    def _images(self) -> dict[Split, list[LabelledImage]]:
        """All splits at once, so that a mistake in the test files is found before training."""
        return {
            split: [LabelledImage(f"{file}/{number:05d}", int(self._files[file][1][number])) for number in numbers]
            for split, (file, numbers) in self._splits.items()
        }

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of a split: uint8 (h, w, 3), three equal channels."""
        file, numbers = self._splits[split]
        return np.repeat(self._files[file][0][numbers[index]][..., None], 3, axis=-1)

    @cached_property
    def _splits(self) -> dict[Split, tuple[str, np.ndarray]]:
        """Which file each split is in, and which of its images."""
        labels = self._files["train"][1]
        if not 0 < self.validation_images < len(labels):
            raise UserError(
                f"validation_images is {self.validation_images}, there are {len(labels)} training images",
                f"give the source a number between 1 and {len(labels) - 1}",
            )
        validation = balanced_subset(labels, self.validation_images, self.split_seed)
        return {
            "train": ("train", np.setdiff1d(np.arange(len(labels)), validation)),
            "validation": ("train", validation),
            "test": ("t10k", np.arange(len(self._files["t10k"][1]))),
        }

    @cached_property
    def _files(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Images uint8 (n, h, w) and labels uint8 (n,) by file."""
        if not os.path.isdir(self.root):
            raise UserError(f"there is no folder {self.root}", "give the data's folder as the source's root")
        files = {name: self._pair(name) for name in ("train", "t10k")}
        used = sorted({int(label) for _, labels in files.values() for label in np.unique(labels)})
        check_classes(self.root, [str(label) for label in used], len(self.class_names))
        if used[-1] >= len(self.class_names):
            raise UserError(
                f"{self.root} has a class {used[-1]}, there are {len(self.class_names)} class_names",
                "give the source the name of class 0, 1, ...",
            )
        return files

    def _pair(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        images = read_idx(os.path.join(self.root, IMAGES.format(name)), 3)
        labels = read_idx(os.path.join(self.root, LABELS.format(name)), 1)
        if len(images) != len(labels):
            raise UserError(
                f"{self.root} has {len(images)} {name} images and {len(labels)} labels",
                "give files that belong together",
            )
        return images, labels


def read_idx(path: str, dimensions: int) -> np.ndarray:
    """Bytes in an idx file, as it is or gzipped under the same name and `.gz`.

    Args:
        path: the file, without `.gz`.
        dimensions: how many the array must have.

    Raises:
        UserError: no such file, no idx file of bytes, or one that is cut off or damaged.
    """
    opened = gzip.open if not os.path.exists(path) else open
    path = path if os.path.exists(path) else f"{path}.gz"
    try:
        with opened(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise UserError(
            f"there is no file {path.removesuffix('.gz')} and none with .gz", "put the set's four idx files there"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}", "fetch the file again") from error
    header = 4 * (1 + dimensions)
    if len(content) < header or content[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)):
        raise UserError(f"{path} is no idx file of bytes in {dimensions} dimensions", "give the set's own file")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != np.prod(shape):
        raise UserError(
            f"{path} should hold {shape} bytes and holds {len(content) - header}", "it is cut off: fetch the file again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
