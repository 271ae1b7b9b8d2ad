"""Emoji in several drawing styles, with their names: train on one style, test on another."""

import os
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lightning_vl.data.datasets.listed_captions import CaptionedFile, ListedCaptions
from lightning_vl.data.datasets.tables import read_json
from lightning_vl.data.source import ImageSource, LabelledImage, Split
from lightning_vl.errors import UserError

TABLE = "emoji.json"
FLAGS = "Flags"  # whose short names are codes of countries


class Emoji(ListedCaptions):
    """`<root>/<style>/<code points>.png`, and `emoji.json`: name, short names and category of each emoji.

    An emoji's captions are its name and, as words, those of its short names that no other emoji has. Training images are of
    one style; validation is emoji of that style that are held out, so that a checkpoint is chosen by what it makes of
    things it has not seen. The test images are all emoji in another style: most of these things were seen, their drawings
    were not.

    Args:
        root: the folder of `emoji.json` and the styles.
        train_style: folder of the drawings to train on.
        test_style: folder of those to test on.
        held_out: share of the emoji that are for validation.
        split_seed: seed of that choice, which is part of the experiment.
    """

    def __init__(
        self,
        root: str,
        train_style: str = "google",
        test_style: str = "twitter",
        held_out: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        super().__init__(root, ("train", "test"), held_out, split_seed)
        self.styles: dict[Split, str] = {"train": train_style, "test": test_style}

    def listed(self, split: Split) -> Sequence[CaptionedFile]:
        """All emoji of the split's style.

        Raises:
            UserError: no `emoji.json`, one of another kind, or no emoji of that style.
        """
        style = self.styles[split]
        rows = [row for row in self.rows if style in row["styles"]]
        if not rows:
            known = sorted({name for row in self.rows for name in row["styles"]})
            raise UserError(f"{self.root} has no emoji of the style {style!r}", f"take one of {', '.join(known)}")
        captions = [captions_of(row) for row in rows]
        count = Counter(text for texts in captions for text in texts)
        return [
            CaptionedFile(os.path.join(style, row["image"]), [name, *(text for text in short if count[text] == 1)])
            for row, (name, *short) in zip(rows, captions, strict=True)
        ]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """What `emoji.json` says of each emoji."""
        path = os.path.join(self.root, TABLE)
        rows = read_json(path)
        wanted = ("image", "name", "short_names", "category", "styles")
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= set(wanted) for row in rows):
            raise UserError(f"{path} is JSON of another kind", f"give a list of objects with {', '.join(wanted)}")
        return rows


def captions_of(row: dict[str, Any]) -> list[str]:
    """Name and short names as words, each once."""
    short = [] if row["category"] == FLAGS else [_as_words(name) for name in row["short_names"]]
    return list(dict.fromkeys([row["name"], *(words for words in short if words)]))


def _as_words(short_name: str) -> str:
    """ "raised_hand" -> "raised hand", "tiger2" -> "tiger"; of codes ("u6307", "+1", "x") nothing is left."""
    if re.fullmatch(r"u[\da-f]{4}|\W?\d+|\w", short_name):
        return ""
    return re.sub(r"[\W\d]+$", "", re.sub("[_-]", " ", short_name))


class EmojiClasses(ImageSource):
    """The images of `Emoji` with a class each, for zero-shot classification in the other style.

    Args:
        root: the folder of `emoji.json` and the styles.
        train_style: folder of the drawings to train on.
        test_style: folder of those to test on.
        held_out: share of the emoji that are for validation.
        split_seed: seed of that choice, which is part of the experiment.
    """

    def __init__(
        self,
        root: str,
        train_style: str = "google",
        test_style: str = "twitter",
        held_out: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        self.emoji = Emoji(root, train_style, test_style, held_out, split_seed)

    @abstractmethod
    def classes(self) -> dict[str, str]:
        """The class of each image file's last part."""

    @cached_property
    def class_names(self) -> list[str]:
        """In alphabetical order."""
        return sorted(set(self._classes.values()))

    def images(self, split: Split) -> Sequence[LabelledImage]:
        """The images of `Emoji`."""
        return [
            LabelledImage(image.id, self._indices[self._classes[os.path.basename(image.id)]])
            for image in self.emoji.images(split)
        ]

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of the split: uint8 (h, w, 3), RGB.

        Raises:
            CorruptSample: it cannot be decoded.
        """
        return self.emoji.read(split, index)

    @cached_property
    def _classes(self) -> dict[str, str]:
        return self.classes()

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.class_names)}


class EmojiNames(EmojiClasses):
    """Every emoji is a class, called by its name; where two have one name, by their short names."""

    def classes(self) -> dict[str, str]:
        """See `EmojiClasses`."""
        rows = self.emoji.rows
        count = Counter(row["name"] for row in rows)
        return {
            row["image"]: row["name"] if count[row["name"]] == 1 else row["short_names"][0].replace("_", " ")
            for row in rows
        }


class EmojiCategories(EmojiClasses):
    """The categories of emoji are the classes: "animals and nature", "food and drink", ..."""

    def classes(self) -> dict[str, str]:
        """See `EmojiClasses`."""
        return {row["image"]: row["category"].replace("&", "and").lower() for row in self.emoji.rows}
