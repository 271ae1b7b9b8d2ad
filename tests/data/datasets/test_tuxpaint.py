"""Tux Paint's pictures: repeated sentences, and the real set where it is."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lightning_vl.data.datasets.tuxpaint import TuxPaint
from lightning_vl.errors import UserError


def test_repeated_sentences(tmp_path: Path) -> None:
    """Breaks if a sentence is trained and tested on, or has two right answers in a test."""
    rows = []
    for number in range(120):
        Image.new("L", (3, 2), number).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"A {number % 40}.", "category": "food"})
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    source = TuxPaint(str(tmp_path), held_out=0.2)
    said = {split: [image.captions[0] for image in source.images(split)] for split in ("train", "validation", "test")}
    assert len(said["train"]) == 3 * len(set(said["train"]))
    for split in ("validation", "test"):
        assert len(said[split]) == len(set(said[split])) > 2
        for index, image in enumerate(source.images(split)):
            assert image.captions[0] == f"A {source.read(split, index)[0, 0, 0]}."  # the first of its three
    assert sorted({*said["train"], *said["validation"], *said["test"]}) == sorted(
        f"A {number}." for number in range(40)
    )
    assert len(said["train"]) // 3 + len(said["validation"]) + len(said["test"]) == 40


def test_mistakes_take_two_lines(tmp_path: Path) -> None:
    """No file, and JSON of another kind."""
    with pytest.raises(UserError, match="cannot be read"):
        TuxPaint(str(tmp_path)).images("train")
    (tmp_path / "captions.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="JSON of another kind"):
        TuxPaint(str(tmp_path)).images("train")


def test_the_real_set(real_data: Path) -> None:
    """Breaks if the set that experiments train on changes its numbers."""
    source = TuxPaint(str(real_data / "tuxpaint"))
    assert [len(source.images(split)) for split in ("train", "validation", "test")] == [635, 71, 58]
    assert source.read("test", 0).ndim == 3
