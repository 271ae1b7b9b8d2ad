"""Sets in CLIP_benchmark's form: names, shards in order, one label and several, splits that are there and that are not."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_vl.data.datasets.clip_benchmark import ClipBenchmarkMultiLabel, ClipBenchmarkShards
from lightning_vl.errors import CorruptSample, UserError


def picture(number: int) -> bytes:
    """An encoded 4 x 3 image, all of whose pixels are the number, without loss."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (number, number, number)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def array(*entries: int) -> bytes:
    """A label of several classes."""
    file = io.BytesIO()
    np.save(file, np.array(entries))
    return file.getvalue()


def write_shard(path: Path, files: Mapping[str, bytes]) -> None:
    """A tar file with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def labelled(numbers: range) -> dict[str, bytes]:
    """Image and label of each number: class 0 where it is even, 1 where it is odd."""
    files = {}
    for number in numbers:
        files[f"s{number:07d}.cls"] = str(number % 2).encode()
        files[f"s{number:07d}.webp"] = picture(number)
    return files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eleven test shards of an image each, and no other split."""
    (tmp_path / "classnames.txt").write_text("even\nodd\n")
    for number in range(11):
        write_shard(tmp_path / "test" / f"{number}.tar", labelled(range(number, number + 1)))
    return tmp_path


def test_a_test_split_alone_is_enough(root: Path) -> None:
    """Breaks if other splits are asked for, shard 10 is read before shard 2, or labels and images are mixed up."""
    source = ClipBenchmarkShards(str(root), classes=2)
    assert source.class_names == ["even", "odd"]
    images = source.images("test")
    assert images[10] == ("test/10.tar/s0000010.webp", 0)
    assert [image.label for image in images] == [number % 2 for number in range(11)]
    assert [int(source.read("test", index)[0, 0, 0]) for index in range(11)] == list(range(11))
    for split in ("train", "validation"):
        with pytest.raises(UserError, match="no shards train"):
            source.images(split)  # type: ignore[arg-type]


def test_a_probe_gets_held_out_images(root: Path) -> None:
    """Breaks if training and validation images overlap, or a validation folder is not used where there is one."""
    write_shard(root / "train" / "0.tar", labelled(range(100, 140)))
    source = ClipBenchmarkShards(str(root), validation_share=0.25)
    ids = [{image.id for image in source.images(split)} for split in ("validation", "train")]  # type: ignore[arg-type]
    assert [len(group) for group in ids] == [10, 30]
    assert not ids[0] & ids[1]
    assert int(source.read("train", 29)[0, 0, 0]) % 2 == source.images("train")[29].label
    write_shard(root / "validation" / "0.tar", labelled(range(6)))
    source = ClipBenchmarkShards(str(root))
    assert [len(source.images(split)) for split in ("validation", "train")] == [6, 40]  # type: ignore[arg-type]


def test_several_labels(tmp_path: Path) -> None:
    """Breaks if multi-hot arrays are read wrongly, or a class that is hard to see counts as shown or as absent."""
    (tmp_path / "classnames.txt").write_text("person\ndog\ncar\n")
    rows = [(1, 0, 1), (0, 0, 0), (0, -1, 1)]
    files = {f"./s{i}.npy": array(*row) for i, row in enumerate(rows)} | {f"./s{i}.webp": picture(i) for i in range(3)}
    write_shard(tmp_path / "test" / "0.tar", files)
    source = ClipBenchmarkMultiLabel(str(tmp_path), classes=3)
    assert [image.labels for image in source.images("test")] == [{0, 2}, set(), {2}]
    assert [image.difficult for image in source.images("test")] == [set(), set(), {1}]
    assert int(source.read("test", 2)[0, 0, 0]) == 2
    (tmp_path / "classnames.txt").write_text("person\ndog\n")
    with pytest.raises(UserError, match=r"shape \(3,\), there are 2 classes"):
        ClipBenchmarkMultiLabel(str(tmp_path)).images("test")
    write_shard(tmp_path / "test" / "0.tar", {"s0.npy": b"no array", "s0.webp": picture(0)})
    with pytest.raises(UserError, match="is no array"):
        ClipBenchmarkMultiLabel(str(tmp_path)).images("test")


def test_mistakes_are_said(root: Path) -> None:
    """Breaks if another kind of set, a wrong class count, an unknown label, a damaged shard or image passes unnoticed."""
    with pytest.raises(UserError, match="the experiment says 3"):
        _ = ClipBenchmarkShards(str(root), classes=3).class_names
    with pytest.raises(UserError, match=r"no label \.npy for s0000000\.webp, but \.cls"):
        ClipBenchmarkMultiLabel(str(root)).images("test")
    with pytest.raises(UserError, match="there is no folder"):
        _ = ClipBenchmarkShards(str(root / "elsewhere")).class_names
    write_shard(root / "test" / "3.tar", {"s3.cls": b"2", "s3.webp": b"no image"})
    with pytest.raises(UserError, match="label 2, the 2 classes are even, odd"):
        ClipBenchmarkShards(str(root)).images("test")
    write_shard(root / "test" / "3.tar", {"s3.cls": b"1", "s3.webp": b"no image"})
    source = ClipBenchmarkShards(str(root))
    assert len(source.images("test")) == 11
    with pytest.raises(CorruptSample, match=r"test/3\.tar/s3\.webp"):
        source.read("test", 3)
    whole = (root / "test" / "3.tar").read_bytes()
    (root / "test" / "3.tar").write_bytes(whole[:1200])
    with pytest.raises(UserError, match="cut off"):
        ClipBenchmarkShards(str(root)).images("test")


def test_the_hub_is_asked_only_for_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Breaks if a set of the hub is downloaded when it is named, or without a network ends in anything but two lines."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source = ClipBenchmarkShards("clip-benchmark/wds_food101")
    with pytest.raises(UserError, match="clip-benchmark/wds_food101 cannot be had") as error:
        source.images("test")
    assert "\n" not in error.value.what
