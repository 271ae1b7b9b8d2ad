"""Images in tar shards, as WebDataset writes them."""

import io
import json
import os
import tarfile
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from lightning_vl.data.datasets.image_folder import IMAGE_SUFFIXES, decode_image
from lightning_vl.data.datasets.labels import class_indices, names_of
from lightning_vl.data.datasets.shard_names import matching
from lightning_vl.data.datasets.tables import check_classes, open_list
from lightning_vl.data.source import ImageSource, LabelledImage, Split
from lightning_vl.data.subset import hold_out
from lightning_vl.errors import CorruptSample, UserError

BLOCK = 512  # bytes: a header takes one, and one of zeros ends the archive


class Member(NamedTuple):
    """Where a file lies within a shard, bytes."""

    shard: str
    offset: int
    size: int

    def content(self) -> bytes:
        """What it holds."""
        with open(self.shard, "rb") as file:
            return os.pread(file.fileno(), self.size, self.offset)


class ShardedImage(NamedTuple):
    """An image of a shard, and the label that lies beside it."""

    id: str
    member: Member
    label: int | str


class ImageShards(ImageSource):
    """Tar files whose members belong together by name: `<key>.jpg` with `<key>.cls` or `<key>.json`.

    `.cls` holds a class index or name; `.json` an object with one under `label_key`. The headers of all shards are read
    once, before training; after that an image is read from its place in the shard. So images have the same random order,
    exact resume and reports as those of a folder. Nothing is unpacked to disk: where a member's name points does not
    matter. Compressed shards have no places to read from and are refused.

    Args:
        root: the folder of the shards.
        train: pattern of the training shards' names, relative to the root: `train*.tar`, `train-{00000..00099}.tar`.
        test: pattern of the test shards' names.
        validation: pattern of the validation shards' names; None for a seeded share of the training images.
        label_key: where `.json` has the label.
        class_names: a file with the name of class 0, 1, ... in each line, relative to the root; None for the labels
            themselves.
        classes: how many classes there must be; None for no matter.
        validation_share: share of the training images of each class for validation, where it has no shards.
        split_seed: seed of that split, which is part of the experiment.
    """

    def __init__(
        self,
        root: str,
        train: str = "train*.tar",
        test: str = "test*.tar",
        validation: str | None = None,
        label_key: str = "label",
        class_names: str | None = None,
        classes: int | None = None,
        validation_share: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        self.root = root
        self.patterns = {"train": train, "validation": validation, "test": test}
        self.label_key = label_key
        self.class_names_file = class_names
        self.classes = classes
        self.validation_share = validation_share
        self.split_seed = split_seed

    @cached_property
    def class_names(self) -> list[str]:
        """Those of the file, or the labels of the training images."""
        if self.class_names_file is None:
            names = names_of(self._where("train"), [image.label for image in self._indexed["train"]])
        else:
            with open_list(os.path.join(self.root, self.class_names_file)) as file:
                names = file.read().splitlines()
        check_classes(self._where("train"), names, self.classes)
        return names

    def images(self, split: Split) -> Sequence[LabelledImage]:
        """The images of a split in the order of the shards; they are not opened yet.

        Raises:
            UserError: no shards, one that is compressed, cut off or holds no images, or an image without a label.
        """
        return [image for image, _ in self._splits[split]]

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of the split: uint8 (h, w, 3), RGB.

        Raises:
            CorruptSample: it cannot be decoded.
        """
        image, member = self._splits[split][index]
        try:
            content = member.content()
        except OSError as error:
            raise CorruptSample(image.id, f"its shard cannot be read: {error.strerror}") from error
        return decode_image(io.BytesIO(content), image.id)

    @cached_property
    def _splits(self) -> dict[Split, list[tuple[LabelledImage, Member]]]:
        """All splits at once, so that a mistake in the test shards is found before training."""
        splits: dict[Split, list[tuple[LabelledImage, Member]]] = {}
        for split, indexed in self._indexed.items():
            labels = class_indices(self._where(split), [image.label for image in indexed], self.class_names)
            splits[split] = [
                (LabelledImage(image.id, label), image.member) for image, label in zip(indexed, labels, strict=True)
            ]
        if "validation" not in splits:
            images = splits["train"]
            labels = [image.label for image, _ in images]
            kept, held_out = hold_out(labels, self.class_names, self.validation_share, self.split_seed)
            splits["train"] = [images[place] for place in kept]
            splits["validation"] = [images[place] for place in held_out]
        return splits

    @cached_property
    def _indexed(self) -> dict[Split, list[ShardedImage]]:
        indexed: dict[Split, list[ShardedImage]] = {}
        for split in ("train", "validation", "test"):
            pattern = self.patterns[split]
            if pattern is None:
                continue
            names, missing = matching(self.root, pattern)
            if missing is not None:
                raise UserError(
                    f"there is no shard {os.path.join(self.root, missing)}",
                    "check the source's root and its patterns of names",
                )
            shards = [os.path.join(self.root, name) for name in sorted(set(names))]
            indexed[split] = [image for shard in shards for image in self._index(shard)]
        return indexed

    def _where(self, split: Split) -> str:
        return os.path.join(self.root, self.patterns[split] or "")

    def _index(self, shard: str) -> list[ShardedImage]:
        images: dict[str, tuple[str, Member]] = {}
        labels: dict[str, int | str] = {}
        for name, member in members(shard):
            folder, base = os.path.split(name)
            stem, _, suffix = base.partition(".")  # WebDataset: the key ends at the first dot of the last part
            key = os.path.join(folder, stem)
            if suffix == "cls":
                labels[key] = _number(member.content().decode(errors="replace").strip())
            elif suffix == "json":
                labels.setdefault(key, self._label(shard, name, member))
            elif f".{suffix.lower()}".endswith(IMAGE_SUFFIXES):
                if key in images:
                    raise UserError(
                        f"{shard} has two images of one key: {images[key][0]} and {name}", "keep one image a key"
                    )
                images[key] = (name, member)
        if not images:
            raise UserError(
                f"{shard} holds no images", f"remove it, or put images in ({', '.join(IMAGE_SUFFIXES[:4])})"
            )
        absent = [name for key, (name, _) in images.items() if key not in labels]
        if absent:
            raise UserError(
                f"{shard} has no label for {len(absent)} of {len(images)} images, {absent[0]} the first",
                "put a file .cls (or .json) of the same name beside each image",
            )
        where = os.path.relpath(shard, self.root)
        return [ShardedImage(f"{where}/{name}", member, labels[key]) for key, (name, member) in images.items()]

    def _label(self, shard: str, name: str, member: Member) -> int | str:
        try:
            label = json.loads(member.content())[self.label_key]
        except (ValueError, KeyError, TypeError):
            label = None
        if not isinstance(label, int | str):
            raise UserError(
                f"{name} of {shard} has no number or name under {self.label_key!r}",
                "say where the label is with the source's label_key",
            )
        return label


def members(shard: str) -> list[tuple[str, Member]]:
    """Name and place of every file of a shard.

    Raises:
        UserError: it cannot be opened, is compressed, no tar file, or cut off.
    """
    found: list[tuple[str, Member]] = []
    try:
        with tarfile.open(shard, "r:") as tar:
            while info := tar.next():
                if info.isreg() and not info.issparse():
                    found.append((info.name, Member(shard, info.offset_data, info.size)))
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
            end = Member(shard, tar.offset, BLOCK).content()
    except tarfile.TarError as error:
        if found:
            raise _damaged(shard, len(found)) from error
        raise UserError(
            f"{shard} is no tar file, or a compressed one ({error})", "unpack it once: gunzip, xz -d or zstd -d"
        ) from error
    except OSError as error:
        raise UserError(f"{shard} cannot be read: {error.strerror}", "check the source's root") from error
    if end != bytes(BLOCK):  # tarfile takes a damaged header, or none, for the end
        raise _damaged(shard, len(found))
    return found


def _damaged(shard: str, files: int) -> UserError:
    return UserError(f"{shard} is cut off or damaged after {files} files", "fetch it again")


def _number(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdigit() else text
