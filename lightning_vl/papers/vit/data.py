"""ViT's batches: labelled images, cropped at random for training, resized for evaluation."""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from lightning_vl.data.image_augmentation import Augmentation, MixupCutMix, resize
from lightning_vl.data.image_augmentation import RandomResizedCrop as RandomResizedCrop
from lightning_vl.data.module import DataModule, to_signed_unit_range
from lightning_vl.data.source import ImageSource, Split
from lightning_vl.data.stream import Batch, SeededDataset, TrainingLoader
from lightning_vl.data.streamed import StreamedDataset, StreamedSource
from lightning_vl.data.subset import balanced_subset
from lightning_vl.errors import UserError


class ImageBatch(TypedDict):
    """What the task gets.

    image: float (b, c, h, w) in [-1, 1]; uint8 until it is on the device.
    label: class index, int64 (b,).
    id: b names.
    mixing: seed of the batch's mixup or CutMix; only in training, where it is on.
    target: float (b, classes), the classes' shares in each mixed image; on the device, in the place of `mixing`.
    """

    image: Tensor
    label: Tensor
    id: list[str]
    mixing: NotRequired[int]
    target: NotRequired[Tensor]


class TrainingImages:
    """Each training image once an epoch, augmented anew.

    Args:
        source: the images.
        image_size: height and width for the network, px.
        augmentation: what is done to an image.
        count: how many of the images to train on, see `balanced_subset`; None for all.
        seed: seed of their choice.
        mixed: whether batches will be mixed: each sample then brings a seed for it.

    Raises:
        UserError: there are fewer images.
    """

    def __init__(
        self,
        source: ImageSource,
        image_size: int,
        augmentation: Augmentation,
        count: int | None = None,
        seed: int = 0,
        mixed: bool = False,
    ) -> None:
        self.source = source
        self.image_size = image_size
        self.augmentation = augmentation
        self.mixed = mixed
        self.images = source.images("train")
        self.indices: Sequence[int] | np.ndarray = range(len(self.images))  # places in the source
        if count is not None:
            if not 0 < count <= len(self.images):
                raise UserError(
                    f"train_images is {count}, the training split has {len(self.images)} images",
                    f"set data.init_args.train_images between 1 and {len(self.images)}, or leave it out for all",
                )
            self.indices = balanced_subset([image.label for image in self.images], count, seed)

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """`image` (c, h, w), `label`, `id` and, where batches are mixed, `mixing`.

        Raises:
            CorruptSample: the image cannot be decoded.
        """
        place = int(self.indices[index])
        image = self.augmentation(read(self.source, "train", place), self.image_size, rng)
        return training_sample(image, *self.images[place], rng, self.mixed)


class StreamedTrainingImages(StreamedDataset):
    """`TrainingImages` of a source that is read in order.

    Args:
        source: the images.
        image_size: height and width for the network, px.
        augmentation: what is done to an image.
        mixed: whether batches will be mixed: each sample then brings a seed for it.
    """

    def __init__(
        self, source: StreamedSource, image_size: int, augmentation: Augmentation, mixed: bool = False
    ) -> None:
        self.source = source
        self.image_size = image_size
        self.augmentation = augmentation
        self.mixed = mixed

    def __len__(self) -> int:
        return self.source.length

    def sample_in_order(self, seed: int, epoch: int, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """`image` (c, h, w), `label`, `id` and, where batches are mixed, `mixing`.

        Raises:
            CorruptSample: the image cannot be decoded.
        """
        (id, label), pixels = self.source.read_in_order(seed, epoch, index)
        image = self.augmentation(torch.from_numpy(pixels).permute(2, 0, 1), self.image_size, rng)
        return training_sample(image, id, label, rng, self.mixed)


def training_sample(image: Tensor, id: str, label: int, rng: np.random.Generator, mixed: bool) -> dict[str, Any]:
    """`image`, `label`, `id` and, where batches are mixed, `mixing`."""
    sample = {"image": image, "label": label, "id": id}
    if mixed:
        sample["mixing"] = int(rng.integers(2**32))
    return sample


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


def collate(samples: Sequence[dict[str, Any]]) -> ImageBatch:
    """Samples of `TrainingImages` or `EvaluationImages` as one batch; it is mixed with the first sample's seed."""
    batch = ImageBatch(
        image=torch.stack([sample["image"] for sample in samples]),
        label=torch.tensor([sample["label"] for sample in samples]),
        id=[sample["id"] for sample in samples],
    )
    if "mixing" in samples[0]:
        batch["mixing"] = samples[0]["mixing"]
    return batch


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
        train_images: train on so many of the training images only, the same number of each class where there are enough,
            chosen by the run's seed; fewer lie within more. None for all.
        mixing: mixup and CutMix of training batches; None for neither.
    """

    def __init__(
        self,
        source: ImageSource,
        image_size: int,
        augmentation: Augmentation,
        batch_size: int,
        evaluation_batch_size: int = 128,
        workers: int = 1,
        max_corrupt: float = 0.01,
        train_images: int | None = None,
        mixing: MixupCutMix | None = None,
    ) -> None:
        super().__init__(batch_size, evaluation_batch_size, workers, max_corrupt)
        self.source = source
        self.image_size = image_size
        self.augmentation = augmentation
        self.train_images = train_images
        self.mixing = mixing

    def dataset(self, split: Split) -> SeededDataset | StreamedDataset:
        """Augmented images for training, whole ones otherwise."""
        if split == "train" and isinstance(self.source, StreamedSource):
            if self.train_images is not None:
                raise UserError(
                    f"train_images is {self.train_images}, and a streamed set cannot be cut down to it",
                    "leave data.init_args.train_images out, or take the set with HubImages",
                )
            mixed = self.mixing is not None
            return StreamedTrainingImages(self.source, self.image_size, self.augmentation, mixed)
        if split == "train":
            return TrainingImages(
                self.source,
                self.image_size,
                self.augmentation,
                self.train_images,
                self.seed,
                mixed=self.mixing is not None,
            )
        return EvaluationImages(self.source, split, self.image_size)

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """See `collate`."""
        return dict(collate(samples))

    def train_dataloader(self) -> TrainingLoader:
        """See `DataModule`."""
        loader = super().train_dataloader()
        if self.mixing is not None and loader.stream.micro_batch % 2:
            raise UserError(
                f"mixing takes pairs of images, and a device gets {loader.stream.micro_batch} at a time",
                "choose data.init_args.batch_size so that batch_size / devices / accumulate_grad_batches is even",
            )
        return loader

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Size and range of the network's inputs."""
        return {"image_size": self.image_size, "range": [-1.0, 1.0], "channels": "RGB"}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """On the device: bytes to [-1, 1], then mixup or CutMix."""
        if not batch["id"]:
            return batch
        batch["image"] = to_signed_unit_range(batch["image"])
        if self.mixing is not None and "mixing" in batch:
            classes = len(self.source.class_names)
            batch["image"], batch["target"] = self.mixing(batch["image"], batch["label"], classes, batch.pop("mixing"))
        return batch
