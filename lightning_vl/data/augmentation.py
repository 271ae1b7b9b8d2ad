"""What is done to the pixels of a clip: the same thing to every frame, drawn from the generator that is handed in.

Clips are uint8 (t, c, h, w) throughout; the network's range is made on the device.
"""

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812


def resize(video: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, antialiased: (t, c, h, w) -> (t, c, height, width)."""
    if video.shape[-2:] == (height, width):
        return video
    return F.resize(video, [height, width], InterpolationMode.BILINEAR, antialias=True)


def resize_short_side(video: Tensor, size: int) -> Tensor:
    """The shorter of height and width becomes `size`, the other follows in proportion."""
    h, w = video.shape[-2:]
    return resize(video, max(size, round(h * size / min(h, w))), max(size, round(w * size / min(h, w))))


class TrainingTransform:
    """Resize, scale jitter, random crop, flip, then colour jitter or RandAugment, each if it is there.

    Args:
        short_side: the frame's shorter side before the crop, in pixels.
        crop: the side of the square that the network sees, in pixels.
        scale_jitter: least and greatest factor on the size, drawn for height and width independently; None for none.
        flip: probability of a left-right flip; 0 where labels speak of left and right.
    """

    def __init__(
        self, short_side: int, crop: int, scale_jitter: tuple[float, float] | None = None, flip: float = 0.0
    ) -> None:
        self.short_side = short_side
        self.crop = crop
        self.scale_jitter = scale_jitter
        self.flip = flip

    def __call__(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        """(t, c, h, w) -> (t, c, crop, crop)."""
        video = resize_short_side(video, self.short_side)
        h, w = video.shape[-2:]
        if self.scale_jitter is not None:
            h, w = (max(self.crop, round(side * rng.uniform(*self.scale_jitter))) for side in (h, w))
            video = resize(video, h, w)
        top, left = int(rng.integers(h - self.crop + 1)), int(rng.integers(w - self.crop + 1))
        video = video[..., top : top + self.crop, left : left + self.crop]
        if rng.random() < self.flip:
            video = video.flip(-1)
        return video.contiguous()


class EvaluationCrop:
    """Resize and crop without chance: the centre, or left, centre and right of the longer side.

    Args:
        short_side: the frame's shorter side before the crop, in pixels.
        crop: the side of the square that the network sees, in pixels.
        spatial_views: 1 for the centre, 3 for both ends of the longer side as well.
    """

    def __init__(self, short_side: int, crop: int, spatial_views: int = 1) -> None:
        self.short_side = short_side
        self.crop = crop
        self.spatial_views = spatial_views

    def __call__(self, video: Tensor) -> Tensor:
        """(t, c, h, w) -> (s, t, c, crop, crop)."""
        video = resize_short_side(video, self.short_side)
        h, w = video.shape[-2:]
        top, left = (h - self.crop) // 2, (w - self.crop) // 2
        corners = [(top, left)]
        if self.spatial_views == 3:
            ends = [(top, 0), (top, w - self.crop)] if w >= h else [(0, left), (h - self.crop, left)]
            corners = [ends[0], corners[0], ends[1]]
        return torch.stack([video[..., y : y + self.crop, x : x + self.crop] for y, x in corners])


def mixup(values: Tensor, share: Tensor) -> Tensor:
    """Each of the batch mixed with its partner in the reversed batch (Sec. 4.3, mixup).

    Args:
        values: float (b, ...), pixels or one-hot targets.
        share: scalar, the weight of the clip itself, from Beta(alpha, alpha).
    """
    return share * values + (1 - share) * values.flip(0)
