"""Lists as Kinetics has them, in both forms and all separators."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lightning_vl.data.datasets.kinetics import KineticsCsv
from lightning_vl.errors import UserError

MakeClip = Callable[[Path, int], None]
WhichFrames = Callable[[np.ndarray], list[int]]


@pytest.fixture
def root(tmp_path: Path, make_clip: MakeClip) -> Path:
    """Videos of 5 frames, one of them with a space in its path."""
    for name in ("a/one.mp4", "a/two words.mp4", "b/three.mp4"):
        make_clip(tmp_path / name, 5)
    return tmp_path


@pytest.mark.parametrize(
    "lines",
    [
        "a/one.mp4 0\na/two words.mp4 0\nb/three.mp4 2\n",
        "a/one.mp4,0\na/two words.mp4,0\n\nb/three.mp4,2\n",
        "a/one.mp4, 0\r\na/two words.mp4, 0\r\nb/three.mp4, 2\r\n",
    ],
)
def test_path_and_number(lines: str, root: Path) -> None:
    """Numbers are the classes themselves, whatever separates them, and a space in a path is part of it."""
    (root / "train.csv").write_text(lines, newline="")
    source = KineticsCsv(str(root), classes=3)
    assert [(clip.id, clip.labels["class"]) for clip in source.clips("train")] == [
        ("a/one.mp4", 0),
        ("a/two words.mp4", 0),
        ("b/three.mp4", 2),
    ]
    assert source.heads == {"class": ["0", "1", "2"]}


def test_path_and_name(root: Path) -> None:
    """Names are numbered in alphabetical order, or as a file of names says."""
    (root / "train.csv").write_text("a/one.mp4,walking dog\nb/three.mp4,abseiling\n")
    (root / "val.csv").write_text("a/two words.mp4,walking dog\n")
    source = KineticsCsv(str(root))
    assert source.heads == {"class": ["abseiling", "walking dog"]}
    assert [clip.labels["class"] for clip in source.clips("validation")] == [1]
    (root / "names.txt").write_text("walking dog\nabseiling\n")
    ordered = KineticsCsv(str(root), class_names="names.txt")
    assert [clip.labels["class"] for clip in ordered.clips("validation")] == [0]


HEADER = "label,youtube_id,time_start,time_end,split\n"


def test_kinetics_own_form(tmp_path: Path, make_clip: MakeClip, which_frames: WhichFrames) -> None:
    """A file cut to its clip is taken whole, under both names; a whole video gives the seconds of the list."""
    make_clip(tmp_path / "train" / "abseiling" / "-cutAndNamed_000010_000020.mp4", 50)  # 2 s
    make_clip(tmp_path / "train" / "cut_only.mp4", 50)
    make_clip(tmp_path / "train" / "whole.mp4", 100)  # 4 s
    make_clip(tmp_path / "train" / "whole_000009_000019.mp4", 5)  # another clip of the same video
    (tmp_path / "train.csv").write_text(
        HEADER
        + "abseiling,-cutAndNamed,10,20,train\n"
        + "zumba,cut_only,100,110,train\n"
        + "zumba,whole,1,2,train\n"
        + "abseiling,whole,9,19,train\n"
    )
    source = KineticsCsv(str(tmp_path), classes=2)
    clips = source.clips("train")
    assert [clip.frames for clip in clips] == [50, 50, 25, 5]
    assert [clip.labels["class"] for clip in clips] == [0, 1, 1, 0]
    assert which_frames(source.read("train", 2, [0, 24])) == [25, 49]
    assert which_frames(source.read("train", 1, [0, 49])) == [0, 49]


def test_one_list_for_all_splits(tmp_path: Path, make_clip: MakeClip) -> None:
    """The split column chooses where a list holds several; where it holds one, the list may be used for any."""
    for name in "abc":
        make_clip(tmp_path / f"{name}.mp4", 5)
    (tmp_path / "all.csv").write_text(HEADER + "x,a,0,1,train\ny,b,0,1,train\nx,c,0,1,val\n")
    source = KineticsCsv(str(tmp_path), "all.csv", "all.csv", "all.csv")
    assert [clip.id for clip in source.clips("train")] == ["a.mp4", "b.mp4"]
    assert [clip.id for clip in source.clips("validation")] == ["c.mp4"]
    (tmp_path / "val.csv").write_text(HEADER + "x,c,0,1,val\n")
    tested_on_validation = KineticsCsv(str(tmp_path), "all.csv", "val.csv", "val.csv")
    assert [clip.id for clip in tested_on_validation.clips("test")] == ["c.mp4"]


def test_missing_videos_are_reported(tmp_path: Path, make_clip: MakeClip, caplog: pytest.LogCaptureFixture) -> None:
    """Videos vanish from YouTube: the clips that are there are used, the others counted by name."""
    for number in range(3):
        make_clip(tmp_path / f"v{number}.mp4", 5)
    rows = "".join(f"x,v{number},0,1,train\n" for number in range(3))
    (tmp_path / "train.csv").write_text(HEADER + rows + "x,gone,0,1,train\n")
    source = KineticsCsv(str(tmp_path), max_corrupt=0.25)
    assert len(source.clips("train")) == 3
    assert "3 of 4 clips" in caplog.text
    assert "1 missing, 0 corrupt (gone.mp4: no such file)" in caplog.text
    with pytest.raises(UserError, match="1 missing"):
        KineticsCsv(str(tmp_path)).clips("train")  # a quarter is more than 0.05


def test_clip_beyond_the_end_of_its_video(tmp_path: Path, make_clip: MakeClip) -> None:
    """A video cut short on download has no frames of the clip: corrupt, with the reason."""
    make_clip(tmp_path / "v.mp4", 100)  # 4 s
    (tmp_path / "train.csv").write_text(HEADER + "x,v,7,8,train\n")
    with pytest.raises(UserError, match="ends before the clip starts at 7 s"):
        KineticsCsv(str(tmp_path)).clips("train")


@pytest.mark.parametrize(
    ("train", "val", "what"),
    [
        (None, "", r"train.csv cannot be read: No such file"),
        ("", "", "the train split of .* names no clips"),
        ("label,youtube_id,time_start\nx,a,0\n", "", "row 1 of .* has no time_end"),
        ("justone\n", "", "line 1 of .* is no `path label`"),
        ("a/one.mp4 0\n", "b/three.mp4 1\n", "val.csv has a class '1' that the training data lacks"),
        (HEADER + "x,one,ten,20,train\n", "", "row 1 of .*ten"),
    ],
)
def test_wrong_lists(train: str | None, val: str, what: str, root: Path) -> None:
    """A list in another form must be refused by name and line, not read as something else."""
    if train is not None:
        (root / "train.csv").write_text(train)
    (root / "val.csv").write_text(val)
    source = KineticsCsv(str(root))
    with pytest.raises(UserError, match=what):
        _ = source.clips("train"), source.clips("validation")


def test_wrong_class_count(root: Path) -> None:
    """Kinetics-400's list under an experiment for 600 classes."""
    (root / "train.csv").write_text("a/one.mp4 0\nb/three.mp4 1\n")
    with pytest.raises(UserError, match=r"has 2 classes .* the experiment says 600"):
        KineticsCsv(str(root), classes=600).clips("train")
