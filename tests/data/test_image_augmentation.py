"""What is done to training images: sizes, bounds, and that all randomness comes from the generator that is given."""

import random

import numpy as np
import pytest
import torch

from lightning_vl.data.image_augmentation import (
    Augmentation,
    MixupCutMix,
    PlainResize,
    RandomResizedCrop,
    ShiftedCrop,
    TimmAugment,
    resize,
    timm_policy,
)
from lightning_vl.errors import UserError

ALL = [
    PlainResize(),
    ShiftedCrop(),
    RandomResizedCrop(),
    TimmAugment(RandomResizedCrop()),
    TimmAugment(PlainResize(), "original-mstd0.5"),
    TimmAugment(PlainResize(), "augmix-m3-w3"),
]


def noise(height: int, width: int) -> torch.Tensor:
    """uint8 (3, h, w)."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, height, width), np.uint8))


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: f"{type(a).__name__}-{getattr(a, 'policy', '')}")
@pytest.mark.parametrize("size", [(20, 24), (1, 1), (1, 40)])
def test_every_shape_gets_the_networks_size(augmentation: Augmentation, size: tuple[int, int]) -> None:
    """One pixel and one line too; the same generator gives the same image, and the one given is not changed."""
    image = noise(*size)
    before = image.clone()
    shown = [augmentation(image, 16, np.random.default_rng(seed)) for seed in (1, 1, 2, 3, 4)]
    assert all(picture.shape == (3, 16, 16) and picture.dtype == torch.uint8 for picture in shown)
    assert torch.equal(shown[0], shown[1])
    assert torch.equal(image, before)
    if size == (20, 24) and not isinstance(augmentation, PlainResize):
        assert any(not torch.equal(shown[0], other) for other in shown[2:])


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: f"{type(a).__name__}-{getattr(a, 'policy', '')}")
def test_global_generators_are_left_alone(augmentation: Augmentation) -> None:
    """Breaks if timm's own draws depend on, or disturb, generators that other code draws from: resume rests on it."""
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.random()
    random.seed(5)
    np.random.seed(5)
    first = augmentation(noise(20, 24), 16, np.random.default_rng(1))
    assert (random.random(), np.random.random()) == expected
    assert torch.equal(first, augmentation(noise(20, 24), 16, np.random.default_rng(1)))


def test_plain_resize_is_what_evaluation_sees() -> None:
    """Breaks if training without augmentation differs from evaluation."""
    image = noise(20, 24)
    assert torch.equal(PlainResize()(image, 16, np.random.default_rng(0)), resize(image, 16))
    assert torch.equal(PlainResize()(noise(16, 16), 16, np.random.default_rng(0)), noise(16, 16))


def test_shifts_reach_every_place_and_no_farther() -> None:
    """Breaks if the shift is not even, leaves the padding, or shows anything but black beyond the image."""
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, 4, 4] = 255
    image[:, :4] = 1
    seen = set()
    rng = np.random.default_rng(0)
    for _ in range(400):
        shown = ShiftedCrop(padding=2, flip=0.0)(image, 8, rng)
        (place,) = (shown[0] == 255).nonzero().tolist()
        seen.add(tuple(place))
        down = place[0] - 4
        if down > 0:
            assert not shown[:, :down].any()
    assert seen == {(row, column) for row in range(2, 7) for column in range(2, 7)}
    assert torch.equal(ShiftedCrop(padding=0, flip=0.0)(image, 8, rng), image)
    assert torch.equal(ShiftedCrop(padding=0, flip=1.0)(noise(8, 8), 8, rng), noise(8, 8).flip(-1))


def test_timm_shifts_by_a_part_of_the_image() -> None:
    """timm's default of 250 px would empty every small image."""
    operations = [op for op in timm_policy("rand-m10-n1", 32).ops if "Translate" in op.name]  # type: ignore[attr-defined]
    assert {op.hparams["translate_const"] for op in operations} == {14}


def test_wrong_values_are_refused() -> None:
    """Before training, in two lines."""
    for make, what in (
        (lambda: TimmAugment(PlainResize(), "rnd-m9"), "policy 'rnd-m9'"),
        (lambda: TimmAugment(PlainResize(), "rand-z9"), "policy 'rand-z9'"),
        (lambda: ShiftedCrop(padding=-1), "padding is -1"),
        (lambda: MixupCutMix(0.0, 0.0), "mixup_alpha is 0.0"),
    ):
        with pytest.raises(UserError, match=what):
            make()


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Image i is i all over, of class i % 3."""
    image = torch.arange(size, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()
    return image, torch.arange(size) % 3


def test_mixup_mixes_targets_as_it_mixes_images() -> None:
    """Breaks if the target's shares are not those of the pixels: image i becomes w i + (1 - w) (5 - i)."""
    image, label = batch()
    mixed, target = MixupCutMix(mixup_alpha=1.0, cutmix_alpha=0.0)(image.clone(), label, 3, seed=2)
    weight = float((mixed[0, 0, 0, 0] - 5) / (0 - 5))
    assert 0.01 < weight < 0.99
    torch.testing.assert_close(mixed, weight * image + (1 - weight) * image.flip(0))
    one_hot = torch.nn.functional.one_hot(label, 3).float()
    torch.testing.assert_close(target, weight * one_hot + (1 - weight) * one_hot.flip(0))


def test_cutmix_targets_are_shares_of_the_area() -> None:
    """Breaks if a box that the image's border cuts off counts in full."""
    for seed in range(20):
        image, label = batch()
        mixed, target = MixupCutMix(mixup_alpha=0.0, cutmix_alpha=1.0)(image.clone(), label, 3, seed)
        own = (mixed[0, 0] == 0).float().mean()
        assert torch.isin(mixed[0], torch.tensor([0.0, 5.0])).all()
        one_hot = torch.nn.functional.one_hot(label, 3).float()
        torch.testing.assert_close(target[0], own * one_hot[0] + (1 - own) * one_hot[5])


def test_mixing_is_a_function_of_its_seed() -> None:
    """Exact resume rests on it; both kinds are drawn."""
    mix = MixupCutMix(label_smoothing=0.1)
    image, label = batch()
    first, again, other = (mix(image.clone(), label, 3, seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    torch.testing.assert_close(first[1].sum(1), torch.ones(6))
    uniform = [mix(image.clone(), label, 3, seed)[0][0].unique().numel() == 1 for seed in range(20)]
    assert 0 < sum(uniform) < 20
