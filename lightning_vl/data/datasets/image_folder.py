"""Images in a folder for each class."""

import os
import struct
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from lightning_vl.data.datasets.class_folders import compare_classes
from lightning_vl.data.datasets.tables import check_classes
from lightning_vl.data.source import ImageSource, LabelledImage, Split
from lightning_vl.data.subset import hold_out
from lightning_vl.errors import CorruptSample, UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
VALIDATION = ("validation", "val")
# what Pillow raises, over all formats, for a file that is cut off, damaged, or unpacks to more than anyone would draw
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class ImageFolder(ImageSource):
    """Images in class folders: `<root>/<split>/<class>/<image>`.

    The folders of the splits are `train`, `validation` (or `val`) and `test`. Where one of the last two is missing, the
    other is the test split and a seeded share of the training images is the validation split: what a run is measured
    with never chose its checkpoint.

    Args:
        root: the folder that holds the splits.
        classes: how many classes there must be; None for no matter.
        validation_share: share of the training images of each class for validation, where there is no folder for it.
        split_seed: seed of that split, which is part of the experiment.
    """

    def __init__(
        self, root: str, classes: int | None = None, validation_share: float = 0.1, split_seed: int = 0
    ) -> None:
        self.root = root
        self.classes = classes
        self.validation_share = validation_share
        self.split_seed = split_seed

    @cached_property
    def class_names(self) -> list[str]:
        """The class folders of the training data in alphabetical order."""
        if not os.path.isdir(self.root):
            raise UserError(f"there is no folder {self.root}", "give the data's folder as the source's root")
        train = os.path.join(self.root, "train")
        names = _folders_in(train) if os.path.isdir(train) else []
        if not names:
            raise UserError(
                f"{train} holds no class folders",
                "put the images of each class into a folder of its name: <root>/train/<class>/<image>.jpg",
            )
        check_classes(train, names, self.classes)
        return names

    def images(self, split: Split) -> Sequence[LabelledImage]:
        """The images of a split, class by class; they are not opened yet.

        Raises:
            UserError: no such root, no folder to test on, class folders that differ between the splits, or an empty one.
        """
        return self._splits[split]

    @cached_property
    def _splits(self) -> dict[Split, list[LabelledImage]]:
        """All splits at once, so that a mistake in the test folder is found before training."""
        names = self.class_names
        validation = next((name for name in VALIDATION if os.path.isdir(os.path.join(self.root, name))), None)
        test = "test" if os.path.isdir(os.path.join(self.root, "test")) else None
        if validation is None and test is None:
            raise UserError(
                f"{self.root} has a folder train but none to test on",
                f"add {os.path.join(self.root, 'test')} with the same class folders",
            )
        images = [image for label in range(len(names)) for image in self._images("train", label)]
        splits: dict[Split, list[LabelledImage]] = {"train": images}
        if validation and test:
            splits["validation"] = self._folder(validation)
        else:
            labels = [image.label for image in images]
            kept, held_out = hold_out(labels, names, self.validation_share, self.split_seed)
            splits["train"] = [images[place] for place in kept]
            splits["validation"] = [images[place] for place in held_out]
        splits["test"] = self._folder(test or validation or "")
        return splits

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of a split: uint8 (h, w, 3), RGB.

        Raises:
            CorruptSample: it cannot be decoded.
        """
        name = self._splits[split][index].id
        try:
            return read_image(os.path.join(self.root, name))
        except CorruptSample as error:
            raise CorruptSample(name, error.reason) from error

    def _folder(self, folder: str) -> list[LabelledImage]:
        compare_classes(os.path.join(self.root, folder), _folders_in(os.path.join(self.root, folder)), self.class_names)
        return [image for label in range(len(self.class_names)) for image in self._images(folder, label)]

    def _images(self, folder: str, label: int) -> list[LabelledImage]:
        inside = os.path.join(folder, self.class_names[label])
        files = sorted(
            name for name in os.listdir(os.path.join(self.root, inside)) if name.lower().endswith(IMAGE_SUFFIXES)
        )
        if not files:
            raise UserError(
                f"the class folder {os.path.join(self.root, inside)} holds no images",
                f"put images into it ({', '.join(IMAGE_SUFFIXES[:4])}, ...), or remove it",
            )
        return [LabelledImage(os.path.join(inside, file), label) for file in files]


def read_image(path: str) -> np.ndarray:
    """The image of a file, see `decode_image`.

    Raises:
        CorruptSample: no such file, no image, or a damaged one.
    """
    try:
        with open(path, "rb") as file:
            return decode_image(file, path)
    except FileNotFoundError:
        raise CorruptSample(path, "no such file") from None
    except OSError as error:
        raise CorruptSample(path, f"cannot be read: {error.strerror}") from error


def decode_image(file: BinaryIO, id: str) -> np.ndarray:
    """An image as it is shown: upright, on white where it is transparent, uint8 (h, w, 3), RGB.

    Grey images get three equal channels, 16-bit ones their upper 8 bits, of animations the first picture is taken.

    Args:
        file: the encoded image.
        id: names it in errors.

    Raises:
        CorruptSample: no image, or a damaged one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as encoded:
                image = ImageOps.exif_transpose(encoded)
                if image.mode == "F":
                    raise CorruptSample(id, "holds real numbers, of an unknown range")
                if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion cuts everything above 255 off
                    grey = np.asarray(image).astype(np.int64) >> 8
                    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
                if image.has_transparency_data:
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
                return np.array(image.convert("RGB"))
    except UNREADABLE as error:
        reason = " ".join(str(error).replace(repr(file), "it").split()) or type(error).__name__
        raise CorruptSample(id, f"is no readable image: {reason}") from error


def _folders_in(path: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
