"""Tar shards: what belongs together, labels in two forms, random access, and shards that cannot be used."""

import gzip
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_vl.data.datasets.image_shards import ImageShards
from lightning_vl.errors import CorruptSample, UserError


def picture(number: int, suffix: str = "PNG", mode: str = "RGB") -> bytes:
    """An encoded 4 x 3 image, all of whose pixels are the number."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (number, number, number)).convert(mode).save(file, suffix)
    return file.getvalue()


def write_shard(path: Path, files: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> None:
    """A tar file with these members."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mtime = 1.5  # type: ignore[assignment]  # as WebDataset's writer: pax then adds a header to each file
            tar.addfile(info, io.BytesIO(content))


def labelled(numbers: range) -> dict[str, bytes]:
    """Image and label of each number: class 0 where it is even, 1 where it is odd."""
    files = {}
    for number in numbers:
        files[f"{number:04d}.png"] = picture(number)
        files[f"{number:04d}.cls"] = str(number % 2).encode()
    return files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training shards of ten images each, a test shard of four."""
    write_shard(tmp_path / "train-000.tar", labelled(range(10)))
    write_shard(tmp_path / "train-001.tar", labelled(range(10, 20)))
    write_shard(tmp_path / "test-000.tar", labelled(range(20, 24)))
    return tmp_path


def test_images_and_labels_belong_together(root: Path) -> None:
    """In whatever order they are asked for; every image is in one split."""
    source = ImageShards(str(root))
    assert source.class_names == ["0", "1"]
    assert [len(source.images(split)) for split in ("train", "validation", "test")] == [18, 2, 4]
    assert Counter(image.label for image in source.images("validation")) == {0: 1, 1: 1}
    assert source.images("test")[1] == ("test-000.tar/0021.png", 1)
    seen = set()
    for split in ("test", "validation", "train"):
        for index in reversed(range(len(source.images(split)))):
            pixels = source.read(split, index)
            assert pixels.shape == (3, 4, 3)
            number = int(pixels[0, 0, 0])
            image = source.images(split)[index]
            assert image.id.endswith(f"/{number:04d}.png")
            assert image.label == number % 2
            seen.add(number)
    assert seen == set(range(24))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar(root: Path, form: int) -> None:
    """Long names, folders, more than one dot and other files beside the images."""
    key = f"{'deep/' * 15}{'n' * 60}"
    files = {f"{key}.jpg": picture(200, "JPEG"), f"{key}.cls": b"1\n", f"{key}.txt": b"a shoe", "b.seg.png": picture(7)}
    files["b.json"] = json.dumps({"label": 0, "caption": "grey"}).encode()
    write_shard(root / "test-000.tar", files, form)
    source = ImageShards(str(root))
    assert [(image.id, image.label) for image in source.images("test")] == [
        (f"test-000.tar/{key}.jpg", 1),
        ("test-000.tar/b.seg.png", 0),
    ]
    assert [int(source.read("test", index)[0, 0, 0]) for index in (0, 1)] == [200, 7]


def test_names_for_labels(root: Path) -> None:
    """Names from a file; labels that are names themselves; a split of its own for validation."""
    (root / "names.txt").write_text("even\nodd\n")
    write_shard(root / "val-0.tar", {"a.png": picture(1), "a.json": b'{"class": "odd"}'})
    source = ImageShards(str(root), validation="val-*.tar", label_key="class", class_names="names.txt", classes=2)
    assert source.class_names == ["even", "odd"]
    assert [len(source.images(split)) for split in ("train", "validation", "test")] == [20, 1, 4]
    assert source.images("validation")[0].label == 1
    for name in ("train-000", "train-001", "test-000"):
        write_shard(root / f"{name}.tar", {"a.png": picture(1), "a.cls": b"wolf", "b.png": picture(2), "b.cls": b"cat"})
    source = ImageShards(str(root), validation="test-*.tar")
    assert source.class_names == ["cat", "wolf"]
    assert [image.label for image in source.images("test")] == [1, 0]


def test_kinds_of_images_and_corrupt_ones(root: Path) -> None:
    """As in a folder: grey, CMYK and transparent images are shown in RGB; what is no image is skipped by the loader."""
    files = {
        "a.jpg": picture(90, "JPEG", "L"),
        "b.jpg": picture(255, "JPEG", "CMYK"),
        "c.png": picture(9, "PNG", "RGBA"),
    }
    files |= {"d.jpg": b"", "e.jpg": picture(1, "JPEG")[:200], "f.png": b"no image"}
    files |= {f"{name[0]}.cls": b"0" for name in files}
    write_shard(root / "test-000.tar", files)
    source = ImageShards(str(root))
    assert [int(source.read("test", index)[0, 0, 0]) for index in range(3)] == [90, 255, 9]
    for index, name in ((3, "d.jpg"), (4, "e.jpg"), (5, "f.png")):
        with pytest.raises(CorruptSample) as error:
            source.read("test", index)
        assert error.value.id == f"test-000.tar/{name}"
        assert "\n" not in error.value.reason
        assert " at 0x" not in error.value.reason


def test_names_that_point_elsewhere_write_nothing(root: Path) -> None:
    """Members are read, never unpacked: a path out of the folder is but a name, a link is no image."""
    outside = root / "data"
    outside.mkdir()
    write_shard(outside / "train.tar", labelled(range(4)) | labelled(range(4, 8)))
    write_shard(
        outside / "test.tar", {"../../x.png": picture(3), "../../x.cls": b"1", "/x.png": picture(4), "/x.cls": b"0"}
    )
    with tarfile.open(outside / "test.tar", "a") as tar:
        link = tarfile.TarInfo("secret.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = sorted(root.rglob("*"))
    source = ImageShards(str(outside))
    assert [int(source.read("test", index)[0, 0, 0]) for index in range(len(source.images("test")))] == [3, 4]
    assert sorted(root.rglob("*")) == before


def _compressed(root: Path) -> None:
    path = root / "test-000.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))


def _no_tar(root: Path) -> None:
    (root / "test-000.tar").write_text("page not found")


def _no_bytes(root: Path) -> None:
    (root / "train-001.tar").write_bytes(b"")


def _no_members(root: Path) -> None:
    write_shard(root / "train-001.tar", {})


def _no_labels(root: Path) -> None:
    write_shard(root / "train-001.tar", {"a.png": picture(1), "b.png": picture(2)})


def _no_such_key(root: Path) -> None:
    write_shard(root / "train-001.tar", {"a.png": picture(1), "a.json": b'{"klass": 1}'})


def _bad_json(root: Path) -> None:
    write_shard(root / "train-001.tar", {"a.png": picture(1), "a.json": b"{"})


def _new_class(root: Path) -> None:
    write_shard(root / "test-000.tar", {"a.png": picture(1), "a.cls": b"7"})


def _mixed_labels(root: Path) -> None:
    write_shard(root / "train-001.tar", {"a.png": picture(1), "a.cls": b"wolf"})


def _none(root: Path) -> None:
    (root / "test-000.tar").unlink()


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (_compressed, "test-000.tar is no tar file, or a compressed one"),
        (_no_tar, "test-000.tar is no tar file"),
        (_no_bytes, "train-001.tar is no tar file"),
        (_no_members, "train-001.tar holds no images"),
        (_no_labels, "train-001.tar has no label for 2 of 2 images, a.png the first"),
        (_no_such_key, "a.json of .*train-001.tar has no number or name under 'label'"),
        (_bad_json, "a.json of .*train-001.tar has no number or name under 'label'"),
        (_new_class, r"test\*.tar has a label 7, the 2 classes are 0, 1"),
        (_mixed_labels, r"train\*.tar has a label 'wolf'"),
        (_none, r"there is no shard .*test\*.tar"),
    ],
)
def test_mistakes_are_found_before_training(root: Path, spoil: Callable[[Path], None], what: str) -> None:
    """Those of the test shards too, at the first question for training images, each in two lines."""
    spoil(root)
    with pytest.raises(UserError, match=what) as error:
        ImageShards(str(root)).images("train")
    assert "\n" not in error.value.what + error.value.how


@pytest.mark.parametrize("place", ["at a header", "within a header", "within an image", "damaged header"])
def test_a_shard_that_was_cut_off_is_refused(root: Path, place: str) -> None:
    """Breaks if the rest of a shard is silently left out, as tarfile does: the training set would be another."""
    path = root / "train-000.tar"
    write_shard(path, labelled(range(10)), tarfile.USTAR_FORMAT)
    content = path.read_bytes()
    header = content.index(b"0005.png")
    if place == "damaged header":
        path.write_bytes(content[:header] + b"?" * 300 + content[header + 300 :])
    else:
        path.write_bytes(content[: header + {"at a header": 0, "within a header": 100, "within an image": 530}[place]])
    with pytest.raises(UserError, match=r"train-000.tar is cut off or damaged after 1[01] files"):
        ImageShards(str(root)).images("train")


def test_reading_shares_nothing_between_processes(root: Path) -> None:
    """Breaks if loader processes that were forked move each other's place in a shard."""
    from torch.utils.data import DataLoader

    source = ImageShards(str(root))
    count = len(source.images("train"))

    class Pixels:
        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int) -> tuple[str, int]:
            return source.images("train")[index].id, int(source.read("train", index)[0, 0, 0])

    source.read("train", 0)
    for names, numbers in DataLoader(Pixels(), batch_size=3, num_workers=2):  # type: ignore[arg-type]
        assert [int(Path(name).stem) for name in names] == numbers.tolist()
    assert np.array(source.read("train", 0)).shape == (3, 4, 3)


def test_two_images_of_one_key_are_refused(root: Path) -> None:
    """Breaks if a mask beside an image took its place without a word."""
    write_shard(root / "train-two.tar", {"7.png": picture(7), "7.seg.png": picture(8), "7.cls": b"0"})
    with pytest.raises(UserError, match="two images of one key"):
        ImageShards(str(root)).images("train")
