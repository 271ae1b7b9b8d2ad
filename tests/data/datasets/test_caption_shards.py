"""Tar shards of captions: what belongs together, the order of the stream, what is held out, and shards that are damaged."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_vl.data.cache import cache_folder
from lightning_vl.data.captions import CaptionDocuments
from lightning_vl.data.datasets.caption_shards import CaptionShards
from lightning_vl.data.stream import TrainingLoader
from lightning_vl.data.streamed import StreamedDataset, StreamedKeyedDataset, StreamedKeys
from lightning_vl.errors import CorruptSample, UserError


def picture(number: int, suffix: str = "PNG") -> bytes:
    """An encoded 4 x 3 image, all of whose pixels are the number."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (number, number, number)).save(
        file, suffix, **({"lossless": True} if suffix == "WEBP" else {})
    )
    return file.getvalue()


def write_shard(path: Path, files: Mapping[str, bytes]) -> None:
    """A tar file with these members, as WebDataset's writer makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mtime = 1.5  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(content))


def pairs(numbers: range) -> dict[str, bytes]:
    """Image, text and JSON of each number, as img2dataset writes them."""
    files = {}
    for number in numbers:
        files[f"{number:09d}.png"] = picture(number)
        files[f"{number:09d}.txt"] = f"number {number}".encode()
        files[f"{number:09d}.json"] = json.dumps({"caption": f"of JSON {number}", "url": "http://"}).encode()
    return files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five training shards of 3 to 15 pairs, 0 to 44, a test and a validation shard."""
    for shard, numbers in enumerate([range(3), range(3, 18), range(18, 26), range(26, 35), range(35, 45)]):
        write_shard(tmp_path / "train" / f"{shard:05d}.tar", pairs(numbers))
    write_shard(tmp_path / "val" / "0.tar", pairs(range(100, 104)))
    write_shard(tmp_path / "test" / "0.tar", pairs(range(200, 203)))
    return tmp_path


def source(root: Path, **arguments: Any) -> CaptionShards:
    """The shards of `root`."""
    splits = {"train": "train/*.tar", "validation": "val/*.tar", "test": "test/*.tar"}
    return CaptionShards(str(root), **{**splits, **arguments})


def order(shards: CaptionShards, seed: int = 0, epoch: int = 0) -> list[int]:
    """The numbers of an epoch in order, each of which has its own caption."""
    numbers = []
    for index in range(shards.length):
        image, pixels = shards.read_in_order(seed, epoch, index)
        number = int(pixels[0, 0, 0])
        assert image.captions == (f"number {number}",)
        assert image.id.endswith(f"/{number:09d}.png")
        numbers.append(number)
    return numbers


def test_an_epoch_has_every_pair_once_in_a_seeded_order(root: Path) -> None:
    """Breaks if pairs are lost or repeated, or if the order depends on anything but seed and epoch."""
    shards = source(root)
    first = order(shards)
    assert sorted(first) == list(range(45))
    assert first != sorted(first)
    assert order(source(root)) == first
    assert order(shards, epoch=1) != first != order(shards, seed=1)
    alone = source(root)
    for index in (44, 3, 20):  # nothing before is read
        assert int(alone.read_in_order(0, 0, index)[1][0, 0, 0]) == first[index]


def test_shards_are_named_as_webdataset_does(root: Path) -> None:
    """Breaks if braces are taken for a part of the name, or a shard of the row may be missing."""
    assert sorted(order(source(root, train="train/{00001..00002}.tar"))) == list(range(3, 26))
    assert len(order(source(root, train=["train/{00000,00001}.tar", "train/0000[14].tar"]))) == 28
    with pytest.raises(UserError, match=r"there is no shard .*train/00005\.tar"):
        _ = source(root, train="train/{00003..00007}.tar").length


def test_as_many_shards_as_asked_for_are_mixed(root: Path) -> None:
    """Breaks if samples of far more shards are open at a time, or of fewer are mixed."""
    shard_of = np.repeat(np.arange(5), [3, 15, 8, 9, 10])
    one = shard_of[order(source(root, shuffle_shards=1))]
    assert np.count_nonzero(np.diff(one)) == 4
    two = shard_of[order(source(root, shuffle_shards=2))]
    seen = [set(np.flatnonzero(two == shard)) for shard in range(5)]
    groups = [
        {other for other in range(5) if max(seen[shard]) >= min(seen[other]) and max(seen[other]) >= min(seen[shard])}
        for shard in range(5)
    ]
    assert sorted(map(len, groups)) == [1, 2, 2, 2, 2]
    assert np.count_nonzero(np.diff(shard_of[order(source(root, shuffle_shards=50))])) > 20


