"""Several sets of captions as one."""

from pathlib import Path

import pytest
from PIL import Image

from lightning_vl.data.datasets.caption_shards import CaptionShards
from lightning_vl.data.datasets.caption_tables import CaptionTable
from lightning_vl.data.datasets.joined_captions import JoinedCaptions
from lightning_vl.errors import CorruptSample, UserError


def table(folder: Path, shades: list[int]) -> CaptionTable:
    """An image of each shade, the same in all splits; the last one cannot be read."""
    folder.mkdir()
    for number, shade in enumerate(shades):
        Image.new("L", (3, 2), shade).save(folder / f"{number}.png")
    (folder / f"{len(shades)}.png").write_text("no image")
    rows = [f"{number}.png\t{shade}\n" for number, shade in enumerate([*shades, -1])]
    (folder / "t.tsv").write_text("".join(rows))
    return CaptionTable(str(folder), "t.tsv", "t.tsv", "t.tsv", image_column=0, caption_column=1)


def test_images_of_all_sources_in_turn(tmp_path: Path) -> None:
    """Breaks if an index is read from another source, or if two images get one name."""
    source = JoinedCaptions(
        [table(tmp_path / "a", [1, 2, 3]), table(tmp_path / "b", [4]), table(tmp_path / "c", [5, 6])]
    )
    images = source.images("test")
    assert [image.captions for image in images] == [
        ("1",),
        ("2",),
        ("3",),
        ("-1",),
        ("4",),
        ("-1",),
        ("5",),
        ("6",),
        ("-1",),
    ]
    assert len({image.id for image in images}) == 9
    for index in (7, 0, 4, 2, 6, 1):
        assert str(source.read("test", index)[0, 0, 0]) == images[index].captions[0]
    for index in (3, 5, 8):
        with pytest.raises(CorruptSample) as error:
            source.read("test", index)
        assert error.value.id == images[index].id
    assert len(list(source.captions("train"))) == 9


def test_what_cannot_be_joined(tmp_path: Path) -> None:
    """Nothing, and shards that are streamed."""
    with pytest.raises(UserError, match="no sources"):
        JoinedCaptions([])
    with pytest.raises(UserError, match="order of their own"):
        JoinedCaptions([CaptionShards(str(tmp_path))])
