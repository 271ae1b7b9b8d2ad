"""A folder of videos and a table of labels."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

from lightning_vl.data.datasets.labelled_videos import LabelledVideos
from lightning_vl.errors import UserError

MakeClip = Callable[[Path, int], None]
SPLITS = ("train", "validation", "test")
ANIMALS = ("ant", "bee", "cat", "dog", "eel", "fox")
TOOLS = ("axe", "bit", "cog", "die")


@pytest.fixture
def root(tmp_path: Path, make_clip: MakeClip) -> Path:
    """Each animal in three colours, each tool once; the tables lie beside them."""
    for name in ANIMALS:
        for colour in ("", "-red", "-blue"):
            make_clip(tmp_path / "videos" / f"{name}{colour}.mp4", 4)
    for name in TOOLS:
        make_clip(tmp_path / "videos" / f"{name}.mp4", 4)
    rows = [(f"{name}.png", "animal") for name in ANIMALS] + [(f"{name}.png", "tool") for name in TOOLS]
    (tmp_path / "table.csv").write_text("file,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    (tmp_path / "table.json").write_text(json.dumps([{"image": name, "kind": label} for name, label in rows]))
    return tmp_path


def _csv(root: Path, **arguments: object) -> LabelledVideos:
    return LabelledVideos(str(root / "videos"), "../table.csv", variant="-(red|blue)", **arguments)


def test_variants_stay_together(root: Path) -> None:
    """The same animal in another colour in training and test would make memory look like understanding."""
    source = _csv(root, fractions=(0.5, 0.25, 0.25))
    ids = {split: [clip.id for clip in source.clips(split)] for split in SPLITS}
    assert sorted(chain.from_iterable(ids.values())) == sorted(path.name for path in (root / "videos").iterdir())
    names = {split: {name.split(".")[0].split("-")[0] for name in ids[split]} for split in SPLITS}
    assert not names["train"] & names["validation"]
    assert not names["train"] & names["test"]
    assert not names["validation"] & names["test"]
    labels = [Counter(clip.labels["class"] for clip in source.clips(split)) for split in SPLITS]
    assert labels == [{0: 6, 1: 2}, {0: 6, 1: 1}, {0: 6, 1: 1}]  # two animals in three colours, one tool, held out


def test_csv_and_json_say_the_same(root: Path) -> None:
    """The form of the table must not change the split."""
    source = _csv(root)
    other = LabelledVideos(str(root / "videos"), "../table.json", "image", "kind", variant="-(red|blue)")
    assert source.heads == other.heads == {"class": ["animal", "tool"]}
    for split in SPLITS:
        assert source.clips(split) == other.clips(split)


def test_chosen_labels(root: Path) -> None:
    """A chosen few, in the chosen order of the classes."""
    assert _csv(root, labels=["tool", "animal"]).heads == {"class": ["tool", "animal"]}
    only = _csv(root, labels=["tool"])
    assert sum(len(only.clips(split)) for split in SPLITS) == 4
    with pytest.raises(UserError, match="no video has the label plant"):
        _csv(root, labels=["tool", "plant"]).clips("train")


def test_mistakes(root: Path) -> None:
    """A video without a label, a table without the column, no videos at all."""
    with pytest.raises(UserError, match=r"has no row for 12 of 22 videos, ant-blue.mp4 among them"):
        LabelledVideos(str(root / "videos"), "../table.csv").clips("train")
    with pytest.raises(UserError, match="has no kind; it has file, label"):
        LabelledVideos(str(root / "videos"), "../table.csv", label="kind").clips("train")
    (root / "nothing").mkdir()
    with pytest.raises(UserError, match="holds no videos"):
        LabelledVideos(str(root / "nothing"), "../table.csv").clips("train")


EMOJI = {
    "table": "../emoji/emoji.json",
    "file": "image",
    "label": "category",
    "variant": "-1f3f[b-f]|-fe0f",  # skin tones; the sign that asks for a picture
}


def test_real_animations(real_data: Path) -> None:
    """477 animated emoji of 193 things: skin tones of one of them never lie in two splits."""
    labels = ["Animals & Nature", "People & Body", "Travel & Places"]
    source = LabelledVideos(str(real_data / "fluent-anim"), labels=labels, **EMOJI)
    clips = {split: source.clips(split) for split in SPLITS}
    assert sum(map(len, clips.values())) == 461
    things = {split: {source._name(clip.id) for clip in clips[split]} for split in SPLITS}
    assert sum(map(len, things.values())) == len(set.union(*things.values())) == 171
    assert source.read("test", 0, [0, 5, 27]).shape == (3, 112, 112, 3)
    with pytest.raises(UserError, match=r"class 'Activities' has 3 videos|class 'Objects' has 1 videos"):
        LabelledVideos(str(real_data / "fluent-anim"), **EMOJI, fractions=(0.2, 0.4, 0.4)).clips("train")
