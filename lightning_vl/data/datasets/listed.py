"""What every data set on disk shares: a list of entries, the manifest of their files, and one way to read them."""

import logging
import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_vl.data.manifest import MISSING, scan_all
from lightning_vl.data.source import Clip, Split, VideoSource
from lightning_vl.data.video import VideoInfo, read_frames
from lightning_vl.errors import CorruptSample, UserError

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """One clip as a listing names it.

    Attributes:
        id: names the clip in reports.
        file: a video file or a folder of frames, relative to the root.
        labels: class index by head.
        seconds: start and end of the clip in the file; None for all of it.
        numbers: first and last frame of the clip (both belong to it), counted as the frames of a folder are numbered,
            from 1 in a video file; None for all of it.
    """

    id: str
    file: str
    labels: dict[str, int]
    seconds: tuple[float, float] | None = None
    numbers: tuple[int, int] | None = None


class _Usable(NamedTuple):
    entry: Entry
    info: VideoInfo
    frames: range


class ListedVideos(VideoSource):
    """Videos below a root, as the entries of a listing say. Nothing is read before the first question.

    Args:
        root: the folder that the files lie in.
        max_corrupt: largest share of a split's entries that may be missing or corrupt.
    """

    def __init__(self, root: str, max_corrupt: float) -> None:
        self.root = root
        self.max_corrupt = max_corrupt
        self._usable: dict[Split, list[_Usable]] = {}

    @abstractmethod
    def entries(self, split: Split) -> list[Entry]:
        """What the listing says of a split, whether the files are there or not.

        Raises:
            UserError: the listing is missing or wrong.
        """

    def clips(self, split: Split) -> Sequence[Clip]:
        """The entries of a split whose files can be read; a warning says how many cannot.

        Raises:
            UserError: no such root, an empty or wrong listing, or too many files missing or corrupt.
        """
        return [Clip(entry.id, len(frames), entry.labels) for entry, _, frames in self._clips(split)]

    def read(self, split: Split, index: int, frames: Sequence[int]) -> np.ndarray:
        """Frames of a clip: uint8 (t, h, w, 3)."""
        entry, info, clip = self._clips(split)[index]
        try:
            return read_frames(os.path.join(self.root, entry.file), [clip[frame] for frame in frames], info)
        except CorruptSample as error:
            raise CorruptSample(entry.id, error.reason) from error

    def _clips(self, split: Split) -> list[_Usable]:
        if split not in self._usable:
            self.check_root()
            self._usable[split] = self._check(split, self.entries(split))
        return self._usable[split]

    def check_root(self) -> None:
        """Raises a UserError where there is no root."""
        if not os.path.isdir(self.root):
            raise UserError(f"there is no folder {self.root}", "give the data's folder as the source's root")

    def _check(self, split: Split, entries: list[Entry]) -> list[_Usable]:
        if not entries:
            raise UserError(f"the {split} split of {self.root} names no clips", "check the source's root and lists")
        known = scan_all(self.root, sorted({entry.file for entry in entries}))
        usable: list[_Usable] = []
        wrong: list[str] = []
        for entry in entries:
            info = known[entry.file]
            frames = _frames_of(entry, info) if isinstance(info, VideoInfo) else info
            if isinstance(info, VideoInfo) and isinstance(frames, range):
                usable.append(_Usable(entry, info, frames))
            else:
                wrong.append(f"{entry.id}: {frames}")
        report = f"{split}: {len(usable)} of {len(entries)} clips of {self.root} usable"
        if wrong:
            missing = sum(known[entry.file] == MISSING for entry in entries)
            report += f"; {missing} missing, {len(wrong) - missing} corrupt ({'; '.join(some(wrong))})"
        if not usable or len(wrong) > self.max_corrupt * len(entries):
            raise UserError(
                report,
                "restore these files or take them out, or allow more than a share of "
                f"{self.max_corrupt:g} with the source's max_corrupt",
            )
        log.log(logging.WARNING if wrong else logging.INFO, report)
        return usable


def some(names: list[str]) -> list[str]:
    """The first few, for a line that a person reads."""
    return names if len(names) <= 3 else [*names[:3], f"and {len(names) - 3} more"]


def _frames_of(entry: Entry, info: VideoInfo) -> range | str:
    """The clip's frames in its file, or why there are none."""
    if entry.numbers is not None:
        offset = info.numbering[2] if info.numbering else 1
        first, last = (number - offset for number in entry.numbers)
        frames = range(max(first, 0), min(last + 1, info.frames))
        return frames or f"frames {entry.numbers[0]} to {entry.numbers[1]} lie outside of its {info.frames} frames"
    if entry.seconds is not None:
        if not info.timed:
            return "has no usable time stamps to find its seconds by"
        start, end = entry.seconds
        if info.duration <= end - start + 1:
            return range(info.frames)  # the file was cut to the clip already
        return info.between(start, end) or f"ends before the clip starts at {start:g} s"
    return range(info.frames)
