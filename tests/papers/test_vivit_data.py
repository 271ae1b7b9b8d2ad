"""ViViT's samples and batches: shapes, views, mixup's share, and who reads what."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from lightning_vl.data.augmentation import ColourJitter, EvaluationCrop, RandAugment, TrainingTransform
from lightning_vl.data.sampling import FrozenFrame, StridedClip
from lightning_vl.data.source import Clip, Split, VideoSource
from lightning_vl.errors import UserError
from lightning_vl.papers.vivit.data import EvaluationClips, TrainingClips, collate


class Numbered(VideoSource):
    """Videos of various lengths whose frame i is i all over, with its column in green; notes what is read."""

    def __init__(self, lengths: Sequence[int] = (20, 5, 1, 40)) -> None:
        self.lengths = lengths
        self.asked: list[list[int]] = []

    @property
    def heads(self) -> dict[str, list[str]]:
        return {"noun": ["a", "b", "c"], "verb": ["x", "y"]}

    def clips(self, split: Split) -> list[Clip]:
        return [Clip(f"{split}/{i}", n, {"noun": i % 3, "verb": i % 2}) for i, n in enumerate(self.lengths)]

    def read(self, split: Split, index: int, frames: Sequence[int]) -> np.ndarray:
        self.asked.append(list(frames))
        video = np.zeros((len(frames), 32, 48, 3), np.uint8)
        video[..., 0] = np.array(frames)[:, None, None]
        video[..., 1] = np.arange(48)
        return video


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_training_sample() -> None:
    """The clip's frames, in order, looped where the video is short; every frame asked for once and in order."""
    source = Numbered()
    data = TrainingClips(source, StridedClip(6, 2), TrainingTransform(32, 32))
    assert len(data) == 4
    for index, length in enumerate(source.lengths):
        sample = data.sample(index, _rng(index))
        assert sample["video"].shape == (6, 3, 32, 32)
        assert sample["video"].dtype == torch.uint8
        shown = sample["video"][:, 0, 0, 0].tolist()
        assert shown == [(shown[0] + 2 * i) % length for i in range(6)]
        assert sample["id"] == f"train/{index}"
        assert sample["labels"] == {"noun": index % 3, "verb": index % 2}
        assert "mixup" not in sample
    assert all(asked == sorted(set(asked)) for asked in source.asked)


def test_training_sample_is_a_function_of_its_generator() -> None:
    """Workers and resume rest on it."""
    transform = TrainingTransform(32, 24, (0.9, 1.33), 0.5, ColourJitter(), RandAugment(2, 9))
    data = TrainingClips(Numbered(), StridedClip(6, 2), transform, mixup_alpha=0.3)
    first, again, other = (data.sample(0, _rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first["video"], again["video"])
    assert first["mixup"] == again["mixup"]
    assert not torch.equal(first["video"], other["video"])


def test_validation_sees_the_centre_once() -> None:
    """One temporal view is the centre, not the first of the views."""
    data = EvaluationClips(Numbered(), "validation", StridedClip(4, 2), EvaluationCrop(32, 32))
    sample = data.sample(0, _rng())
    assert sample["video"].shape == (1, 4, 3, 32, 32)
    assert sample["video"][0, :, 0, 0, 0].tolist() == [6, 8, 10, 12]
    assert sample["video"][0, 0, 1, 0, 0] == 8  # (48 - 32) / 2
    assert torch.equal(data.sample(0, _rng(9))["video"], sample["video"])


def test_views_are_time_then_space() -> None:
    """4 x 3 views: every start with every crop, each frame decoded once however many views share it."""
    source = Numbered()
    data = EvaluationClips(source, "test", StridedClip(4, 3), EvaluationCrop(32, 32, 3), temporal_views=1)
    assert data.sample(1, _rng())["video"].shape == (3, 4, 3, 32, 32)
    source = Numbered((20, 5, 40))
    data = EvaluationClips(source, "test", StridedClip(4, 3), EvaluationCrop(32, 32, 3), temporal_views=4)
    video = data.sample(0, _rng())["video"]
    assert video.shape == (12, 4, 3, 32, 32)
    assert video[:, 0, 0, 0, 0].tolist() == [0] * 3 + [2] * 3 + [5] * 3 + [8] * 3
    assert video[:3, 0, 1, 0, 0].tolist() == [0, 8, 16]
    assert [len(set(asked)) == len(asked) for asked in source.asked] == [True]
    assert data.sample(1, _rng())["video"][:, :, 0, 0, 0].tolist() == [[0, 3, 1, 4]] * 12


def test_more_views_than_frames() -> None:
    """Four views of a video of one frame are one view counted four times: said before testing, with the video's name."""
    with pytest.raises(UserError, match="4 temporal views are wanted of each video, test/2 has 1 frames"):
        EvaluationClips(Numbered(), "test", StridedClip(4), EvaluationCrop(32, 32), temporal_views=4)


def test_frozen_frames() -> None:
    """The baseline reads one frame only, in training and testing."""
    source = Numbered()
    sample = TrainingClips(source, FrozenFrame(6, 2), TrainingTransform(32, 32)).sample(0, _rng())
    assert len(set(sample["video"][:, 0, 0, 0].tolist())) == 1
    EvaluationClips(source, "test", FrozenFrame(6, 2), EvaluationCrop(32, 32)).sample(0, _rng())
    assert [len(asked) for asked in source.asked] == [1, 1]


def test_collate() -> None:
    """Heads keep their order and type; mixup has one share for the batch."""
    data = TrainingClips(Numbered(), StridedClip(4), TrainingTransform(32, 32), mixup_alpha=0.3)
    samples = [data.sample(index, _rng(index)) for index in range(4)]
    batch = collate(samples)
    assert batch["video"].shape == (4, 4, 3, 32, 32)
    assert batch["video"].dtype == torch.uint8
    assert list(batch["labels"]) == ["noun", "verb"]
    assert batch["labels"]["noun"].tolist() == [0, 1, 2, 0]
    assert batch["labels"]["noun"].dtype == torch.int64
    assert batch["id"] == [f"train/{i}" for i in range(4)]
    assert batch["mixup"].shape == ()
    assert float(batch["mixup"]) == pytest.approx(samples[0]["mixup"])
    plain = TrainingClips(Numbered(), StridedClip(4), TrainingTransform(32, 32))
    assert "mixup" not in collate([plain.sample(0, _rng())])


def test_mixup_shares_are_beta() -> None:
    """Beta(alpha, alpha) has mean 1/2 and variance 1 / (4 (2 alpha + 1))."""
    data = TrainingClips(Numbered((4,)), StridedClip(1), TrainingTransform(32, 32), mixup_alpha=0.3)
    shares = [data.sample(0, _rng(seed))["mixup"] for seed in range(800)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)
    assert np.var(shares) == pytest.approx(1 / (4 * 1.6), rel=0.1)
