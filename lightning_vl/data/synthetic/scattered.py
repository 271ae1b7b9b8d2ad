"""Digits and letters scattered over a cluttered canvas: images whose labels do not depend on where things are.

A glyph is set down anywhere, in any of a range of sizes and angles, among fragments of other glyphs, on a canvas of uneven
brightness. What is learnt about a digit in one corner says nothing about another corner, unless the network is made so that
it does (a convolution) or learns it from enough images (a ViT). Image `index` of a split is a pure function of (seed, split,
index), so the training split may be as long as one likes and the shorter one is the beginning of the longer.

`ScatteredDigits` are real handwriting (scikit-learn's copy of the UCI digits, 8 x 8 px), split by writing sample;
`ScatteredLetters` are printed capitals in the fonts that come with matplotlib, split by font: what a network that was
trained on digits transfers to. No glyph of a test split is ever seen in training.
"""

import math
import os
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lightning_vl.data.source import ImageSource, LabelledImage, Split
from lightning_vl.errors import UserError

SPLIT_KEYS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}
BLOCK = 1024  # images drawn at once; part of what an image is, as its random numbers are drawn by block
FRAGMENT = 0.45  # of a glyph's width and height, that a fragment shows
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER_SIZE = 16  # px, to which a letter is reduced
FONTS: dict[Split, tuple[str, ...]] = {
    "train": (
        *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
        *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
        *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    ),
    "validation": ("DejaVuSerif", "DejaVuSerif-Bold"),
    "test": ("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"),
}


