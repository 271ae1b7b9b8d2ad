"""Flickr's captions: the release's file, files of splits, Karpathy's splits, and lines of another form."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lightning_vl.data.datasets.flickr_captions import FlickrCaptions
from lightning_vl.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Forty images; the release's file with five captions of each."""
    (tmp_path / "flickr30k-images").mkdir()
    for number in range(40):
        Image.new("L", (3, 2), 6 * number).save(tmp_path / "flickr30k-images" / f"{number}.jpg")
    lines = [f'{number}.jpg#{k}\tCaption {k}, of "{number}" # 1 .\n' for number in range(40) for k in range(5)]
    (tmp_path / "results_20130124.token").write_text("".join(lines))
    return tmp_path


def captions(number: int) -> tuple[str, ...]:
    """What is said of an image."""
    return tuple(f'Caption {k}, of "{number}" # 1 .' for k in range(5))


def test_the_release(root: Path) -> None:
    """Breaks if captions are cut at a comma or a #, or if images of the held-out splits are trained on."""
    source = FlickrCaptions(str(root), held_out=0.2)
    found = {split: source.images(split) for split in ("train", "validation", "test")}
    assert sorted(image for images in found.values() for image in images) == sorted(
        (f"flickr30k-images/{number}.jpg", captions(number)) for number in range(40)
    )
    assert len(found["train"]) > len(found["test"]) > 0
    assert len(found["validation"]) > 0


def test_karpathys_splits(root: Path) -> None:
    """Breaks if the captions of the release are put into other splits than Karpathy's."""
    images = [
        {
            "filename": f"{number}.jpg",
            "split": "test" if number > 30 else "val" if number > 20 else "train",
            "sentences": [],
        }
        for number in range(38)
    ]
    (root / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    source = FlickrCaptions(str(root), karpathy="dataset_flickr30k.json")
    assert [len(source.images(split)) for split in ("train", "validation", "test")] == [21, 10, 7]
    assert source.images("test")[0] == ("flickr30k-images/31.jpg", captions(31))
    assert abs(int(source.read("test", 0)[0, 0, 0]) - 186) < 3
    with pytest.raises(UserError, match="captions name a file for each of train, test"):
        FlickrCaptions(str(root), {"train": "a", "test": "b"}, karpathy="dataset_flickr30k.json")


def test_files_of_splits(root: Path) -> None:
    """A header, and captions that hold commas, quotes and .jpg themselves."""
    text = 'image,caption\n1.jpg,"A ""red"", cat ."\n2.jpg,Two , dogs\n1.jpg,see 3.jpg, too\n'
    for split in ("train", "val", "test"):
        (root / f"flickr30k_{split}_karpathy.txt").write_text(text)
    files = {"train": "flickr30k_train_karpathy.txt", "validation": "flickr30k_val_karpathy.txt"}
    source = FlickrCaptions(str(root), {**files, "test": "flickr30k_test_karpathy.txt"})
    assert source.images("test") == [
        ("flickr30k-images/1.jpg", ('A "red", cat .', "see 3.jpg, too")),
        ("flickr30k-images/2.jpg", ("Two , dogs",)),
    ]


def test_lines_of_another_form(root: Path) -> None:
    """Each in two lines that name the line."""
    path = root / "results_20130124.token"
    path.write_text("1.jpg#0\ta\n2.jpg a cat\n")
    with pytest.raises(UserError, match=r"line 2 of .* names no image: '2.jpg a cat'") as error:
        FlickrCaptions(str(root)).images("train")
    assert "\n" not in error.value.what + error.value.how
    path.write_bytes("1.jpg#0\tcafé\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"line 1 of .* is not UTF-8"):
        FlickrCaptions(str(root)).images("train")
