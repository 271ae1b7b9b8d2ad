"""Any selection of a source's images, as tensors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lightning_vl.data.image_augmentation import Augmentation
from lightning_vl.data.source import ImageSource, Split
from lightning_vl.data.stream import Batch

Place = tuple[Split, int]  # of an image in its source


class PlacedImages:
    """The images at some places of a source.

    Args:
        source: the images.
        places: split and index of each.
        image_size: height and width for the network, px.
        augmentation: what is done to each; `PlainResize` in evaluation.
    """

    def __init__(
        self,
        source: ImageSource,
        places: Sequence[Place],
        image_size: int,
        augmentation: Augmentation,
    ) -> None:
        self.source = source
        self.places = places
        self.image_size = image_size
        self.augmentation = augmentation
        self.images = {split: source.images(split) for split in {split for split, _ in places}}

    def __len__(self) -> int:
        return len(self.places)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """`image` uint8 (c, h, w), `label`, `id`, and `place`, which is `index`.

        Raises:
            CorruptSample: the image cannot be decoded.
        """
        split, number = self.places[index]
        image = torch.from_numpy(self.source.read(split, number)).permute(2, 0, 1)
        image = self.augmentation(image, self.image_size, rng)
        labelled = self.images[split][number]
        return {"image": image, "label": labelled.label, "id": labelled.id, "place": index}

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> Batch:
        """`image` uint8 (b, c, h, w), `label` and `place` int64 (b,), `id` b names."""
        return {
            "image": torch.stack([sample["image"] for sample in samples]),
            "label": torch.tensor([sample["label"] for sample in samples]),
            "place": torch.tensor([sample["place"] for sample in samples]),
            "id": [sample["id"] for sample in samples],
        }
