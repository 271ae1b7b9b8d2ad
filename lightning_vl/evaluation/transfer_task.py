"""What a transfer task is, and its images as a protocol sees them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_vl.data.image_augmentation import Augmentation, PlainResize
from lightning_vl.data.images import Place, PlacedImages
from lightning_vl.data.module import to_signed_unit_range
from lightning_vl.data.source import ImageSource, Split
from lightning_vl.data.stream import (
    Batch,
    EvaluationKeys,
    KeyedDataset,
    TrainingLoader,
    TrainingStream,
    evaluation_loader,
)
from lightning_vl.errors import UserError
from lightning_vl.terminal import say

SUBSET_SEED = 0  # the labelled images of a task are the same for every network and every run: comparisons are paired


class Features(NamedTuple):
    """What a frozen network says of some images, those that cannot be read left out.

    Attributes:
        values: float32 (n, d), on the CPU.
        labels: class index, int64 (n,).
        places: which of the images asked for, ascending, int64 (n,).
    """

    values: np.ndarray
    labels: np.ndarray
    places: np.ndarray


class Protocol(ABC):
    """A way to measure transfer."""

    def check(self, images: "TaskImages") -> None:
        """Finds, before anything is computed, that a task has too few images for this.

        Raises:
            UserError: it has.
        """
        return

    @abstractmethod
    def evaluate(self, net: nn.Module, images: "TaskImages", seed: int) -> dict[str, float]:
        """Shares of the test split that are classified right, by name.

        Args:
            net: the trained network, in evaluation mode and on the device of `images`; to be left as it is.
            images: the task.
            seed: seed of the training, if there is one.
        """


@dataclass
class TransferTask:
    """A set of images to transfer to, and how.

    Args:
        name: in the names of metrics; with a slash the part before it is the group (`natural/caltech101`).
        source: the images.
        protocols: how transfer is measured.
        train_images: how many labelled images the task has for training and choosing together: four fifths from the training
            split and one fifth from the validation split, as VTAB's 800 and 200. They are drawn evenly, without regard to
            class, the same for every network and run, and fewer lie within more. None for all.
        batch_size: images of one forward pass.
        workers: processes that read ahead.
        max_corrupt: largest share of the task's images that may turn out unreadable.
    """

    name: str
    source: ImageSource
    protocols: list[Protocol]
    train_images: int | None = None
    batch_size: int = 128
    workers: int = 0
    max_corrupt: float = 0.01


class TaskImages:
    """The images of a task, as a network of some input size is given them.

    Args:
        task: the task.
        image_size: height and width for the network, px.
        device: where batches go.

    Raises:
        UserError: a split cannot be had, or has fewer images than `train_images` takes from it.
    """

    def __init__(self, task: TransferTask, image_size: int, device: torch.device) -> None:
        self.name = task.name
        self.class_names = task.source.class_names
        self.device = device
        self.skipped: list[str] = []  # what could not be read, in the order met
        self._task = task
        self._image_size = image_size
        wanted = task.train_images
        held_out = None if wanted is None else wanted // 5
        self._places: dict[Split, list[Place]] = {
            "train": self._choose("train", None if wanted is None else wanted - wanted // 5),
            "validation": self._choose("validation", held_out),
            "test": self._choose("test", None),
        }
        self._whole: dict[Split, Features] = {}

    def _choose(self, split: Split, count: int | None) -> list[Place]:
        length = len(self._task.source.images(split))
        if not length or (count is not None and count > length):
            raise UserError(
                f"the {split} split of {self.name} has {length} images, {count or 'some'} are wanted",
                f"check the source of the transfer task {self.name}, or lower its train_images",
            )
        if count is None:
            return [(split, index) for index in range(length)]
        chosen = np.random.default_rng(SUBSET_SEED).permutation(length)[:count]
        return [(split, index) for index in sorted(chosen.tolist())]

    def labels(self, split: Split) -> np.ndarray:
        """Class index of each image of a split, int64 (n,); no image is opened."""
        images = self._task.source.images(split)  # a source may make the list anew each time
        return np.array([images[index].label for _, index in self._places[split]])

    def places(self, *splits: Split) -> list[Place]:
        """The images of these splits."""
        return [place for split in splits for place in self._places[split]]

    def features(self, net: nn.Module, split: Split) -> Features:
        """The network's features of a split; computed once, for the network that was given first."""
        if split not in self._whole:
            self._whole[split] = self.features_at(net, self.places(split))
        return self._whole[split]

    @torch.no_grad()
    def features_at(self, net: nn.Module, places: Sequence[Place]) -> Features:
        """The network's features of some images."""
        values, labels, found = [], [], []
        for batch in self.batches(places):
            values.append(net(batch["image"]).features.float().cpu().numpy())  # (b, d)
            labels.append(batch["label"].cpu().numpy())
            found.append(batch["place"].cpu().numpy())
        return Features(np.concatenate(values), np.concatenate(labels), np.concatenate(found))

    @torch.no_grad()
    def top1(self, net: nn.Module, split: Split) -> float:
        """Share of a split that the network classifies right; nan is wrong."""
        right = total = 0
        for batch in self.batches(self.places(split)):
            logits = net(batch["image"]).logits  # (b, k)
            finite = logits.isfinite().all(1)
            right += int(((logits.argmax(1) == batch["label"]) & finite).sum())
            total += len(logits)
        return right / total

    def batches(self, places: Sequence[Place]) -> Iterator[Batch]:
        """Each readable image once, in order, in [-1, 1], on the device."""
        dataset = PlacedImages(self._task.source, places, self._image_size, PlainResize())
        keyed = KeyedDataset(dataset, dataset.collate, seed=0, replace_corrupt=False)
        keys = EvaluationKeys(len(places), self._task.batch_size)
        return self._prepared(evaluation_loader(keyed, keys, self._task.workers, pin_memory=False))

    def steps(
        self, places: Sequence[Place], batch_size: int, steps: int, seed: int, augmentation: Augmentation
    ) -> Iterator[list[Batch]]:
        """The batches of a training, each in parts that fit into one forward pass."""
        dataset = PlacedImages(self._task.source, places, self._image_size, augmentation)
        keyed = KeyedDataset(dataset, dataset.collate, seed, replace_corrupt=True)
        stream = TrainingStream(len(places), batch_size, steps, seed)
        for batch in self._prepared(TrainingLoader(keyed, stream, self._task.workers, pin_memory=False)):
            images, labels = (batch[name].split(self._task.batch_size) for name in ("image", "label"))
            yield [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]

    def _prepared(self, loader: DataLoader) -> Iterator[Batch]:
        for batch in loader:
            self._count(batch["skipped"])
            if batch["id"]:
                moved = {name: batch[name].to(self.device) for name in ("image", "label", "place")}
                yield {**moved, "image": to_signed_unit_range(moved["image"])}

    def _count(self, skipped: list[str]) -> None:
        new = [report for report in dict.fromkeys(skipped) if report not in self.skipped]
        self.skipped += new
        for report in new:
            say(f"{self.name}: skipped an unreadable image: {report}")
        total = sum(len(places) for places in self._places.values())
        if len(self.skipped) > self._task.max_corrupt * total:
            raise UserError(
                f"{len(self.skipped)} of {total} images of {self.name} cannot be read, the last one {self.skipped[-1]}",
                f"mend or remove them, or allow more than {self._task.max_corrupt:.1%} with max_corrupt of this task",
            )
