"""Scenes of coloured shapes and handwritten digits: what is in them, and how they are drawn.

A scene is one to four things on a dark, uneven, noisy background. Things come in groups of equals ("two green squares"); no
two groups of a scene share both colour and name. The image is divided into three rows and three columns, whose places have
names; a thing lies in its place, moved by no more than `SHIFT`, so that "left of" is never a matter of a pixel. Boxes are
measured on what was drawn.

The pairs of colour and name in `HELD_OUT` are never drawn in a training or validation split: whether a network that knows
green things and circles knows a green circle can then be asked of the test split. Digits are split by writing sample.

Scene `index` of a split is a pure function of (seed, split, index), and a shorter split is the beginning of a longer one.
What is said of a scene (captions, questions, referring expressions) is in `scene_language.py`.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from lightning_vl.data.source import Split
from lightning_vl.data.synthetic.scattered import SPLIT_KEYS, ScatteredDigits
from lightning_vl.errors import UserError

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.92, 0.10, 0.12),
    "orange": (1.00, 0.52, 0.05),
    "yellow": (1.00, 0.92, 0.15),
    "green": (0.15, 0.86, 0.25),
    "blue": (0.15, 0.40, 1.00),
    "purple": (0.64, 0.24, 0.95),
    "pink": (1.00, 0.58, 0.80),
    "white": (0.97, 0.97, 0.97),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "moon")
DIGITS = tuple("0123456789")
NAMES = SHAPES + DIGITS
COLOUR_NAMES = tuple(COLOURS)
HELD_OUT: tuple[tuple[str, str], ...] = (  # every name once, every colour twice or three times
    ("red", "star"),
    ("orange", "cross"),
    ("yellow", "heart"),
    ("green", "circle"),
    ("blue", "moon"),
    ("purple", "square"),
    ("pink", "diamond"),
    ("white", "triangle"),
    ("green", "0"),
    ("pink", "1"),
    ("orange", "2"),
    ("white", "3"),
    ("blue", "4"),
    ("yellow", "5"),
    ("purple", "6"),
    ("red", "7"),
    ("white", "8"),
    ("purple", "9"),
)
POSITIONS = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
LAYOUTS = ((1,), (2,), (3,), (4,), (1, 1), (2, 1), (2, 2), (3, 1), (1, 1, 1), (2, 1, 1))  # sizes of the groups
MOST = 4  # things in a scene
EXTENTS = {"small": (0.53, 0.61), "large": (0.88, 1.0)}  # of a thing's height, as a share of its place's
MARGIN = 0.1  # around the nine places, as a share of a place
SHIFT = 0.15  # of a thing from the middle of its place, at most, as a share of a place
BEYOND = 0.02  # how far a thing may reach out of its place; two things overlap by no more than twice this
TILT = math.radians(10)  # to either side, at most
BLOCK = 1024  # scenes drawn at once; part of what a scene is, as its random numbers are drawn by block
LEAST_SIZE = 24  # px; a small digit is then 4 px high


class SceneObject(NamedTuple):
    """One thing in a scene.

    Attributes:
        kind: what sort of thing.
        name: one of `NAMES`.
        colour: one of `COLOURS`.
        size: small or large.
        position: one of `POSITIONS`.
        box: left, top, right, bottom, px; the pixels that it covers by half or more are left <= x < right, top <= y < bottom.
    """

    kind: Literal["shape", "digit"]
    name: str
    colour: str
    size: str
    position: str
    box: tuple[int, int, int, int]

    @property
    def place(self) -> tuple[int, int]:
        """Row and column, 0 to 2."""
        return divmod(POSITIONS.index(self.position), 3)


class Scene(NamedTuple):
    """What is in an image.

    Attributes:
        objects: one to four, equals next to one another.
        size: height and width of the image, px.
    """

    objects: tuple[SceneObject, ...]
    size: int

    @property
    def groups(self) -> list[list[SceneObject]]:
        """Things of the same colour and name."""
        by_pair: dict[tuple[str, str], list[SceneObject]] = {}
        for thing in self.objects:
            by_pair.setdefault((thing.colour, thing.name), []).append(thing)
        return list(by_pair.values())

    @property
    def unseen(self) -> bool:
        """Whether it has a combination that is held out of training."""
        return any((thing.colour, thing.name) in HELD_OUT for thing in self.objects)


class Groups(NamedTuple):
    """What the groups of n scenes are.

    Attributes:
        layout: index in `LAYOUTS`, (n,).
        pair: index of name times colours plus that of colour, by group, (n, 3); those beyond the layout's groups are not used.
    """

    layout: np.ndarray
    pair: np.ndarray


Choice = Callable[[Split, np.ndarray, np.random.Generator], Groups]  # of the split, the indices (n,), and chance


def pair_index(colour: str, name: str) -> int:
    """The number of a pair of colour and name."""
    return NAMES.index(name) * len(COLOURS) + COLOUR_NAMES.index(colour)


def pair_shares(names: tuple[str, ...] = NAMES, held_out: bool = False) -> np.ndarray:
    """How often each pair is to be drawn, float (pairs,): shapes as often as digits, all names of a kind alike.

    Args:
        names: those that may be drawn.
        held_out: draw the held-out combinations only; otherwise all others.
    """
    shares = np.zeros((len(NAMES), len(COLOURS)))
    kinds = [[name for name in kind if name in names] for kind in (SHAPES, DIGITS)]
    for kind in filter(None, kinds):
        for name in kind:
            fits = np.array([((colour, name) in HELD_OUT) == held_out for colour in COLOURS])
            shares[NAMES.index(name)] = fits / fits.sum() / len(kind)
    return shares.ravel() / shares.sum()


class SceneMaker:
    """Draws the scenes of three splits.

    Args:
        lengths: scenes of each split.
        size: height and width of the image, px.
        noise: standard deviation of the pixel noise, in units of the full range.
        seed: seed of the scenes (not of the training run).
        stream: number of the source, so that two sources of one seed have different scenes.
        choice: what is in the scenes.
    """

    def __init__(
        self, lengths: dict[Split, int], size: int, noise: float, seed: int, stream: int, choice: Choice
    ) -> None:
        if min(lengths.values()) < 1:
            raise UserError(
                "train_images, validation_images and test_images of drawn scenes are "
                f"{lengths['train']}, {lengths['validation']} and {lengths['test']}",
                "give each split 1 image or more",
            )
        if size < LEAST_SIZE:
            raise UserError(f"drawn scenes are to be {size} px", f"give a size of {LEAST_SIZE} px or more")
        if not 0 <= noise < 1:
            raise UserError(f"noise of drawn scenes is {noise}", "give a share of the full range: 0 <= noise < 1")
        if seed < 0:
            raise UserError(f"seed of drawn scenes is {seed}", "give 0 or more")
        self.lengths = lengths
        self.size = size
        self.noise = noise
        self.seed = seed
        self.stream = stream
        self.choice = choice
        self._drawn: dict[Split, tuple[list[Scene], np.ndarray]] = {}

    def scenes(self, split: Split) -> list[Scene]:
        """The scenes of a split."""
        return self._split(split)[0]

    def pixels(self, split: Split) -> np.ndarray:
        """The images of a split: uint8 (n, h, w, 3)."""
        return self._split(split)[1]

    def _split(self, split: Split) -> tuple[list[Scene], np.ndarray]:
        """Drawn once, before processes that read ahead are made, which then share the pixels."""
        if split not in self._drawn:
            length = self.lengths[split]
            scenes: list[Scene] = []
            pixels = np.empty((length, self.size, self.size, 3), np.uint8)
            glyphs = [glyphs.numpy() for glyphs in ScatteredDigits().glyphs(split)]
            for block in range(-(-length // BLOCK)):
                drawn, images = self._draw(split, block, glyphs)
                rest = length - block * BLOCK
                scenes += drawn[:rest]
                pixels[block * BLOCK : (block + 1) * BLOCK] = images[:rest]
            self._drawn[split] = scenes, pixels
        return self._drawn[split]

    def _draw(self, split: Split, block: int, glyphs: list[np.ndarray]) -> tuple[list[Scene], np.ndarray]:
        """The scenes of one block and their images, uint8 (n, h, w, 3)."""
        rng = np.random.default_rng([self.seed, self.stream, SPLIT_KEYS[split], block])
        groups = self.choice(split, block * BLOCK + np.arange(BLOCK), rng)
        canvas = _background(rng, self.size)  # (n, h, w, 3)
        cell = self.size / (3 + 2 * MARGIN)  # px
        places = rng.random((BLOCK, len(POSITIONS))).argsort(1)[:, :MOST]
        large = rng.random((BLOCK, groups.pair.shape[1])) < 0.5  # by group
        objects: list[list[SceneObject]] = [[] for _ in range(BLOCK)]
        group_of = np.array([(np.repeat(range(len(sizes)), sizes).tolist() + [-1] * MOST)[:MOST] for sizes in LAYOUTS])

        for number in range(MOST):
            group = group_of[groups.layout, number]  # (n,), -1 where there are fewer things
            chance = rng.random((BLOCK, 8))
            rows = np.flatnonzero(group >= 0)
            chance, group, place = chance[rows], group[rows], places[rows, number]
            name, colour = np.divmod(groups.pair[rows, group], len(COLOURS))
            is_large = large[rows, group]
            least, most = (
                np.where(is_large, *bounds) for bounds in zip(EXTENTS["large"], EXTENTS["small"], strict=True)
            )
            extent = least + (most - least) * chance[:, 0]
            room = np.minimum(SHIFT, (1 - extent) / 2 + BEYOND)
            centre = np.stack([place % 3, place // 3], 1) + 0.5 + MARGIN + room[:, None] * (2 * chance[:, 1:3] - 1)
            ink = np.array(list(COLOURS.values()))[colour] + 0.1 * (chance[:, 3:6] - 0.5)
            cover, corner = _cover(
                name, centre * cell, extent * cell / 2, TILT * (2 * chance[:, 6] - 1), chance[:, 7], glyphs, self.size
            )
            boxes = _boxes(cover, corner)
            span = np.arange(cover.shape[1])
            at = rows[:, None, None], corner[:, 1, None, None] + span[:, None], corner[:, 0, None, None] + span
            under = canvas[at]
            canvas[at] = under + cover[..., None] * (ink.astype(np.float32)[:, None, None] - under)
            facts = zip(name.tolist(), colour.tolist(), is_large.tolist(), place.tolist(), boxes, strict=True)
            for row, fact in zip(rows.tolist(), facts, strict=True):
                objects[row].append(_thing(*fact))

        canvas += rng.standard_normal((BLOCK, self.size, self.size, 1), dtype=np.float32) * np.float32(self.noise)
        np.clip(canvas, 0, 1, out=canvas)
        canvas *= 255
        return [Scene(tuple(things), self.size) for things in objects], canvas.astype(np.uint8)


def _thing(name: int, colour: int, large: bool, place: int, box: list[int]) -> SceneObject:
    left, top, right, bottom = box
    return SceneObject(
        "shape" if name < len(SHAPES) else "digit",
        NAMES[name],
        COLOUR_NAMES[colour],
        "large" if large else "small",
        POSITIONS[place],
        (left, top, right, bottom),
    )


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Dark grey of uneven brightness, tinted a little: float32 (n, h, w, 3)."""
    corners = rng.uniform(0.06, 0.32, (BLOCK, 2, 2, 1)) + rng.uniform(-0.04, 0.04, (BLOCK, 1, 1, 3))
    along = np.linspace(0, 1, size, dtype=np.float32)
    weights = np.stack([1 - along, along])  # (2, h)
    rows = np.einsum("nijc,jw->niwc", corners.astype(np.float32), weights)
    first, second = rows[:, 0, None], rows[:, 1, None]  # (n, 1, w, 3)
    return first + along[:, None, None] * (second - first)


