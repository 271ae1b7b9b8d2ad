"""Sets of captions that the `datasets` library reads: of the Hugging Face hub, or in local parquet files."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from lightning_vl.data.captions import CaptionedImage
from lightning_vl.data.datasets.hub_images import decode_cell, encoded, load, nearest
from lightning_vl.data.datasets.listed_captions import HeldOutCaptions
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError


class HubCaptions(HeldOutCaptions):
    """Any captioned set of the hub by its name, or a local folder: parquet files, or what `save_to_disk` wrote.

    Nothing is downloaded before the images are asked for. Rows are read at random from Arrow files on disk; captions are
    held in memory. A row has one caption or a list of them, all of which are kept.

    Args:
        path: the set's name on the hub (`lmms-lab/flickr30k`), or a local folder.
        name: the set's configuration, where it has several.
        image_column: the column of images.
        caption_column: the column of captions.
        splits: the set's name of `train` and, where it has them, of `validation` and `test`.
        held_out: share of the training images for each split that the set lacks.
        split_seed: seed of that choice, which is part of the experiment.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        image_column: str = "image",
        caption_column: str = "caption",
        splits: dict[Split, str] | None = None,
        held_out: float = 0.05,
        split_seed: int = 0,
    ) -> None:
        self.splits: dict[Split, str] = {"train": "train"} if splits is None else splits
        super().__init__(path, self.splits.keys(), held_out, split_seed)
        self.path = path
        self.name = name
        self.image_column = image_column
        self.caption_column = caption_column

    def stored(self, split: Split) -> Iterable[tuple[CaptionedImage, int]]:
        """The rows of a split of the set.

        Raises:
            UserError: the set cannot be had, has no such split or column, or a row whose captions are no text.
        """
        name = self.splits[split]
        column = self._tables[split].select_columns([self.caption_column])[:][self.caption_column]
        return [(CaptionedImage(f"{name}/{row}", self._texts(name, row, cell)), row) for row, cell in enumerate(column)]

    def read_stored(self, split: Split, image: CaptionedImage, number: int) -> np.ndarray:
        """The image of a row."""
        return decode_cell(self._tables[split][number][self.image_column], image.id)

    def _texts(self, split: str, row: int, cell: Any) -> tuple[str, ...]:
        texts = tuple(cell) if isinstance(cell, list) else (cell,)
        if any(text is not None and not isinstance(text, str) for text in texts):
            raise UserError(
                f"{self.path}, split {split}, row {row}, has no text in the column {self.caption_column!r}",
                "say which column has captions, or lists of them, with the source's caption_column",
            )
        return tuple(text for text in texts if text is not None)

    @cached_property
    def _tables(self) -> dict[Split, Any]:
        """A `datasets.Dataset` for each split of the set, images encoded as they are stored."""
        found = load(self.path, self.name)
        return {
            split: encoded(nearest(self.path, "split", name, found), self.path, self.image_column, self.caption_column)
            for split, name in self.splits.items()
        }
