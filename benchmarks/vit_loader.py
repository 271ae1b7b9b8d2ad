"""ViT's loader against plain torchvision, in one process: images a second from a folder of JPEGs, in turn, ratio printed.

    PYTHONPATH=. python benchmarks/vit_loader.py DATA             # DATA holds train/<class>/<image>, and val or test
    PYTHONPATH=. python benchmarks/vit_loader.py DATA --workers 4 --image-size 384

Ours is the training loader of `ImageData`, with ImageFolder and RandomResizedCrop; theirs torchvision's ImageFolder, Pillow,
RandomResizedCrop and flip with the same settings, under a shuffling DataLoader with as many workers. Ratio: our images a
second over theirs, so 1.0 or more is at least as fast. A first pass of each is not counted.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder as TorchvisionFolder

from lightning_vl.data.datasets.image_folder import ImageFolder
from lightning_vl.data.image_augmentation import RandomResizedCrop
from lightning_vl.data.stream import KeyedDataset, TrainingLoader, TrainingStream
from lightning_vl.papers.vit.data import TrainingImages, collate


def ours(root: str, image_size: int, batch_size: int, batches: int, workers: int) -> Iterable[Any]:
    """One epoch of our training loader, or so many batches of it."""
    images = TrainingImages(ImageFolder(root), image_size, RandomResizedCrop())
    keyed = KeyedDataset(images, lambda samples: dict(collate(samples)), seed=0, replace_corrupt=True)
    stream = TrainingStream(len(images), batch_size, batches, seed=0)
    return TrainingLoader(keyed, stream, workers, pin_memory=False)


def theirs(root: str, image_size: int, batch_size: int, workers: int) -> Iterable[Any]:
    """The plain way."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(image_size, scale=(0.05, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    images = TorchvisionFolder(os.path.join(root, "train"), transform)
    return DataLoader(images, batch_size, shuffle=True, num_workers=workers)


def images_per_second(loader: Iterable[Any], batch_size: int, batches: int) -> float:
    """From the second batch on: workers have started by then."""
    iterator = iter(loader)
    next(iterator)
    start = time.perf_counter()
    for _ in range(batches - 1):
        next(iterator)
    return batch_size * (batches - 1) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder with train/<class>/<image>, and val or test")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=10, help="of each timed pass")
    parser.add_argument("--passes", type=int, default=3, help="timed passes of each")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size, batch, batches, workers = arguments.image_size, arguments.batch_size, arguments.batches, arguments.workers
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(arguments.passes + 1):
        for name, loader in (
            ("ours", ours(arguments.root, size, batch, batches, workers)),
            ("theirs", theirs(arguments.root, size, batch, workers)),
        ):
            rate = images_per_second(loader, batch, batches)
            if number:  # the first pass of each fills the disk's cache
                rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:>6}: {medians[name]:.0f} images/s (passes: {', '.join(f'{value:.0f}' for value in values)})")
    print(f"ratio: {medians['ours'] / medians['theirs']:.2f} (aim: 1.0 or more), {workers} workers, {size} px")


if __name__ == "__main__":
    main()
