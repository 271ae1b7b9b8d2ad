"""What is done to training images, one at a time and in batches."""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as pixels

from lightning_vl.errors import UserError

ATTEMPTS = 10  # to draw a crop that lies within the image, before the whole of it is taken


class Augmentation(ABC):
    """What is done to a training image."""

    @abstractmethod
    def __call__(self, image: Tensor, size: int, rng: np.random.Generator) -> Tensor:
        """uint8 (c, h, w) -> uint8 (c, size, size); all randomness comes from `rng`."""


class PlainResize(Augmentation):
    """No augmentation: training images are resized as those of evaluation are."""

    def __call__(self, image: Tensor, size: int, rng: np.random.Generator) -> Tensor:
        """uint8 (c, h, w) -> uint8 (c, size, size)."""
        return resize(image, size)


class ShiftedCrop(Augmentation):
    """The image moved by a few pixels, perhaps flipped: what small images (CIFAR's) usually get.

    The image is resized, padded with black on all sides, and cropped back to its size at a random place.

    Args:
        padding: the farthest shift, px of the resized image.
        flip: probability of a left-right flip.
    """

    def __init__(self, padding: int = 4, flip: float = 0.5) -> None:
        if padding < 0:
            raise UserError(f"padding is {padding}", "give pixels: 0 or more")
        self.padding = padding
        self.flip = flip

    def __call__(self, image: Tensor, size: int, rng: np.random.Generator) -> Tensor:
        """uint8 (c, h, w) -> uint8 (c, size, size)."""
        shift, channels = self.padding, image.shape[0]
        padded = image.new_zeros(channels, size + 2 * shift, size + 2 * shift)
        padded[:, shift : shift + size, shift : shift + size] = resize(image, size)
        top, left = rng.integers(2 * shift + 1, size=2).tolist()
        image = padded[:, top : top + size, left : left + size]
        return image.flip(-1) if rng.random() < self.flip else image


class RandomResizedCrop(Augmentation):
    """A random part of the image at the network's size, perhaps flipped: the "Inception crop" of ViT's code.

    Args:
        area: least and greatest share of the image's area (ViT's code: 0.05 to 1).
        aspect_ratio: least and greatest width over height, drawn evenly in its logarithm.
        flip: probability of a left-right flip.
    """

    def __init__(
        self,
        area: tuple[float, float] = (0.05, 1.0),
        aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> None:
        if not 0 < area[0] <= area[1] <= 1:
            raise UserError(f"area is {area}", "give shares of the image's area: 0 < least <= greatest <= 1")
        if not 0 < aspect_ratio[0] <= aspect_ratio[1]:
            raise UserError(f"aspect_ratio is {aspect_ratio}", "give width over height: 0 < least <= greatest")
        self.area = area
        self.aspect_ratio = aspect_ratio
        self.flip = flip

    def __call__(self, image: Tensor, size: int, rng: np.random.Generator) -> Tensor:
        """uint8 (c, h, w) -> uint8 (c, size, size)."""
        top, left, height, width = self._box(image.shape[-2], image.shape[-1], rng)
        image = resize(image[:, top : top + height, left : left + width], size)
        return image.flip(-1) if rng.random() < self.flip else image

    def _box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        for _ in range(ATTEMPTS):
            area = height * width * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(math.log(self.aspect_ratio[0]), math.log(self.aspect_ratio[1])))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        return 0, 0, height, width


class RandomSquareCrop(Augmentation):
    """A square of the image's shorter side, taken at a random place: CLIP's only augmentation."""

    def __call__(self, image: Tensor, size: int, rng: np.random.Generator) -> Tensor:
        """uint8 (c, h, w) -> uint8 (c, size, size)."""
        image = resize_shorter_side(image, size)
        top, left = (int(rng.integers(length - size + 1)) for length in image.shape[-2:])
        return image[:, top : top + size, left : left + size].contiguous()


