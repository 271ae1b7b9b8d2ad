"""Drawn scenes with captions to train on, and with classes for zero-shot evaluation.

What is drawn is in `scenes.py`, what is said in `scene_language.py`. All sources draw from the same things, in streams of
their own; combinations of colour and name that are held out (`HELD_OUT`) occur in test splits only.
"""

import random
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import ClassVar

import numpy as np

from lightning_vl.data.captions import CaptionedImage, CaptionSource
from lightning_vl.data.source import ImageSource, LabelledImage, Split
from lightning_vl.data.synthetic.scene_language import COUNTS, Statement, captions
from lightning_vl.data.synthetic.scenes import (
    COLOUR_NAMES,
    DIGITS,
    HELD_OUT,
    LAYOUTS,
    MOST,
    SHAPES,
    Groups,
    Scene,
    SceneMaker,
    pair_index,
    pair_shares,
)

CAPTIONS_STREAM = 0


class DrawnScenes(CaptionSource):
    """Scenes of one to four coloured shapes and handwritten digits, each with five captions, all true.

    The first caption is the most specific: every thing with size, colour, name and place. The others leave things out, and may
    be true of several images, so that even one who sees everything cannot always find the image that was meant: see
    `best_recall`. In the test split every second image has exactly one held-out combination of colour and name; ids say which
    (`test/unseen/1`). No other split has any.

    Args:
        train_images: length of the training split.
        validation_images: length of the validation split.
        test_images: length of the test split.
        size: height and width of the image, px.
        noise: standard deviation of the pixel noise, in units of the full range.
        seed: seed of the scenes (not of the training run).
    """

    def __init__(
        self,
        train_images: int = 32_768,
        validation_images: int = 1_000,
        test_images: int = 2_000,
        size: int = 48,
        noise: float = 0.04,
        seed: int = 0,
    ) -> None:
        lengths: dict[Split, int] = {"train": train_images, "validation": validation_images, "test": test_images}
        self.maker = SceneMaker(lengths, size, noise, seed, CAPTIONS_STREAM, _any_groups)
        self._images: dict[Split, list[CaptionedImage]] = {}

    def scenes(self, split: Split) -> list[Scene]:
        """What is in the images of a split."""
        return self.maker.scenes(split)

    def statements(self, split: Split, index: int) -> tuple[Statement, ...]:
        """The captions of an image, taken apart."""
        return captions(self.scenes(split)[index], random.Random(f"{self.maker.seed}/{split}/{index}"))

    def images(self, split: Split) -> Sequence[CaptionedImage]:
        """The images of a split. They are drawn here, once."""
        if split not in self._images:
            self._images[split] = [
                CaptionedImage(
                    f"{split}/{'unseen/' * scene.unseen}{index}",
                    tuple(statement.text() for statement in self.statements(split, index)),
                )
                for index, scene in enumerate(self.scenes(split))
            ]
        return self._images[split]

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of a split: uint8 (h, w, 3)."""
        return self.maker.pixels(split)[index]

    def best_recall(self, split: Split, k: int = 1) -> float:
        """Text-to-image recall at k of one who sees everything, and guesses among the images of which a caption is true.

        The mean over all captions of min(1, k / images of the split of which the caption is true).
        """
        scenes = self.scenes(split)
        having: dict[tuple[str | None, str | None], set[int]] = defaultdict(set)  # colour, name: images
        for index, scene in enumerate(scenes):
            for thing in scene.objects:
                having[thing.colour, thing.name].add(index)
                having[None, thing.name].add(index)

        @cache
        def fitting(statement: Statement) -> int:
            named = [having[mention.what.colour, mention.what.name] for mention in statement.mentions]
            return sum(statement.holds(scenes[index]) for index in set.intersection(*named))

        recalls = [
            min(1.0, k / fitting(statement))
            for index in range(len(scenes))
            for statement in self.statements(split, index)
        ]
        return sum(recalls) / len(recalls)


class LabelledScenes(ImageSource):
    """Drawn scenes with one label an image, classes in turn.

    Args:
        train_images: length of the training split.
        validation_images: length of the validation split.
        test_images: length of the test split.
        size: height and width of the image, px.
        noise: standard deviation of the pixel noise, in units of the full range.
        seed: seed of the scenes (not of the training run).
        unseen: the things of the test split are the held-out combinations of colour and name, and no others; without it, they
            are never these. The other splits do not have them in either case.
    """

    stream: ClassVar[int]  # see `SceneMaker`

    def __init__(
        self,
        train_images: int = 4_096,
        validation_images: int = 500,
        test_images: int = 2_000,
        size: int = 48,
        noise: float = 0.04,
        seed: int = 0,
        unseen: bool = False,
    ) -> None:
        lengths: dict[Split, int] = {"train": train_images, "validation": validation_images, "test": test_images}
        self.unseen = unseen
        self.maker = SceneMaker(lengths, size, noise, seed, self.stream, self._groups)

    @abstractmethod
    def labels(self, held_out: bool) -> np.ndarray:
        """The classes that occur, int (m,)."""

    @abstractmethod
    def groups(self, labels: np.ndarray, held_out: bool, rng: np.random.Generator) -> Groups:
        """What is in images of these labels (n,)."""

    def scenes(self, split: Split) -> list[Scene]:
        """What is in the images of a split."""
        return self.maker.scenes(split)

    def images(self, split: Split) -> Sequence[LabelledImage]:
        """Classes in turn, so that every beginning of a split is balanced. The images are drawn here, once."""
        labels = self._labels(split, np.arange(self.maker.lengths[split])).tolist()
        pairs = zip(labels, self.scenes(split), strict=True)
        return [
            LabelledImage(f"{split}/{'unseen/' * scene.unseen}{i}", label) for i, (label, scene) in enumerate(pairs)
        ]

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of a split: uint8 (h, w, 3)."""
        return self.maker.pixels(split)[index]

    def _held_out(self, split: Split) -> bool:
        return self.unseen and split == "test"

    def _labels(self, split: Split, indices: np.ndarray) -> np.ndarray:
        occurring = self.labels(self._held_out(split))
        return occurring[indices % len(occurring)]

    def _groups(self, split: Split, indices: np.ndarray, rng: np.random.Generator) -> Groups:
        return self.groups(self._labels(split, indices), self._held_out(split), rng)


