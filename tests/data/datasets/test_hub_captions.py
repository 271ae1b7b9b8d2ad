"""Captions in parquet files and saved sets: both forms of captions, held-out splits, and columns that do not fit."""

import io
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from lightning_vl.data.datasets.hub_captions import HubCaptions
from lightning_vl.errors import CorruptSample, UserError


def picture(number: int) -> bytes:
    """An encoded image, all of whose pixels are the number."""
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (number, number, number)).save(file, "PNG")
    return file.getvalue()


def table(numbers: range, captions: list[Any]) -> datasets.Dataset:
    """Images and captions, and a column that nobody asked for."""
    rows = {"image": [{"bytes": picture(n), "path": None} for n in numbers], "caption": captions, "n": list(numbers)}
    features = datasets.Dataset.from_dict({"caption": captions, "n": list(numbers)}).features
    return datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image(), **features}))


def test_parquet_files_with_a_caption_each(tmp_path: Path) -> None:
    """Breaks if captions and images of a row part ways, or if what is held out is trained on."""
    table(range(60), [f"number {n}" for n in range(60)]).to_parquet(tmp_path / "train-0.parquet")
    source = HubCaptions(str(tmp_path), held_out=0.2)
    seen = []
    for split in ("train", "validation", "test"):
        images = source.images(split)
        assert images
        for index, image in enumerate(images):
            number = int(source.read(split, index)[0, 0, 0])
            assert image == (f"train/{number}", (f"number {number}",))
            seen.append(number)
    assert sorted(seen) == list(range(60))


def test_saved_sets_with_lists_of_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All captions of a row are kept but empty ones; a row without is left out, and a line says so."""
    five = [[f"caption {k} of {n}" for k in range(5)] for n in range(4)]
    parts = {"train": table(range(4), five), "val": table(range(3), [["", "one"], [], [" ", None]])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    source = HubCaptions(str(tmp_path / "set"), splits={"train": "train", "validation": "val", "test": "val"})
    assert source.images("train")[2] == ("train/2", tuple(five[2]))
    assert source.images("test") == [("val/0", ("one",))]
    assert "left out 2 without a caption" in capsys.readouterr().err
    assert source.read("test", 0)[0, 0, 0] == 0


def test_corrupt_images_are_named(tmp_path: Path) -> None:
    """Breaks if one stops the run."""
    rows = {"image": [picture(1), b"no image", None], "caption": ["a", "b", "c"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    splits: dict[Any, str] = {"train": "train", "validation": "train", "test": "train"}
    source = HubCaptions(str(tmp_path), splits=splits)
    assert source.read("test", 0)[0, 0, 0] == 1
    for index in (1, 2):
        with pytest.raises(CorruptSample, match=f"train/{index}"):
            source.read("test", index)


@pytest.mark.parametrize(
    ("arguments", "what", "how"),
    [
        ({"caption_column": "captions"}, "has no column 'captions'", "did you mean 'caption'"),
        ({"image_column": "n"}, "holds int64, no images", "image_column"),
        ({"caption_column": "n"}, "row 0, has no text in the column 'n'", "caption_column"),
        ({"splits": {"train": "training"}}, "has no split 'training'", "'train'"),
        ({"path": "nowhere"}, "cannot be had", "check its name"),
    ],
)
def test_mistakes_take_two_lines(tmp_path: Path, arguments: dict[str, Any], what: str, how: str) -> None:
    """Each with the nearest name."""
    table(range(3), ["a", "b", "c"]).to_parquet(tmp_path / "train.parquet")
    arguments = {"path": str(tmp_path), **arguments}
    arguments["path"] = str(tmp_path / arguments["path"])
    with pytest.raises(UserError, match=what) as error:
        HubCaptions(**arguments).images("train")
    assert how in error.value.how
    assert "\n" not in error.value.what + error.value.how
