"""Image sets in the form of CLIP_benchmark: tar shards in a folder for each split, and a list of class names.

    <path>/classnames.txt               the name of class 0, 1, ... line by line
    <path>/test/0.tar, 1.tar, ...       `<key>.webp` (or png, jpg) with `<key>.cls`, or with `<key>.npy` for several labels
    <path>/train/0.tar, ...             where there is a training split

Zero-shot classification needs the test split alone, and no other is looked at, or downloaded, before it is asked for. On the
Hugging Face hub the sets are called `clip-benchmark/wds_<name>`.
"""

import glob
import io
import os
import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from lightning_vl.data.datasets.image_folder import IMAGE_SUFFIXES, decode_image
from lightning_vl.data.datasets.image_shards import Member, members
from lightning_vl.data.datasets.labels import class_indices
from lightning_vl.data.datasets.tables import check_classes
from lightning_vl.data.source import ImageSource, LabelledImage, Split
from lightning_vl.data.subset import hold_out
from lightning_vl.errors import CorruptSample, UserError
from lightning_vl.evaluation.prompts import CLASS_NAMES, read_class_names
from lightning_vl.evaluation.zero_shot import MultiLabelledImage, MultiLabelSource

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class ClipBenchmarkShards(ImageSource):
    """Such a set, one label an image.

    Without a folder `validation` a seeded share of the training images is for validation.

    Args:
        path: the folder, or the set's name on the hub, whose library keeps what it downloads in its own cache (`HF_HOME`).
        classes: how many classes there must be; None for no matter.
        validation_share: share of the training images of each class for validation, where it has no shards.
        split_seed: seed of that split, which is part of the experiment.
    """

    def __init__(
        self, path: str, classes: int | None = None, validation_share: float = 0.1, split_seed: int = 0
    ) -> None:
        self.shards = Shards(path, classes, "cls")
        self.validation_share = validation_share
        self.split_seed = split_seed
        self._splits: dict[Split, list[tuple[LabelledImage, Member]]] = {}

    @property
    def class_names(self) -> list[str]:
        """Those of `classnames.txt`."""
        return self.shards.class_names

    def images(self, split: Split) -> Sequence[LabelledImage]:
        """The images of a split in the order of the shards; they are not opened yet.

        Raises:
            UserError: no shards of this split, a damaged one, or a label that is no class.
        """
        return [image for image, _ in self._split(split)]

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of the split: uint8 (h, w, 3), RGB.

        Raises:
            CorruptSample: it cannot be decoded.
        """
        image, member = self._split(split)[index]
        return decode(image.id, member)

    def _split(self, split: Split) -> list[tuple[LabelledImage, Member]]:
        if split not in self._splits:
            if split == "test" or self.shards.of("validation"):
                self._splits[split] = self._labelled(split)
            else:
                images = self._labelled("train")
                labels = [image.label for image, _ in images]
                kept, held_out = hold_out(labels, self.class_names, self.validation_share, self.split_seed)
                self._splits["train"] = [images[place] for place in kept]
                self._splits["validation"] = [images[place] for place in held_out]
        return self._splits[split]

    def _labelled(self, split: Split) -> list[tuple[LabelledImage, Member]]:
        samples = self.shards.samples(split)
        texts = [label.content().decode(errors="replace").strip() for _, _, label in samples]
        found = [int(text) if text.isdigit() else text for text in texts]
        labels = class_indices(f"the {split} split of {self.shards.path}", found, self.class_names)
        return [(LabelledImage(id, label), image) for (id, image, _), label in zip(samples, labels, strict=True)]


class ClipBenchmarkMultiLabel(MultiLabelSource):
    """Such a set whose images may show several classes.

    A label is an array with one entry a class: 1 for those that the image shows, -1 for those that it shows so badly that
    they do not count. There are the splits that have folders.

    Args:
        path: the folder, or the set's name on the hub.
        classes: how many classes there must be; None for no matter.
    """

    def __init__(self, path: str, classes: int | None = None) -> None:
        self.shards = Shards(path, classes, "npy")
        self._splits: dict[Split, list[tuple[MultiLabelledImage, Member]]] = {}

    @property
    def class_names(self) -> list[str]:
        """Those of `classnames.txt`."""
        return self.shards.class_names

    def images(self, split: Split) -> Sequence[MultiLabelledImage]:
        """The images of a split in the order of the shards; they are not opened yet.

        Raises:
            UserError: no shards of this split, a damaged one, or a label of another length.
        """
        return [image for image, _ in self._split(split)]

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of the split: uint8 (h, w, 3), RGB.

        Raises:
            CorruptSample: it cannot be decoded.
        """
        image, member = self._split(split)[index]
        return decode(image.id, member)

    def _split(self, split: Split) -> list[tuple[MultiLabelledImage, Member]]:
        if split not in self._splits:
            self._splits[split] = [
                (self._image(id, label.content()), image) for id, image, label in self.shards.samples(split)
            ]
        return self._splits[split]

    def _image(self, id: str, content: bytes) -> MultiLabelledImage:
        try:
            shown = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(
                f"the label of {id} is no array: {error}", "fetch its shard again, or write it anew"
            ) from error
        if shown.shape != (len(self.class_names),):
            raise UserError(
                f"the label of {id} has the shape {shown.shape}, there are {len(self.class_names)} classes",
                f"give each image one entry a class, in the order of {CLASS_NAMES}",
            )
        return several(id, shown)


