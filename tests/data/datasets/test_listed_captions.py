"""What sets of listed image files share: held-out shares, what is left out, and how images are read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_vl.data.datasets.listed_captions import CaptionedFile, ListedCaptions
from lightning_vl.data.source import Split
from lightning_vl.errors import CorruptSample, UserError


class Listed(ListedCaptions):
    """Files by split."""

    def __init__(
        self, root: Path, files: dict[Split, list[CaptionedFile]], held_out: float = 0.2, seed: int = 0
    ) -> None:
        super().__init__(str(root), files.keys(), held_out, seed)
        self.files = files

    def listed(self, split: Split) -> Sequence[CaptionedFile]:
        """As given."""
        return self.files[split]


def files(root: Path, count: int, captions: int | None = None) -> list[CaptionedFile]:
    """Images of different shades; the same captions come again where there are fewer of them."""
    for number in range(count):
        Image.new("RGB", (3, 2), (number, number, number)).save(root / f"{number}.png")
    return [CaptionedFile(f"{number}.png", [f"shade {number % (captions or count)}"]) for number in range(count)]


def test_held_out_shares_are_disjoint_and_stay(tmp_path: Path) -> None:
    """Breaks if a split changes with the order of the list, or if one caption is on two sides."""
    entries = files(tmp_path, 200, captions=50)
    source = Listed(tmp_path, {"train": entries})
    said = {split: {image.captions for image in source.images(split)} for split in ("train", "validation", "test")}
    assert len(said["train"]) + len(said["validation"]) + len(said["test"]) == 50
    assert not said["train"] & said["validation"] | said["validation"] & said["test"] | said["train"] & said["test"]
    assert min(map(len, said.values())) >= 4
    back = Listed(tmp_path, {"train": entries[::-1]})
    assert sorted(back.images("test")) == sorted(source.images("test"))
    assert sorted(Listed(tmp_path, {"train": entries}, seed=1).images("test")) != sorted(source.images("test"))
    for split in said:
        for index, image in enumerate(source.images(split)):
            assert source.read(split, index)[0, 0, 0] == int(image.id.removesuffix(".png"))


def test_stored_splits_are_left_whole(tmp_path: Path) -> None:
    """Breaks if anything is held out although every split has its own list."""
    entries = files(tmp_path, 9)
    source = Listed(tmp_path, {"train": entries[:7], "validation": entries[7:8], "test": entries[8:]})
    assert [len(source.images(split)) for split in ("train", "validation", "test")] == [7, 1, 1]
    assert source.read("test", 0)[0, 0, 0] == 8
    partly = Listed(tmp_path, {"train": entries[:8], "test": entries[8:]}, held_out=0.4)
    assert len(partly.images("train")) + len(partly.images("validation")) == 8
    assert len(partly.images("test")) == 1


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if an empty caption reaches the network, or if images vanish unsaid."""
    (first, second, third, *_) = files(tmp_path, 3)
    entries = [
        CaptionedFile(first.file, ["  two \n words ", "", " \t"]),
        CaptionedFile(second.file, ["", "  "]),
        CaptionedFile("gone.png", ["a"]),
        CaptionedFile("no/folder.png", ["b"]),
        third,
    ]
    source = Listed(tmp_path, {"train": entries, "validation": entries, "test": entries})
    assert source.images("test") == [("0.png", ("two words",)), ("2.png", ("shade 2",))]
    assert source.read("test", 1)[0, 0, 0] == 2
    said = capsys.readouterr().err
    assert "test: left out 2 of 5 images, no such file: gone.png, no/folder.png" in said
    assert "test: 2 images with 2 captions" in said
    assert "left out 1 without a caption" in said


def test_images_of_all_kinds(tmp_path: Path) -> None:
    """Palettes, transparency, CMYK, 16 bits and animations become RGB; what is damaged is named, and only that."""
    kinds = {
        "p.gif": Image.new("P", (3, 2), 0),
        "a.png": Image.new("RGBA", (3, 2), (0, 0, 0, 0)),
        "c.jpg": Image.new("CMYK", (3, 2), (0, 0, 0, 0)),
        "i.png": Image.fromarray(np.full((2, 3), 0xFF00, np.uint16)),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
    frames = [Image.new("RGB", (3, 2), (number,) * 3) for number in (255, 0)]
    for name in ("m.gif", "m.png", "m.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    whole = (tmp_path / "c.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.jpg").write_text("page not found")
    names = [*kinds, "m.gif", "m.png", "m.webp", "cut.jpg", "no.jpg"]
    entries = [CaptionedFile(name, [name]) for name in names]
    source = Listed(tmp_path, {"train": entries, "validation": entries, "test": entries})
    for index, name in enumerate(names[1:7], start=1):
        pixels = source.read("test", index)
        assert pixels.shape == (2, 3, 3)
        assert pixels.dtype == np.uint8
        assert pixels.min() > 250, name
    assert source.read("test", 0).shape == (2, 3, 3)
    for index in (7, 8):
        with pytest.raises(CorruptSample) as error:
            source.read("test", index)
        assert error.value.id == names[index]


def test_mistakes_take_two_lines(tmp_path: Path) -> None:
    """A root that is not there, images that are not, captions that are not, splits that make no sense."""
    entries = files(tmp_path, 2)
    wrong = {
        "there is no folder": lambda: Listed(tmp_path / "x", {"train": entries}).images("train"),
        "none of the 1 images": lambda: Listed(tmp_path, {"train": [CaptionedFile("http://a/b.jpg", ["a"])]}).images(
            "train"
        ),
        "no image with a caption": lambda: Listed(tmp_path, {"train": [CaptionedFile("0.png", [""])]}).images("train"),
        "none for train": lambda: Listed(tmp_path, {"test": entries}),
        "held_out is": lambda: Listed(tmp_path, {"train": entries}, held_out=0.5),
    }
    for what, call in wrong.items():
        with pytest.raises(UserError, match=what) as error:
            call()
        assert "\n" not in error.value.what + error.value.how
