"""Something-Something v2: crowds of hands doing something with something."""

import os
from functools import cached_property

from lightning_vl.data.datasets.listed import Entry, ListedVideos
from lightning_vl.data.datasets.tables import check_classes, class_index, read_json, read_table, videos_by_stem
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError


class SomethingSomething(ListedVideos):
    """Videos `<id>.webm` (or another video format) and the JSON lists of the release.

    A class is a template without its brackets: `Holding [something] next to [something]` is
    `Holding something next to something` among the labels. Some templates tell left from right: mind the flip.

    Args:
        root: the folder that the videos and lists lie in.
        videos: the folder of the videos, relative to the root.
        labels: the JSON object that gives each class its number, relative to the root.
        train: the JSON list of training videos (`id`, `template`).
        validation: the JSON list of validation videos.
        test: the JSON list of test videos; the release's own has no labels, results are those of the validation list.
        classes: how many classes there must be; None for no matter.
        max_corrupt: largest share of a split's videos that may be missing or corrupt.
    """

    def __init__(
        self,
        root: str,
        videos: str = "20bn-something-something-v2",
        labels: str = "something-something-v2-labels.json",
        train: str = "something-something-v2-train.json",
        validation: str = "something-something-v2-validation.json",
        test: str = "something-something-v2-validation.json",
        classes: int | None = None,
        max_corrupt: float = 0.05,
    ) -> None:
        super().__init__(root, max_corrupt)
        self.videos = videos
        self.labels = labels
        self.lists: dict[Split, str] = {"train": train, "validation": validation, "test": test}
        self.classes = classes

    @property
    def heads(self) -> dict[str, list[str]]:
        """One head; classes in the order of their numbers."""
        return {"class": self._classes}

    @cached_property
    def _classes(self) -> list[str]:
        path = os.path.join(self.root, self.labels)
        numbers = read_json(path)
        try:
            names = sorted(numbers, key=lambda name: int(numbers[name]))
            complete = [int(numbers[name]) for name in names] == list(range(len(names)))
        except (TypeError, ValueError):
            complete = False
        if not complete:
            raise UserError(f"{path} does not number its classes 0, 1, 2, ...", "give the release's labels file")
        check_classes(path, names, self.classes)
        return names

    def entries(self, split: Split) -> list[Entry]:
        """Every video of the split's list."""
        path = os.path.join(self.root, self.lists[split])
        indices = {name: index for index, name in enumerate(self._classes)}
        files = videos_by_stem(os.path.join(self.root, self.videos))
        return [
            Entry(
                row["id"],
                os.path.join(self.videos, files.get(row["id"], f"{row['id']}.webm")),
                {"class": class_index(path, row["template"].replace("[", "").replace("]", ""), indices)},
            )
            for row in read_table(path, ("id", "template"))
        ]