class Shards:
    """The members of a set's shards, of any kind of label.

    Args:
        path: the folder, or the set's name on the hub.
        classes: how many classes there must be; None for no matter.
        suffix: that of a label's member, `cls` or `npy`.
    """

    def __init__(self, path: str, classes: int | None, suffix: str) -> None:
        self.path = path
        self.classes = classes
        self.suffix = suffix

    @cached_property
    def class_names(self) -> list[str]:
        """Those of `classnames.txt`."""
        path = os.path.join(self._folder(CLASS_NAMES), CLASS_NAMES)
        names = read_class_names(path)
        check_classes(path, names, self.classes)
        return names

    def of(self, split: str) -> list[str]:
        """The shards of a split, as they are numbered; none where it has none."""
        found = glob.glob(os.path.join(glob.escape(self._folder(f"{split}/*")), split, "*.tar"))
        return sorted(
            found, key=lambda path: ([int(part) for part in re.findall(r"\d+", os.path.basename(path))], path)
        )

    def samples(self, split: str) -> list[tuple[str, Member, Member]]:
        """Id, image and label of each sample of a split.

        Raises:
            UserError: no shards, a damaged one, or an image without a label.
        """
        shards = self.of(split)
        if not shards:
            raise UserError(
                f"{self.path} has no shards {split}/*.tar",
                "check the path, or do without what needs this split (a probe)",
            )
        return [sample for shard in shards for sample in self._samples(split, shard)]

    def _samples(self, split: str, shard: str) -> list[tuple[str, Member, Member]]:
        images: dict[str, tuple[str, Member]] = {}
        labels: dict[str, Member] = {}
        others: set[str] = set()
        for name, member in members(shard):
            folder, base = os.path.split(name)
            stem, _, suffix = base.partition(".")
            key = os.path.join(folder, stem)
            if f".{suffix.lower()}".endswith(IMAGE_SUFFIXES):
                images[key] = (name, member)
            elif suffix == self.suffix:
                labels[key] = member
            else:
                others.add(suffix)
        absent = next((name for key, (name, _) in images.items() if key not in labels), None)
        if absent or not images:
            lacks = f"no label .{self.suffix} for {absent}" if absent else "no images"
            raise UserError(
                f"{shard} has {lacks}{f', but .{min(others)}' if others else ''}",
                "check what kind of set it is: .cls is one label an image, .npy several, .txt captions",
            )
        where = f"{split}/{os.path.basename(shard)}"
        return [(f"{where}/{name}", member, labels[key]) for key, (name, member) in images.items()]

    def _folder(self, pattern: str) -> str:
        """The folder of the set, with the files of a pattern in it if there are any."""
        if os.path.isdir(self.path):
            return self.path
        if not HUB_NAME.fullmatch(self.path):
            raise UserError(f"there is no folder {self.path}", "give the data's folder, or a set's name on the hub")
        import huggingface_hub  # it takes a second, and few runs need it

        try:
            return huggingface_hub.snapshot_download(self.path, repo_type="dataset", allow_patterns=[pattern])
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the data set {self.path} cannot be had: {' '.join(str(error).split())[:200]}",
                "check its name and the network, or give a local folder",
            ) from error


def several(id: str, shown: np.ndarray) -> MultiLabelledImage:
    """The image of a row with one entry a class, see `ClipBenchmarkMultiLabel`."""
    return MultiLabelledImage(
        id, frozenset(np.flatnonzero(shown == 1).tolist()), frozenset(np.flatnonzero(shown == -1).tolist())
    )


def decode(id: str, member: Member) -> np.ndarray:
    """The image of a member.

    Raises:
        CorruptSample: it cannot be read or decoded.
    """
    try:
        content = member.content()
    except OSError as error:
        raise CorruptSample(id, f"its shard cannot be read: {error.strerror}") from error
    return decode_image(io.BytesIO(content), id)
