"""PASCAL VOC 2007 as it unpacks: several classes an image, and those that do not count."""

from pathlib import Path

import pytest
from PIL import Image

from lightning_vl.data.datasets.voc2007 import Voc2007
from lightning_vl.errors import CorruptSample, UserError
from lightning_vl.evaluation.zero_shot import MultiLabelledImage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three test images and one for training, of three classes."""
    lists = tmp_path / "VOC2007" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, values in {"cat": (1, -1, 0), "dog": (1, -1, -1), "bird": (-1, -1, 1)}.items():
        (lists / f"{name}_test.txt").write_text("".join(f"00000{i} {value:2}\n" for i, value in enumerate(values)))
        (lists / f"{name}_train.txt").write_text("000009 -1\n")
    (lists / "test.txt").write_text("000000\n000001\n000002\n")
    pictures = tmp_path / "VOC2007" / "JPEGImages"
    pictures.mkdir()
    for number in (0, 1, 9):
        Image.new("RGB", (6, 4), (number, number, number)).save(pictures / f"00000{number}.jpg")
    return tmp_path


def test_images_show_several_classes(root: Path) -> None:
    """Breaks if lists are shifted against each other, or an image that does not count is one that shows nothing."""
    source = Voc2007(str(root), classes=3)
    assert source.class_names == ["bird", "cat", "dog"]
    assert source.images("test") == [
        MultiLabelledImage("000000", frozenset({1, 2})),
        MultiLabelledImage("000001", frozenset()),
        MultiLabelledImage("000002", frozenset({0}), frozenset({1})),
    ]
    assert [image.id for image in source.images("train")] == ["000009"]
    assert source.read("train", 0)[0, 0].tolist() == [9, 9, 9]
    assert source.read("test", 1).shape == (4, 6, 3)
    assert Voc2007(str(root / "VOC2007")).images("test") == source.images("test")
    with pytest.raises(CorruptSample, match="000002: no such file"):
        source.read("test", 2)


def test_what_does_not_fit_is_said(root: Path) -> None:
    """Breaks if a list that was cut off, or another file, ends in a traceback."""
    lists = root / "VOC2007" / "ImageSets" / "Main"
    with pytest.raises(UserError, match="has 3 classes"):
        _ = Voc2007(str(root), classes=20).class_names
    with pytest.raises(UserError, match=r"bird_val\.txt cannot be read"):
        Voc2007(str(root)).images("validation")
    (lists / "cat_train.txt").write_text("000008 1\n")
    with pytest.raises(UserError, match=r"the lists bird and cat of .* are of other images"):
        Voc2007(str(root)).images("train")
    (lists / "dog_test.txt").write_text("000000 maybe\n")
    with pytest.raises(UserError, match=r"dog_test\.txt has the line '000000 maybe'"):
        Voc2007(str(root)).images("test")
    with pytest.raises(UserError, match=r"has no lists <class>_test\.txt"):
        _ = Voc2007(str(lists)).class_names
