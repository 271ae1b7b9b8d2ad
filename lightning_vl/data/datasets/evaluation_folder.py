"""Images in class folders of which none are for training."""

import os
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from lightning_vl.data.datasets.image_folder import IMAGE_SUFFIXES, read_image
from lightning_vl.data.datasets.tables import check_classes
from lightning_vl.data.source import ImageSource, LabelledImage, Split
from lightning_vl.errors import CorruptSample, UserError


class EvaluationFolder(ImageSource):
    """Images in class folders, `<root>/<class>/<image>`, all of them to test on: ImageNet-A, frames of videos.

    Args:
        root: the folder of the class folders.
        classes: how many classes there must be; None for no matter.
    """

    def __init__(self, root: str, classes: int | None = None) -> None:
        self.root = root
        self.classes = classes

    @cached_property
    def class_names(self) -> list[str]:
        """The folders in alphabetical order."""
        if not os.path.isdir(self.root):
            raise UserError(f"there is no folder {self.root}", "give the data's folder as root")
        names = sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir() and entry.name[0] != ".")
        if not names:
            raise UserError(
                f"{self.root} holds no class folders", "put the images of each class into a folder of its name"
            )
        check_classes(self.root, names, self.classes)
        return names

    def images(self, split: Split) -> Sequence[LabelledImage]:
        """The images class by class; they are not opened yet.

        Raises:
            UserError: another split than `test`, or there are no images.
        """
        if split != "test":
            raise UserError(
                f"{self.root} has no {split} split, its images are all to test on",
                "leave out what needs training (a probe), or put them into folders train and test",
            )
        return self._images

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index`: uint8 (h, w, 3), RGB.

        Raises:
            CorruptSample: it cannot be decoded.
        """
        name = self.images(split)[index].id
        try:
            return read_image(os.path.join(self.root, name))
        except CorruptSample as error:
            raise CorruptSample(name, error.reason) from error

    @cached_property
    def _images(self) -> list[LabelledImage]:
        images = [
            LabelledImage(os.path.join(name, file), label)
            for label, name in enumerate(self.class_names)
            for file in sorted(os.listdir(os.path.join(self.root, name)))
            if file.lower().endswith(IMAGE_SUFFIXES)
        ]
        if not images:
            raise UserError(f"the class folders of {self.root} hold no images", "check the root")
        return images
