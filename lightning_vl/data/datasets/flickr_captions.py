"""Flickr30k's and Flickr8k's captions as text files."""

import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property

from lightning_vl.data.datasets.coco_captions import KARPATHY, karpathy_images
from lightning_vl.data.datasets.labelled_table import read_text
from lightning_vl.data.datasets.listed_captions import CaptionedFile, ListedCaptions, by_file
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError

TOKEN = re.compile(r"(?P<file>[^\t]+?)#\d+\t(?P<caption>.*)")
TABLE = re.compile(r"(?P<file>[^\t]+?\.jpg),(?P<caption>.*)")  # captions hold commas: the first after .jpg counts


class FlickrCaptions(ListedCaptions):
    """The release's `results_20130124.token` (`Flickr8k.token.txt`), or a file for each split.

    A line is `NAME.jpg#k<TAB>caption`, or, as in `flickr30k_{split}_karpathy.txt`, `NAME.jpg,caption` after a header. All
    captions of an image are kept, five each.

    Args:
        root: the folder of captions and images.
        captions: the file for all images, or the file of each split, relative to the root.
        karpathy: Karpathy's `dataset_flickr30k.json`, which says the splits of a file for all images; without it shares
            of its images are held out.
        folder: the folder of the images, relative to the root.
        held_out: share of the training images for each split without a file.
        split_seed: seed of that choice, which is part of the experiment.
    """

    def __init__(
        self,
        root: str,
        captions: str | dict[Split, str] = "results_20130124.token",
        karpathy: str | None = None,
        folder: str = "flickr30k-images",
        held_out: float = 0.05,
        split_seed: int = 0,
    ) -> None:
        if karpathy is not None and not isinstance(captions, str):
            raise UserError(
                f"captions name a file for each of {', '.join(captions)}, and karpathy is {karpathy}",
                "give one of both: files of splits, or one file and the JSON that splits it",
            )
        self.captions_files: dict[Split, str] = {"train": captions} if isinstance(captions, str) else captions
        self.karpathy = karpathy
        self.folder = folder
        splits: tuple[Split, ...] = ("train", "validation", "test") if karpathy else tuple(self.captions_files)
        super().__init__(root, splits, held_out, split_seed)

    def listed(self, split: Split) -> Sequence[CaptionedFile]:
        """The images of the split.

        Raises:
            UserError: no such file, another encoding, a line of another form, or JSON of another kind.
        """
        if self.karpathy is None:
            return self._file(self.captions_files[split])
        return [entry for entry in self._whole_file if self._split_by_name.get(os.path.basename(entry.file)) == split]

    @cached_property
    def _whole_file(self) -> list[CaptionedFile]:
        return self._file(self.captions_files["train"])

    @cached_property
    def _split_by_name(self) -> dict[str, Split]:
        images = karpathy_images(os.path.join(self.root, self.karpathy or ""))
        return {image["filename"]: KARPATHY[image["split"]] for image, _ in images if image["split"] in KARPATHY}

    def _file(self, name: str) -> list[CaptionedFile]:
        path = os.path.join(self.root, name)
        return by_file((os.path.join(self.folder, file), caption) for file, caption in _lines(path))


def _lines(path: str) -> Iterator[tuple[str, str]]:
    """File and caption of each line."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.rstrip("\r")
        found = TOKEN.fullmatch(line) or TABLE.fullmatch(line)
        if found is not None:
            caption = found["caption"]
            if len(caption) > 1 and caption[0] == caption[-1] == '"':
                caption = caption[1:-1].replace('""', '"')
            yield found["file"], caption
        elif line.strip() and number > 1:  # the first may be a header
            raise UserError(
                f"line {number} of {path} names no image: {line[:60]!r}",
                "give lines of NAME.jpg#0<TAB>caption, or of NAME.jpg,caption",
            )
