"""MNIST's files: what is read, how it is split, and files that are missing, cut off or of another kind."""

import gzip
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lightning_vl.data.datasets.idx_images import IdxImages
from lightning_vl.errors import UserError

NAMES = ["shirt", "shoe", "bag"]


def write(path: Path, array: np.ndarray) -> None:
    """An idx file of bytes, gzipped where its name says so."""
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """30 training and 6 test images of 5 x 4 px, all of whose pixels are the image's number; classes in turn."""
    for name, count in (("train", 30), ("t10k", 6)):
        images = np.repeat(np.arange(count, dtype=np.uint8), 20).reshape(count, 5, 4)
        write(tmp_path / f"{name}-images-idx3-ubyte.gz", images)
        write(tmp_path / f"{name}-labels-idx1-ubyte", (np.arange(count) % 3).astype(np.uint8))
    return tmp_path


def test_images_labels_and_splits(root: Path) -> None:
    """Breaks if an image gets another's label, or validation shares one with training; plain and gzipped files alike."""
    source = IdxImages(str(root), NAMES, validation_images=6)
    assert source.class_names == NAMES
    assert [len(source.images(split)) for split in ("train", "validation", "test")] == [24, 6, 6]
    assert Counter(image.label for image in source.images("validation")) == {0: 2, 1: 2, 2: 2}
    seen = []
    for split in ("train", "validation", "test"):
        for index, image in enumerate(source.images(split)):
            pixels = source.read(split, index)
            assert pixels.shape == (5, 4, 3)
            number = int(image.id.split("/")[1])
            assert (pixels == number).all()
            assert image.label == number % 3
            seen.append(image.id)
    assert len(set(seen)) == 36
    again = IdxImages(str(root), NAMES, validation_images=6)
    assert again.images("validation") == source.images("validation")
    others = [IdxImages(str(root), NAMES, 6, split_seed=seed).images("validation") for seed in (1, 2, 3)]
    assert any(other != source.images("validation") for other in others)


def _missing(root: Path) -> None:
    (root / "t10k-labels-idx1-ubyte").unlink()


def _cut_off(root: Path) -> None:
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])


def _cut_off_before_packing(root: Path) -> None:
    path = root / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-5])


def _labels_for_images(root: Path) -> None:
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress((root / "train-labels-idx1-ubyte").read_bytes()))


def _no_gzip(root: Path) -> None:
    (root / "train-images-idx3-ubyte.gz").write_text("page not found")


def _other_labels(root: Path) -> None:
    write(root / "t10k-labels-idx1-ubyte", np.zeros(7, np.uint8))


def _fourth_class(root: Path) -> None:
    write(root / "t10k-labels-idx1-ubyte", np.array([0, 1, 2, 0, 1, 3], np.uint8))


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (_missing, "no file .*t10k-labels-idx1-ubyte and none with .gz"),
        (_cut_off, "train-images-idx3-ubyte.gz cannot be read"),
        (_cut_off_before_packing, "should hold .* bytes and holds 25"),
        (_labels_for_images, "no idx file of bytes in 3 dimensions"),
        (_no_gzip, "train-images-idx3-ubyte.gz cannot be read"),
        (_other_labels, "6 t10k images and 7 labels"),
        (_fourth_class, "has 4 classes .* the experiment says 3"),
    ],
)
def test_mistakes_are_found_before_training(root: Path, spoil: Callable[[Path], None], what: str) -> None:
    """Those of the test files too, at the first question for training images, each in two lines."""
    spoil(root)
    with pytest.raises(UserError, match=what) as error:
        IdxImages(str(root), NAMES, validation_images=6).images("train")
    assert "\n" not in error.value.what + error.value.how


def test_validation_must_leave_something(root: Path, tmp_path: Path) -> None:
    """The default of 5,000 is more than 30."""
    with pytest.raises(UserError, match="validation_images is 5000, there are 30"):
        IdxImages(str(root), NAMES).images("train")
    with pytest.raises(UserError, match="no folder"):
        IdxImages(str(tmp_path / "nowhere"), NAMES).images("train")
