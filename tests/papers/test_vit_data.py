"""ViT's data module: subsets of the training set, mixing, and that both are the same after a restart."""

from collections import Counter
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch

from lightning_vl.cli import Bench
from lightning_vl.data.image_augmentation import MixupCutMix, PlainResize, RandomResizedCrop, ShiftedCrop, TimmAugment
from lightning_vl.data.source import ImageSource, LabelledImage, Split
from lightning_vl.errors import CorruptSample, UserError
from lightning_vl.papers.vit.data import ImageData


class Numbered(ImageSource):
    """60 training images of three classes whose pixels are their number; some cannot be read."""

    def __init__(self, corrupt: tuple[int, ...] = ()) -> None:
        self.corrupt = corrupt

    @property
    def class_names(self) -> list[str]:
        return ["a", "b", "c"]

    def images(self, split: Split) -> list[LabelledImage]:
        return [LabelledImage(f"{split}/{number}", number % 3) for number in range(60 if split == "train" else 6)]

    def read(self, split: Split, index: int) -> np.ndarray:
        if split == "train" and index in self.corrupt:
            raise CorruptSample(f"train/{index}", "torn")
        return np.full((9, 9, 3), index, np.uint8)


def ready(seed: int = 0, corrupt: tuple[int, ...] = (), accumulate: int = 1, **arguments: Any) -> ImageData:
    """Data set up for ten steps of one process."""
    settings: dict[str, Any] = {"augmentation": PlainResize(), "batch_size": 12, "workers": 0} | arguments
    data = ImageData(Numbered(corrupt), 8, **settings)
    data.trainer = lightning.Trainer(
        max_steps=10, accelerator="cpu", logger=False, accumulate_grad_batches=accumulate, enable_checkpointing=False
    )
    data.seed = seed
    data.setup("fit")
    return data


def seen(data: ImageData, start: int = 0, stop: int = 10) -> list[dict[str, Any]]:
    """The batches as the network gets them, from a restart at a step on."""
    loader = data.train_dataloader()
    loader.load_state_dict({"seed": data.seed, "position": start * data.batch_size})
    batches = []
    for number, batch in enumerate(loader, start=start):
        if number == stop:
            break
        batches.append(data.on_after_batch_transfer(batch, 0))
    return batches


