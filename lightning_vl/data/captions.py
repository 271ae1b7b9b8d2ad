"""Where images with captions come from: every such set is one `CaptionSource`."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lightning_vl.data.documents import Document, DocumentSource
from lightning_vl.data.source import Split


class CaptionedImage(NamedTuple):
    """One image and what is said of it.

    Attributes:
        id: names the image in reports and errors (a path relative to the root, say).
        captions: one or more, none of them empty.
    """

    id: str
    captions: tuple[str, ...]


class CaptionSource(ABC):
    """Images with captions in three splits; pixels are read by index."""

    @abstractmethod
    def images(self, split: Split) -> Sequence[CaptionedImage]:
        """The images of a split; they are not opened yet.

        Raises:
            UserError: the split cannot be had (missing folder, no such column, no captions).
        """

    @abstractmethod
    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of the split: uint8 (h, w, 3), RGB.

        Raises:
            CorruptSample: it cannot be decoded.
        """

    def captions(self, split: Split) -> Iterator[tuple[str, ...]]:
        """The captions of each image in turn: what a vocabulary is trained on."""
        for image in self.images(split):
            yield image.captions


class StreamedCaptions(CaptionSource):
    """A source whose training split is too large for a list: it is read in an order of its own, see `data/streamed.py`."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Images of an epoch."""

    @abstractmethod
    def read_in_order(self, seed: int, epoch: int, index: int) -> tuple[CaptionedImage, np.ndarray]:
        """Training image number `index` of an epoch, a pure function of all three: its captions and uint8 (h, w, 3).

        Raises:
            CorruptSample: it cannot be decoded, or has no caption.
        """


class CaptionDocuments(DocumentSource):
    """The captions of a source as documents, one an image: what vocabularies are trained on.

    Args:
        source: the captions.
    """

    def __init__(self, source: CaptionSource) -> None:
        self.source = source

    def documents(self, split: Split) -> Iterator[Document]:
        """The captions of each image in turn."""
        for number, captions in enumerate(self.source.captions(split)):
            yield Document(f"{split}/{number}", list(captions))

    def fingerprint(self, split: Split) -> str:
        """A hash of all captions."""
        digest = hashlib.sha256()
        for document in self.documents(split):
            digest.update("\n".join([*document.sentences, "\0"]).encode(errors="replace"))
        return digest.hexdigest()


def stated(captions: Sequence[str]) -> tuple[str, ...]:
    """Captions without white space around them, and without those that say nothing."""
    return tuple(text for caption in captions if (text := " ".join(caption.split())))
