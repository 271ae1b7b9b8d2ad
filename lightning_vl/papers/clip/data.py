"""CLIP's batches: images, and one caption of each in training, all captions in evaluation."""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from lightning_vl.data.captions import CaptionDocuments, CaptionedImage, CaptionSource, StreamedCaptions
from lightning_vl.data.image_augmentation import Augmentation, centre_square
from lightning_vl.data.module import DataModule
from lightning_vl.data.source import Split
from lightning_vl.data.stream import Batch, SeededDataset
from lightning_vl.data.streamed import StreamedDataset
from lightning_vl.data.tokenizer import TextTokenizer, Vocabulary
from lightning_vl.errors import CorruptSample, UserError
from lightning_vl.evaluation.retrieval import chance
from lightning_vl.nn.packing import Packing, pack
from lightning_vl.papers.clip.search import FolderImages, ImageSearch
from lightning_vl.terminal import say


class CaptionBatch(TypedDict):
    """What the task gets.

    image: float (b, c, h, w) in [0, 1]; uint8 until it is on the device.
    token_ids: int64 (t,), the captions of the batch end to end.
    packing: where they lie.
    image_of: int64 (n,), for each caption the number of its image in the batch; in training n = b.
    text: n captions as they are written; only in evaluation.
    cut: how many of the captions were too long; the data module counts and removes it.
    id: b names.
    """

    image: Tensor
    token_ids: Tensor
    packing: Packing
    image_of: Tensor
    text: NotRequired[list[str]]
    cut: int
    id: list[str]