class TimmAugment(Augmentation):
    """A crop, then one of timm's policies: RandAugment, AutoAugment, AugMix.

    Args:
        crop: brings the image to the network's size.
        policy: in timm's notation: `rand-m9-n2-mstd0.5` is RandAugment of magnitude 9 (standard deviation 0.5) with two
            operations an image, `original` and `v0` are AutoAugment, `augmix-m3-w3` is AugMix.
    """

    def __init__(self, crop: Augmentation, policy: str = "rand-m9-n2-mstd0.5") -> None:
        try:
            timm_policy(policy, 224)
        except (AssertionError, ValueError) as error:
            raise UserError(
                f"policy {policy!r} is none of timm's: {error}",
                "write it as timm does: rand-m9-n2-mstd0.5, original, ...",
            ) from error
        self.crop = crop
        self.policy = policy

    def __call__(self, image: Tensor, size: int, rng: np.random.Generator) -> Tensor:
        """uint8 (c, h, w) -> uint8 (c, size, size)."""
        cropped = Image.fromarray(self.crop(image, size, rng).permute(1, 2, 0).numpy())
        with global_generators(int(rng.integers(2**32))):
            changed = timm_policy(self.policy, size)(cropped)
        return torch.from_numpy(np.array(changed)).permute(2, 0, 1)


@lru_cache
def timm_policy(policy: str, size: int) -> Callable[[Image.Image], Image.Image]:
    """timm's policy for images of a size, px; shifts reach as far as in timm's own training (45 % of the image)."""
    # it takes more than a second and few experiments need it
    from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

    make = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    settings = {"translate_const": int(size * 0.45), "img_mean": (128, 128, 128)}  # grey fills what a shift uncovers
    return make.get(policy.split("-")[0], auto_augment_transform)(policy, settings)


class MixupCutMix:
    """Mixes each image of a batch with its partner in the reversed batch, by timm: mixup or CutMix, drawn for the batch.

    It is drawn for each device's micro-batch: where batches are mixed, devices and accumulation change which images meet.

    Args:
        mixup_alpha: mixup's Beta(alpha, alpha); 0 for CutMix alone.
        cutmix_alpha: CutMix's Beta(alpha, alpha); 0 for mixup alone. With both, each batch gets one of them, as likely
            the one as the other.
        label_smoothing: share of a target that is spread evenly over all classes.
    """

    def __init__(self, mixup_alpha: float = 0.8, cutmix_alpha: float = 1.0, label_smoothing: float = 0.0) -> None:
        if min(mixup_alpha, cutmix_alpha) < 0 or mixup_alpha == cutmix_alpha == 0:
            raise UserError(
                f"mixup_alpha is {mixup_alpha} and cutmix_alpha {cutmix_alpha}", "give one of them a positive value"
            )
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.label_smoothing = label_smoothing

    def __call__(self, image: Tensor, label: Tensor, classes: int, seed: int) -> tuple[Tensor, Tensor]:
        """A mixed batch and its targets.

        Args:
            image: float (b, c, h, w), b even; changed in place.
            label: class index (b,).
            classes: number of classes.
            seed: what is drawn depends on it alone.

        Returns:
            float (b, c, h, w), and the classes' shares, float (b, classes).
        """
        from timm.data.mixup import Mixup  # see `timm_policy`

        mixup = Mixup(  # type: ignore[no-untyped-call]
            self.mixup_alpha, self.cutmix_alpha, label_smoothing=self.label_smoothing, num_classes=classes
        )
        with global_generators(seed):
            return mixup(image, label)


@contextmanager
def global_generators(seed: int) -> Iterator[None]:
    """timm draws from Python's and numpy's global generators: seeds them, and puts them back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def resize(image: Tensor, size: int) -> Tensor:
    """Bilinear, antialiased: (c, h, w) -> (c, size, size)."""
    if image.shape[-2:] == (size, size):
        return image.contiguous()
    return pixels.resize(image, [size, size], InterpolationMode.BILINEAR, antialias=True)


def resize_shorter_side(image: Tensor, size: int) -> Tensor:
    """Bicubic as PIL has it, which CLIP's weights were trained and are tested with: uint8 (c, h, w) -> (c, h', w').

    The shorter of h' and w' is `size`; the longer one is rounded down.
    """
    height, width = image.shape[-2:]
    if min(height, width) == size:
        return image
    shorter = min(height, width)
    target = (int(size * width / shorter), int(size * height / shorter))
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(target, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def centre_square(image: Tensor, size: int) -> Tensor:
    """The middle of the image after `resize_shorter_side`: uint8 (c, h, w) -> uint8 (c, size, size)."""
    image = resize_shorter_side(image, size)
    top, left = (round((length - size) / 2) for length in image.shape[-2:])
    return image[:, top : top + size, left : left + size].contiguous()
