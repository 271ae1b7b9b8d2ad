"""What every set of captions that lists image files shares: splits, what is left out, and how images are read."""

import os
from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lightning_vl.data.captions import CaptionedImage, CaptionSource, stated
from lightning_vl.data.datasets.image_folder import read_image
from lightning_vl.data.datasets.listed import some
from lightning_vl.data.documents import share
from lightning_vl.data.source import Split
from lightning_vl.errors import CorruptSample, UserError
from lightning_vl.terminal import say


class HeldOutCaptions(CaptionSource):
    """A source whose stored splits may lack validation or test: a share of the training images takes their place.

    An image's first caption decides, with the seed: images of one caption are on one side, and the order changes nothing.

    Args:
        where: what the source is called in messages: a folder, or a name on the hub.
        stored_splits: the splits that are stored, `train` among them.
        held_out: share of the training images for each split that is not stored.
        split_seed: seed of the choice, which is part of the experiment.
    """

    def __init__(self, where: str, stored_splits: Collection[Split], held_out: float, split_seed: int) -> None:
        if "train" not in stored_splits:
            raise UserError(
                f"{where} has splits {', '.join(stored_splits) or 'none'}, and none for train",
                "say where it lies: {train: ...}",
            )
        if not 0 < held_out < 0.5:
            raise UserError(f"held_out is {held_out}", "give a share above 0 and below 0.5")
        self.where = where
        self.stored_splits = stored_splits
        self.held_out = held_out
        self.split_seed = split_seed
        self._stored: dict[Split, list[tuple[CaptionedImage, int]]] = {}
        self._splits: dict[Split, list[tuple[CaptionedImage, int]]] = {}

    @abstractmethod
    def stored(self, split: Split) -> Iterable[tuple[CaptionedImage, int]]:
        """The images of a stored split, and for each a number by which it is read; captions as they are written."""

    @abstractmethod
    def read_stored(self, split: Split, image: CaptionedImage, number: int) -> np.ndarray:
        """An image of a stored split: uint8 (h, w, 3), RGB.

        Raises:
            CorruptSample: it cannot be decoded.
        """

    def images(self, split: Split) -> Sequence[CaptionedImage]:
        """The images of a split with their captions; empty captions are left out, and with them images without another."""
        return [image for image, _ in self._images(split)]

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of the split: uint8 (h, w, 3), RGB.

        Raises:
            CorruptSample: it cannot be decoded.
        """
        image, number = self._images(split)[index]
        return self.read_stored(self._stored_split(split), image, number)

    def _stored_split(self, split: Split) -> Split:
        return split if split in self.stored_splits else "train"

    def _images(self, split: Split) -> list[tuple[CaptionedImage, int]]:
        if split not in self._splits:
            stored = self._stored_split(split)
            if stored not in self._stored:
                self._stored[stored] = self._usable(stored)
            found = self._stored[stored]
            if stored == "train" and len(self.stored_splits) < 3:
                found = [each for each in found if self._split_of(each[0]) == split]
                say(f"{split}: {len(found):,} of the {len(self._stored[stored]):,} images of {self.where}")
            self._splits[split] = found
        return self._splits[split]

    def _split_of(self, image: CaptionedImage) -> Split:
        """Which split a training image is in."""
        lacking: list[Split] = [split for split in ("validation", "test") if split not in self.stored_splits]
        place = share(f"{self.split_seed}\n{image.captions[0]}") / self.held_out
        return lacking[int(place)] if place < len(lacking) else "train"

    def _usable(self, split: Split) -> list[tuple[CaptionedImage, int]]:
        usable: list[tuple[CaptionedImage, int]] = []
        silent = 0
        for image, number in self.stored(split):
            captions = stated(image.captions)
            if captions:
                usable.append((CaptionedImage(image.id, captions), number))
            else:
                silent += 1
        if not usable:
            raise UserError(
                f"the {split} split of {self.where} has no image with a caption ({silent} without)",
                "check the source's files and columns",
            )
        count = sum(len(image.captions) for image, _ in usable)
        line = f"{split}: {len(usable):,} images with {count:,} captions of {self.where}"
        say(f"{line}; left out {silent:,} without a caption" if silent else line)
        return usable


class CaptionedFile(NamedTuple):
    """One image as a list names it.

    Attributes:
        file: where it is, relative to the root.
        captions: what is said of it, as it is written.
    """

    file: str
    captions: Sequence[str]


class ListedCaptions(HeldOutCaptions):
    """Image files below a root, with captions as a list says. Entries without a file are left out, and a line says so.

    Args:
        root: the folder.
        stored_splits: the splits that are listed, `train` among them.
        held_out: share of the training images for each split that is not listed.
        split_seed: seed of the choice, which is part of the experiment.
    """

    def __init__(self, root: str, stored_splits: Collection[Split], held_out: float, split_seed: int) -> None:
        super().__init__(root, stored_splits, held_out, split_seed)
        self.root = root

    @abstractmethod
    def listed(self, split: Split) -> Sequence[CaptionedFile]:
        """What the list says of a split, whether the files are there or not.

        Raises:
            UserError: the list is missing or wrong.
        """

    def stored(self, split: Split) -> Iterable[tuple[CaptionedImage, int]]:
        """The listed images whose files are there."""
        if not os.path.isdir(self.root):
            raise UserError(f"there is no folder {self.root}", "give the data's folder as the source's root")
        listed = self.listed(split)
        files = present(self.root, [entry.file for entry in listed])
        missing = [entry.file for entry in listed if entry.file not in files]
        if listed and not files:
            raise UserError(
                f"none of the {len(missing):,} images of the {split} split is below {self.root}, {missing[0]} the first",
                "check the root and where its images lie; addresses of the web must be fetched first, by img2dataset say",
            )
        if missing:
            say(
                f"{split}: left out {len(missing):,} of {len(listed):,} images, no such file: {', '.join(some(missing))}"
            )
        entries = [entry for entry in listed if entry.file in files]
        return [(CaptionedImage(entry.file, tuple(entry.captions)), number) for number, entry in enumerate(entries)]

    def read_stored(self, split: Split, image: CaptionedImage, number: int) -> np.ndarray:
        """The image of its file."""
        try:
            return read_image(os.path.join(self.root, image.id))
        except CorruptSample as error:
            raise CorruptSample(image.id, error.reason) from error


def present(root: str, files: Iterable[str]) -> set[str]:
    """Those files that are there; each folder is listed once, which is quicker than a question for each file."""
    listings: dict[str, set[str]] = {}
    found = set()
    for file in files:
        folder, name = os.path.split(os.path.join(root, file))
        if folder not in listings:
            try:
                listings[folder] = set(os.listdir(folder))
            except OSError:
                listings[folder] = set()
        if name in listings[folder]:
            found.add(file)
    return found


def by_file(pairs: Iterable[tuple[str, str]]) -> list[CaptionedFile]:
    """Files with all their captions, in the order in which they are first named."""
    captions: dict[str, list[str]] = {}
    for file, caption in pairs:
        captions.setdefault(file, []).append(caption)
    return [CaptionedFile(file, said) for file, said in captions.items()]
