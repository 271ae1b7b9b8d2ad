"""EPIC-KITCHENS-100: what a cook does (verb) and to what (noun), as seen by the cook."""

import os
from functools import cached_property

from lightning_vl.data.datasets.listed import Entry, ListedVideos
from lightning_vl.data.datasets.tables import check_classes, read_table
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError

COLUMNS = ("participant_id", "video_id", "start_frame", "stop_frame", "verb_class", "noun_class")


class EpicKitchens(ListedVideos):
    """Actions in long videos, by first and last frame, each with a noun and a verb.

    Frames are numbered from 1, as in the release: `frame_0000000001.jpg` is the first frame of a video. In video files,
    frame n is the n-th.

    Args:
        root: the folder that the media and lists lie in.
        media: where the frames (a folder) or the file of a video are, relative to the root, by columns of the list:
            `{participant_id}/videos/{video_id}.MP4` for video files, say.
        train: the CSV list of training actions, relative to the root.
        validation: the CSV list of validation actions.
        test: the CSV list of test actions; the release's own has no labels, results are those of the validation list.
        noun_classes: the CSV list of nouns (`id`, `key`).
        verb_classes: the CSV list of verbs (`id`, `key`).
        nouns: how many nouns there must be; None for no matter.
        verbs: how many verbs there must be; None for no matter.
        max_corrupt: largest share of a split's actions that may be missing or corrupt.
    """

    def __init__(
        self,
        root: str,
        media: str = "{participant_id}/rgb_frames/{video_id}",
        train: str = "EPIC_100_train.csv",
        validation: str = "EPIC_100_validation.csv",
        test: str = "EPIC_100_validation.csv",
        noun_classes: str = "EPIC_100_noun_classes.csv",
        verb_classes: str = "EPIC_100_verb_classes.csv",
        nouns: int | None = 300,
        verbs: int | None = 97,
        max_corrupt: float = 0.05,
    ) -> None:
        super().__init__(root, max_corrupt)
        self.media = media
        self.lists: dict[Split, str] = {"train": train, "validation": validation, "test": test}
        self.noun_classes = noun_classes
        self.verb_classes = verb_classes
        self.nouns = nouns
        self.verbs = verbs

    @cached_property
    def heads(self) -> dict[str, list[str]]:
        """Noun, then verb: the order of the one linear head of the released models."""
        return {
            "noun": self._names(self.noun_classes, self.nouns),
            "verb": self._names(self.verb_classes, self.verbs),
        }

    def _names(self, name: str, expected: int | None) -> list[str]:
        path = os.path.join(self.root, name)
        by_id = {row["id"]: row["key"] for row in read_table(path, ("id", "key"))}
        check_classes(path, list(by_id.values()), expected)
        try:
            return [by_id[str(number)] for number in range(len(by_id))]
        except KeyError as error:
            raise UserError(f"{path} has no class {error}", "give the release's list of classes, 0 to n - 1") from None

    def entries(self, split: Split) -> list[Entry]:
        """Every action of the split's list."""
        path = os.path.join(self.root, self.lists[split])
        return [self._entry(path, row) for row in read_table(path, COLUMNS, numbers=COLUMNS[2:])]

    def _entry(self, path: str, row: dict[str, str]) -> Entry:
        labels = {"noun": int(row["noun_class"]), "verb": int(row["verb_class"])}
        for head, label in labels.items():
            if not 0 <= label < len(self.heads[head]):
                raise UserError(
                    f"{path} has {head}_class {label}, there are {len(self.heads[head])} {head}s",
                    f"give the list of {head}s that belongs to it",
                )
        try:
            file = self.media.format_map(row)
        except KeyError as error:
            raise UserError(
                f"media {self.media!r} names a column {error} that {path} lacks", f"it has {', '.join(row)}"
            ) from None
        first, last = int(row["start_frame"]), int(row["stop_frame"])
        return Entry(f"{row['video_id']} frames {first}-{last}", file, labels, numbers=(first, last))
