"""MedMNIST's two-dimensional sets, of the files that it publishes (https://medmnist.com)."""

import os
import zlib
from collections.abc import Sequence
from functools import cached_property
from zipfile import BadZipFile

import numpy as np

from lightning_vl.data.datasets.clip_benchmark import several
from lightning_vl.data.source import ImageSource, LabelledImage, Split
from lightning_vl.errors import UserError
from lightning_vl.evaluation.zero_shot import MultiLabelledImage, MultiLabelSource

FILE_SPLITS: dict[Split, str] = {"train": "train", "validation": "val", "test": "test"}


class MedMnist(ImageSource):
    """One of the sets with one label an image, at any of its sizes.

    Args:
        path: the file, `pathmnist.npz` or `pathmnist_224.npz` say.
        names: the name of class 0, 1, ...; the file has none.
    """

    def __init__(self, path: str, names: list[str]) -> None:
        self.arrays = Arrays(path)
        self.names = names

    @property
    def class_names(self) -> list[str]:
        """As given."""
        return self.names

    def images(self, split: Split) -> Sequence[LabelledImage]:
        """The images of a split.

        Raises:
            UserError: no such file, or labels that are not one an image and among the classes.
        """
        return self._images[split]

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of the split: uint8 (h, w, 3), RGB."""
        return self.arrays.image(split, index)

    @cached_property
    def _images(self) -> dict[Split, list[LabelledImage]]:
        splits: dict[Split, list[LabelledImage]] = {}
        for split in FILE_SPLITS:
            labels = self.arrays.labels(split)
            if labels.shape[1] != 1 or (len(labels) and not 0 <= labels.min() <= labels.max() < len(self.names)):
                raise UserError(
                    f"the labels of {self.arrays.path} are not one of {len(self.names)} classes an image",
                    "check that the file is the one of the set",
                )
            splits[split] = [LabelledImage(f"{split}/{row}", int(label)) for row, (label,) in enumerate(labels)]
        return splits


class MedMnistMultiLabel(MultiLabelSource):
    """ChestMNIST, whose images may show several findings, or none.

    Args:
        path: the file, `chestmnist.npz` say.
        names: the name of class 0, 1, ...; the file has none.
    """

    def __init__(self, path: str, names: list[str]) -> None:
        self.arrays = Arrays(path)
        self.names = names

    @property
    def class_names(self) -> list[str]:
        """As given."""
        return self.names

    def images(self, split: Split) -> Sequence[MultiLabelledImage]:
        """The images of a split.

        Raises:
            UserError: no such file, or labels that have not one entry a class.
        """
        return self._images[split]

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of the split: uint8 (h, w, 3), RGB."""
        return self.arrays.image(split, index)

    @cached_property
    def _images(self) -> dict[Split, list[MultiLabelledImage]]:
        splits: dict[Split, list[MultiLabelledImage]] = {}
        for split in FILE_SPLITS:
            labels = self.arrays.labels(split)
            if labels.shape[1] != len(self.names):
                raise UserError(
                    f"the labels of {self.arrays.path} are {labels.shape[1]} an image, there are {len(self.names)} classes",
                    "check that the file is the one of the set",
                )
            splits[split] = [several(f"{split}/{row}", label) for row, label in enumerate(labels)]
        return splits


class Arrays:
    """The arrays of a file, each read once, when it is asked for.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._arrays: dict[str, np.ndarray] = {}

    def labels(self, split: Split) -> np.ndarray:
        """Integers (n, number of labels)."""
        labels = self._array(f"{FILE_SPLITS[split]}_labels")
        return labels.reshape(len(labels), -1)

    def image(self, split: Split, index: int) -> np.ndarray:
        """uint8 (h, w, 3); of grey images the three channels are equal."""
        image = self._array(f"{FILE_SPLITS[split]}_images")[index]
        return np.repeat(image[..., None], 3, axis=-1) if image.ndim == 2 else np.array(image)

    def _array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            if not os.path.isfile(self.path):
                raise UserError(f"there is no file {self.path}", "give MedMNIST's .npz file of the set")
            try:
                with np.load(self.path, allow_pickle=False) as file:
                    self._arrays[name] = file[name]
            except (ValueError, KeyError, TypeError, OSError, EOFError, BadZipFile, zlib.error) as error:
                raise UserError(
                    f"{self.path} has no array {name} ({' '.join(str(error).split())})", "fetch the set's file again"
                ) from error
        return self._arrays[name]
