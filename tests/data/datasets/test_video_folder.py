"""A folder for each class: what is found, how it is split, and what is wrong before training starts."""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_vl.data.datasets.video_folder import VideoFolder
from lightning_vl.errors import CorruptSample, UserError

MakeVideo = Callable[..., str]
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def single_level(tmp_path_factory: pytest.TempPathFactory, make_clip: Callable[[Path, int], None]) -> Path:
    """<root>/<class>/<video>: 12 runs of 5 frames, 8 walks of 6 frames."""
    root = tmp_path_factory.mktemp("single")
    for name, count, frames in (("run", 12, 5), ("walk", 8, 6)):
        for number in range(count):
            make_clip(root / name / f"{number:02d}.mp4", frames)
    return root


@pytest.fixture
def split_folders(tmp_path: Path, make_clip: Callable[[Path, int], None]) -> Path:
    """<root>/{train,val,test}/<class>/<video>."""
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        for name in ("run", "walk"):
            for number in range(count):
                make_clip(tmp_path / split / name / f"{split}{number}.mp4", 5)
    return tmp_path


def test_split_folders(split_folders: Path, which_frames: Callable[[np.ndarray], list[int]]) -> None:
    """Labels by the folder's place in the alphabet, the split's own files, frames as asked."""
    source = VideoFolder(str(split_folders), classes=2)
    assert source.heads == {"class": ["run", "walk"]}
    assert [len(source.clips(split)) for split in SPLITS] == [6, 2, 4]
    assert [(clip.id, clip.frames, clip.labels) for clip in source.clips("validation")] == [
        ("val/run/val0.mp4", 5, {"class": 0}),
        ("val/walk/val0.mp4", 5, {"class": 1}),
    ]
    assert which_frames(source.read("test", 3, [1, 2, 2, 4])) == [1, 2, 2, 4]


def test_seeded_split(single_level: Path) -> None:
    """Every video in one split and only one, classes in the same shares, another seed another split."""
    source = VideoFolder(str(single_level), fractions=(0.5, 0.25, 0.25))
    ids = {split: [clip.id for clip in source.clips(split)] for split in SPLITS}
    assert sorted(chain.from_iterable(ids.values())) == sorted(
        os.path.join(name, f"{number:02d}.mp4") for name, count in (("run", 12), ("walk", 8)) for number in range(count)
    )
    labels = [Counter(clip.labels["class"] for clip in source.clips(split)) for split in SPLITS]
    assert labels == [{0: 6, 1: 4}, {0: 3, 1: 2}, {0: 3, 1: 2}]
    again = VideoFolder(str(single_level), fractions=(0.5, 0.25, 0.25))
    assert [clip.id for clip in again.clips("test")] == ids["test"]
    other = VideoFolder(str(single_level), fractions=(0.5, 0.25, 0.25), split_seed=1)
    assert [clip.id for clip in other.clips("test")] != ids["test"]


def test_a_folder_of_frames_is_a_video(split_folders: Path, numbered: Callable[..., np.ndarray]) -> None:
    """Class folders may hold folders of images as well."""
    folder = split_folders / "train" / "run" / "frames"
    folder.mkdir()
    for number, image in enumerate(numbered(4), start=1):
        Image.fromarray(image).save(folder / f"{number:05d}.png")
    source = VideoFolder(str(split_folders))
    clip = next(clip for clip in source.clips("train") if clip.id.endswith("frames"))
    assert (clip.frames, clip.labels) == (4, {"class": 0})


def _no_root(root: Path) -> None:
    shutil.rmtree(root)


def _empty_root(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def _empty_train(root: Path) -> None:
    shutil.rmtree(root / "train")
    (root / "train").mkdir()


def _empty_class(root: Path) -> None:
    shutil.rmtree(root / "val" / "run")
    (root / "val" / "run").mkdir()


def _class_missing_in_validation(root: Path) -> None:
    shutil.rmtree(root / "val" / "walk")


def _class_only_in_validation(root: Path) -> None:
    shutil.copytree(root / "val" / "walk", root / "val" / "jump")


def _no_validation(root: Path) -> None:
    shutil.rmtree(root / "val")


def _all_text(root: Path) -> None:
    for path in (root / "val").rglob("*.mp4"):
        path.write_text("no video")


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (_no_root, "there is no folder"),
        (_empty_root, "holds no class folders"),
        (_empty_train, "train holds no class folders"),
        (_empty_class, r"val/run holds no videos"),
        (_class_missing_in_validation, r"val has no folder for walk"),
        (_class_only_in_validation, r"val has a folder jump that the training data lacks"),
        (_no_validation, "none for the validation split"),
        (_all_text, r"0 of 2 clips .* usable; 0 missing, 2 corrupt \(val/run/val0.mp4: is no video"),
    ],
)
def test_mistakes_are_found_before_training(spoil: Callable[[Path], None], what: str, split_folders: Path) -> None:
    """Each of these would otherwise show as a strange accuracy, or as a stack of calls in an hour."""
    spoil(split_folders)
    with pytest.raises(UserError, match=what) as error:
        VideoFolder(str(split_folders)).clips("validation")
    assert error.value.how
    assert "\n" not in error.value.what + error.value.how