def same(batches: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    """Whether ids, images and targets are equal, bit for bit."""
    return len(batches) == len(others) and all(
        batch["id"] == other["id"]
        and torch.equal(batch["image"], other["image"])
        and torch.equal(batch["target"], other["target"])
        for batch, other in zip(batches, others, strict=True)
    )


def test_a_subset_is_all_that_is_trained_on() -> None:
    """24 images in steps of 12 are two steps an epoch; each with its own pixels and label, and balanced."""
    data = ready(train_images=24)
    assert len(data.datasets["train"]) == 24
    batches = seen(data)
    ledger = Counter(name for batch in batches for name in batch["id"])
    assert set(ledger.values()) == {5}
    assert len(ledger) == 24
    for batch in batches:
        for name, label, image in zip(batch["id"], batch["label"].tolist(), batch["image"], strict=True):
            number = int(name.split("/")[1])
            assert label == number % 3
            assert image.unique().item() == pytest.approx(number * 2 / 255 - 1)
    assert Counter(int(name.split("/")[1]) % 3 for name in ledger) == {0: 8, 1: 8, 2: 8}
    larger = {name for batch in seen(ready(train_images=48)) for name in batch["id"]}
    assert set(ledger) < larger
    other = {name for batch in seen(ready(seed=1, train_images=24)) for name in batch["id"]}
    assert other != set(ledger)


@pytest.mark.parametrize("count", [0, 61])
def test_more_images_than_there_are(count: int) -> None:
    """Breaks if a point of the curve is trained on fewer images than it says."""
    with pytest.raises(UserError, match=f"train_images is {count}, the training split has 60"):
        ready(train_images=count)


def test_an_unreadable_image_is_replaced_within_the_subset() -> None:
    """Breaks if its place is taken by an image that the subset leaves out."""
    allowed = {name for batch in seen(ready(train_images=24)) for name in batch["id"]}
    corrupt = int(min(allowed).split("/")[1])
    shown = {name for batch in seen(ready(train_images=24, corrupt=(corrupt,))) for name in batch["id"]}
    assert shown == allowed - {f"train/{corrupt}"}


def test_mixed_batches_are_the_same_after_a_restart_and_with_workers() -> None:
    """Exact resume: what a step's images are mixed with depends on the seed and the step alone."""
    mixing = MixupCutMix()
    augmentation = TimmAugment(ShiftedCrop(padding=1))
    whole = seen(ready(mixing=mixing, augmentation=augmentation))
    assert same(whole[4:], seen(ready(mixing=mixing, augmentation=augmentation), start=4))
    assert same(whole, seen(ready(mixing=mixing, augmentation=augmentation, workers=2)))
    assert not same(whole, seen(ready(seed=1, mixing=mixing, augmentation=augmentation)))
    assert all(batch["target"].shape == (12, 3) and "mixing" not in batch for batch in whole)
    weights = {batch["target"].max(1).values[0].item() for batch in whole}
    assert len(weights) > 3  # steps differ


def test_processes_mix_differently() -> None:
    """Breaks if every rank draws the same weight, which makes the step's mixture coarser than the paper's."""
    seeds = []
    for rank in range(2):
        data = ready(mixing=MixupCutMix())
        loader = data.train_dataloader()
        loader.stream.rank, loader.stream.world_size, loader.stream.micro_batch = rank, 2, 6
        seeds += [batch["mixing"] for batch, _ in zip(loader, range(5), strict=False)]
    assert len(set(seeds)) == 10


def test_only_training_is_mixed() -> None:
    """Breaks if validation is scored on mixtures, or a run without mixing gets soft targets."""
    data = ready(mixing=MixupCutMix())
    (batch,) = data.val_dataloader()
    assert set(data.on_after_batch_transfer(batch, 0)) == {"image", "label", "id", "skipped"}
    assert all("target" not in batch and "mixing" not in batch for batch in seen(ready()))


@pytest.mark.parametrize(("batch_size", "accumulate"), [(9, 1), (12, 4)])
def test_an_odd_number_cannot_be_mixed(batch_size: int, accumulate: int) -> None:
    """Before training, not as an assertion of timm's; the micro-batch counts."""
    with pytest.raises(UserError, match=f"a device gets {batch_size // accumulate} at a time"):
        ready(mixing=MixupCutMix(), batch_size=batch_size, accumulate=accumulate).train_dataloader()


def test_the_command_knows_the_parts_by_their_short_names(tmp_path: Path) -> None:
    """Sources, augmentations and mixing, as an experiment's file gives them."""
    command = Bench(
        [
            "-c=experiments/real/vit_cifar10.yaml",
            "--data.init_args.source.class_path=InMemory",
            "--data.init_args.source.init_args.source.class_path=ImageShards",
            f"--data.init_args.source.init_args.source.init_args.root={tmp_path}",
            "--data.init_args.augmentation.class_path=TimmAugment",
            "--data.init_args.augmentation.init_args.crop.class_path=RandomResizedCrop",
            "--data.init_args.augmentation.init_args.policy=rand-m5-n2",
            "--data.init_args.mixing.class_path=MixupCutMix",
            "--data.init_args.mixing.init_args.mixup_alpha=0.2",
            "--data.init_args.train_images=100",
        ],
        run=False,
    )
    data = command.datamodule
    assert isinstance(data.augmentation, TimmAugment)
    assert isinstance(data.augmentation.crop, RandomResizedCrop)
    assert (data.mixing.mixup_alpha, data.train_images, data.source.source.root) == (0.2, 100, str(tmp_path))
