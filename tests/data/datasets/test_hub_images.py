"""What the `datasets` library reads, from local files only: columns, splits, labels of three kinds, kinds of images."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from lightning_vl.data.datasets.hub_images import HubImages
from lightning_vl.errors import CorruptSample, UserError


@pytest.fixture(autouse=True)
def no_user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's copies of tests' files stay out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(number: int, suffix: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (4, 3)) -> bytes:
    """An encoded image, all of whose pixels are the number."""
    file = io.BytesIO()
    Image.new("RGB", size, (number, number, number)).convert(mode).save(file, suffix)
    return file.getvalue()


def table(numbers: range, labels: Any = None) -> datasets.Dataset:
    """Image n of class n % 2, as class labels "cat" and "dog" or of another kind."""
    features = {"image": datasets.Image(), "label": labels or datasets.ClassLabel(names=["cat", "dog"])}
    rows = {"image": [{"bytes": picture(n), "path": None} for n in numbers], "label": [n % 2 for n in numbers]}
    if labels == datasets.Value("string"):
        rows["label"] = ["wolf" if n % 2 else "ape" for n in numbers]
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def saved(root: Path, **splits: datasets.Dataset) -> str:
    """A folder as `save_to_disk` writes it."""
    datasets.DatasetDict(splits).save_to_disk(root)
    return str(root)


def check(source: HubImages, sizes: list[int]) -> None:
    """Sizes of the three splits, and that every image has its label and is in one split."""
    assert [len(source.images(split)) for split in ("train", "validation", "test")] == sizes
    seen = set()
    for split in ("train", "validation", "test"):
        for index, image in enumerate(source.images(split)):
            pixels = source.read(split, index)
            assert pixels.shape == (3, 4, 3)
            assert image.label == pixels[0, 0, 0] % 2
            seen.add(int(pixels[0, 0, 0]))
    assert len(seen) == sum(sizes)


def test_saved_to_disk(tmp_path: Path) -> None:
    """Names of the class labels; a share of each class for validation where there is no split for it."""
    source = HubImages(saved(tmp_path / "set", train=table(range(20)), test=table(range(20, 24))), classes=2)
    assert source.class_names == ["cat", "dog"]
    check(source, [18, 2, 4])
    assert Counter(image.label for image in source.images("validation")) == {0: 1, 1: 1}
    assert source.images("test")[1] == ("test/1", 1)


def test_parquet_files_and_split_names(tmp_path: Path) -> None:
    """A folder of parquet files in shards; the set's own names of splits and columns."""
    root = tmp_path / "set"
    root.mkdir()
    for name, numbers in (("train-0", range(6)), ("train-1", range(6, 12)), ("validation", range(12, 16))):
        table(numbers).rename_columns({"image": "img", "label": "fine_label"}).to_parquet(root / f"{name}.parquet")
    table(range(16, 20)).rename_columns({"image": "img", "label": "fine_label"}).to_parquet(root / "test.parquet")
    splits: dict[Any, str] = {"train": "train", "validation": "validation", "test": "test"}
    check(HubImages(str(root), image_column="img", label_column="fine_label", splits=splits), [12, 4, 4])
    splits = {"train": "train", "test": "validation"}
    check(HubImages(str(root), image_column="img", label_column="fine_label", splits=splits), [10, 2, 4])


@pytest.mark.parametrize(("kind", "names"), [("int64", ["0", "1"]), ("string", ["ape", "wolf"])])
def test_labels_without_names(tmp_path: Path, kind: str, names: list[str]) -> None:
    """Numbers are class indices, names stand in alphabetical order."""
    value = datasets.Value(kind)
    source = HubImages(saved(tmp_path / "set", train=table(range(20), value), test=table(range(20, 24), value)))
    assert source.class_names == names
    check(source, [18, 2, 4])


def test_images_as_plain_bytes(tmp_path: Path) -> None:
    """Parquet files of other tools have a column of bytes."""
    rows = datasets.Dataset.from_dict({"image": [picture(n) for n in range(24)], "label": [n % 2 for n in range(24)]})
    path = saved(tmp_path / "set", train=rows.select(range(20)), test=rows.select(range(20, 24)))
    check(HubImages(path), [18, 2, 4])


def test_kinds_of_images_and_corrupt_ones(tmp_path: Path) -> None:
    """As in a folder, not as `datasets` would decode them: 16 bits, CMYK and transparency; a bad row is skipped."""
    deep = io.BytesIO()
    Image.new("I;16", (4, 3), 0x8010).save(deep, "PNG")
    contents = [
        picture(90, "JPEG", "L"),
        picture(255, "JPEG", "CMYK"),
        picture(9, "PNG", "RGBA"),
        deep.getvalue(),
        picture(5, size=(1, 1)),
        picture(1)[:30],
        b"no image",
        None,
    ]
    cells = [content and {"bytes": content, "path": None} for content in contents]
    rows = {"image": cells, "label": [0] * len(contents)}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    test = datasets.Dataset.from_dict(rows, features=features)
    source = HubImages(saved(tmp_path / "set", train=table(range(20), datasets.Value("int64")), test=test))
    assert [int(source.read("test", index)[0, 0, 0]) for index in range(5)] == [90, 255, 9, 0x80, 5]
    assert source.read("test", 4).shape == (1, 1, 3)
    for index in (5, 6, 7):
        with pytest.raises(CorruptSample) as error:
            source.read("test", index)
        assert error.value.id == f"test/{index}"
        assert "\n" not in error.value.reason


@pytest.mark.parametrize(
    ("arguments", "what", "how"),
    [
        ({"image_column": "imgae"}, "has no column 'imgae'", "did you mean 'image'"),
        ({"label_column": "lable"}, "has no column 'lable'", "did you mean 'label'"),
        ({"image_column": "label"}, "the column 'label' of .* holds int64, no images", "image, label"),
        ({"splits": {"train": "trian", "test": "test"}}, "has no split 'trian'", "did you mean 'train'"),
        ({"splits": {"train": "train"}}, "name none for test", "train: ..., test: ..."),
        ({"classes": 10}, "has 2 classes", "the source's classes"),
    ],
)
def test_mistakes_are_found_before_training(tmp_path: Path, arguments: dict[str, Any], what: str, how: str) -> None:
    """Each in two lines, with the nearest name."""
    path = saved(tmp_path / "set", train=table(range(20)), test=table(range(20, 24)))
    with pytest.raises(UserError, match=what) as error:
        HubImages(path, **arguments).images("train")
    assert how in error.value.how
    assert "\n" not in error.value.what + error.value.how


def test_unlabelled_images(tmp_path: Path) -> None:
    """The hub's test splits often have -1, or nothing, for every label."""
    for label in (-1, None):
        number = datasets.Value("int64")
        test = datasets.Dataset.from_dict(
            {"image": [{"bytes": picture(1), "path": None}], "label": [label]},
            features=datasets.Features({"image": datasets.Image(), "label": number}),
        )
        path = saved(tmp_path / f"set{label}", train=table(range(20), number), test=test)
        with pytest.raises(UserError, match=f"split test has a label {label}"):
            HubImages(path).images("train")


def test_a_set_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such folder, a folder without data, and a name on the hub without a network: two lines, no traceback."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # the library's own switch: it does not try for 20 s
    (tmp_path / "empty").mkdir()
    for path in (str(tmp_path / "nowhere"), str(tmp_path / "empty"), "uoft-cs/cifar10"):
        with pytest.raises(UserError, match=f"the data set {path} cannot be had") as error:
            HubImages(path).images("train")
        assert "\n" not in error.value.what + error.value.how