class Numbers(StreamedDataset):
    """What stands at each position."""

    def __init__(self, shards: CaptionShards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return self.shards.length

    def sample_in_order(self, seed: int, epoch: int, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One pair."""
        image, pixels = self.shards.read_in_order(seed, epoch, index)
        return {"id": image.id, "number": int(pixels[0, 0, 0])}


def together(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples as a batch."""
    return {name: [sample[name] for sample in samples] for name in samples[0]}


def loader(root: Path, rank: int, world_size: int, workers: int) -> TrainingLoader:
    """Eleven steps of twelve: almost three epochs."""
    data = Numbers(source(root, shuffle_shards=2))
    keyed = StreamedKeyedDataset(data, together, seed=3, replace_corrupt=True)
    stream = StreamedKeys(len(data), 12, 11, 3, rank, world_size)
    return TrainingLoader(keyed, stream, workers, pin_memory=False)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("workers", [0, 3])
def test_processes_and_workers_change_nothing(root: Path, world_size: int, workers: int) -> None:
    """Breaks if workers or ranks repeat, lose or reorder samples; five shards are fewer than six readers."""
    expected = order(source(root, shuffle_shards=2), 3, 0) + order(source(root, shuffle_shards=2), 3, 1)
    ranks = [list(loader(root, rank, world_size, workers)) for rank in range(world_size)]
    steps = [[number for batch in step for number in batch["number"]] for step in zip(*ranks, strict=True)]
    assert [number for step in steps for number in step][:90] == expected
    assert [len(step) for step in steps] == [12] * 11


def test_a_run_goes_on_from_its_position(root: Path) -> None:
    """Breaks if a resumed run sees other samples, also where it goes on with other processes and workers."""
    whole = [batch["number"] for batch in loader(root, 0, 1, 0)]
    first = loader(root, 0, 1, 3)
    batches = iter(first)
    assert [next(batches)["number"] for _ in range(5)] == whole[:5]
    state = first.state_dict()
    ranks = []
    for rank in range(2):
        on = loader(root, rank, 2, 1)
        on.load_state_dict(state)
        ranks.append([batch["number"] for batch in on])
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole[5:]


def test_held_out_pairs_are_not_trained_on(root: Path) -> None:
    """Breaks if validation, test and training share a pair, or together lose one."""
    shards = source(root, validation=None, test=None, held_out=7)
    held = {split: shards.images(split) for split in ("validation", "test")}
    numbers = {
        split: [int(shards.read(split, index)[0, 0, 0]) for index in range(7)] for split in ("validation", "test")
    }
    for split, images in held.items():
        assert [image.captions for image in images] == [(f"number {number}",) for number in numbers[split]]
    assert shards.length == 31
    assert sorted(order(shards) + numbers["validation"] + numbers["test"]) == list(range(45))
    again = source(root, validation=None, test=None, held_out=7)
    assert again.images("test") == held["test"]
    assert source(root, validation=None, test=None, held_out=7, split_seed=1).images("test") != held["test"]
    assert source(root, validation=None, held_out=44).length == 1
    with pytest.raises(UserError, match="45 pairs, and 45 are to be held out"):
        source(root, validation=None, held_out=45).images("validation")


def test_vocabularies_are_trained_on_all_training_captions(root: Path) -> None:
    """Breaks if captions that are held out reach the vocabulary, or others do not."""
    shards = source(root, validation=None, held_out=5)
    held = {image.captions[0] for image in shards.images("validation")}
    said = [document.sentences[0] for document in CaptionDocuments(shards).documents("train")]
    assert sorted(said) == sorted({f"number {number}" for number in range(45)} - held)
    assert [document.sentences for document in CaptionDocuments(shards).documents("test")] == [
        [f"number {number}"] for number in range(200, 203)
    ]
    with pytest.raises(UserError, match="are streamed"):
        shards.images("train")


def test_forms_of_text_and_images(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of .txt, a caption or several in .json, folders and dots in names, upper case, and what has no partner."""
    files = {
        "a/1.jpg": picture(10, "JPEG"),
        "a/1.txt": b"one\n\n  two  words\r\n",
        "b/1.seg.png": picture(99),  # its suffix is seg.png: another thing of the same key
        "b/1.PNG": picture(20),
        "b/1.json": b'{"caption": ["three", "", "four"]}',
        "2.webp": picture(30, "WEBP"),
        "2.json": b'{"caption": "five", "alt": "six"}',
        "2.cls": b"7",
        "3.jpeg": picture(40, "JPEG"),  # no text
        "4.txt": b"no image",
        "5.png": picture(50),
        "5.txt": b"",
    }
    write_shard(root / "test" / "0.tar", files)
    shards = source(root)
    assert shards.images("test") == [
        ("test/0.tar/a/1.jpg", ("one", "two words")),
        ("test/0.tar/b/1.PNG", ("three", "four")),
        ("test/0.tar/2.webp", ("five",)),
    ]
    assert [int(shards.read("test", index)[0, 0, 0]) for index in range(3)] == [10, 20, 30]
    assert "test: 3 pairs in 1 shards; left out 2 without text, 1 without an image" in capsys.readouterr().err
    write_shard(root / "train" / "00000.tar", {"0.png": picture(1), "0.json": b'{"alt": "six"}', "0.txt": b"five"})
    write_shard(root / "test" / "0.tar", {"0.png": picture(1), "0.json": b'{"alt": "six"}', "0.txt": b"five"})
    said = source(root, train="train/00000.tar", validation="train/00001.tar", caption_key="alt")
    assert said.read_in_order(0, 0, 0)[0].captions == ("six",)
    assert said.images("test")[0].captions == ("six",)


def test_keys_that_two_shards_share_are_two(root: Path) -> None:
    """Breaks if the image that ends one shard is joined with the text that begins the next."""
    write_shard(root / "test" / "0.tar", {"1.png": picture(1), "1.txt": b"one", "2.png": picture(2)})
    write_shard(root / "test" / "1.tar", {"2.txt": b"two", "3.png": picture(3), "3.txt": b"three"})
    assert [image.captions for image in source(root).images("test")] == [("one",), ("three",)]


def test_corrupt_members_are_named(root: Path) -> None:
    """Breaks if a broken image, empty or other text ends a run instead of being skipped and counted."""
    bad = {
        "image": {"1.png": picture(1, "JPEG")[:200], "1.txt": b"cut"},
        "blank": {"1.png": picture(1), "1.txt": b" \n "},
        "latin": {"1.png": picture(1), "1.txt": "café".encode("latin-1")},
        "no key": {"1.png": picture(1), "1.json": b'{"text": "a"}'},
        "no object": {"1.png": picture(1), "1.json": b"["},
        "number": {"1.png": picture(1), "1.json": b'{"caption": 7}'},
    }
    for name, files in bad.items():
        write_shard(root / "bad" / f"{name}.tar", files)
    shards = source(root, train="bad/*.tar")
    assert shards.length == 6
    reasons = {}
    for index in range(6):
        with pytest.raises(CorruptSample) as error:
            shards.read_in_order(0, 0, index)
        reasons[error.value.id.split("/")[1]] = error.value.reason
        assert "\n" not in error.value.reason
    assert reasons["blank.tar"] == reasons["number.tar"] == "it has no caption"
    assert reasons["latin.tar"] == "its text is not UTF-8"
    assert reasons["no key.tar"] == reasons["no object.tar"] == "its JSON has nothing under 'caption'"
    assert "no readable image" in reasons["image.tar"]
    write_shard(root / "mixed.tar", pairs(range(20)) | {"000000003.txt": b" "})
    data = Numbers(source(root, train="mixed.tar"))
    keyed = StreamedKeyedDataset(data, together, seed=0, replace_corrupt=True)
    batches = list(TrainingLoader(keyed, StreamedKeys(20, 10, 2, 0), 0, pin_memory=False))
    assert [len(batch["number"]) for batch in batches] == [10, 10]
    assert [*batches[0]["skipped"], *batches[1]["skipped"]] == ["mixed.tar/000000003.png: it has no caption"]


def test_animated_images_give_their_first_picture(root: Path) -> None:
    """Breaks if an animated WebP stops the run."""
    file = io.BytesIO()
    frames = [Image.new("RGB", (4, 3), (number,) * 3) for number in (10, 200)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    write_shard(root / "test" / "0.tar", {"1.webp": file.getvalue(), "1.txt": b"moves"})
    assert int(source(root).read("test", 0)[0, 0, 0]) == 10


def test_a_shard_that_is_cut_gives_what_is_before_the_cut(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a shard that was not wholly fetched stops the run, is trained on unsaid, or gives half an image."""
    path = root / "train" / "00001.tar"
    whole = path.read_bytes()
    for kept in (0.5, 0.8):
        path.write_bytes(whole[: int(kept * len(whole))])
        shards = source(root)
        numbers = order(shards)
        left = [number for number in range(3, 18) if number in numbers]
        assert 3 < len(left) < 15
        assert left == list(range(3, 3 + len(left)))
        assert f"train: train/00001.tar is cut off or damaged; the {len(left)} pairs" in capsys.readouterr().err
    path.write_bytes(whole[:600])
    assert sorted(order(source(root))) == [number for number in range(45) if not 3 <= number < 18]
    assert "00001.tar is cut off or damaged; the 0 pairs before that are used" in capsys.readouterr().err


def test_shards_are_indexed_once_and_anew_when_they_change(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if every start reads all headers, or if a changed shard is read at its old places."""
    assert len(order(source(root))) == 45
    files = sorted(file for file in (cache_folder() / "shards").iterdir() if file.suffix != ".lock")
    assert len(files) == 7
    stamps = [file.stat().st_mtime_ns for file in files]
    with monkeypatch.context() as context:
        context.setattr("lightning_vl.data.datasets.caption_shards.contents", None)
        assert len(order(source(root))) == 45
    write_shard(root / "train" / "00000.tar", pairs(range(50, 52)))
    os.utime(root / "train" / "00000.tar", (2, 2))
    assert sorted(order(source(root))) == [*range(3, 45), 50, 51]
    assert [file.stat().st_mtime_ns for file in files] == stamps
    whole = [file.read_bytes() for file in files]
    for file, content in zip(files, whole, strict=True):  # damaged, but not those that are mapped into memory
        file.unlink()
        file.write_bytes(content[:-1])
    assert len(order(source(root))) == 44
    made_anew = [file.read_bytes() == content for file, content in zip(files, whole, strict=True)]
    assert sum(made_anew) == 6  # all but that of the shard before it changed


def _gone(root: Path) -> dict[str, Any]:
    return {"train": "training/*.tar"}


def _compressed(root: Path) -> dict[str, Any]:
    path = root / "test" / "0.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    return {}


def _empty(root: Path) -> dict[str, Any]:
    (root / "test" / "0.tar").write_bytes(b"")
    return {}


def _no_pairs(root: Path) -> dict[str, Any]:
    for shard in (root / "train").iterdir():
        write_shard(shard, {"1.png": picture(1), "2.txt": b"two"})
    return {}


def _both(root: Path) -> dict[str, Any]:
    return {"train": "*/*.tar"}


def _no_mixing(root: Path) -> dict[str, Any]:
    return {"shuffle_shards": 0}


def _no_root(root: Path) -> dict[str, Any]:
    return {"root": str(root / "nowhere")}


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (_gone, "there is no shard"),
        (_compressed, "is no tar file, or a compressed one"),
        (_empty, r"the test shards, .*0\.tar the first, have no image with text of the same key"),
        (_no_pairs, "the train shards, .* have no image with text of the same key"),
        (_both, "is both a train and a validation shard"),
        (_no_mixing, "shuffle_shards is 0"),
        (_no_root, "there is no folder"),
    ],
)
def test_mistakes_are_found_before_training(root: Path, spoil: Callable[[Path], dict[str, Any]], what: str) -> None:
    """Each in two lines, whatever split is asked for."""
    arguments = {"root": str(root), "train": "train/*.tar", "validation": "val/*.tar", "test": "test/*.tar"}
    with pytest.raises(UserError, match=what) as error:
        _ = CaptionShards(**{**arguments, **spoil(root)}).length
    assert "\n" not in error.value.what + error.value.how


def test_names_that_point_elsewhere_write_nothing(root: Path) -> None:
    """Members are read, never unpacked: a path out of the folder is but a name."""
    write_shard(
        root / "test" / "0.tar", {"../../x.png": picture(3), "../../x.txt": b"x", "/y.png": picture(4), "/y.txt": b"y"}
    )
    before = sorted(root.rglob("*"))
    shards = source(root)
    assert [int(shards.read("test", index)[0, 0, 0]) for index in range(len(shards.images("test")))] == [3, 4]
    assert sorted(root.rglob("*")) == before