class Scattered(ImageSource):
    """One glyph of a class, with clutter.

    Args:
        train_images: length of the training split.
        validation_images: length of the validation split.
        test_images: length of the test split.
        size: height and width of the image, px.
        fragments: pieces of other glyphs in each image.
        scale: least and greatest height of a glyph, as a share of the image's.
        angle: largest rotation to either side, degrees.
        noise: standard deviation of the pixel noise, in units of the full range.
        seed: seed of the images (not of the training run).
    """

    def __init__(
        self,
        train_images: int = 131_072,
        validation_images: int = 1_000,
        test_images: int = 2_000,
        size: int = 32,
        fragments: int = 6,
        scale: tuple[float, float] = (0.3, 0.5),
        angle: float = 30.0,
        noise: float = 0.05,
        seed: int = 0,
    ) -> None:
        if min(train_images, validation_images, test_images, size) < 1:
            raise UserError(
                f"{type(self).__name__} is to have {train_images}, {validation_images} and {test_images} images of {size} px",
                "give each split 1 image or more, and images 1 px or more",
            )
        if not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(f"scale is {scale}", "give shares of the image's height: 0 < least <= greatest <= 1")
        self.lengths: dict[Split, int] = {"train": train_images, "validation": validation_images, "test": test_images}
        self.size = size
        self.fragments = fragments
        self.scale = scale
        self.angle = math.radians(angle)
        self.noise = noise
        self.seed = seed
        self._pixels: dict[Split, np.ndarray] = {}

    @abstractmethod
    def glyphs(self, split: Split) -> list[Tensor]:
        """For each class its glyphs, float (n, g, g) in [0, 1]."""

    def images(self, split: Split) -> Sequence[LabelledImage]:
        """Classes in turn, so that every beginning of a split is balanced. The pixels are drawn here, once."""
        if split not in self._pixels:  # before processes that read ahead are made, which then share them
            blocks = range(-(-self.lengths[split] // BLOCK))
            glyphs = self.glyphs(split)
            self._pixels[split] = np.concatenate([self._draw(glyphs, split, block) for block in blocks])
        classes = len(self.class_names)
        return [LabelledImage(f"{split}/{index}", index % classes) for index in range(self.lengths[split])]

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of a split: uint8 (h, w, 3), grey."""
        if split not in self._pixels:
            self.images(split)
        return np.repeat(self._pixels[split][index][..., None], 3, axis=-1)

    def _draw(self, glyphs: list[Tensor], split: Split, block: int) -> np.ndarray:
        """The images of one block: uint8 (n, h, w)."""
        rng = np.random.default_rng([self.seed, len(glyphs), SPLIT_KEYS[split], block])
        every, starts = torch.cat(glyphs), np.cumsum([0, *map(len, glyphs)])
        labels = (block * BLOCK + np.arange(BLOCK)) % len(glyphs)
        shown = torch.from_numpy(starts[labels] + np.floor(rng.random(BLOCK) * np.diff(starts)[labels]).astype(int))
        height = rng.uniform(*self.scale, BLOCK)
        place = rng.uniform(-1, 1, (BLOCK, 2)) * (1 - height)[:, None]  # within the canvas but for what turning adds
        angle = rng.uniform(-self.angle, self.angle, BLOCK)
        ink = _tensor(rng.uniform(0.55, 1.0, BLOCK))
        canvas = _place(every[shown], place, height, angle, self.size) * ink.view(-1, 1, 1)

        for _ in range(self.fragments):
            pieces = every[torch.from_numpy(rng.integers(len(every), size=BLOCK))]
            pieces = _fragments(pieces, rng)
            height = rng.uniform(*self.scale, BLOCK) * FRAGMENT
            place, angle = rng.uniform(-1, 1, (BLOCK, 2)), rng.uniform(-math.pi, math.pi, BLOCK)
            ink = _tensor(rng.uniform(0.3, 1.0, BLOCK))
            canvas = torch.maximum(canvas, _place(pieces, place, height, angle, self.size) * ink.view(-1, 1, 1))

        corners = _tensor(rng.uniform(0.0, 0.35, (BLOCK, 1, 2, 2)))
        light = F.interpolate(corners, (self.size, self.size), mode="bilinear", align_corners=True)[:, 0]
        grain = torch.from_numpy(rng.standard_normal((BLOCK, self.size, self.size), dtype=np.float32)) * self.noise
        images = (canvas + light * (1 - canvas) + grain).clamp(0, 1) * 255
        return images.byte().numpy()[: self.lengths[split] - block * BLOCK]


class ScatteredDigits(Scattered):
    """Handwritten digits, ten classes; of every five writing samples three are for training."""

    @property
    def class_names(self) -> list[str]:
        """The ten digits."""
        return [str(digit) for digit in range(10)]

    @cached_property
    def _digits(self) -> tuple[Tensor, np.ndarray]:
        from sklearn.datasets import load_digits

        images, targets = load_digits(return_X_y=True)
        return torch.from_numpy(images.reshape(-1, 8, 8) / 16.0).float(), targets

    def glyphs(self, split: Split) -> list[Tensor]:
        """About 107 glyphs a digit for training, 36 for validation and for testing."""
        images, targets = self._digits
        fifths = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}[split]
        of_digit = [images[targets == digit] for digit in range(10)]
        return [glyphs[np.isin(np.arange(len(glyphs)) % 5, fifths)] for glyphs in of_digit]


class ScatteredLetters(Scattered):
    """Printed capitals, 26 classes; twelve fonts for training, two for validation, five others for testing."""

    @property
    def class_names(self) -> list[str]:
        """The letters."""
        return list(LETTERS)

    def glyphs(self, split: Split) -> list[Tensor]:
        """Each letter once in every font of the split."""
        return [torch.stack([_letter(letter, font) for font in FONTS[split]]) for letter in LETTERS]


def _letter(letter: str, font: str) -> Tensor:
    """A letter as high as its glyph: float (g, g)."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    sheet = Image.new("L", (128, 128))
    ImageDraw.Draw(sheet).text((32, 16), letter, fill=255, font=ImageFont.truetype(path, 64))
    box = sheet.getbbox()
    assert box is not None  # every font has every capital
    side = max(box[2] - box[0], box[3] - box[1])
    left, top = (box[0] + box[2] - side) // 2, (box[1] + box[3] - side) // 2
    square = sheet.crop((left, top, left + side, top + side)).resize((LETTER_SIZE, LETTER_SIZE), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(square, dtype=np.float32) / 255)


def _fragments(glyphs: Tensor, rng: np.random.Generator) -> Tensor:
    """A square cut out of each glyph: (n, g, g) to (n, f, f)."""
    size = glyphs.shape[-1]
    side = round(size * FRAGMENT)
    tops, lefts = torch.from_numpy(rng.integers(size - side + 1, size=(2, len(glyphs))))
    span = torch.arange(side)
    rows, columns = (tops[:, None] + span)[:, :, None], (lefts[:, None] + span)[:, None]
    return glyphs[torch.arange(len(glyphs))[:, None, None], rows, columns]


def _place(glyphs: Tensor, place: np.ndarray, height: np.ndarray, angle: np.ndarray, size: int) -> Tensor:
    """Each glyph on a canvas of its own: (n, g, g) to (n, size, size).

    Args:
        glyphs: what is drawn.
        place: centre, x and y, on a canvas from -1 to 1, (n, 2).
        height: of the glyph, as a share of the canvas's, (n,).
        angle: radians, (n,).
        size: px.
    """
    # grid_sample asks, for every pixel of the canvas, where in the glyph it comes from: the inverse motion
    cos, sin = _tensor(np.cos(angle) / height), _tensor(np.sin(angle) / height)
    rotation = torch.stack([cos, sin, -sin, cos], dim=-1).view(-1, 2, 2)  # (n, 2, 2)
    shift = -rotation @ _tensor(place).unsqueeze(-1)  # (n, 2, 1)
    grid = F.affine_grid(torch.cat([rotation, shift], dim=-1), [len(glyphs), 1, size, size], align_corners=False)
    return F.grid_sample(glyphs.unsqueeze(1), grid, align_corners=False)[:, 0]


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).float()