def test_the_root_is_missed_by_the_first_question(tmp_path: Path) -> None:
    """Whoever asks for the classes first must get the same two lines as who asks for clips."""
    with pytest.raises(UserError, match="there is no folder"):
        VideoFolder(str(tmp_path / "nowhere")).heads  # noqa: B018


def test_wrong_class_count(split_folders: Path) -> None:
    """A network with other classes than the data learns nonsense or fails in the loss."""
    with pytest.raises(UserError, match=r"train has 2 classes \(run, walk\), the experiment says 3"):
        VideoFolder(str(split_folders), classes=3).clips("train")


def test_too_few_videos_for_a_split(single_level: Path, tmp_path: Path) -> None:
    """A class without a training video cannot be learnt, one without a test video not be measured."""
    shutil.copytree(single_level / "run", tmp_path / "run")
    (tmp_path / "walk").mkdir()
    for number in range(2):
        shutil.copy(single_level / "walk" / f"{number:02d}.mp4", tmp_path / "walk")
    with pytest.raises(UserError, match="class 'walk' has 2 videos"):
        VideoFolder(str(tmp_path)).clips("train")
    with pytest.raises(UserError, match="no split in three"):
        VideoFolder(str(tmp_path), fractions=(0.9, 0.2, 0.2)).clips("train")


def test_one_corrupt_video_is_left_out_and_reported(
    single_level: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One bad file of many must not stop a run, and must not go unseen either."""
    shutil.copytree(single_level, tmp_path / "data")
    (tmp_path / "data" / "run" / "00.mp4").write_text("no video")
    split = next(
        split for split in SPLITS if "run/00.mp4" in [clip.id for clip in VideoFolder(str(single_level)).clips(split)]
    )
    total = len(VideoFolder(str(single_level)).clips(split))
    caplog.clear()
    source = VideoFolder(str(tmp_path / "data"), max_corrupt=0.5)
    assert len(source.clips(split)) == total - 1
    assert f"{split}: {total - 1} of {total} clips of {tmp_path / 'data'} usable; 0 missing, 1 corrupt" in caplog.text
    assert "run/00.mp4: is no video" in caplog.text
    with pytest.raises(UserError, match="1 corrupt"):
        VideoFolder(str(tmp_path / "data"), max_corrupt=0.0).clips(split)


def test_a_video_that_vanishes_after_the_scan(split_folders: Path) -> None:
    """The loader skips and counts it by its own id: it must be a CorruptSample, not the library's error."""
    source = VideoFolder(str(split_folders))
    clip = source.clips("train")[0]
    (split_folders / clip.id).unlink()
    with pytest.raises(CorruptSample, match="no such file") as error:
        source.read("train", 0, [0, 1])
    assert error.value.id == clip.id


def test_real_clips(real_data: Path) -> None:
    """300 real clips, whose time stamps are all 0: counted, split by class, and read."""
    source = VideoFolder(str(real_data / "fight-surv"), classes=2)
    assert source.heads == {"class": ["fight", "noFight"]}
    clips = {split: source.clips(split) for split in SPLITS}
    assert [len(clips[split]) for split in SPLITS] == [212, 44, 44]
    assert all(
        Counter(clip.labels["class"] for clip in part) == {0: len(part) // 2, 1: len(part) // 2}
        for part in clips.values()
    )
    lengths = [clip.frames for part in clips.values() for clip in part]
    assert (min(lengths), max(lengths)) == (20, 142)
    video = source.read("train", 0, range(0, 16, 2))
    assert video.shape[0] == 8
    assert video.std() > 10
