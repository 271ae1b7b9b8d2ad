"""Kinetics and every set that is listed as Kinetics is."""

import os
from functools import cached_property

from lightning_vl.data.datasets.listed import Entry, ListedVideos
from lightning_vl.data.datasets.tables import check_classes, class_index, open_list, read_table, videos_by_stem
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError

COLUMNS = ("label", "youtube_id", "time_start", "time_end")
SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "validate": "validation", "test": "test"}

Row = tuple[str, str, tuple[float, float] | None]  # label, file, seconds of the clip where the file may be longer


class KineticsCsv(ListedVideos):
    """Videos of a list, in one of two forms.

    - `path label`, without a header, separated by a space or a comma: paths relative to the root; labels are class
      numbers, or names.
    - `label,youtube_id,time_start,time_end,split`, Kinetics' own: a video is `<youtube_id>_<start>_<end>.mp4` (six
      digits each, already cut to the clip) or `<youtube_id>.mp4` (cut or not), anywhere below the root. A file that
      holds several splits gives each its own rows.

    Args:
        root: the folder that the videos lie in.
        train: the list of training videos, relative to the root.
        validation: the list of validation videos.
        test: the list of test videos; Kinetics' results are those of its validation list.
        classes: how many classes there must be; None for no matter.
        class_names: a file with the name of class 0, 1, ... in each line, for lists with numbers.
        max_corrupt: largest share of a split's videos that may be missing or corrupt.
    """

    def __init__(
        self,
        root: str,
        train: str = "train.csv",
        validation: str = "val.csv",
        test: str = "val.csv",
        classes: int | None = None,
        class_names: str | None = None,
        max_corrupt: float = 0.05,
    ) -> None:
        super().__init__(root, max_corrupt)
        self.lists: dict[Split, str] = {"train": train, "validation": validation, "test": test}
        self.classes = classes
        self.class_names = class_names

    @property
    def heads(self) -> dict[str, list[str]]:
        """One head; classes in the order of their numbers or of `class_names`, else alphabetical."""
        return {"class": self._classes}

    def entries(self, split: Split) -> list[Entry]:
        """Every line of the split's list."""
        path = self._path(self.lists[split])
        indices = {name: index for index, name in enumerate(self._classes)}
        if self._numbered:
            indices = {str(index): index for index in range(len(self._classes))}
        return [
            Entry(file, file, {"class": class_index(path, label, indices)}, seconds)
            for label, file, seconds in self._rows(split)
        ]

    @cached_property
    def _labels(self) -> set[str]:
        return {label for label, _, _ in self._rows("train")}

    @cached_property
    def _numbered(self) -> bool:
        return all(label.isdecimal() for label in self._labels)

    @cached_property
    def _classes(self) -> list[str]:
        if self.class_names is not None:
            with open_list(self._path(self.class_names)) as file:
                names = file.read().splitlines()
        elif self._numbered:
            names = [str(number) for number in range(max(map(int, self._labels), default=-1) + 1)]
        else:
            names = sorted(self._labels)
        check_classes(self._path(self.lists["train"]), names, self.classes)
        return names

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def _rows(self, split: Split) -> list[Row]:
        path = self._path(self.lists[split])
        with open_list(path) as file:
            header = file.readline()
        return self._kinetics_rows(path, split) if "youtube_id" in header else _path_and_label_rows(path)

    def _kinetics_rows(self, path: str, split: Split) -> list[Row]:
        rows = read_table(path, COLUMNS, numbers=COLUMNS[2:])
        if len({row.get("split") for row in rows}) > 1:
            rows = [row for row in rows if SPLITS.get(row["split"]) == split]
        listed: list[Row] = []
        for row in rows:
            name, start, end = row["youtube_id"], float(row["time_start"]), float(row["time_end"])
            cut = self._videos.get(f"{name}_{int(start):06d}_{int(end):06d}")
            if cut is not None:
                listed.append((row["label"], cut, None))
            else:
                listed.append((row["label"], self._videos.get(name, f"{name}.mp4"), (start, end)))
        return listed

    @cached_property
    def _videos(self) -> dict[str, str]:
        return videos_by_stem(self.root)


def _path_and_label_rows(path: str) -> list[Row]:
    listed: list[Row] = []
    with open_list(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            video, _, label = line.strip().rpartition("," if "," in line else " ")
            if not video:
                raise UserError(f"line {number} of {path} is no `path label`: {line.strip()}", "give each line both")
            listed.append((label.strip(), video.strip(), None))
    return listed
