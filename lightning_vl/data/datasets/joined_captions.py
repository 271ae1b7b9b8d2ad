"""Several sets of captions as one."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from lightning_vl.data.captions import CaptionedImage, CaptionSource, StreamedCaptions
from lightning_vl.data.source import Split
from lightning_vl.errors import CorruptSample, UserError


class JoinedCaptions(CaptionSource):
    """The images of several sources, one source after another, in every split.

    Args:
        sources: where they come from; none of them streamed.
    """

    def __init__(self, sources: list[CaptionSource]) -> None:
        if not sources:
            raise UserError("JoinedCaptions has no sources", "give it a list of one source or more")
        if any(isinstance(source, StreamedCaptions) for source in sources):
            raise UserError(
                "JoinedCaptions is given shards, which have an order of their own",
                "give one CaptionShards a list of patterns as `train` instead",
            )
        self.sources = sources
        self.ends: dict[Split, list[int]] = {}  # where the images of each source end among all of a split

    def images(self, split: Split) -> Sequence[CaptionedImage]:
        """Those of each source; the source's number is put before their names, which may be the same in two of them."""
        return [
            CaptionedImage(f"{number}/{image.id}", image.captions)
            for number, source in enumerate(self.sources)
            for image in source.images(split)
        ]

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of the split: uint8 (h, w, 3), RGB.

        Raises:
            CorruptSample: it cannot be decoded.
        """
        if split not in self.ends:
            self.ends[split] = list(accumulate(len(source.images(split)) for source in self.sources))
        ends = self.ends[split]
        number = bisect_right(ends, index)
        try:
            return self.sources[number].read(split, index - (ends[number - 1] if number else 0))
        except CorruptSample as error:
            raise CorruptSample(f"{number}/{error.id}", error.reason) from error
