"""Pixels: the same for every frame, nothing but the generator decides, sizes and ranges as the paper's."""

import colorsys

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as pixels

from lightning_vl.data import augmentation
from lightning_vl.data.augmentation import (
    OPERATIONS,
    ColourJitter,
    EvaluationCrop,
    RandAugment,
    TrainingTransform,
    mixup,
    turn_hue,
)
from lightning_vl.errors import UserError


def _video(frames: int = 6, height: int = 40, width: int = 56) -> Tensor:
    """uint8 (t, c, h, w) of noise, laid out as decoded frames are."""
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (frames, height, width, 3), generator=generator, dtype=torch.uint8)
    return video.permute(0, 3, 1, 2)


def _still(frames: int = 6) -> Tensor:
    return _video(1).expand(frames, -1, -1, -1)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


FULL = TrainingTransform(36, 32, (0.9, 1.33), 0.5, ColourJitter(0.8, grey=0.1), RandAugment(2, 7))


def test_training_transform_gives_clips_of_the_crop() -> None:
    """Batches stack only if every clip has the same size and type, whatever was drawn."""
    for seed in range(20):
        clip = FULL(_video(), _rng(seed))
        assert clip.shape == (6, 3, 32, 32)
        assert clip.dtype == torch.uint8
        assert clip.is_contiguous()


def test_generator_is_the_only_chance() -> None:
    """Exact resume needs the same pixels from the same seed, whatever the global generators are at."""
    torch.manual_seed(1)
    first = FULL(_video(), _rng(3))
    torch.manual_seed(2)
    np.random.seed(5)
    assert torch.equal(FULL(_video(), _rng(3)), first)
    assert not torch.equal(FULL(_video(), _rng(4)), first)


@pytest.mark.parametrize("seed", range(25))
def test_every_frame_is_changed_alike(seed: int) -> None:
    """A crop, flip or colour that changes from frame to frame is motion that was not there."""
    clip = FULL(_still(), _rng(seed))
    assert all(torch.equal(frame, clip[0]) for frame in clip)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_rand_augment_operations_change_every_frame_alike(operation: augmentation.Operation) -> None:
    """Of a still clip every operation leaves a still clip, and the magnitude given here changes it."""
    faint = _still() // 2 + 70
    clip = operation(faint, 0.7, _rng())
    assert clip.shape == faint.shape
    assert clip.dtype == torch.uint8
    assert all(torch.equal(frame, clip[0]) for frame in clip)
    assert not torch.equal(clip, faint)


def test_statistics_are_the_clips() -> None:
    """With each frame's own statistics a dark frame after a bright one would become as bright: the fade is gone."""
    fade = torch.stack([torch.full((3, 8, 8), value, dtype=torch.uint8) for value in (50, 100, 150)])
    for operation in (augmentation._auto_contrast, augmentation._equalize):
        means = operation(fade, 1.0, _rng()).float().mean((1, 2, 3))
        assert means[0] < means[1] < means[2]
    stretched = augmentation._auto_contrast(fade, 1.0, _rng())
    assert stretched[:, 0, 0, 0].tolist() == pytest.approx([0, 127.5, 255], abs=1)


def test_rand_augment_levels() -> None:
    """Magnitudes as RandAugment's authors count them: 10 is 1.9 for enhancements, 4 bits, 110 added, 80 px cut out."""
    grey = torch.full((2, 3, 224, 224), 100, dtype=torch.uint8)
    assert augmentation._brightness(grey, 1.0, _rng())[0, 0, 0, 0] == 190
    assert augmentation._solarize_add(grey, 1.0, _rng())[0, 0, 0, 0] == 210
    assert augmentation._solarize_add(grey, 2.0, _rng())[0, 0, 0, 0] == 255  # 100 + 220 must not wrap around
    assert augmentation._solarize_add(grey + 50, 1.0, _rng())[0, 0, 0, 0] == 150  # bright pixels stay
    assert augmentation._solarize(grey, 0.25, _rng())[0, 0, 0, 0] == 155
    assert augmentation._posterize(grey, 1.0, _rng())[0, 0, 0, 0] == 96  # four bits of 100
    for beyond in (augmentation._solarize, augmentation._posterize):
        assert torch.equal(beyond(grey, 2.0, _rng()), grey)
    cut = augmentation._cutout(grey, 1.0, _rng(1)) == 0
    assert cut.any()
    assert cut[0, 0].any(0).sum() <= 80
    assert cut[0, 0].any(1).sum() <= 80


