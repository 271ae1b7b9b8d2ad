"""ViViT's batches: clips of labelled video, augmented for training, cut into views for evaluation."""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from lightning_vl.data.augmentation import EvaluationCrop, TrainingTransform, mixup
from lightning_vl.data.module import DataModule, to_signed_unit_range
from lightning_vl.data.sampling import TemporalSampling
from lightning_vl.data.source import Split, VideoSource
from lightning_vl.data.stream import Batch, SeededDataset
from lightning_vl.errors import UserError


class VideoBatch(TypedDict):
    """What the task gets.

    video: uint8 (b, t, c, h, w) in training, (b, v, t, c, h, w) with views otherwise.
    labels: class index by head, int64 (b,).
    id: b names.
    mixup: float scalar, the weight of each clip against its partner in the reversed batch; only where mixup is on.
    """

    video: Tensor
    labels: dict[str, Tensor]
    id: list[str]
    mixup: NotRequired[Tensor]


class TrainingClips:
    """One random, augmented clip of each training video.

    Args:
        source: the videos.
        sampling: which frames make a clip.
        transform: what is done to the pixels.
        mixup_alpha: mixup's Beta(alpha, alpha); 0 for no mixup.
    """

    def __init__(
        self, source: VideoSource, sampling: TemporalSampling, transform: TrainingTransform, mixup_alpha: float = 0.0
    ) -> None:
        self.source = source
        self.sampling = sampling
        self.transform = transform
        self.mixup_alpha = mixup_alpha
        self.clips = source.clips("train")

    def __len__(self) -> int:
        return len(self.clips)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """`video` (t, c, h, w), `labels`, `id` and, with mixup, `mixup`.

        Raises:
            CorruptSample: the video cannot be decoded.
        """
        clip = self.clips[index]
        frames = self.sampling.training(clip.frames, rng)
        video, places = read(self.source, "train", index, frames)
        video = video[places]  # (t, c, h, w)
        sample = {"video": self.transform(video, rng), "labels": clip.labels, "id": clip.id}
        if self.mixup_alpha > 0:
            sample["mixup"] = rng.beta(self.mixup_alpha, self.mixup_alpha)
        return sample


class EvaluationClips:
    """The same views of each video of a split, every time.

    Args:
        source: the videos.
        split: which of them.
        sampling: which frames make a clip.
        transform: resizes and crops; it has one or three spatial views.
        temporal_views: 1 for the clip at the centre, more for clips spread over the video.

    Raises:
        UserError: more temporal views than a video has frames.
    """

    def __init__(
        self,
        source: VideoSource,
        split: Split,
        sampling: TemporalSampling,
        transform: EvaluationCrop,
        temporal_views: int = 1,
    ) -> None:
        self.source = source
        self.split = split
        self.sampling = sampling
        self.transform = transform
        self.temporal_views = temporal_views
        self.clips = source.clips(split)
        shortest = min(self.clips, key=lambda clip: clip.frames, default=None)
        if shortest is not None and shortest.frames < temporal_views:
            raise UserError(
                f"{temporal_views} temporal views are wanted of each video, {shortest.id} has {shortest.frames} frames",
                f"lower data.init_args.temporal_views to {shortest.frames} or less, or take such videos out",
            )

    def __len__(self) -> int:
        return len(self.clips)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """`video` (v, t, c, h, w) with v = temporal x spatial views, `labels`, `id`; nothing is drawn from `rng`.

        Raises:
            CorruptSample: the video cannot be decoded.
        """
        clip = self.clips[index]
        if self.temporal_views == 1:
            frames = self.sampling.centre(clip.frames)[None]  # (1, t)
        else:
            frames = self.sampling.views(clip.frames, self.temporal_views)  # (v, t)
        video, places = read(self.source, self.split, index, frames)
        views = self.transform(video)[:, places]  # (s, v, t, c, h, w)
        views = rearrange(views, "s v t c h w -> (v s) t c h w")
        return {"video": views, "labels": clip.labels, "id": clip.id}


def read(source: VideoSource, split: Split, index: int, frames: np.ndarray) -> tuple[Tensor, Tensor]:
    """Each wanted frame once, uint8 (u, c, h, w), and the place among them of every one of `frames`, like `frames`."""
    wanted, places = np.unique(frames, return_inverse=True)
    video = source.read(split, index, wanted.tolist())
    return rearrange(torch.from_numpy(video), "u h w c -> u c h w"), torch.from_numpy(places.reshape(frames.shape))


def collate(samples: Sequence[dict[str, Any]]) -> VideoBatch:
    """Samples of `TrainingClips` or `EvaluationClips` as one batch; mixup takes the first sample's share for all."""
    batch = VideoBatch(
        video=torch.stack([sample["video"] for sample in samples]),
        labels={head: torch.tensor([sample["labels"][head] for sample in samples]) for head in samples[0]["labels"]},
        id=[sample["id"] for sample in samples],
    )
    if "mixup" in samples[0]:
        batch["mixup"] = torch.tensor(samples[0]["mixup"], dtype=torch.float32)
    return batch


class VideoData(DataModule):
    """Labelled video in three splits for ViViT.

    Args:
        source: where the videos come from.
        sampling: which frames make a clip.
        training: what is done to the pixels of training clips.
        evaluation: resize and crop of the single view of validation (its spatial views are for testing only).
        temporal_views: clips spread over a test video, whose logits are averaged.
        spatial_views: 1 for the centre, 3 for left, centre and right (top, centre, bottom) of each test clip.
        mixup_alpha: mixup's Beta(alpha, alpha); 0 for none.
        batch_size: clips of one optimiser step, over all devices and accumulated micro-batches.
        evaluation_batch_size: videos of one forward pass in evaluation, on each device.
        workers: processes that read ahead, on each device.
        max_corrupt: largest share of videos that may turn out unreadable before the run stops.
    """

    def __init__(
        self,
        source: VideoSource,
        sampling: TemporalSampling,
        training: TrainingTransform,
        evaluation: EvaluationCrop,
        batch_size: int,
        temporal_views: int = 1,
        spatial_views: int = 1,
        mixup_alpha: float = 0.0,
        evaluation_batch_size: int = 32,
        workers: int = 1,
        max_corrupt: float = 0.01,
    ) -> None:
        super().__init__(batch_size, evaluation_batch_size, workers, max_corrupt)
        self.source = source
        self.sampling = sampling
        self.training = training
        self.evaluation = evaluation
        self.temporal_views = temporal_views
        self.spatial_views = spatial_views
        self.mixup_alpha = mixup_alpha

    def dataset(self, split: Split) -> SeededDataset:
        """Random clips for training, the centre for validation, views for testing."""
        match split:
            case "train":
                return TrainingClips(self.source, self.sampling, self.training, self.mixup_alpha)
            case "validation":
                return EvaluationClips(self.source, split, self.sampling, self.evaluation)
            case "test":
                crop = EvaluationCrop(self.evaluation.short_side, self.evaluation.crop, self.spatial_views)
                return EvaluationClips(self.source, split, self.sampling, crop, self.temporal_views)

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """See `collate`."""
        return dict(collate(samples))

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Frames, crop and range of the network's inputs."""
        return {"frames": self.sampling.frames, "crop": self.evaluation.crop, "range": [-1.0, 1.0], "channels": "RGB"}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """On the device: bytes to [-1, 1], then mixup."""
        if not batch["id"]:
            return batch
        batch["video"] = to_signed_unit_range(batch["video"])
        if "mixup" in batch:
            batch["video"] = mixup(batch["video"], batch["mixup"])
        return batch
