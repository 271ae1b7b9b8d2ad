"""Tux Paint's stamps: small pictures with an English sentence each."""

import os
from collections.abc import Sequence

from lightning_vl.data.captions import CaptionedImage
from lightning_vl.data.datasets.listed_captions import CaptionedFile, ListedCaptions
from lightning_vl.data.datasets.tables import read_json
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError
from lightning_vl.terminal import say

TABLE = "captions.json"


class TuxPaint(ListedCaptions):
    """`captions.json`, a list of `{"image", "caption"}` objects, and the images below the same folder.

    Sentences come again ("A flower." six times). Images of one sentence are in one split, and in validation and test the
    first of them stands for all: otherwise retrieval would have several right answers and count but one.

    Args:
        root: the folder of `captions.json`.
        held_out: share of the images for each of validation and test.
        split_seed: seed of that choice, which is part of the experiment.
    """

    def __init__(self, root: str, held_out: float = 0.1, split_seed: int = 0) -> None:
        splits: tuple[Split, ...] = ("train",)
        super().__init__(root, splits, held_out, split_seed)

    def listed(self, split: Split) -> Sequence[CaptionedFile]:
        """All images.

        Raises:
            UserError: no `captions.json`, or one of another kind.
        """
        path = os.path.join(self.root, TABLE)
        rows = read_json(path)
        wanted = ("image", "caption")
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= set(wanted) for row in rows):
            raise UserError(f"{path} is JSON of another kind", f"give a list of objects with {' and '.join(wanted)}")
        return [CaptionedFile(row["image"], [row["caption"]]) for row in rows]

    def _images(self, split: Split) -> list[tuple[CaptionedImage, int]]:
        if split != "train" and split not in self._splits:
            found = super()._images(split)
            first = {image.captions: number for image, number in reversed(found)}
            self._splits[split] = [(image, number) for image, number in found if first[image.captions] == number]
            say(f"{split}: {len(self._splits[split]):,} of these, one a sentence")
        return super()._images(split)