def test_rand_augment_draws_every_operation_and_none() -> None:
    """An operation that is never drawn, or a missing do-nothing slot, is another augmentation than the paper's."""
    seen: list[int] = []
    spies = [
        lambda video, level, rng, number=number: (seen.append(number), video)[1] for number in range(len(OPERATIONS))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation, "OPERATIONS", tuple(spies))
        rng = _rng()
        for _ in range(600):
            RandAugment(2, 10)(_video(1, 2, 2), rng)
    assert len(OPERATIONS) == 11
    assert set(seen) == set(range(11))
    assert len(seen) == pytest.approx(1200 * 11 / 12, rel=0.03)


def test_scale_jitter_range_and_independence() -> None:
    """Factors outside of [0.9, 1.33], or one factor for both sides, would be another recipe."""
    sizes: list[tuple[int, int]] = []

    def spy(video: Tensor, height: int, width: int) -> Tensor:
        sizes.append((height, width))
        return resize(video, height, width)

    resize = augmentation.resize
    transform = TrainingTransform(100, 90, (0.9, 1.33))
    rng = _rng()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation, "resize", spy)
        for _ in range(200):
            assert transform(_video(1, 100, 200), rng).shape == (1, 3, 90, 90)
    heights, widths = np.array(sizes).T
    assert 90 <= heights.min() < 93 < 130 < heights.max() <= 133
    assert 180 <= widths.min() < 186 < 260 < widths.max() <= 266
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.2


def test_random_crop_reaches_the_edges() -> None:
    """An offset that is one off would never show the last row."""
    video = torch.arange(40, dtype=torch.uint8).view(1, 1, 1, 40).expand(1, 3, 36, 40)
    transform = TrainingTransform(36, 32)
    lefts = {int(transform(video, _rng(seed))[0, 0, 0, 0]) for seed in range(120)}
    assert lefts == set(range(9))


def test_flip() -> None:
    """Half of the clips in general, none where labels tell left from right."""
    video = torch.arange(32, dtype=torch.uint8).view(1, 1, 1, 32).expand(1, 3, 32, 32)
    flipped = [int(TrainingTransform(32, 32, flip=0.5)(video, _rng(seed))[0, 0, 0, 0]) == 31 for seed in range(200)]
    assert 70 < sum(flipped) < 130
    assert all(int(TrainingTransform(32, 32)(video, _rng(seed))[0, 0, 0, 0]) == 0 for seed in range(50))


def test_without_anything_the_frames_are_the_frames() -> None:
    """Made-up videos of the right size must not be resampled."""
    assert torch.equal(TrainingTransform(40, 40)(_video(2, 40, 40), _rng()), _video(2, 40, 40))
    assert torch.equal(EvaluationCrop(40, 40)(_video(2, 40, 40))[0], _video(2, 40, 40))


@pytest.mark.parametrize(("height", "width"), [(50, 90), (90, 50), (50, 50), (37, 53)])
def test_short_side(height: int, width: int) -> None:
    """Upright, lying, square and odd frames: the shorter side is as said, the picture not stretched."""
    seen: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        original = augmentation.resize
        patch.setattr(augmentation, "resize", lambda v, h, w: (seen.append((h, w)), original(v, h, w))[1])
        assert EvaluationCrop(64, 56)(_video(2, height, width)).shape == (1, 2, 3, 56, 56)
    assert min(seen[0]) == 64
    assert seen[0][0] / seen[0][1] == pytest.approx(height / width, rel=0.02)


