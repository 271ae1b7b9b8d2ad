"""ViT's batches: labelled images, cropped at random for training, resized for evaluation."""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as pixels

from lightning_vl.data.module import DataModule, to_signed_unit_range
from lightning_vl.data.source import ImageSource, Split
from lightning_vl.data.stream import Batch, SeededDataset
from lightning_vl.errors import UserError

ATTEMPTS = 10  # to draw a crop that lies within the image, before the whole of it is taken


class ImageBatch(TypedDict):
    """What the task gets.

    image: float (b, c, h, w) in [-1, 1]; uint8 until it is on the device.
    label: class index, int64 (b,).
    id: b names.
    """

    image: Tensor
    label: Tensor
    id: list[str]


class RandomResizedCrop:
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


class TrainingImages:
    """Each training image once an epoch, cropped anew.

    Args:
        source: the images.
        image_size: height and width for the network, px.
        augmentation: the random crop.
    """

    def __init__(self, source: ImageSource, image_size: int, augmentation: RandomResizedCrop) -> None:
        self.source = source
        self.image_size = image_size
        self.augmentation = augmentation
        self.images = source.images("train")

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """`image` (c, h, w), `label`, `id`.

        Raises:
            CorruptSample: the image cannot be decoded.
        """
        image = self.augmentation(read(self.source, "train", index), self.image_size, rng)
        return {"image": image, "label": self.images[index].label, "id": self.images[index].id}


class EvaluationImages:
    """The images of a split, resized without regard to their shape and without a crop, as ViT's code evaluates.

    Args:
        source: the images.
        split: which of them.
        image_size: height and width for the network, px.
    """

    def __init__(self, source: ImageSource, split: Split, image_size: int) -> None:
        self.source = source
        self.split = split
        self.image_size = image_size
        self.images = source.images(split)

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """`image` (c, h, w), `label`, `id`; nothing is drawn from `rng`.

        Raises:
            CorruptSample: the image cannot be decoded.
        """
        image = resize(read(self.source, self.split, index), self.image_size)
        return {"image": image, "label": self.images[index].label, "id": self.images[index].id}


def read(source: ImageSource, split: Split, index: int) -> Tensor:
    """uint8 (c, h, w)."""
    return torch.from_numpy(source.read(split, index)).permute(2, 0, 1)


def resize(image: Tensor, size: int) -> Tensor:
    """Bilinear, antialiased: (c, h, w) -> (c, size, size)."""
    if image.shape[-2:] == (size, size):
        return image.contiguous()
    return pixels.resize(image, [size, size], InterpolationMode.BILINEAR, antialias=True)


def collate(samples: Sequence[dict[str, Any]]) -> ImageBatch:
    """Samples of `TrainingImages` or `EvaluationImages` as one batch."""
    return ImageBatch(
        image=torch.stack([sample["image"] for sample in samples]),
        label=torch.tensor([sample["label"] for sample in samples]),
        id=[sample["id"] for sample in samples],
    )


class ImageData(DataModule):
    """Labelled images in three splits for ViT.

    Args:
        source: where the images come from.
        image_size: height and width for the network, px.
        augmentation: what is done to training images.
        batch_size: images of one optimiser step, over all devices and accumulated micro-batches.
        evaluation_batch_size: images of one forward pass in evaluation, on each device.
        workers: processes that read ahead, on each device.
        max_corrupt: largest share of images that may turn out unreadable before the run stops.
    """

    def __init__(
        self,
        source: ImageSource,
        image_size: int,
        augmentation: RandomResizedCrop,
        batch_size: int,
        evaluation_batch_size: int = 128,
        workers: int = 1,
        max_corrupt: float = 0.01,
    ) -> None:
        super().__init__(batch_size, evaluation_batch_size, workers, max_corrupt)
        self.source = source
        self.image_size = image_size
        self.augmentation = augmentation

    def dataset(self, split: Split) -> SeededDataset:
        """Random crops for training, whole images otherwise."""
        if split == "train":
            return TrainingImages(self.source, self.image_size, self.augmentation)
        return EvaluationImages(self.source, split, self.image_size)

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """See `collate`."""
        return dict(collate(samples))

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Size and range of the network's inputs."""
        return {"image_size": self.image_size, "range": [-1.0, 1.0], "channels": "RGB"}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """On the device: bytes to [-1, 1]."""
        if batch["id"]:
            batch["image"] = to_signed_unit_range(batch["image"])
        return batch
