"""From pixels to tokens: 2-D patches of images, frames or tubelets of videos."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from lightning_vl.nn.initialisation import init_filter


def embed_patches(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Project each patch; the same as a convolution whose kernel is its stride, without padding.

    Args:
        images: (b, c, height, width).
        weight: the filters, (d, c, h, w).
        bias: (d,).

    Returns:
        (b, s, d) with the patches row by row; what is left over at the right and bottom is not seen.
    """
    h, w = weight.shape[-2:]
    rows, columns = images.shape[-2] // h, images.shape[-1] // w
    images = images[..., : rows * h, : columns * w]
    patches = rearrange(images, "b c (rows h) (columns w) -> b (rows columns) (c h w)", h=h, w=w)
    return nn.functional.linear(patches, weight.flatten(1), bias)


class Stem(nn.Module, ABC):
    """What makes feature maps of images, of which a hybrid's patches are taken (ViT, Sec. 3.1).

    Attributes:
        channels: of the feature map.
        stride: pixels from one place of the feature map to the next.
    """

    channels: int
    stride: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) to (b, channels, h / stride, w / stride)."""


class PatchEmbedding(nn.Module):
    """Patches of an image, or of a stem's feature map, row by row (ViT, Eq. 1).

    Args:
        image_size: height and width of the image, in pixels.
        patch_size: height and width of a patch, in pixels; with a stem in places of its feature map.
        dim: width d of the tokens.
        stem: what the patches are taken of; the image itself without one.
    """

    def __init__(self, image_size: int, patch_size: int, dim: int, stem: Stem | None = None) -> None:
        super().__init__()
        if stem is not None and image_size % stem.stride:
            raise ValueError(f"an image of {image_size} pixels is no multiple of the stem's stride {stem.stride}")
        size, channels = (image_size, 3) if stem is None else (image_size // stem.stride, stem.channels)
        if patch_size > size:
            raise ValueError(f"a patch of {patch_size} pixels does not fit into an image of {size}")
        self.image_size = image_size
        self.dim = dim
        self.grid = (size // patch_size, size // patch_size)
        self.stem = stem
        self.weight = nn.Parameter(torch.empty(dim, channels, patch_size, patch_size))
        self.bias = nn.Parameter(torch.zeros(dim))
        init_filter(self.weight)

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, image_size, image_size) to (b, s, d)."""
        if self.stem is not None:
            images = self.stem(images)
        return embed_patches(images, self.weight, self.bias)


class VideoEmbedding(nn.Module, ABC):
    """What every way of tokenising a video offers to the network behind it.

    Attributes:
        frames: number of frames of a clip.
        image_size: height and width of a frame, in pixels.
        dim: width d of the tokens.
        grid: number of tokens along time, height and width, (n_t, n_h, n_w).
        weight: the filters, (d, 3, ...).
        bias: (d,).
    """

    frames: int
    image_size: int
    dim: int
    grid: tuple[int, int, int]
    weight: nn.Parameter
    bias: nn.Parameter

    @abstractmethod
    def forward(self, video: Tensor) -> Tensor:
        """(b, frames, 3, image_size, image_size) to (b, t, s, d): t times of s = n_h n_w tokens, row by row."""


class TubeletEmbedding(VideoEmbedding):
    """Tubelets: a 3-D convolution whose kernel is its stride, without padding (ViViT, Sec. 3.2, Fig. 3).

    Args:
        frames: number of frames of a clip.
        image_size: height and width of a frame, in pixels.
        tubelet: extent of a tubelet in time, height and width, (t, h, w).
        dim: width d of the tokens.
    """

    def __init__(self, frames: int, image_size: int, tubelet: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        t, h, w = tubelet
        if t > frames or max(h, w) > image_size:
            raise ValueError(f"a tubelet of {t} x {h} x {w} does not fit into {frames} frames of {image_size} pixels")
        self.frames = frames
        self.image_size = image_size
        self.dim = dim
        self.grid = (frames // t, image_size // h, image_size // w)
        self.weight = nn.Parameter(torch.empty(dim, 3, t, h, w))
        self.bias = nn.Parameter(torch.zeros(dim))
        init_filter(self.weight)

    def forward(self, video: Tensor) -> Tensor:
        """(b, frames, 3, image_size, image_size) to (b, t, s, d)."""
        t, h, w = self.weight.shape[2:]
        times, rows, columns = self.grid
        video = video[:, : times * t, :, : rows * h, : columns * w]
        tubelets = rearrange(
            video, "b (times t) c (rows h) (columns w) -> b times (rows columns) (c t h w)", t=t, h=h, w=w
        )
        # A matrix product: the convolution it equals is several times slower on a CPU.
        return nn.functional.linear(tubelets, self.weight.flatten(1), self.bias)


def uniform_frames(frames: int, sampled: int) -> list[int]:
    """Which of ``frames`` frames uniform frame sampling takes (ViViT, Sec. 3.2; the rule is that of its code).

    Multiples of ``frames / (sampled + 1)``, the first one excluded, rounded half to even; all frames where
    ``sampled >= frames``.
    """
    if sampled >= frames:
        return list(range(frames))
    step = frames / (sampled + 1)
    return np.round(np.arange(step, frames, step)).astype(int).tolist()[:sampled]


class UniformFrameEmbedding(VideoEmbedding):
    """Some frames of the clip, evenly spaced, each cut into 2-D patches (ViViT, Sec. 3.2, Fig. 2).

    Args:
        frames: number of frames of a clip.
        image_size: height and width of a frame, in pixels.
        sampled_frames: how many of them are seen, n_t.
        patch_size: height and width of a patch, in pixels.
        dim: width d of the tokens.
    """

    def __init__(self, frames: int, image_size: int, sampled_frames: int, patch_size: int, dim: int) -> None:
        super().__init__()
        if sampled_frames > frames or patch_size > image_size:
            raise ValueError(
                f"{sampled_frames} frames of {patch_size}-pixel patches cannot be taken from {frames} frames "
                f"of {image_size} pixels"
            )
        self.frames = frames
        self.image_size = image_size
        self.dim = dim
        self.sampled = uniform_frames(frames, sampled_frames)
        self.grid = (sampled_frames, image_size // patch_size, image_size // patch_size)
        self.weight = nn.Parameter(torch.empty(dim, 3, patch_size, patch_size))
        self.bias = nn.Parameter(torch.zeros(dim))
        init_filter(self.weight)

    def forward(self, video: Tensor) -> Tensor:
        """(b, frames, 3, image_size, image_size) to (b, t, s, d)."""
        images = rearrange(video[:, self.sampled], "b t c h w -> (b t) c h w")
        tokens = embed_patches(images, self.weight, self.bias)
        return rearrange(tokens, "(b t) s d -> b t s d", t=len(self.sampled))
