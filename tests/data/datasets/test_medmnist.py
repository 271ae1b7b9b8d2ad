"""MedMNIST's files: grey and coloured images, one label and several."""

from pathlib import Path

import numpy as np
import pytest

from lightning_vl.data.datasets.medmnist import MedMnist, MedMnistMultiLabel
from lightning_vl.errors import UserError


def write(path: Path, channels: tuple[int, ...], labels: np.ndarray) -> str:
    """A file of three splits, each with as many images as labels; image i has the value i."""
    arrays = {}
    for split in ("train", "val", "test"):
        images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, *(1 for _ in channels))
        arrays[f"{split}_images"] = np.broadcast_to(images, (len(labels), 28, 28, *channels))
        arrays[f"{split}_labels"] = labels
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return str(path)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_one_label(tmp_path: Path, channels: tuple[int, ...]) -> None:
    """Breaks if grey images do not become RGB, or validation is not the file's own."""
    file = write(tmp_path / "pathmnist.npz", channels, np.array([[1], [0], [2]], dtype=np.uint8))
    source = MedMnist(file, ["adipose", "background", "debris"])
    assert source.class_names == ["adipose", "background", "debris"]
    assert list(source.images("validation")) == [("validation/0", 1), ("validation/1", 0), ("validation/2", 2)]
    image = source.read("test", 2)
    assert image.shape == (28, 28, 3)
    assert image.dtype == np.uint8
    assert (image == 2).all()
    with pytest.raises(UserError, match="not one of 2 classes"):
        MedMnist(file, ["adipose", "background"]).images("test")


def test_several_labels(tmp_path: Path) -> None:
    """Breaks if the findings of an image are mixed up, or an image without any is lost."""
    file = write(tmp_path / "chestmnist.npz", (), np.array([[1, 0, 1], [0, 0, 0]], dtype=np.uint8))
    source = MedMnistMultiLabel(file, ["mass", "nodule", "hernia"])
    assert [image.labels for image in source.images("test")] == [{0, 2}, set()]
    assert (source.read("test", 1) == 1).all()
    with pytest.raises(UserError, match="3 an image, there are 2 classes"):
        MedMnistMultiLabel(file, ["mass", "nodule"]).images("test")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """Breaks if an absent file, a cut one or one of pickled objects ends in a traceback, or runs what it holds."""
    with pytest.raises(UserError, match="there is no file"):
        MedMnist(str(tmp_path / "none.npz"), ["a"]).images("test")
    file = Path(write(tmp_path / "cut.npz", (), np.array([[0]])))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="has no array"):
        MedMnist(str(file), ["a"]).images("test")
    np.savez(tmp_path / "pickled.npz", train_labels=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="has no array train_labels"):
        MedMnist(str(tmp_path / "pickled.npz"), ["a"]).images("test")