def _cover(
    name: np.ndarray,
    centre: np.ndarray,
    half: np.ndarray,
    angle: np.ndarray,
    sample: np.ndarray,
    glyphs: list[np.ndarray],
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """How much of each pixel of a square around each thing it covers.

    Args:
        name: index in `NAMES`, (n,).
        centre: x and y, px, (n, 2).
        half: of the thing's height, px, (n,).
        angle: radians, (n,).
        sample: which handwriting sample, in [0, 1), (n,).
        glyphs: for each digit its samples, float (m, 8, 8).
        size: of the image, px.

    Returns:
        float32 (n, p, p) in [0, 1], and x and y of the first pixel, px, (n, 2).
    """
    side = min(size, math.ceil(size / (3 + 2 * MARGIN)) + 3)
    corner = np.clip(np.round(centre - side / 2).astype(int), 0, size - side)
    span = np.arange(side) + 0.5  # middles of pixels
    across = (corner[:, 0, None, None] + span - centre[:, 0, None, None]).astype(np.float32)  # (n, 1, p)
    down = (corner[:, 1, None, None] + span[:, None] - centre[:, 1, None, None]).astype(np.float32)  # (n, p, 1)
    cos, sin, unit = (values.astype(np.float32)[:, None, None] for values in (np.cos(angle), np.sin(angle), half))
    x, y = (cos * across + sin * down) / unit, (cos * down - sin * across) / unit  # (n, p, p), the thing is in [-1, 1]
    cover = np.empty_like(x)
    for number, outline in enumerate(OUTLINES.values()):
        of_shape = name == number
        # the edge runs through the pixel over which the distance to it, in pixels, goes from -1/2 to 1/2
        cover[of_shape] = 0.5 - outline(x[of_shape], y[of_shape]) * unit[of_shape]
    of_digit = np.flatnonzero(name >= len(SHAPES))
    digit = name[of_digit] - len(SHAPES)
    if len(of_digit):
        starts = np.cumsum([0, *map(len, glyphs)])
        shown = starts[digit] + np.floor(sample[of_digit] * np.diff(starts)[digit]).astype(int)
        grid = torch.from_numpy(np.stack([x[of_digit], y[of_digit]], -1))
        strokes = torch.from_numpy(np.concatenate(glyphs)[shown]).unsqueeze(1)
        cover[of_digit] = F.grid_sample(strokes, grid, align_corners=False)[:, 0].numpy() * 2 - 0.3
    return cover.clip(0, 1), corner


def _boxes(cover: np.ndarray, corner: np.ndarray) -> list[list[int]]:
    """Left, top, right and bottom of the pixels that are covered by half or more."""
    columns, rows = cover.max(1) >= 0.5, cover.max(2) >= 0.5  # (n, p)
    side = cover.shape[1]
    edges = [columns.argmax(1), rows.argmax(1), side - columns[:, ::-1].argmax(1), side - rows[:, ::-1].argmax(1)]
    return (np.stack(edges, 1) + np.tile(corner, 2)).tolist()


# Outlines: about the signed distance to the edge, negative inside; y points down, and the shape fits into [-1, 1].


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.94


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.84


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # apex (0, -0.94), base y = 0.78 from -0.95 to 0.95
    return np.maximum(y - 0.78, (np.abs(x) * 1.72 - (y + 0.94) * 0.95) / math.hypot(1.72, 0.95))


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # folded into half a ray: its edge is the line from the tip (1, 0) to the notch
    turn = 2 * np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + turn / 2) % turn - turn / 2)
    radius = np.hypot(x, y)
    along, aside = radius * np.cos(angle), radius * np.sin(angle)
    notch_x, notch_y = 0.45 * math.cos(turn / 2), 0.45 * math.sin(turn / 2)
    return ((along - 1) * notch_y + aside * (1 - notch_x)) / math.hypot(notch_y, 1 - notch_x)


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # a square that stands on its corner, and a round on each of its upper sides
    x, y = np.abs(x), y - 0.1
    tip = np.maximum(np.abs(x + y), np.abs(x - y)) / math.sqrt(2) - 0.6
    return np.minimum(tip, np.hypot(x - 0.424, y + 0.424) - 0.5)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 0.92, y - 0.3), np.maximum(x - 0.3, y - 0.92))


def _diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.abs(x) * 0.98 + np.abs(y) * 0.72 - 0.72 * 0.98) / math.hypot(0.98, 0.72)


def _moon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 0.94, 0.8 - np.hypot(x - 0.52, y))


OUTLINES = dict(zip(SHAPES, (_circle, _square, _triangle, _star, _heart, _cross, _diamond, _moon), strict=True))
