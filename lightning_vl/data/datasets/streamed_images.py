"""Image sets of the hub, or parquet files, that are read as they come and never kept on disk."""

import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lightning_vl.data.datasets.hub_images import decode_cell, encoded, load, nearest
from lightning_vl.data.datasets.labels import class_indices
from lightning_vl.data.datasets.tables import check_classes
from lightning_vl.data.source import LabelledImage, Split
from lightning_vl.data.streamed import StreamedSource
from lightning_vl.errors import CorruptSample, UserError


class StreamedHubImages(StreamedSource):
    """`HubImages` for sets that are too large to keep: see `lightning_vl.data.streamed` for what that costs.

    Training images come in an order shuffled by the run's seed and the epoch: files in random order, and images within a
    buffer. The validation and test images are read once and held in memory, encoded. There must be a split for each.

    Args:
        path: the set's name on the hub, or a local folder of parquet files.
        train_images: how many images its training split has.
        name: the set's configuration, where it has several.
        image_column: the column of images.
        label_column: the column of labels: class labels with names, or numbers or names with `class_names`.
        splits: the set's names of the three splits.
        class_names: the names of the classes, where the column has none.
        classes: how many classes there must be; None for no matter.
        shuffle_buffer: encoded images of the buffer, in each loader process.
    """

    def __init__(
        self,
        path: str,
        train_images: int,
        name: str | None = None,
        image_column: str = "image",
        label_column: str = "label",
        splits: dict[Split, str] | None = None,
        class_names: list[str] | None = None,
        classes: int | None = None,
        shuffle_buffer: int = 1000,
    ) -> None:
        self.path = path
        self.train_images = train_images
        self.name = name
        self.image_column = image_column
        self.label_column = label_column
        self.splits: dict[Split, str] = splits or {"train": "train", "validation": "validation", "test": "test"}
        if len(self.splits) < 3:
            raise UserError(f"splits are {self.splits}", "name all three: {train: ..., validation: ..., test: ...}")
        self.given_names = class_names
        self.classes = classes
        self.shuffle_buffer = shuffle_buffer
        self.rows: Iterator[tuple[int, Any]] = iter(())  # of one epoch, numbered
        self.last: tuple[int, Any] = (-1, None)  # the row that was read last
        self.order = (-1, -1)  # seed and epoch of these rows

    @property
    def length(self) -> int:
        """Images of an epoch, as given."""
        return self.train_images

    @cached_property
    def class_names(self) -> list[str]:
        """As given, or those of the column."""
        feature = self._tables["train"].features[self.label_column]
        names = self.given_names or getattr(feature, "names", None)
        if names is None:
            raise UserError(
                f"the column {self.label_column!r} of {self.path} has no names of classes",
                "give the source class_names: a stream cannot be searched for them",
            )
        check_classes(self.path, names, self.classes)
        return names

    def images(self, split: Split) -> Sequence[LabelledImage]:
        """The images of the validation or test split.

        Raises:
            UserError: the set cannot be had, has no such split or column, a label without a class, or it is the training split.
        """
        if split == "train":
            raise UserError(f"the training images of {self.path} are streamed", "take HubImages where a list is needed")
        return [image for image, _ in self._held[split]]

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of the validation or test split: uint8 (h, w, 3), RGB.

        Raises:
            CorruptSample: it cannot be decoded.
        """
        image, cell = self._held[split][index]
        return decode_cell(cell, image.id)

    def read_in_order(self, seed: int, epoch: int, index: int) -> tuple[LabelledImage, np.ndarray]:
        """See `StreamedSource`."""
        if self.order != (seed, epoch) or index < self.last[0]:
            shuffling = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
            table = self._tables["train"].shuffle(seed=shuffling, buffer_size=self.shuffle_buffer)
            # batches of one: the library would share plain rows out to the loader's workers, which are shared out already
            self.rows, self.last, self.order = enumerate(table.iter(batch_size=1)), (-1, None), (seed, epoch)
        while self.last[0] < index:
            row = next(self.rows, None)
            if row is None:
                count = self.last[0] + 1
                raise CorruptSample(f"train/{index}", f"the split ends after {count} images, train_images says more")
            self.last = row
        cell, label = self.last[1][self.image_column][0], self.last[1][self.label_column][0]
        id = f"train/{_name(cell)}"
        try:
            (label_index,) = class_indices(f"{self.path}, split {self.splits['train']}", [label], self.class_names)
        except UserError as error:  # an error of two lines does not travel from a worker to its parent
            raise CorruptSample(id, error.what) from error
        return LabelledImage(id, label_index), decode_cell(cell, id)

    @cached_property
    def _held(self) -> dict[Split, list[tuple[LabelledImage, Any]]]:
        held: dict[Split, list[tuple[LabelledImage, Any]]] = {}
        for split in ("validation", "test"):
            name = self.splits[split]
            rows = [(row[self.image_column], row[self.label_column]) for row in self._tables[split]]
            labels = class_indices(f"{self.path}, split {name}", [label for _, label in rows], self.class_names)
            held[split] = [
                (LabelledImage(f"{name}/{number}", label), cell)
                for number, (label, (cell, _)) in enumerate(zip(labels, rows, strict=True))
            ]
        return held

    @cached_property
    def _tables(self) -> dict[Split, Any]:
        """A `datasets.IterableDataset` for each split."""
        found = load(self.path, self.name, streaming=True)
        known = getattr(found.get(self.splits["train"]), "info", None)
        split = (getattr(known, "splits", None) or {}).get(self.splits["train"])
        if split is not None and 0 < split.num_examples < self.train_images:
            raise UserError(
                f"{self.path} has {split.num_examples} training images, train_images is {self.train_images}",
                f"give the source train_images {split.num_examples}",
            )
        return {
            split: encoded(nearest(self.path, "split", name, found), self.path, self.image_column, self.label_column)
            for split, name in self.splits.items()
        }


def _name(cell: Any) -> str:
    """What an image is called, the same in every epoch: its file, or a sum over its bytes."""
    cell = cell if isinstance(cell, dict) else {"bytes": cell}
    return cell.get("path") or f"{zlib.crc32(cell.get('bytes') or b''):08x}"
