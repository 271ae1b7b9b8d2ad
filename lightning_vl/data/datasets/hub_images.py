"""Image sets that the `datasets` library reads: of the Hugging Face hub, or in local parquet files."""

import difflib
import io
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lightning_vl.data.datasets.image_folder import decode_image, read_image
from lightning_vl.data.datasets.labels import class_indices, names_of
from lightning_vl.data.datasets.tables import check_classes
from lightning_vl.data.source import ImageSource, LabelledImage, Split
from lightning_vl.data.subset import hold_out
from lightning_vl.errors import CorruptSample, UserError


class HubImages(ImageSource):
    """Any image set of the hub by its name, or a local folder: parquet files, or what `save_to_disk` wrote.

    Nothing is downloaded before the images are asked for. The library keeps what it downloads, and an Arrow copy of
    parquet files, in its own cache (`HF_HOME`). Rows are read at random from Arrow files on disk.

    Args:
        path: the set's name on the hub (`uoft-cs/cifar10`), or a local folder.
        name: the set's configuration, where it has several.
        image_column: the column of images.
        label_column: the column of labels: class labels with names, numbers, or names.
        splits: the set's name of `train`, `test` and, where it has one, `validation`; without one a seeded share of the
            training images is for validation.
        classes: how many classes there must be; None for no matter.
        validation_share: share of the training images of each class for validation, where it has no split.
        split_seed: seed of that split, which is part of the experiment.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        image_column: str = "image",
        label_column: str = "label",
        splits: dict[Split, str] | None = None,
        classes: int | None = None,
        validation_share: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        self.path = path
        self.name = name
        self.image_column = image_column
        self.label_column = label_column
        self.splits: dict[Split, str] = {"train": "train", "test": "test"} if splits is None else splits
        self.classes = classes
        self.validation_share = validation_share
        self.split_seed = split_seed
        for split in ("train", "test"):
            if split not in self.splits:
                raise UserError(
                    f"splits {self.splits} name none for {split}",
                    "say which split of the set it is: {train: ..., test: ...}",
                )

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the class labels, or the labels of the training images."""
        feature = self._tables["train"].features[self.label_column]
        if hasattr(feature, "names"):
            names = list(feature.names)
        else:
            names = names_of(f"{self.path}, split {self.splits['train']}", self._labels("train"))
        check_classes(self.path, names, self.classes)
        return names

    def images(self, split: Split) -> Sequence[LabelledImage]:
        """The images of a split in the order of the set; they are not decoded yet.

        Raises:
            UserError: the set cannot be had, has no such split or column, or a label without a class.
        """
        return [image for image, _ in self._splits[split]]

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of the split: uint8 (h, w, 3), RGB.

        Raises:
            CorruptSample: it cannot be decoded.
        """
        image, (table, row) = self._splits[split][index]
        return decode_cell(self._tables[table][row][self.image_column], image.id)

    @cached_property
    def _splits(self) -> dict[Split, list[tuple[LabelledImage, tuple[Split, int]]]]:
        """Each image with its table and row; all splits at once, so that a mistake in one is found before training."""
        splits: dict[Split, list[tuple[LabelledImage, tuple[Split, int]]]] = {}
        for split, name in self.splits.items():
            labels = class_indices(f"{self.path}, split {name}", self._labels(split), self.class_names)
            splits[split] = [(LabelledImage(f"{name}/{row}", label), (split, row)) for row, label in enumerate(labels)]
        if "validation" not in splits:
            images = splits["train"]
            labels = [image.label for image, _ in images]
            kept, held_out = hold_out(labels, self.class_names, self.validation_share, self.split_seed)
            splits["train"] = [images[place] for place in kept]
            splits["validation"] = [images[place] for place in held_out]
        return splits

    def _labels(self, split: Split) -> list[Any]:
        return self._tables[split].select_columns([self.label_column])[:][self.label_column]

    @cached_property
    def _tables(self) -> dict[Split, Any]:
        """A `datasets.Dataset` for each split of the set, images encoded as they are stored."""
        found = load(self.path, self.name)
        return {
            split: encoded(nearest(self.path, "split", name, found), self.path, self.image_column, self.label_column)
            for split, name in self.splits.items()
        }


def load(path: str, name: str | None, streaming: bool = False) -> Mapping[str, Any]:
    """The splits of a set by name.

    Args:
        path: name on the hub, or a local folder.
        name: its configuration.
        streaming: read it as it comes instead of keeping it on disk.

    Raises:
        UserError: there is no such set, or it cannot be reached.
    """
    import datasets  # it takes seconds, and few experiments need it

    try:
        if streaming:
            return datasets.load_dataset(path, name, streaming=True)
        if os.path.exists(os.path.join(path, "state.json")):
            return {"train": datasets.load_from_disk(path)}
        if os.path.exists(os.path.join(path, "dataset_dict.json")):
            return datasets.load_from_disk(path)
        return datasets.load_dataset(path, name)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"the data set {path} cannot be had: {' '.join(str(error).split())}",
            "check its name (and configuration) or its folder, and the network if it is on the hub",
        ) from error


def nearest(where: str, kind: str, name: str, known: Mapping[str, Any]) -> Any:
    """What has a name.

    Raises:
        UserError: nothing has; it says which names are near.
    """
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)[:8]
        raise UserError(f"{where} has no {kind} {name!r}", f"did you mean {' or '.join(map(repr, close))}?")
    return known[name]


def encoded(table: Any, where: str, image_column: str, label_column: str) -> Any:
    """A table of two columns, whose images are left as they are stored.

    Raises:
        UserError: it has no such columns, or no images there.
    """
    import datasets

    for column in (image_column, label_column):
        nearest(where, "column", column, table.features)
    feature = table.features[image_column]
    if isinstance(feature, datasets.Image):
        table = table.cast_column(image_column, datasets.Image(decode=False))
    elif not isinstance(feature, dict) and getattr(feature, "dtype", "") not in ("binary", "large_binary"):
        raise UserError(
            f"the column {image_column!r} of {where} holds {getattr(feature, 'dtype', feature)}, no images",
            f"say which of its columns does with image_column: {', '.join(table.features)}",
        )
    return table.select_columns([image_column, label_column])


def decode_cell(cell: Any, id: str) -> np.ndarray:
    """The image of a row: its bytes, or bytes or a path in a dictionary as `datasets` keeps them.

    Raises:
        CorruptSample: there is none, or it cannot be decoded.
    """
    cell = cell if isinstance(cell, dict) else {"bytes": cell}
    if cell.get("bytes") is not None:
        return decode_image(io.BytesIO(cell["bytes"]), id)
    if cell.get("path") is None:
        raise CorruptSample(id, "has no image")
    return read_image(cell["path"])
