"""A folder of videos and a table of labels."""

import os
import re
from collections import defaultdict
from functools import cached_property

from lightning_vl.data.datasets.listed import Entry, ListedVideos
from lightning_vl.data.datasets.tables import read_table, seeded_split, videos_by_stem
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError


class LabelledVideos(ListedVideos):
    """The videos below a root whose label stands in a table: CSV with a header, or a JSON list of objects.

    A row belongs to the video of the same name; folders and suffixes (`.mp4`, `.png`) of both are left out of the
    comparison. Videos that differ only in what `variant` matches are variants of one thing: they share its row, and all
    of them are in the same split, so that no test video has a twin in training.

    The split is seeded and made within each label.

    Args:
        root: the folder of the videos.
        table: the table, relative to the root.
        file: the column with the video's name.
        label: the column with the label.
        labels: the labels that take part, in the order of the classes; None for all, in alphabetical order.
        variant: regular expression that is cut out of names before they are compared.
        fractions: shares of training, validation and test.
        split_seed: seed of the split.
        max_corrupt: largest share of a split's videos that may be corrupt.
    """

    def __init__(
        self,
        root: str,
        table: str,
        file: str = "file",
        label: str = "label",
        labels: list[str] | None = None,
        variant: str | None = None,
        fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
        split_seed: int = 0,
        max_corrupt: float = 0.05,
    ) -> None:
        super().__init__(root, max_corrupt)
        self.table = table
        self.file = file
        self.label = label
        self.labels = labels
        self.variant = variant
        self.fractions = fractions
        self.split_seed = split_seed

    @property
    def heads(self) -> dict[str, list[str]]:
        """One head; classes in the order of `labels`, else alphabetical."""
        return {"class": self._classes}

    @cached_property
    def _videos(self) -> list[tuple[str, str, str]]:
        """Path, the name it shares with its variants, and label of each video that takes part."""
        path = os.path.join(self.root, self.table)
        label_of = {self._name(row[self.file]): row[self.label] for row in read_table(path, (self.file, self.label))}
        names = {video: self._name(video) for video in sorted(videos_by_stem(self.root).values())}
        if not names:
            raise UserError(f"{self.root} holds no videos", "give the folder of the videos as the source's root")
        unknown = [video for video, name in names.items() if name not in label_of]
        if unknown:
            raise UserError(
                f"{path} has no row for {len(unknown)} of {len(names)} videos, {unknown[0]} among them",
                f"add rows with their names in column {self.file!r}, or take the videos out",
            )
        videos = [(video, name, label_of[name]) for video, name in names.items()]
        return [video for video in videos if self.labels is None or video[2] in self.labels]

    @cached_property
    def _classes(self) -> list[str]:
        present = {label for _, _, label in self._videos}
        absent = set(self.labels or ()) - present
        if absent:
            raise UserError(f"no video has the label {', '.join(sorted(absent))}", "mend the source's labels")
        return self.labels or sorted(present)

    def entries(self, split: Split) -> list[Entry]:
        """The videos of a split."""
        groups: dict[str, set[str]] = defaultdict(set)
        for _, name, label in self._videos:
            groups[label].add(name)
        split_of = seeded_split(groups, self.fractions, self.split_seed)
        return [
            Entry(video, video, {"class": self._classes.index(label)})
            for video, name, label in self._videos
            if split_of[name] == split
        ]

    def _name(self, path: str) -> str:
        stem = os.path.splitext(os.path.basename(path))[0]
        return stem if self.variant is None else re.sub(self.variant, "", stem)
