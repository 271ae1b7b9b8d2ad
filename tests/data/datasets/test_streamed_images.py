"""Streamed training: every image once an epoch over ranks and workers, and a resumed run equals one that was not."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vl.data.datasets.streamed_images import StreamedHubImages
from lightning_vl.data.image_augmentation import MixupCutMix, PlainResize, ShiftedCrop
from lightning_vl.errors import UserError
from lightning_vl.papers.vit.data import ImageData


def write(root: Path, name: str, numbers: range, names: list[str] | None = None) -> None:
    """A parquet file; image n has the colour n all over and is of class n % 2."""
    contents = []
    for number in numbers:
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (number, number, number)).save(file, "PNG")
        contents.append({"bytes": file.getvalue(), "path": None})
    label = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    rows = {"image": contents, "label": [number % 2 for number in numbers]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / f"{name}.parquet")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training images in two uneven files, 4 for validation, 6 to test on."""
    folder = tmp_path_factory.mktemp("set")
    parts = {"train-0": range(30), "train-1": range(30, 48), "validation": range(50, 54), "test": range(60, 66)}
    for name, numbers in parts.items():
        write(folder, name, numbers, ["even", "odd"])
    return folder


@pytest.fixture(autouse=True)
def no_user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library notes of tests' files stays out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def ready(root: Path, rank: int = 0, world_size: int = 1, length: int = 48, **arguments: Any) -> Any:
    """The data and the loader of one process, for eight steps of 12: two epochs."""
    settings: dict[str, Any] = {"augmentation": PlainResize(), "batch_size": 12, "workers": 0} | arguments
    data = ImageData(StreamedHubImages(str(root), length, shuffle_buffer=10), 8, **settings)
    data.trainer = lightning.Trainer(max_steps=8, accelerator="cpu", logger=False, enable_checkpointing=False)
    data.setup("fit")
    loader = data.train_dataloader()
    stream = loader.stream
    stream.rank, stream.world_size, stream.micro_batch = rank, world_size, 12 // world_size
    return data, loader


def numbers(batch: dict[str, Any]) -> list[int]:
    """Which images a batch holds."""
    return batch["image"][:, 0, 0, 0].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_once_an_epoch_over_ranks_and_workers(root: Path, workers: int) -> None:
    """Breaks if a worker or rank repeats another's images, and if the number of either changes a step's images."""
    steps: list[list[int]] = [[] for _ in range(8)]
    for rank in range(2):
        for number, batch in enumerate(ready(root, rank, 2, workers=workers)[1]):
            assert [value % 2 for value in numbers(batch)] == batch["label"].tolist()
            steps[number] += numbers(batch)
    for epoch in (steps[:4], steps[4:]):
        assert Counter(value for step in epoch for value in step) == Counter(range(48))
    first, second = (np.concatenate(epoch).tolist() for epoch in (steps[:4], steps[4:]))
    assert first != second
    assert first != sorted(first)
    assert [sorted(step) for step in steps] == [sorted(numbers(batch)) for batch in ready(root)[1]]


@pytest.mark.parametrize(("stop", "workers"), [(2, 0), (5, 2)])
def test_a_resumed_run_sees_what_one_without_interruption_sees(root: Path, stop: int, workers: int) -> None:
    """Breaks if the buffer, the augmentation or the mixing is drawn anew: in the first epoch and in the second."""
    how: dict[str, Any] = {"augmentation": ShiftedCrop(padding=2), "mixing": MixupCutMix()}
    data, loader = ready(root, **how)
    whole = [data.on_after_batch_transfer(batch, 0) for batch in loader]
    assert len(whole) == 8
    _, loader = ready(root, workers=workers, **how)
    for number, _ in enumerate(loader, start=1):
        if number == stop:
            break
    state = loader.state_dict()
    data, loader = ready(root, workers=workers, **how)
    loader.load_state_dict(state)
    rest = [data.on_after_batch_transfer(batch, 0) for batch in loader]
    assert len(rest) == 8 - stop
    for batch, other in zip(whole[stop:], rest, strict=True):
        assert batch["id"] == other["id"]
        assert torch.equal(batch["image"], other["image"])
        assert torch.equal(batch["target"], other["target"])


def test_evaluation_reads_each_image_once(root: Path) -> None:
    """Validation and test images are held in memory, in order."""
    source = StreamedHubImages(str(root), 48)
    assert source.class_names == ["even", "odd"]
    assert [image.id for image in source.images("test")] == [f"test/{number}" for number in range(6)]
    assert [image.label for image in source.images("validation")] == [0, 1, 0, 1]
    assert [int(source.read("test", index)[0, 0, 0]) for index in range(6)] == list(range(60, 66))


def test_an_unreadable_image_is_replaced(root: Path) -> None:
    """Batches keep their size; the one that follows takes its place, and the loss is reported."""
    data, _ = ready(root)
    dataset = data.datasets["train"]
    rng = np.random.default_rng(0)
    order = [int(dataset.sample_in_order(0, 0, index, rng)["image"][0, 0, 0]) for index in range(48)]
    source = data.source
    read = source.read_in_order(0, 0, 5)
    assert int(read[1][0, 0, 0]) == order[5]  # going back reads the epoch anew
    assert int(source.read_in_order(0, 0, 5)[1][0, 0, 0]) == order[5]
    short = list(ready(root, length=50, max_corrupt=0.5)[1])
    assert all(len(batch["id"]) == 12 for batch in short)
    assert "the split ends after 48 images" in short[4]["skipped"][0]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"image_column": "img"}, "has no column 'img'"),
        ({"splits": {"train": "train", "validation": "val", "test": "test"}}, "has no split 'val'"),
        ({"splits": {"train": "train", "test": "test"}}, "splits are"),
        ({"classes": 3}, "has 2 classes"),
    ],
)
def test_mistakes_are_found_before_training(root: Path, arguments: dict[str, Any], what: str) -> None:
    """Each in two lines."""
    with pytest.raises(UserError, match=what) as error:
        StreamedHubImages(str(root), 48, **arguments).images("test")
    assert "\n" not in error.value.what + error.value.how


def test_what_a_stream_cannot_do(root: Path, tmp_path: Path) -> None:
    """A list of training images, a subset of them, and names of classes that nobody gave."""
    with pytest.raises(UserError, match="are streamed"):
        StreamedHubImages(str(root), 48).images("train")
    with pytest.raises(UserError, match="cannot be cut down"):
        ready(root, train_images=24)
    for name in ("train", "validation", "test"):
        write(tmp_path, name, range(2))
    with pytest.raises(UserError, match="has no names of classes"):
        StreamedHubImages(str(tmp_path), 2).images("test")
    assert len(StreamedHubImages(str(tmp_path), 2, class_names=["a", "b"]).images("test")) == 2
