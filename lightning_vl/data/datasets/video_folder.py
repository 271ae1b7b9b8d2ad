"""A folder for each class."""

import os
from functools import cached_property

from lightning_vl.data.datasets.class_folders import compare_classes
from lightning_vl.data.datasets.listed import Entry, ListedVideos
from lightning_vl.data.datasets.tables import check_classes, seeded_split
from lightning_vl.data.source import Split
from lightning_vl.data.video import VIDEO_SUFFIXES
from lightning_vl.errors import UserError

FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


class VideoFolder(ListedVideos):
    """Videos in class folders: `<root>/<split>/<class>/<video>`, or `<root>/<class>/<video>` and a seeded split.

    A video is a file, or a folder of numbered frames. The folders of the splits are `train`, `validation` (or `val`)
    and `test`; where there is no `train`, the sub-folders of the root are the classes.

    Args:
        root: the folder that holds the splits or the classes.
        classes: how many classes there must be; None for no matter.
        fractions: shares of training, validation and test, where there are no folders for them; within each class.
        split_seed: seed of that split.
        max_corrupt: largest share of a split's videos that may be corrupt.
    """

    def __init__(
        self,
        root: str,
        classes: int | None = None,
        fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
        split_seed: int = 0,
        max_corrupt: float = 0.05,
    ) -> None:
        super().__init__(root, max_corrupt)
        self.classes = classes
        self.fractions = fractions
        self.split_seed = split_seed

    @property
    def heads(self) -> dict[str, list[str]]:
        """One head; its classes are the class folders in alphabetical order."""
        return {"class": self._classes}

    @cached_property
    def _has_split_folders(self) -> bool:
        return os.path.isdir(os.path.join(self.root, "train"))

    @cached_property
    def _classes(self) -> list[str]:
        self.check_root()
        folder = self._folder("train") if self._has_split_folders else "."
        names = self._folders_in(folder)
        if not names:
            raise UserError(
                f"{os.path.join(self.root, folder)} holds no class folders",
                "put the videos of each class into a folder of its name: <root>/train/<class>/<video>.mp4",
            )
        check_classes(os.path.join(self.root, folder), names, self.classes)
        return names

    def entries(self, split: Split) -> list[Entry]:
        """Every video in the class folders of the split."""
        if self._has_split_folders:
            folder = self._folder(split)
            self._compare_classes(folder)
            return [entry for name in self._classes for entry in self._videos(folder, name)]
        entries = [entry for name in self._classes for entry in self._videos(".", name)]
        by_class = {name: [entry.id for entry in self._videos(".", name)] for name in self._classes}
        split_of = seeded_split(by_class, self.fractions, self.split_seed)
        return [entry for entry in entries if split_of[entry.id] == split]

    def _folder(self, split: Split) -> str:
        for name in FOLDERS[split]:
            if os.path.isdir(os.path.join(self.root, name)):
                return name
        raise UserError(
            f"{self.root} has a folder train but none for the {split} split",
            f"add {os.path.join(self.root, FOLDERS[split][0])} with the same class folders",
        )

    def _folders_in(self, folder: str) -> list[str]:
        path = os.path.join(self.root, folder)
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))

    def _compare_classes(self, folder: str) -> None:
        compare_classes(os.path.join(self.root, folder), self._folders_in(folder), self._classes)

    def _videos(self, folder: str, name: str) -> list[Entry]:
        inside = os.path.normpath(os.path.join(folder, name))
        files = sorted(
            os.path.join(inside, entry.name)
            for entry in os.scandir(os.path.join(self.root, inside))
            if entry.is_dir() or entry.name.lower().endswith(VIDEO_SUFFIXES)
        )
        if not files:
            raise UserError(
                f"the class folder {os.path.join(self.root, inside)} holds no videos",
                f"put videos into it ({', '.join(VIDEO_SUFFIXES[:4])}, ... or folders of frames), or remove it",
            )
        return [Entry(file, file, {"class": self._classes.index(name)}) for file in files]
