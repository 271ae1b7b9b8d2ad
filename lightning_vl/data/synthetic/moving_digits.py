"""Handwritten digits set in motion: video with known answers, made as it is read, without a network.

Each clip shows one real handwritten digit (scikit-learn's copy of the UCI digits, 8 x 8 px) to which two events happen, one
after the other. The class is the digit *and the order of the events*: "3: right then left" against "3: left then right".
A single frame tells the digit, two neighbouring frames tell what happens at that moment; only the whole clip tells the order.
Opposed motions run over the same stretch of the canvas, so the two orders show the same frames in another sequence, and a model
that averages over time is left with chance between them. "Grow then turn" and "turn then grow" do differ in single frames: the
first turns the digit while it is large, the second while it is small. Sizes before growing are spread over the factor of the
growth, so that one has to compare frames to see it, but their order is not needed. A model blind to order, with every digit
recognised, reaches (4 / 2 + 2) / 6 = 67 %.

Glyphs are split by writing sample: no glyph of the validation or test split is ever seen in training.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from lightning_vl.data.source import Clip, Split, VideoSource
from lightning_vl.errors import UserError

ORDERS = (
    ("right", "left"),
    ("left", "right"),
    ("up", "down"),
    ("down", "up"),
    ("grow", "turn"),
    ("turn", "grow"),
)
SPLIT_KEYS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}
TRAVEL = 0.8  # how far a digit moves in one event; the canvas is 2 wide
GROWTH = 1.8  # ratio of the sizes after and before "grow"
TURN = math.pi / 2


class MovingDigits(VideoSource):
    """Two events in order happen to a handwritten digit.

    Clip `index` of a split is a pure function of (seed, split, index): the training split may be as long as one likes.

    Args:
        train_clips: length of the training split, hence of an epoch.
        validation_clips: length of the validation split.
        test_clips: length of the test split.
        frames: frames of a clip; each of the two events takes half of them.
        size: height and width of the canvas, px.
        digits: the digits that occur.
        noise: standard deviation of the pixel noise, in units of the full range.
        seed: seed of the clips (not of the training run).
    """

    def __init__(
        self,
        train_clips: int = 100_000,
        validation_clips: int = 480,
        test_clips: int = 960,
        frames: int = 8,
        size: int = 32,
        digits: Sequence[int] = (0, 1, 2, 3),
        noise: float = 0.03,
        seed: int = 0,
    ) -> None:
        if frames < 4 or frames % 2:
            raise UserError(
                f"MovingDigits: frames is {frames}", "give an even number of at least 4: half for each event"
            )
        if not digits or not set(digits) <= set(range(10)):
            raise UserError(f"MovingDigits: digits is {list(digits)}", "give a list of digits from 0 to 9")
        self.lengths: dict[Split, int] = {"train": train_clips, "validation": validation_clips, "test": test_clips}
        self.frames = frames
        self.size = size
        self.digits = list(digits)
        self.noise = noise
        self.seed = seed

    @property
    def heads(self) -> dict[str, list[str]]:
        """One head; classes are every digit with every order of events."""
        return {"class": [f"{digit}: {first} then {second}" for digit in self.digits for first, second in ORDERS]}

    @cached_property
    def _glyphs(self) -> dict[tuple[Split, int], torch.Tensor]:
        """float (n, 8, 8) in [0, 1] by split and digit: of every five writing samples one is for validation, one for test."""
        from sklearn.datasets import load_digits

        images, targets = load_digits(return_X_y=True)
        parts: dict[tuple[Split, int], torch.Tensor] = {}
        for digit in self.digits:
            of_digit = torch.from_numpy(images[targets == digit].reshape(-1, 8, 8) / 16.0).float()
            fifth = torch.arange(len(of_digit)) % 5
            parts["train", digit] = of_digit[fifth < 3]
            parts["validation", digit] = of_digit[fifth == 3]
            parts["test", digit] = of_digit[fifth == 4]
        return parts

    def clips(self, split: Split) -> Sequence[Clip]:
        """The clips of a split, classes in turn, so that every split is balanced."""
        _ = self._glyphs  # loaded once, here, rather than in every process that reads ahead
        return _Clips(split, self.lengths[split], self.frames, len(self.heads["class"]))

    def read(self, split: Split, index: int, frames: Sequence[int]) -> np.ndarray:
        """Draws the asked frames of one clip: uint8 (t, h, w, 3)."""
        rng = np.random.default_rng([self.seed, SPLIT_KEYS[split], index])
        label = index % len(self.heads["class"])
        digit, order = self.digits[label // len(ORDERS)], ORDERS[label % len(ORDERS)]
        glyphs = self._glyphs[split, digit]
        glyph = glyphs[rng.integers(len(glyphs))]
        colour = torch.from_numpy(rng.uniform(0.6, 1.0, 3)).float()
        x, y, scale, angle = (track[list(frames)] for track in _trajectory(rng, order, self.frames))

        # grid_sample asks, for every pixel of the canvas, where in the glyph it comes from: the inverse motion
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        rotation = torch.stack([cos, sin, -sin, cos], dim=-1).view(-1, 2, 2)  # (t, 2, 2)
        shift = -rotation @ torch.stack([x, y], dim=-1).unsqueeze(-1)  # (t, 2, 1)
        grid = F.affine_grid(
            torch.cat([rotation, shift], dim=-1), [len(frames), 1, self.size, self.size], align_corners=False
        )
        canvas = F.grid_sample(glyph.expand(len(frames), 1, 8, 8), grid, align_corners=False)  # (t, 1, h, w)
        video = canvas.permute(0, 2, 3, 1) * colour  # (t, h, w, 3)
        grain = rng.standard_normal((self.frames, self.size, self.size, 1), dtype=np.float32)[list(frames)] * self.noise
        return ((video + torch.from_numpy(grain)).clamp(0, 1) * 255).byte().numpy()


class _Clips(Sequence[Clip]):
    """The clips of a split without holding them: there may be millions."""

    def __init__(self, split: Split, length: int, frames: int, classes: int) -> None:
        self.split, self.length, self.frames, self.classes = split, length, frames, classes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if not 0 <= index < self.length:
            raise IndexError(index)
        return Clip(f"{self.split}/{index}", self.frames, {"class": index % self.classes})


def _trajectory(rng: np.random.Generator, order: tuple[str, str], frames: int) -> tuple[torch.Tensor, ...]:
    """Centre x and y (canvas runs from -1 to 1), half size, and angle (radians) of the digit in every frame, each (t,)."""
    half = frames // 2
    there = torch.linspace(0, 1, half)
    rise = torch.cat([there, there.new_ones(half)])  # 0 -> 1 in the first half, then stays
    late = torch.cat([there.new_zeros(half), there])  # stays, then 0 -> 1 in the second half
    to_and_fro = torch.cat([there, there.flip(0)])  # 0 -> 1 -> 0
    scale = torch.full((frames,), rng.uniform(0.4, 0.5))
    angle = torch.full((frames,), rng.uniform(-0.1, 0.1))
    x = torch.full((frames,), rng.uniform(-0.55, 0.55))
    y = torch.full((frames,), rng.uniform(-0.55, 0.55))
    near = rng.uniform(-0.6, 0.6 - TRAVEL)  # the near end of the stretch over which the digit moves

    match order:
        case ("right", "left"):
            x = near + TRAVEL * to_and_fro
        case ("left", "right"):
            x = near + TRAVEL * (1 - to_and_fro)
        case ("down", "up"):
            y = near + TRAVEL * to_and_fro
        case ("up", "down"):
            y = near + TRAVEL * (1 - to_and_fro)
        case ("grow", "turn"):
            scale, angle = _large_or_small(rng) * GROWTH**rise, angle + TURN * late
        case ("turn", "grow"):
            scale, angle = _large_or_small(rng) * GROWTH**late, angle + TURN * rise
    return x, y, scale, angle


def _large_or_small(rng: np.random.Generator) -> float:
    """The size before growing: spread over the factor of the growth, so that a size alone does not tell before from after."""
    return 0.3 * GROWTH ** rng.uniform()