class SceneShapes(LabelledScenes):
    """One shape; the classes are all pairs of colour and shape, the held-out ones too, whichever are drawn."""

    stream = 1

    @property
    def class_names(self) -> list[str]:
        """As "red circle"."""
        return [f"{colour} {shape}" for shape in SHAPES for colour in COLOUR_NAMES]

    def labels(self, held_out: bool) -> np.ndarray:
        """56 pairs, or the 8 that are held out."""
        pairs = [tuple(name.split()) for name in self.class_names]
        return np.array([label for label, pair in enumerate(pairs) if (pair in HELD_OUT) == held_out])

    def groups(self, labels: np.ndarray, held_out: bool, rng: np.random.Generator) -> Groups:
        """The shape of the label."""
        pair = np.array([pair_index(*name.split()) for name in self.class_names])[labels]
        return Groups(np.full(len(labels), LAYOUTS.index((1,))), pair[:, None])


class SceneDigits(LabelledScenes):
    """One handwritten digit of any colour; the classes are the ten digits."""

    stream = 2

    @property
    def class_names(self) -> list[str]:
        """The ten digits."""
        return list(DIGITS)

    def labels(self, held_out: bool) -> np.ndarray:
        """All."""
        return np.arange(len(DIGITS))

    def groups(self, labels: np.ndarray, held_out: bool, rng: np.random.Generator) -> Groups:
        """The digit of the label; each has one held-out colour. The same writing in the same places, seen or not."""
        pair = np.empty(len(labels), int)
        for label, digit in enumerate(DIGITS):
            of_digit = labels == label
            pair[of_digit] = _pairs(rng, pair_shares((digit,), held_out), of_digit.sum())
        return Groups(np.full(len(labels), LAYOUTS.index((1,))), pair[:, None])


class SceneCounts(LabelledScenes):
    """One to four things that are alike; the classes are their numbers."""

    stream = 3

    @property
    def class_names(self) -> list[str]:
        """As words."""
        return list(COUNTS[1:])

    def labels(self, held_out: bool) -> np.ndarray:
        """All."""
        return np.arange(MOST)

    def groups(self, labels: np.ndarray, held_out: bool, rng: np.random.Generator) -> Groups:
        """So many of any shape or digit."""
        layout = np.array([LAYOUTS.index((count,)) for count in range(1, MOST + 1)])[labels]
        return Groups(layout, _pairs(rng, pair_shares(held_out=held_out), (len(labels), 1)))


def _pairs(rng: np.random.Generator, shares: np.ndarray, shape: int | tuple[int, ...]) -> np.ndarray:
    return rng.choice(len(shares), shape, p=shares)


def _any_groups(split: Split, indices: np.ndarray, rng: np.random.Generator) -> Groups:
    """Groups of different pairs; in the test split the first group of every second image is a held-out one."""
    groups = max(map(len, LAYOUTS))
    shares = pair_shares()
    pair = _pairs(rng, shares, (len(indices), groups))
    held_out = _pairs(rng, pair_shares(held_out=True), len(indices))
    if split == "test":
        pair[:, 0] = np.where(indices % 2 == 1, held_out, pair[:, 0])
    while True:
        ordered = np.sort(pair, 1)
        equal = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(1))
        if not len(equal):
            return Groups(rng.integers(len(LAYOUTS), size=len(indices)), pair)
        pair[equal, 1:] = _pairs(rng, shares, (len(equal), groups - 1))