def test_spatial_views() -> None:
    """Left, centre, right of a lying frame; top, centre, bottom of an upright one."""
    columns = torch.arange(56, dtype=torch.uint8).view(1, 1, 1, 56).expand(1, 3, 32, 56)
    views = EvaluationCrop(32, 32, 3)(columns)
    assert views.shape == (3, 1, 3, 32, 32)
    assert views[:, 0, 0, 0, 0].tolist() == [0, 12, 24]
    upright = EvaluationCrop(32, 32, 3)(columns.transpose(2, 3))
    assert upright[:, 0, 0, 0, 0].tolist() == [0, 12, 24]
    assert EvaluationCrop(32, 32)(columns)[:, 0, 0, 0, 0].tolist() == [12]


def test_impossible_sizes() -> None:
    """A crop larger than the frame, two spatial views: said before training."""
    with pytest.raises(UserError, match="a crop of 224 px does not fit"):
        TrainingTransform(192, 224)
    with pytest.raises(UserError, match="a crop of 224 px does not fit"):
        EvaluationCrop(192, 224)
    with pytest.raises(UserError, match="spatial_views is 2"):
        EvaluationCrop(256, 224, 2)


@pytest.mark.parametrize("turn", [-0.2, -0.05, 0.0, 0.13, 0.2])
def test_hue_against_torchvision(turn: float) -> None:
    """Our quicker arithmetic must be HSV's."""
    values = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    values[:, 0] = values[:1, 0]  # grey pixels have no hue
    expected = pixels.adjust_hue(values, turn)
    torch.testing.assert_close(turn_hue(values * 255, turn, 1.0) / 255, expected, atol=1e-5, rtol=0)


def test_saturation_against_the_standard_library() -> None:
    """HSV's saturation, scaled and cut off at 1."""
    values = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1))
    for factor in (0.6, 1.4, 5.0):
        turned = turn_hue(values * 255, 0.0, factor) / 255
        for y in range(6):
            for x in range(6):
                hue, saturation, value = colorsys.rgb_to_hsv(*values[:, y, x].tolist())
                expected = colorsys.hsv_to_rgb(hue, min(saturation * factor, 1.0), value)
                assert turned[:, y, x].tolist() == pytest.approx(expected, abs=1e-4)


def test_colour_jitter_ranges() -> None:
    """Without any of its parts it changes nothing; brightness is a shift, contrast keeps each frame's mean."""
    nothing = ColourJitter(1.0, 0.0, (1.0, 1.0), (1.0, 1.0), 0.0)
    assert torch.equal(nothing(_video(), _rng()), _video())
    grey = torch.full((2, 3, 8, 8), 128, dtype=torch.uint8)
    shifts = [int(ColourJitter(1.0)(grey, _rng(seed))[0, 0, 0, 0]) - 128 for seed in range(300)]
    assert -32 <= min(shifts) < -28
    assert 28 < max(shifts) <= 32
    contrasts = ColourJitter(1.0, 0.0, (0.6, 1.4), (1.0, 1.0), 0.0)
    middle = _video() // 2 + 64
    spreads = [contrasts(middle, _rng(seed)).float().std() / middle.float().std() for seed in range(60)]
    assert 0.59 < min(spreads) < 0.65
    assert 1.3 < max(spreads) < 1.41
    assert contrasts(middle, _rng()).float().mean() == pytest.approx(middle.float().mean(), abs=0.5)


def test_colour_jitter_probabilities() -> None:
    """Table 7's 0.8, and the grey of the released configurations."""
    untouched = sum(torch.equal(ColourJitter(0.8)(_video(1), _rng(seed)), _video(1)) for seed in range(200))
    assert 20 < untouched < 60
    grey = ColourJitter(0.0, grey=1.0)(_video(), _rng())
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert grey.shape == _video().shape


def test_mixup() -> None:
    """Partner is the reversed batch; targets and pixels are mixed by the same share."""
    values = torch.tensor([[0.0, 0.0], [1.0, 10.0], [4.0, 40.0]])
    mixed = mixup(values, torch.tensor(0.75))
    torch.testing.assert_close(mixed, torch.tensor([[1.0, 10.0], [1.0, 10.0], [3.0, 30.0]]))
    torch.testing.assert_close(mixup(values, torch.tensor(1.0)), values)
