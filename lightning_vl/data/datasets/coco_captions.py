"""COCO's captions: its own JSON, and the splits of Karpathy, which Flickr has as well."""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lightning_vl.data.datasets.listed_captions import CaptionedFile, ListedCaptions
from lightning_vl.data.datasets.tables import read_json
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError

KARPATHY: dict[str, Split] = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


class CocoCaptions(ListedCaptions):
    """COCO's layout: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}` for each split.

    The same layout comes with Karpathy's splits as `coco_{split}_karpathy.json`, whose images lie in `val2014`; a list of
    `{"image", "caption"}` objects, one or a list of captions each, is read too. Some images have six or seven captions:
    all are kept, where other evaluations cut them to five.

    Args:
        root: the folder of annotations and images.
        annotations: the JSON file of each split, relative to the root.
        folders: the folder of each split's images, relative to the root; without one names are relative to the root.
        held_out: share of the training images for each split without a file.
        split_seed: seed of that choice, which is part of the experiment.
    """

    def __init__(
        self,
        root: str,
        annotations: dict[Split, str] | None = None,
        folders: dict[Split, str] | None = None,
        held_out: float = 0.05,
        split_seed: int = 0,
    ) -> None:
        if annotations is None:
            annotations = {
                "train": "annotations/captions_train2017.json",
                "test": "annotations/captions_val2017.json",
            }
            folders = {"train": "train2017", "test": "val2017"} if folders is None else folders
        super().__init__(root, annotations.keys(), held_out, split_seed)
        self.annotations = annotations
        self.folders = folders or {}

    def listed(self, split: Split) -> Sequence[CaptionedFile]:
        """The images of the split's file.

        Raises:
            UserError: no such file, or JSON of another kind.
        """
        path = os.path.join(self.root, self.annotations[split])
        content = read_json(path)
        folder = self.folders.get(split, "")
        try:
            entries = _pairs(content) if isinstance(content, list) else _annotated(content)
            return [CaptionedFile(os.path.join(folder, file), captions) for file, captions in entries]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path} is JSON of another kind: {_kind_of(content)}",
                'give COCO\'s {"images": [...], "annotations": [...]}; dataset_coco.json is for KarpathyCaptions',
            ) from error


class KarpathyCaptions(ListedCaptions):
    """Karpathy's `dataset_coco.json`, `dataset_flickr30k.json` or `dataset_flickr8k.json`: one file for all splits.

    `restval` is trained on, as is usual. All captions of an image are kept: five, of COCO sometimes six or seven.

    Args:
        root: the folder of the file and the images.
        file: the JSON file, relative to the root.
        folder: the folder of the images, relative to the root; COCO's own folders (`val2014`) lie in it.
    """

    def __init__(self, root: str, file: str = "dataset_coco.json", folder: str = "") -> None:
        super().__init__(root, ("train", "validation", "test"), held_out=0.05, split_seed=0)
        self.file = file
        self.folder = folder

    def listed(self, split: Split) -> Sequence[CaptionedFile]:
        """The images of the split.

        Raises:
            UserError: no such file, or JSON of another kind.
        """
        return [
            CaptionedFile(os.path.join(self.folder, image.get("filepath", ""), image["filename"]), captions)
            for image, captions in self._images_of_file
            if KARPATHY.get(image["split"]) == split
        ]

    @cached_property
    def _images_of_file(self) -> list[tuple[dict[str, Any], list[str]]]:
        return karpathy_images(os.path.join(self.root, self.file))


def karpathy_images(path: str) -> list[tuple[dict[str, Any], list[str]]]:
    """The images of Karpathy's JSON, with `filename` and `split` at least, and their captions.

    Raises:
        UserError: no such file, or JSON of another kind.
    """
    content = read_json(path)
    try:
        images = [image for image in content["images"] if _text(image["filename"]) and _text(image["split"])]
        return [(image, [_text(sentence["raw"]) for sentence in image["sentences"]]) for image in images]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is JSON of another kind: {_kind_of(content)}",
            'give Karpathy\'s {"images": [{"filename", "split", "sentences": [{"raw"}]}]}; COCO\'s own is for CocoCaptions',
        ) from error


def _annotated(content: Any) -> list[tuple[str, list[str]]]:
    """COCO's images and annotations."""
    captions: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        captions[annotation["image_id"]].append(_text(annotation["caption"]))
    return [(_text(image["file_name"]), captions[image["id"]]) for image in content["images"]]


def _pairs(content: list[Any]) -> list[tuple[str, list[str]]]:
    """A list of images with captions, in which an image may come several times."""
    captions: dict[str, list[str]] = {}
    for row in content:
        said = row["caption"]
        captions.setdefault(_text(row["image"]), []).extend(map(_text, said if isinstance(said, list) else [said]))
    return list(captions.items())


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _kind_of(content: Any) -> str:
    """What it is, in a few words."""
    if isinstance(content, dict):
        images = content.get("images")
        first = images[0] if isinstance(images, list) and images and isinstance(images[0], dict) else {}
        of_images = f" whose images have {', '.join(list(first)[:8])}" if first else ""
        return f"an object with {', '.join(map(str, list(content)[:8])) or 'nothing'}{of_images}"
    if isinstance(content, list):
        keys = ", ".join(list(content[0])[:8]) if content and isinstance(content[0], dict) else "no objects"
        return f"a list of {len(content)} with {keys}"
    return type(content).__name__
