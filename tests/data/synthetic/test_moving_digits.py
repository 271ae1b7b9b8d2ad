"""The embedded video: deterministic, and its classes need the order of events."""

import numpy as np
import pytest

from lightning_vl.data.synthetic.moving_digits import ORDERS, MovingDigits
from lightning_vl.errors import UserError

ALL = range(8)


def test_a_clip_is_a_function_of_seed_split_and_index() -> None:
    """Breaks if a clip depends on what was read before it, or ignores seed, split or index."""
    one, other = MovingDigits(), MovingDigits()
    other.read("train", 5, ALL)
    clip = one.read("train", 17, ALL)
    assert clip.shape == (8, 32, 32, 3)
    assert clip.dtype == np.uint8
    assert np.array_equal(clip, other.read("train", 17, ALL))
    for different in (
        MovingDigits(seed=1).read("train", 17, ALL),
        one.read("test", 17, ALL),
        one.read("train", 17 + 24, ALL),
    ):
        assert not np.array_equal(clip, different)


def test_glyphs_of_the_splits_are_disjoint() -> None:
    """Breaks if a test glyph is seen in training."""
    source = MovingDigits(digits=range(10))
    source.clips("train")
    for digit in range(10):
        seen = {glyph.numpy().tobytes() for glyph in source._glyphs["train", digit]}
        for split in ("validation", "test"):
            assert len(source._glyphs[split, digit]) > 25
            assert not seen & {glyph.numpy().tobytes() for glyph in source._glyphs[split, digit]}


def test_labels_are_balanced_and_name_digit_and_order() -> None:
    """Breaks if a class is missing or its name and its picture fall apart."""
    source = MovingDigits(digits=[7, 1], test_clips=36)
    names = source.heads["class"]
    assert len(names) == 2 * len(ORDERS)
    assert names[0] == "7: right then left"
    labels = [clip.labels["class"] for clip in source.clips("test")]
    assert np.bincount(labels).tolist() == [3] * 12


@pytest.mark.parametrize(
    ("order", "axis", "sign"), [("right then left", 2, 1), ("left then right", 2, -1), ("up then down", 1, -1)]
)
def test_the_digit_moves_as_its_class_says(order: str, axis: int, sign: int) -> None:
    """Breaks if directions are swapped: the centre of brightness goes there and comes back."""
    source = MovingDigits(noise=0.0)
    label = source.heads["class"].index(f"0: {order}")
    clip = source.read("train", label + 24 * 3, ALL).sum(-1).astype(float)  # (t, h, w)
    places = np.arange(32)
    centre = (clip.sum(3 - axis) * places).sum(-1) / clip.sum((1, 2))
    assert sign * (centre[3] - centre[0]) > 5
    assert centre[0] == pytest.approx(centre[7], abs=0.2)


def test_opposed_motions_show_the_same_frames_in_another_sequence() -> None:
    """Breaks if averaging over time could tell right-left from left-right: the two-frame tubelets are the same ones."""
    source = MovingDigits(noise=0.0)
    to, fro = source.read("train", 0, ALL), source.read("train", 1, ALL)

    def tubelets(clip: np.ndarray) -> list[int]:
        # displacement of the centre of brightness within each pair of frames
        sums = clip.sum((1, 3)).astype(float)
        centre = (sums * np.arange(32)).sum(-1) / sums.sum(-1)
        return sorted(np.sign(centre[1::2] - centre[::2]).astype(int))

    assert tubelets(to) == tubelets(fro) == [-1, -1, 1, 1]


@pytest.mark.parametrize("frames", [2, 7])
def test_frames_that_cannot_be_halved_are_refused(frames: int) -> None:
    """Breaks if a clip without two events is drawn."""
    with pytest.raises(UserError, match="even number"):
        MovingDigits(frames=frames)
