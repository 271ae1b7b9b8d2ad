"""PASCAL VOC 2007 as its archives unpack: `ImageSets/Main/<class>_<split>.txt` and `JPEGImages/<image>.jpg`."""

import os
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from lightning_vl.data.datasets.image_folder import read_image
from lightning_vl.data.datasets.tables import check_classes, open_list
from lightning_vl.data.source import Split
from lightning_vl.errors import CorruptSample, UserError
from lightning_vl.evaluation.zero_shot import MultiLabelledImage, MultiLabelSource

LISTS = os.path.join("ImageSets", "Main")
NAMES: dict[Split, str] = {"train": "train", "validation": "val", "test": "test"}  # of the splits
VALUES = ("1", "0", "-1")  # it shows the class, it shows it so badly that it does not count, it does not show it


class Voc2007(MultiLabelSource):
    """Photographs that show one or more of twenty classes.

    Args:
        root: the folder of `ImageSets` and `JPEGImages`, or the `VOCdevkit` around it.
        classes: how many classes there must be; None for no matter.
    """

    def __init__(self, root: str, classes: int | None = None) -> None:
        inner = os.path.join(root, "VOC2007")
        self.root = inner if os.path.isdir(inner) else root
        self.classes = classes
        self._splits: dict[Split, list[MultiLabelledImage]] = {}

    @staticmethod
    def is_at(root: str) -> bool:
        """Whether a folder has this form."""
        return any(os.path.isdir(os.path.join(root, inner, LISTS)) for inner in ("", "VOC2007"))

    @cached_property
    def class_names(self) -> list[str]:
        """The classes of which there is a list of test images, in alphabetical order."""
        end = f"_{NAMES['test']}.txt"
        folder = os.path.join(self.root, LISTS)
        files = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        names = [file.removesuffix(end) for file in files if file.endswith(end)]
        if not names:
            raise UserError(
                f"{folder} has no lists <class>{end}", "unpack the archive of the test images, VOCtest_06-Nov-2007.tar"
            )
        check_classes(folder, names, self.classes)
        return names

    def images(self, split: Split) -> Sequence[MultiLabelledImage]:
        """The images of a split in the order of its lists; they are not opened yet.

        Raises:
            UserError: no list of a class, one of other images than the first has, or a line that is none of a list.
        """
        if split not in self._splits:
            lists = [self._list(name, split) for name in self.class_names]
            for name, images in zip(self.class_names, lists, strict=True):
                if images.keys() != lists[0].keys():
                    raise UserError(
                        f"the lists {self.class_names[0]} and {name} of {self.root} are of other images",
                        "unpack the archive again",
                    )
            self._splits[split] = [
                MultiLabelledImage(
                    image,
                    frozenset(label for label, images in enumerate(lists) if images[image] == "1"),
                    frozenset(label for label, images in enumerate(lists) if images[image] == "0"),
                )
                for image in lists[0]
            ]
        return self._splits[split]

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of the split: uint8 (h, w, 3), RGB.

        Raises:
            CorruptSample: it cannot be decoded.
        """
        image = self.images(split)[index].id
        try:
            return read_image(os.path.join(self.root, "JPEGImages", f"{image}.jpg"))
        except CorruptSample as error:
            raise CorruptSample(image, error.reason) from error

    def _list(self, name: str, split: Split) -> dict[str, str]:
        """By image, whether it shows a class."""
        path = os.path.join(self.root, LISTS, f"{name}_{NAMES[split]}.txt")
        with open_list(path) as file:
            lines = [line.split() for line in file if line.strip()]
        for line in lines:
            if len(line) != 2 or line[1] not in VALUES:
                raise UserError(
                    f"{path} has the line {' '.join(line)[:60]!r}",
                    "each names an image and 1, 0 or -1: unpack it again",
                )
        return dict(lines)
