"""EPIC-KITCHENS-100's CSV lists, with folders of frames and with videos."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_vl.data.datasets.epic_kitchens import EpicKitchens
from lightning_vl.errors import UserError

MakeClip = Callable[[Path, int], None]
WhichFrames = Callable[[np.ndarray], list[int]]
HEADER = "narration_id,participant_id,video_id,start_frame,stop_frame,verb,verb_class,noun,noun_class\n"


@pytest.fixture
def root(tmp_path: Path, numbered: Callable[..., np.ndarray], make_clip: MakeClip) -> Path:
    """One video of 30 frames, as a folder of frames and as a file; three nouns, two verbs."""
    folder = tmp_path / "P01" / "rgb_frames" / "P01_01"
    folder.mkdir(parents=True)
    for number, image in enumerate(numbered(30), start=1):
        Image.fromarray(image).save(folder / f"frame_{number:010d}.jpg", quality=95)
    make_clip(tmp_path / "P01" / "videos" / "P01_01.mp4", 30)
    rows = "P01_01_0,P01,P01_01,1,10,take,0,plate,2\nP01_01_1,P01,P01_01,11,30,put,1,tap,0\n"
    (tmp_path / "EPIC_100_train.csv").write_text(HEADER + rows)
    (tmp_path / "EPIC_100_validation.csv").write_text(HEADER + "P01_01_2,P01,P01_01,21,25,put,1,cup,1\n")
    (tmp_path / "EPIC_100_noun_classes.csv").write_text("id,key,instances\n0,tap,\"['tap']\"\n1,cup,\n2,plate,\n")
    (tmp_path / "EPIC_100_verb_classes.csv").write_text("id,key,instances\n0,take,\n1,put,\n")
    return tmp_path


@pytest.mark.parametrize("media", ["{participant_id}/rgb_frames/{video_id}", "{participant_id}/videos/{video_id}.mp4"])
def test_frames_of_an_action(media: str, root: Path, which_frames: WhichFrames) -> None:
    """start_frame and stop_frame both belong to the action and count from 1; nouns come before verbs."""
    source = EpicKitchens(str(root), media=media, nouns=3, verbs=2)
    assert list(source.heads) == ["noun", "verb"]
    assert source.heads == {"noun": ["tap", "cup", "plate"], "verb": ["take", "put"]}
    first, second = source.clips("train")
    assert (first.frames, first.labels) == (10, {"noun": 2, "verb": 0})
    assert (second.frames, second.labels) == (20, {"noun": 0, "verb": 1})
    assert first.id != second.id
    assert which_frames(source.read("train", 0, [0, 9])) == [0, 9]
    assert which_frames(source.read("train", 1, [0, 0, 19])) == [10, 10, 29]
    assert which_frames(source.read("validation", 0, [0, 4])) == [20, 24]


def test_action_at_the_end_of_the_frames(root: Path) -> None:
    """Some stop frames lie a little behind the last frame: the action is what there is; one wholly behind is corrupt."""
    (root / "EPIC_100_train.csv").write_text(HEADER + "n,P01,P01_01,26,33,take,0,plate,2\n")
    assert [clip.frames for clip in EpicKitchens(str(root), nouns=3, verbs=2).clips("train")] == [5]
    (root / "EPIC_100_train.csv").write_text(HEADER + "n,P01,P01_01,31,40,take,0,plate,2\n")
    with pytest.raises(UserError, match="frames 31 to 40 lie outside of its 30 frames"):
        EpicKitchens(str(root), nouns=3, verbs=2).clips("train")


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ("n,P01,P01_01,1,10,take,5,plate,2\n", "verb_class 5, there are 2 verbs"),
        ("n,P01,P01_02,1,10,take,0,plate,2\n", r"1 missing, 0 corrupt \(P01_02"),
        ("n,P01,P01_01,one,10,take,0,plate,2\n", "row 1 of .*one"),
    ],
)
def test_wrong_rows(rows: str, what: str, root: Path) -> None:
    """Labels past the network's heads, videos that are not there, words where frames should be."""
    (root / "EPIC_100_train.csv").write_text(HEADER + rows)
    with pytest.raises(UserError, match=what):
        EpicKitchens(str(root), nouns=3, verbs=2).clips("train")


def test_wrong_lists(root: Path) -> None:
    """The 2018 release has other columns; its classes are others as well."""
    with pytest.raises(UserError, match=r"has 3 classes .* the experiment says 300"):
        EpicKitchens(str(root)).clips("train")
    with pytest.raises(UserError, match=r"names a column 'folder' that"):
        EpicKitchens(str(root), media="{folder}", nouns=3, verbs=2).clips("train")
    (root / "EPIC_100_train.csv").write_text("uid,participant_id,video_id\n0,P01,P01_01\n")
    with pytest.raises(UserError, match=r"row 1 of .* has no start_frame"):
        EpicKitchens(str(root), nouns=3, verbs=2).clips("train")