class CaptionTransform:
    """What makes a training sample of an image that was read.

    Args:
        tokenizer: makes tokens of captions.
        context_length: most tokens of a caption.
        image_size: height and width for the network, px.
        augmentation: what is done to an image.
    """

    def __init__(
        self, tokenizer: TextTokenizer, context_length: int, image_size: int, augmentation: Augmentation
    ) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.image_size = image_size
        self.augmentation = augmentation

    def __call__(self, image: CaptionedImage, pixels: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """`image` (c, h, w), `tokens` of one caption, `cut`, `id`.

        Raises:
            CorruptSample: there is no caption.
        """
        if not image.captions:
            raise CorruptSample(image.id, "it has no caption")
        caption = image.captions[int(rng.integers(len(image.captions)))]
        tokens, cut = self.tokenizer.fitted(caption, self.context_length)
        return {
            "image": self.augmentation(torch.from_numpy(pixels).permute(2, 0, 1), self.image_size, rng),
            "tokens": [tokens],
            "cut": int(cut),
            "id": image.id,
        }


class TrainingCaptions:
    """Each training image once an epoch, augmented anew, with one of its captions.

    Args:
        source: images and captions.
        transform: makes samples of them.
    """

    def __init__(self, source: CaptionSource, transform: CaptionTransform) -> None:
        self.source = source
        self.transform = transform
        self.images = source.images("train")

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """See `CaptionTransform`.

        Raises:
            CorruptSample: the image cannot be decoded, or has no caption.
        """
        return self.transform(self.images[index], self.source.read("train", index), rng)


class StreamedTrainingCaptions(StreamedDataset):
    """`TrainingCaptions` of a source that is read in an order of its own.

    Args:
        source: images and captions.
        transform: makes samples of them.
    """

    def __init__(self, source: StreamedCaptions, transform: CaptionTransform) -> None:
        self.source = source
        self.transform = transform

    def __len__(self) -> int:
        return self.source.length

    def sample_in_order(self, seed: int, epoch: int, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """See `TrainingCaptions.sample`."""
        image, pixels = self.source.read_in_order(seed, epoch, index)
        return self.transform(image, pixels, rng)


class EvaluationCaptions:
    """The images of a split, their middle squares, with all their captions.

    Args:
        source: images and captions.
        split: which of them.
        tokenizer: makes tokens of captions.
        context_length: most tokens of a caption.
        image_size: height and width for the network, px.
    """

    def __init__(
        self, source: CaptionSource, split: Split, tokenizer: TextTokenizer, context_length: int, image_size: int
    ) -> None:
        self.source = source
        self.split = split
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.image_size = image_size
        self.images = source.images(split)

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """`image` (c, h, w), `tokens` and `text` of each caption, `cut`, `id`; nothing is drawn from `rng`.

        Raises:
            CorruptSample: the image cannot be decoded, or has no caption.
        """
        image = self.images[index]
        if not image.captions:
            raise CorruptSample(image.id, "it has no caption")
        pixels = torch.from_numpy(self.source.read(self.split, index)).permute(2, 0, 1)
        fitted = [self.tokenizer.fitted(caption, self.context_length) for caption in image.captions]
        return {
            "image": centre_square(pixels, self.image_size),
            "tokens": [tokens for tokens, _ in fitted],
            "text": image.captions,
            "cut": sum(cut for _, cut in fitted),
            "id": image.id,
        }


def collate(samples: Sequence[dict[str, Any]]) -> CaptionBatch:
    """Samples as one batch."""
    sequences = [tokens for sample in samples for tokens in sample["tokens"]]
    counts = torch.tensor([len(sample["tokens"]) for sample in samples])
    batch = CaptionBatch(
        image=torch.stack([sample["image"] for sample in samples]),
        token_ids=torch.tensor([token for tokens in sequences for token in tokens]),
        packing=pack(torch.tensor([len(tokens) for tokens in sequences])),
        image_of=torch.repeat_interleave(torch.arange(len(samples)), counts),
        cut=sum(sample["cut"] for sample in samples),
        id=[sample["id"] for sample in samples],
    )
    if "text" in samples[0]:
        batch["text"] = [text for sample in samples for text in sample["text"]]
    return batch


class CaptionData(DataModule):
    """Images with captions in three splits.

    Args:
        source: images and captions.
        vocabulary: how captions become tokens; one that is trained is trained on the training captions.
        image_size: height and width for the network, px.
        augmentation: what is done to training images.
        batch_size: pairs of one optimiser step, over all devices and accumulated micro-batches.
        context_length: most tokens of a caption, those that begin and end it included; longer ones are cut and counted.
        evaluation_batch_size: images of one forward pass in evaluation, on each device.
        workers: processes that read ahead, on each device.
        max_corrupt: largest share of images that may turn out unreadable before the run stops.
        search: for `predict`: pictures to be found by text. None for the test split.
    """

    def __init__(
        self,
        source: CaptionSource,
        vocabulary: Vocabulary,
        image_size: int,
        augmentation: Augmentation,
        batch_size: int,
        context_length: int = 77,
        evaluation_batch_size: int = 128,
        workers: int = 1,
        max_corrupt: float = 0.01,
        search: ImageSearch | None = None,
    ) -> None:
        super().__init__(batch_size, evaluation_batch_size, workers, max_corrupt)
        if context_length < 3:
            raise UserError(
                f"context_length is {context_length}", "give 3 or more: start, end, and a token between them"
            )
        self.source = source
        self.vocabulary = vocabulary
        self.image_size = image_size
        self.augmentation = augmentation
        self.context_length = context_length
        self.search = search
        self.tokenizer: TextTokenizer  # once it is set up
        self.captions: dict[Split, list[int]] = {}  # how many were seen by this process, and how many of them were cut

    def setup(self, stage: str) -> None:
        """Finds or trains the vocabulary, then builds the splits."""
        if not hasattr(self, "tokenizer"):
            self.tokenizer = self.vocabulary.tokenizer(CaptionDocuments(self.source))
        if stage == "predict" and self.search is not None:
            if self.trainer is not None and self.trainer.world_size > 1:
                raise UserError(
                    f"a search runs in one process, and there are {self.trainer.world_size}", "add --trainer.devices 1"
                )
            self.datasets = {"test": self.search.images(self.image_size)}
            self.max_corrupt = 1.0  # a folder of pictures may hold anything
        else:
            super().setup(stage)

    def dataset(self, split: Split) -> SeededDataset | StreamedDataset:
        """One caption an image for training, all of them otherwise."""
        if split != "train":
            return EvaluationCaptions(self.source, split, self.tokenizer, self.context_length, self.image_size)
        transform = CaptionTransform(self.tokenizer, self.context_length, self.image_size, self.augmentation)
        if isinstance(self.source, StreamedCaptions):
            return StreamedTrainingCaptions(self.source, transform)
        return TrainingCaptions(self.source, transform)

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """See `collate`; pictures to be searched have no captions."""
        return dict(collate(samples)) if "tokens" in samples[0] else FolderImages.collate(samples)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Counts the captions that were cut, and says so at the first, tenth, hundredth, ..."""
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        cut = batch.pop("cut", 0)
        if "token_ids" not in batch:
            return batch
        counts = self.captions.setdefault(self.split, [0, 0])
        before = counts[1]
        counts[0] += len(batch["image_of"])
        counts[1] += cut
        if len(str(counts[1])) > len(str(before)) or before == 0 < cut:
            say(
                f"{self.split}: {counts[1]:,} of {counts[0]:,} captions so far have more than {self.context_length} "
                "tokens and were cut (data.init_args.context_length)"
            )
        return batch

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What the network's inputs depend on."""
        return {
            "image_size": self.image_size,
            "resize": "shorter side, PIL bicubic, middle square",
            "range": [0.0, 1.0],
            "channels": "RGB",
            "context_length": self.context_length,
            "vocabulary": self.tokenizer.fingerprint,
        }

    def baselines(self) -> dict[str, float]:
        """What retrieval reaches by chance, see `chance`."""
        return chance([image.captions for image in self.source.images("test")])

    def state_dict(self) -> dict[str, Any]:
        """See `DataModule`; the whole vocabulary travels with the checkpoint."""
        return {**super().state_dict(), "vocabulary": self.tokenizer.stored()}

    def accept(self, saved: dict[str, Any]) -> None:
        """Refuses a checkpoint whose towers saw other images or other pieces of text."""
        if saved.get("vocabulary") != self.tokenizer.fingerprint:
            raise UserError(
                f"the checkpoint was trained with another vocabulary than this one of {len(self.tokenizer)} pieces",
                "give data.init_args.vocabulary CheckpointVocabulary with the checkpoint's path: it carries its own",
            )
        super().accept(saved)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """On the device: bytes to [0, 1]."""
        if batch["id"]:
            batch["image"] = batch["image"].float().mul_(1 / 255)
        return batch
