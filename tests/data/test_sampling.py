"""Temporal sampling: the rules of the paper's reader, by numbers worked out by hand."""

import numpy as np
import pytest

from lightning_vl.data.sampling import FrozenFrame, StridedClip
from lightning_vl.errors import UserError


def test_training_starts_everywhere_and_nowhere_else() -> None:
    """A start that is one off would never show a video's last frame, or read past it."""
    sampling = StridedClip(frames=4, stride=3)
    rng = np.random.default_rng(0)
    clips = [sampling.training(20, rng).tolist() for _ in range(400)]
    starts = {clip[0] for clip in clips}
    assert starts == set(range(20 - 3 * 3))  # [0, max(1, length - (n - 1) stride))
    assert all(clip == [clip[0] + 3 * i for i in range(4)] for clip in clips)
    assert max(clip[-1] for clip in clips) == 19


def test_same_generator_same_clip() -> None:
    """Resume replays samples from their seed."""
    sampling = StridedClip(8, 2)
    first, second = (sampling.training(250, np.random.default_rng([7, 3])).tolist() for _ in range(2))
    assert first == second


def test_centre() -> None:
    """Validation looks at max(0, (length - n stride) // 2)."""
    assert StridedClip(32, 2).centre(250).tolist() == list(range(93, 93 + 64, 2))
    assert StridedClip(4, 1).centre(4).tolist() == [0, 1, 2, 3]
    assert StridedClip(4, 1).centre(5).tolist() == [0, 1, 2, 3]


def test_views_are_spread_evenly() -> None:
    """Sheet's example: 250 frames, 32 x 2, four views start at 0, 62, 124, 186."""
    views = StridedClip(32, 2).views(250, 4)
    assert views.shape == (4, 32)
    assert views[:, 0].tolist() == [0, 62, 124, 186]
    assert views[3, -1] == 248
    assert StridedClip(32, 2).views(250, 1)[0].tolist() == list(range(0, 64, 2))


@pytest.mark.parametrize("length", [1, 2, 5, 10])
def test_short_videos_are_looped(length: int) -> None:
    """More frames wanted than there are: the video starts again from its beginning, no index leaves it."""
    sampling = StridedClip(frames=8, stride=2)
    expected = [(2 * i) % length for i in range(8)]
    assert sampling.centre(length).tolist() == expected
    assert sampling.views(length, 3).tolist() == [expected] * 3
    assert sampling.training(length, np.random.default_rng(0)).tolist() == expected


def test_frozen_frame_shows_the_middle_of_the_same_clips() -> None:
    """The baseline must differ from what it is compared with in motion alone."""
    moving, frozen = StridedClip(8, 2), FrozenFrame(8, 2)
    clips = moving.training(60, np.random.default_rng(5)), frozen.training(60, np.random.default_rng(5))
    assert clips[1].tolist() == [clips[0][4]] * 8
    assert frozen.centre(60).tolist() == [moving.centre(60)[4]] * 8
    assert (frozen.views(60, 3) == moving.views(60, 3)[:, 4:5]).all()
    assert frozen.views(60, 3).shape == (3, 8)


@pytest.mark.parametrize(("frames", "stride"), [(0, 1), (8, 0), (-1, 2)])
def test_impossible_clips(frames: int, stride: int) -> None:
    """No frames would only show as a shape error deep in the network."""
    with pytest.raises(UserError, match="at stride"):
        StridedClip(frames, stride)
