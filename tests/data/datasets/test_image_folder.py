"""Folders of images: which are in which split, and what becomes of images that are not plain RGB."""

import shutil
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_vl.data.datasets.image_folder import ImageFolder, read_image
from lightning_vl.data.source import Split
from lightning_vl.errors import CorruptSample, UserError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
COUNTS = {"cat": 20, "dog": 10}


def make_images(folder: Path, name: str, count: int, colour: tuple[int, int, int] = (200, 100, 50)) -> None:
    """So many images of one colour in a class folder."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (12, 8), colour).save(folder / name / f"{number:03d}.png")


@pytest.fixture
def train_test(tmp_path: Path) -> Path:
    """<root>/{train,test}/{cat,dog}: 20 and 10 to train on, 2 each to test on."""
    for name, count in COUNTS.items():
        make_images(tmp_path / "train", name, count)
        make_images(tmp_path / "test", name, 2)
    return tmp_path


def _ids(source: ImageFolder, split: Split) -> list[str]:
    return [image.id for image in source.images(split)]


def test_a_share_of_train_is_for_validation(train_test: Path) -> None:
    """The same share of each class, in no two splits, the same again, another with another seed."""
    source = ImageFolder(str(train_test), classes=2)
    assert source.class_names == ["cat", "dog"]
    labels = {split: Counter(image.label for image in source.images(split)) for split in SPLITS}
    assert labels == {"train": {0: 18, 1: 9}, "validation": {0: 2, 1: 1}, "test": {0: 2, 1: 2}}
    held_out, kept = set(_ids(source, "validation")), set(_ids(source, "train"))
    assert not held_out & kept
    assert len(held_out | kept) == 30
    assert all(name.startswith("train/") for name in held_out)
    assert _ids(ImageFolder(str(train_test)), "validation") == _ids(source, "validation")
    others = [set(_ids(ImageFolder(str(train_test), split_seed=seed), "validation")) for seed in range(1, 5)]
    assert any(other != held_out for other in others)


@pytest.mark.parametrize("name", ["validation", "val"])
def test_three_folders(train_test: Path, name: str) -> None:
    """With a folder for each split, all of train is trained on."""
    for label in COUNTS:
        make_images(train_test / name, label, 3)
    source = ImageFolder(str(train_test))
    assert [len(source.images(split)) for split in SPLITS] == [30, 6, 4]
    assert source.images("validation")[0].id == f"{name}/cat/000.png"


def test_train_and_validation_alone(train_test: Path) -> None:
    """As ImageNet lies on disks: the folder val is what is tested on, so it must not choose the checkpoint as well."""
    (train_test / "test").rename(train_test / "val")
    source = ImageFolder(str(train_test))
    assert [len(source.images(split)) for split in SPLITS] == [27, 3, 4]
    assert all(name.startswith("val/") for name in _ids(source, "test"))
    assert all(name.startswith("train/") for name in _ids(source, "validation"))


def _no_root(root: Path) -> None:
    shutil.rmtree(root)


def _no_train(root: Path) -> None:
    shutil.rmtree(root / "train")


def _nothing_to_test_on(root: Path) -> None:
    shutil.rmtree(root / "test")


def _empty_class(root: Path) -> None:
    for path in (root / "train" / "dog").iterdir():
        path.unlink()


def _class_missing_in_test(root: Path) -> None:
    shutil.rmtree(root / "test" / "dog")


def _class_only_in_test(root: Path) -> None:
    make_images(root / "test", "eel", 1)


def _one_image(root: Path) -> None:
    shutil.rmtree(root / "train" / "dog")
    make_images(root / "train", "dog", 1)


def _third_class(root: Path) -> None:
    make_images(root / "train", "eel", 5)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (_no_root, "there is no folder"),
        (_no_train, "train holds no class folders"),
        (_nothing_to_test_on, "none to test on"),
        (_empty_class, "train/dog holds no images"),
        (_class_missing_in_test, "test has no folder for dog, which the training data has"),
        (_class_only_in_test, "test has a folder eel that the training data lacks"),
        (_one_image, "class 'dog' has 1 training samples"),
        (_third_class, r"train has 3 classes \(cat, dog, eel\), the experiment says 2"),
    ],
)
def test_mistakes_are_found_before_training(spoil: Callable[[Path], None], what: str, train_test: Path) -> None:
    """Those of the test folder too, at the first question for training images: not after hours, when testing begins."""
    spoil(train_test)
    with pytest.raises(UserError, match=what) as error:
        ImageFolder(str(train_test), classes=2).images("train")
    assert error.value.how
    assert "\n" not in error.value.what + error.value.how


def _save(path: Path, mode: str, value: object) -> Path:
    Image.new(mode, (5, 4), value).save(path)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("name", "mode", "value", "shown"),
    [
        ("colour.png", "RGB", (200, 100, 50), (200, 100, 50)),
        ("grey.png", "L", 77, (77, 77, 77)),
        ("bits.png", "1", 1, (255, 255, 255)),
        ("print.jpg", "CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("solid.png", "RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("clear.png", "RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("half.png", "LA", (0, 128), (127, 127, 127)),
        ("deep.png", "I;16", 0x8010, (0x80, 0x80, 0x80)),
        ("deep.tif", "I;16", 0xFF00, (0xFF, 0xFF, 0xFF)),
    ],
)
def test_every_kind_of_image_becomes_rgb(
    tmp_path: Path, name: str, mode: str, value: object, shown: tuple[int, int, int]
) -> None:
    """Breaks if transparent pixels show the colour beneath them, or 16 bits are cut off into white."""
    image = read_image(str(_save(tmp_path / name, mode, value)))
    assert image.shape == (4, 5, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - shown).max() <= 1


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    """As in icons: the colour that stands for nothing is shown as white."""
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "icon.png", transparency=0)
    shown = read_image(str(tmp_path / "icon.png"))
    assert shown[0, 0].tolist() == [255, 255, 255]
    assert shown[1, 1].tolist() == [0, 255, 0]


def test_one_pixel_and_turned_images(tmp_path: Path) -> None:
    """The smallest image there is, and one that a camera stored lying on its side."""
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "dot.png")
    assert read_image(str(tmp_path / "dot.png")).tolist() == [[[1, 2, 3]]]
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees
    Image.new("RGB", (20, 10)).save(tmp_path / "camera.jpg", exif=exif)
    assert read_image(str(tmp_path / "camera.jpg")).shape == (20, 10, 3)


def _whole(path: Path) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path.read_bytes()


def _truncated(path: Path) -> None:
    path.write_bytes(_whole(path)[:-2000])


def _only_a_header(path: Path) -> None:
    path.write_bytes(_whole(path)[:20])


def _damaged(path: Path) -> None:
    content = bytearray(_whole(path))
    content[8:60] = bytes(52)
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("no image")


def _gone(path: Path) -> None:
    path.unlink(missing_ok=True)


SPOILS = (_truncated, _only_a_header, _damaged, _empty, _text, _gone)
SUFFIXES = ("png", "jpg", "tif", "gif", "webp", "bmp")


@pytest.mark.parametrize(
    ("spoil", "suffix"),
    # a GIF without its palette is still a GIF
    [pair for pair in product(SPOILS, SUFFIXES) if pair != (_damaged, "gif")],
)
def test_a_bad_file_is_a_corrupt_sample(train_test: Path, spoil: Callable[[Path], None], suffix: str) -> None:
    """Breaks if one of the many exceptions that a decoder raises gets through and ends the run."""
    path = train_test / "test" / "cat" / f"bad.{suffix}"
    path.write_bytes(b"")
    source = ImageFolder(str(train_test))
    index = _ids(source, "test").index(f"test/cat/bad.{suffix}")
    spoil(path)
    with pytest.raises(CorruptSample) as error:
        source.read("test", index)
    assert error.value.id == f"test/cat/bad.{suffix}"
    assert "\n" not in error.value.reason
    assert str(train_test) not in error.value.reason
