"""What is done to the pixels of a clip: the same to every frame, all chance from the generator that is handed in.

Clips are uint8 (t, c, h, w) throughout; the network's range is made on the device.
"""

from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as pixels

from lightning_vl.errors import UserError


class ColourJitter:
    """Brightness, contrast, saturation, hue, then perhaps grey, with the ranges of ViViT's reader.

    The reader's order is brightness, saturation, contrast, hue; here saturation and hue are one step, which saves half of
    the time. Between the steps nothing is rounded.

    Args:
        probability: of any jitter (Table 7: 0.8 for Kinetics and Moments in Time).
        brightness: greatest shift either way, of 255.
        contrast: least and greatest factor on the distance from the frame's mean.
        saturation: least and greatest factor on HSV's saturation.
        hue: greatest turn either way, in full turns.
        grey: probability that the clip loses its colours (the released Kinetics configurations: 0.1; not in the paper).
    """

    def __init__(
        self,
        probability: float = 0.8,
        brightness: float = 32.0,
        contrast: tuple[float, float] = (0.6, 1.4),
        saturation: tuple[float, float] = (0.6, 1.4),
        hue: float = 0.2,
        grey: float = 0.0,
    ) -> None:
        self.probability = probability
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.grey = grey

    def __call__(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        """(t, c, h, w) -> (t, c, h, w)."""
        if rng.random() < self.probability:
            shift = rng.uniform(-self.brightness, self.brightness)
            contrast, saturation = rng.uniform(*self.contrast), rng.uniform(*self.saturation)
            turn = rng.uniform(-self.hue, self.hue)
            # frame by frame: what a step leaves is still in the cache when the next one comes
            video = torch.stack([_jitter(frame, shift, contrast, saturation, turn) for frame in video])
        if rng.random() < self.grey:
            video = pixels.rgb_to_grayscale(video, num_output_channels=3)
        return video


def _jitter(frame: Tensor, shift: float, contrast: float, saturation: float, turn: float) -> Tensor:
    """uint8 (3, h, w) -> uint8 (3, h, w)."""
    values = frame.contiguous().float()
    mean = values.mean((-2, -1), keepdim=True) + shift
    values = values.add_(shift).sub_(mean).mul_(contrast).add_(mean).clamp_(0, 255)
    return turn_hue(values, turn, saturation).add_(0.5).byte()


def turn_hue(values: Tensor, turn: float, saturation: float) -> Tensor:
    """Turns HSV's hue and scales its saturation, without the detour through HSV's own numbers: float (3, h, w) >= 0."""
    red, green, blue = values
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    some = chroma.clamp_min(1e-6)  # where there is no colour the hue does not matter
    hue = torch.where(
        high == red,
        (green - blue) / some,
        torch.where(high == green, (blue - red) / some + 2, (red - green) / some + 4),
    ).add_(6 * turn)  # in sixths of a turn
    chroma = torch.minimum(chroma * saturation, high)
    channels = []
    for offset in (5, 3, 1):
        place = (hue + offset).remainder_(6)
        channels.append(high - chroma * torch.minimum(place, 4 - place).clamp_(0, 1))
    return torch.stack(channels)


Operation = Callable[[Tensor, float, np.random.Generator], Tensor]


def _as_one_image(operation: Callable[[Tensor], Tensor], video: Tensor) -> Tensor:
    """Frames on top of each other: statistics are the clip's, so that every frame is changed alike."""
    tall = rearrange(video, "t c h w -> c (t h) w")
    return rearrange(operation(tall), "c (t h) w -> t c h w", t=video.shape[0])


def _enhancement(level: float) -> float:
    return level * 1.8 + 0.1


def _auto_contrast(video: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return _as_one_image(pixels.autocontrast, video)


def _equalize(video: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return _as_one_image(pixels.equalize, video)


def _invert(video: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return pixels.invert(video)


def _posterize(video: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return pixels.posterize(video, min(int(level * 4), 8))


def _solarize(video: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    threshold = int(level * 256)
    return video if threshold > 255 else pixels.solarize(video, threshold)


def _solarize_add(video: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    lifted = video.clamp_max(255 - int(level * 110)) + int(level * 110)  # uint8 must not wrap around
    return torch.where(video < 128, lifted, video)


def _colour(video: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return pixels.adjust_saturation(video, _enhancement(level))


def _contrast(video: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return _as_one_image(lambda tall: pixels.adjust_contrast(tall, _enhancement(level)), video)


def _brightness(video: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return pixels.adjust_brightness(video, _enhancement(level))


def _sharpness(video: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return pixels.adjust_sharpness(video.contiguous(memory_format=torch.channels_last), _enhancement(level))


def _cutout(video: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """A black square at one place in all frames: up to 80 px a side at level 1 and frames of 224 px."""
    h, w = video.shape[-2:]
    y, x = int(rng.integers(h)), int(rng.integers(w))
    half = int(level * 40 * min(h, w) / 224)
    video = video.clone()
    video[..., max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
    return video


OPERATIONS: tuple[Operation, ...] = (
    _auto_contrast,
    _equalize,
    _invert,
    _posterize,
    _solarize,
    _solarize_add,
    _colour,
    _contrast,
    _brightness,
    _sharpness,
    _cutout,
)


class RandAugment:
    """RandAugment without its geometric operations, the same for all frames (Sec. 4.1, Table 7).

    Each layer applies one of eleven operations, or none, with equal chances. Magnitudes are counted so that 10 is the
    strongest that RandAugment's authors meant, as in the released configurations (15 and 20); from 10 on solarising and
    from 20 on posterising leaves the clip as it is.

    Args:
        layers: operations one after another.
        magnitude: their common strength.
    """

    def __init__(self, layers: int, magnitude: float) -> None:
        self.layers = layers
        self.magnitude = magnitude

    def __call__(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        """(t, c, h, w) -> (t, c, h, w)."""
        video = video.contiguous()  # most operations are slower on decoded frames, whose channels come last
        for choice in rng.integers(len(OPERATIONS) + 1, size=self.layers):
            if choice < len(OPERATIONS):
                video = OPERATIONS[choice](video, self.magnitude / 10, rng)
        return video


class TrainingTransform:
    """Resize with scale jitter, random crop, flip, then colour jitter and RandAugment, each where it is given.

    Args:
        short_side: the frame's shorter side before scale jitter and crop, in pixels.
        crop: the side of the square that the network sees, in pixels.
        scale_jitter: least and greatest factor on the size, drawn for height and width independently as the released
            reader does (Table 7: [0.9, 1.33]); None for none. No side becomes smaller than the crop.
        flip: probability of a left-right flip; 0 where labels tell left from right.
        colour_jitter: None for none.
        rand_augment: None for none.
    """

    def __init__(
        self,
        short_side: int,
        crop: int,
        scale_jitter: tuple[float, float] | None = None,
        flip: float = 0.0,
        colour_jitter: ColourJitter | None = None,
        rand_augment: RandAugment | None = None,
    ) -> None:
        _check_sizes(short_side, crop)
        self.short_side = short_side
        self.crop = crop
        self.scale_jitter = scale_jitter
        self.flip = flip
        self.colour_jitter = colour_jitter
        self.rand_augment = rand_augment

    def __call__(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        """(t, c, h, w) -> (t, c, crop, crop)."""
        h, w = _sizes(video, self.short_side)
        if self.scale_jitter is not None:
            h, w = (max(self.crop, round(side * rng.uniform(*self.scale_jitter))) for side in (h, w))
        video = resize(video, h, w)
        top, left = int(rng.integers(h - self.crop + 1)), int(rng.integers(w - self.crop + 1))
        video = video[..., top : top + self.crop, left : left + self.crop]
        if rng.random() < self.flip:
            video = video.flip(-1)
        if self.colour_jitter is not None:
            video = self.colour_jitter(video, rng)
        if self.rand_augment is not None:
            video = self.rand_augment(video, rng)
        return video.contiguous()


class EvaluationCrop:
    """Resize and crop without chance: the centre, or both ends of the longer side as well.

    Args:
        short_side: the frame's shorter side before the crop, in pixels.
        crop: the side of the square that the network sees, in pixels.
        spatial_views: 1 for the centre; 3 for left, centre and right (top, centre and bottom of an upright frame).
    """

    def __init__(self, short_side: int, crop: int, spatial_views: int = 1) -> None:
        _check_sizes(short_side, crop)
        if spatial_views not in (1, 3):
            raise UserError(f"spatial_views is {spatial_views}", "give 1 (the centre) or 3 (the ends as well)")
        self.short_side = short_side
        self.crop = crop
        self.spatial_views = spatial_views

    def __call__(self, video: Tensor) -> Tensor:
        """(t, c, h, w) -> (s, t, c, crop, crop)."""
        video = resize(video, *_sizes(video, self.short_side))
        spare_h, spare_w = video.shape[-2] - self.crop, video.shape[-1] - self.crop
        shares = (0.5,) if self.spatial_views == 1 else (0.0, 0.5, 1.0)
        corners = [
            (spare_h // 2, int(spare_w * share)) if spare_w >= spare_h else (int(spare_h * share), spare_w // 2)
            for share in shares
        ]
        return torch.stack([video[..., y : y + self.crop, x : x + self.crop] for y, x in corners])


def resize(video: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, antialiased: (t, c, h, w) -> (t, c, height, width)."""
    if video.shape[-2:] == (height, width):
        return video
    return pixels.resize(video, [height, width], InterpolationMode.BILINEAR, antialias=True)


def _sizes(video: Tensor, short_side: int) -> tuple[int, int]:
    """Height and width when the shorter one is `short_side` and the other follows in proportion."""
    h, w = video.shape[-2:]
    return (short_side, round(w * short_side / h)) if h <= w else (round(h * short_side / w), short_side)


def _check_sizes(short_side: int, crop: int) -> None:
    if not 0 < crop <= short_side:
        raise UserError(
            f"a crop of {crop} px does not fit frames whose shorter side is {short_side} px",
            "give a short_side that is as large as the crop or larger",
        )


def mixup(values: Tensor, share: Tensor) -> Tensor:
    """Each of the batch mixed with its partner in the reversed batch (mixup, Sec. 4.1).

    Args:
        values: float (b, ...), pixels or one-hot targets.
        share: scalar, the weight of the clip itself, from Beta(alpha, alpha).
    """
    return share * values + (1 - share) * values.flip(0)
