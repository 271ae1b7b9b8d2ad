"""COCO's captions in all their layouts, and JSON that is none of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lightning_vl.data.datasets.coco_captions import CocoCaptions, KarpathyCaptions
from lightning_vl.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images in two folders, as COCO names them."""
    for number in range(6):
        file = tmp_path / name(number)
        file.parent.mkdir(exist_ok=True)
        Image.new("L", (3, 2), 40 * number).save(file)
    return tmp_path


def name(number: int) -> str:
    """The first four are of train2014."""
    folder = "train2014" if number < 4 else "val2014"
    return f"{folder}/COCO_{folder}_{number:012d}.jpg"


def coco(numbers: range, folder: bool) -> dict[str, Any]:
    """COCO's layout, its annotations in another order than its images; image n has n captions."""
    images = [{"id": 100 + n, "file_name": name(n) if folder else name(n).split("/")[1]} for n in numbers]
    annotations = [
        {"id": 10 * n + k, "image_id": 100 + n, "caption": f"caption {k} of {n}.\n"}
        for k in range(7)
        for n in numbers
        if k < n
    ]
    return {"info": {}, "images": images, "annotations": annotations}


def captions(number: int) -> tuple[str, ...]:
    """What is said of an image."""
    return tuple(f"caption {k} of {number}." for k in range(number))


def test_coco(root: Path) -> None:
    """Breaks if captions go to other images, if an image's sixth caption is dropped, or one without captions is kept."""
    (root / "annotations").mkdir()
    for year, numbers in (("train", range(4)), ("val", range(4, 6))):
        (root / "annotations" / f"captions_{year}2014.json").write_text(json.dumps(coco(numbers, folder=False)))
    source = CocoCaptions(
        str(root),
        {
            "train": "annotations/captions_train2014.json",
            "validation": "annotations/captions_train2014.json",
            "test": "annotations/captions_val2014.json",
        },
        {"train": "train2014", "validation": "train2014", "test": "val2014"},
    )
    assert source.images("train") == [(name(n), captions(n)) for n in (1, 2, 3)]
    assert source.images("test") == [(name(n), captions(n)) for n in (4, 5)]
    assert abs(int(source.read("test", 1)[0, 0, 0]) - 200) < 3


def test_files_of_karpathys_splits(root: Path) -> None:
    """COCO's layout over val2014, and lists of images and captions."""
    (root / "coco_test_karpathy.json").write_text(json.dumps(coco(range(4, 6), folder=True)))
    rows = [{"image": name(n), "caption": text, "image_id": f"coco_{n}"} for n in (1, 2) for text in captions(n)]
    (root / "coco_karpathy_train.json").write_text(json.dumps(rows))
    (root / "coco_karpathy_val.json").write_text(json.dumps([{"image": name(3), "caption": list(captions(3))}]))
    source = CocoCaptions(
        str(root),
        {
            "train": "coco_karpathy_train.json",
            "validation": "coco_karpathy_val.json",
            "test": "coco_test_karpathy.json",
        },
    )
    assert source.images("train") == [(name(n), captions(n)) for n in (1, 2)]
    assert source.images("validation") == [(name(3), captions(3))]
    assert source.images("test") == [(name(n), captions(n)) for n in (4, 5)]


def test_karpathy(root: Path) -> None:
    """restval is trained on; COCO's images have a folder, Flickr's none."""
    images = [
        {"filepath": name(n).split("/")[0], "filename": name(n).split("/")[1], "split": split, "imgid": n,
         "sentences": [{"raw": text, "tokens": []} for text in captions(n)]}
        for n, split in ((1, "train"), (2, "restval"), (3, "val"), (4, "test"))
    ]  # fmt: skip
    (root / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    source = KarpathyCaptions(str(root))
    found = {split: source.images(split) for split in ("train", "validation", "test")}
    assert found["train"] == [(name(n), captions(n)) for n in (1, 2)]
    assert found["validation"] == [(name(3), captions(3))]
    assert found["test"] == [(name(4), captions(4))]
    flickr = [{key: value for key, value in image.items() if key != "filepath"} for image in images]
    (root / "dataset_flickr30k.json").write_text(json.dumps({"images": flickr}))
    source = KarpathyCaptions(str(root), "dataset_flickr30k.json", "train2014")
    assert source.images("validation") == [(name(3), captions(3))]


@pytest.mark.parametrize("content", [[], {}, {"images": [{"id": 1}]}, [1], [{"image": 1, "caption": "a"}], 7,
                                     {"images": [], "annotations": [{"image_id": 1, "caption": "a"}]},
                                     {"images": [{"filename": 3, "split": 4, "sentences": []}]}, {"images": 3}])  # fmt: skip
def test_json_of_another_kind(root: Path, content: Any) -> None:
    """Each in two lines, for both classes."""
    (root / "a.json").write_text(json.dumps(content))
    for source in (CocoCaptions(str(root), {"train": "a.json"}), KarpathyCaptions(str(root), "a.json")):
        with pytest.raises(UserError, match=r"of another kind|no image with a caption") as error:
            source.images("train")
        assert "\n" not in error.value.what + error.value.how


def test_files_that_are_no_json(root: Path) -> None:
    """A file that is not there, text, and another encoding."""
    with pytest.raises(UserError, match=r"captions_train2017\.json cannot be read"):
        CocoCaptions(str(root)).images("train")
    (root / "a.json").write_text("NAME.jpg#0\ta cat")
    with pytest.raises(UserError, match="is no JSON"):
        CocoCaptions(str(root), {"train": "a.json"}).images("train")
    (root / "a.json").write_bytes('[{"image": "é"}]'.encode("latin-1"))
    with pytest.raises(UserError, match="is no JSON"):
        CocoCaptions(str(root), {"train": "a.json"}).images("train")
