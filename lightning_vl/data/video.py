"""Frames of video files and of folders of frames, by index.

A scan reads a file's packets without decoding their pictures: it gives the number of frames, their times, and the
keyframes at which decoding can start. With it, the wanted frames are reached from the nearest keyframe before each.
"""

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image, UnidentifiedImageError

from lightning_vl.errors import CorruptSample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
VIDEO_SUFFIXES = (
    ".mp4",
    ".webm",
    ".mkv",
    ".avi",
    ".mov",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".ts",
    ".wmv",
    ".flv",
    ".3gp",
    ".ogv",
)
INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")  # containers whose index makes seeking exact


class VideoInfo(NamedTuple):
    """What a scan finds, as much as it takes to read any frame.

    Attributes:
        frames: number of frames.
        height: of a frame as it is shown (after rotation), in pixels.
        width: likewise.
        tick: seconds in a unit of time stamps.
        start: time stamp of the first frame, in ticks.
        gaps: (count, ticks) pairs: so many frames follow their predecessor after so many ticks.
        keyframes: the frames at which decoding can start. None where the container has no index, or where the time
            stamps do not tell the frames apart (some tools write 0 for all): such a file is decoded from its beginning,
            and it is not known when its frames are shown.
        numbering: of a folder of frames: what stands before the number, digits, first number, suffix.
    """

    frames: int
    height: int
    width: int
    tick: float = 0.0
    start: int = 0
    gaps: tuple[tuple[int, int], ...] = ()
    keyframes: tuple[int, ...] = ()
    numbering: tuple[str, int, int, str] | None = None

    def timestamps(self) -> np.ndarray:
        """Time stamp of every frame in ticks, increasing: int64 (frames,)."""
        counts, gaps = (np.array(column, dtype=np.int64) for column in zip((1, 0), *self.gaps, strict=True))
        return self.start + np.cumsum(np.repeat(gaps, counts))

    @property
    def timed(self) -> bool:
        """Whether it is known when each frame is shown."""
        return bool(self.keyframes)

    @property
    def duration(self) -> float:
        """Seconds of a timed video, its last frame shown as long as the mean of the others."""
        shown = sum(count * ticks for count, ticks in self.gaps) * self.tick
        return shown * self.frames / max(self.frames - 1, 1)

    def between(self, start: float, end: float) -> range:
        """Frames shown from `start` until before `end`, in seconds from the first frame, of a timed video."""
        seconds = (self.timestamps() - self.start) * self.tick
        first, stop = np.searchsorted(seconds, [start - 1e-6, end - 1e-6])  # a frame at `start` itself belongs to it
        return range(int(first), int(stop))


def count_frames(path: str) -> int:
    """Number of frames of a video file or of a folder of frames.

    Raises:
        CorruptSample: as `scan`.
    """
    return scan(path).frames


def scan(path: str) -> VideoInfo:
    """Looks at a video file (decoding one frame, or all if it is not timed) or at a folder of numbered frames.

    A webm or mkv that was cut off counts as the shorter video that it is: the format allows it.

    Raises:
        CorruptSample: there is no such file, it is no video, it is damaged or holds no frame.
    """
    return _scan_folder(path) if os.path.isdir(path) else _scan_file(path)


def read_frames(path: str, frames: Sequence[int], info: VideoInfo | None = None) -> np.ndarray:
    """Decodes the wanted frames, and as few others as the keyframes allow.

    Args:
        path: a video file or a folder of numbered frames.
        frames: frame indices in [0, number of frames), in any order, repeats allowed.
        info: what `scan` found; scanned now if absent.

    Returns:
        uint8 (t, h, w, 3), RGB, as shown (rotated if the file says so).

    Raises:
        CorruptSample: a wanted frame is missing or damaged.
    """
    info = info or scan(path)
    wanted, places = np.unique(np.asarray(frames, dtype=np.int64), return_inverse=True)
    if not len(wanted) or wanted[0] < 0 or wanted[-1] >= info.frames:
        raise IndexError(f"{path} has frames 0 to {info.frames - 1}, asked for {list(frames)}")
    if info.numbering is not None:
        images = [_read_image(_frame_path(path, info.numbering, index)) for index in wanted.tolist()]
    elif info.timed:
        images = _seek_and_decode(path, wanted.tolist(), info)
    else:
        images = _decode_and_count(path, wanted.tolist())
    if len({image.shape for image in images}) > 1:
        raise CorruptSample(path, "its frames change their size")
    return np.stack([images[place] for place in places])


# Video files


@contextmanager
def _opened(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens the first video stream; whatever the library raises becomes one line of reason."""
    try:
        container = av.open(path)
    except FileNotFoundError:
        raise CorruptSample(path, "no such file") from None
    except (av.error.FFmpegError, OSError) as error:
        raise CorruptSample(path, f"is no video, or cut off before its header ({error.strerror})") from error
    with container:
        if not container.streams.video:
            raise CorruptSample(path, "holds no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # workers are the parallelism
        try:
            yield container, stream
        except av.error.FFmpegError as error:
            raise CorruptSample(path, f"cannot be decoded: {error.strerror}") from error


def _scan_file(path: str) -> VideoInfo:
    with _opened(path) as (container, stream):
        packets: list[tuple[int | None, bool]] = []  # time stamp, keyframe
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise CorruptSample(path, f"is cut off or damaged at packet {len(packets)}")
            if packet.size and not packet.is_discard:  # discarded: outside of the edit list, never shown
                packets.append((packet.pts, packet.is_keyframe))
        if not packets:
            raise CorruptSample(path, "holds no frames")
        # a packet of vp8 may show nothing
        countable = container.format.name in INDEXED and stream.codec_context.name != "vp8"
        tick = float(stream.time_base or 0)
    with _opened(path) as (container, stream):
        decoded = container.decode(stream)
        shown = next(decoded, None)
        if shown is None:
            raise CorruptSample(path, "holds no frame that decodes")
        first = _to_rgb(path, shown, VideoReformatter())
        info = VideoInfo(len(packets), first.shape[0], first.shape[1], tick)
        timed = _timed(info, packets) if countable else None
        return timed or info._replace(frames=1 + sum(1 for _ in decoded))


def _timed(info: VideoInfo, packets: list[tuple[int | None, bool]]) -> VideoInfo | None:
    """Start, gaps and keyframes put in; None if the time stamps do not tell the frames apart."""
    times = sorted(time for time, _ in packets if time is not None)
    if len(set(times)) < len(packets):
        return None
    gaps = [(len(list(run)), gap) for gap, run in groupby(after - before for before, after in pairwise(times))]
    keyframes = sorted(bisect_left(times, time) for time, keyframe in packets if keyframe and time is not None)
    return info._replace(start=times[0], gaps=tuple(gaps), keyframes=tuple(keyframes))


def _seek_and_decode(path: str, wanted: list[int], info: VideoInfo) -> list[np.ndarray]:
    times = info.timestamps()
    needed = frozenset(times[wanted].tolist())
    reformatter = VideoReformatter()
    images: list[np.ndarray] = []
    with _opened(path) as (container, stream):
        decoded: Iterator[tuple[int, av.VideoFrame]] = iter(())
        position = -1  # the last frame that was decoded
        for index in wanted:
            # With open groups of pictures, frames shown before a keyframe may come after it in the file: only a
            # keyframe that is shown no later than the wanted frame is a place to start from.
            keyframe = info.keyframes[max(bisect_right(info.keyframes, index) - 1, 0)]
            if position < 0 or keyframe > position:
                decoded = _decode_from(container, stream, times, keyframe, needed)
            frame = _advance(decoded, index)
            if frame is None:  # the seek led too far, or decoding cannot start there: go the long way
                return images + _decode_and_count(path, wanted[len(images) :])
            images.append(_to_rgb(path, frame, reformatter))
            position = index
    return images


def _decode_from(
    container: InputContainer, stream: VideoStream, times: np.ndarray, keyframe: int, needed: frozenset[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames with their indices, from a keyframe (or an earlier one) on; those that nobody needs may be missing."""
    container.seek(int(times[keyframe]), stream=stream)
    for packet in container.demux(stream):
        # frames that no other refers to cost nothing if they are not needed themselves
        stream.codec_context.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
        for frame in packet.decode():
            if frame.pts is None:
                continue
            index = int(np.searchsorted(times, frame.pts))
            if index < len(times) and times[index] == frame.pts:
                yield index, frame


def _advance(decoded: Iterator[tuple[int, av.VideoFrame]], wanted: int) -> av.VideoFrame | None:
    """Decodes on to the wanted frame; None if it does not come."""
    for index, frame in decoded:
        if index == wanted:
            return frame
        if index > wanted:
            return None
    return None


def _decode_and_count(path: str, wanted: list[int]) -> list[np.ndarray]:
    reformatter = VideoReformatter()
    images: list[np.ndarray] = []
    with _opened(path) as (container, stream):
        for index, frame in enumerate(container.decode(stream)):
            if index == wanted[len(images)]:
                images.append(_to_rgb(path, frame, reformatter))
                if len(images) == len(wanted):
                    return images
    raise CorruptSample(path, f"frame {wanted[len(images)]} cannot be decoded")


def _to_rgb(path: str, frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """uint8 (h, w, 3). One reformatter for many frames, and one thread: both are several times faster here."""
    if frame.is_corrupt:
        raise CorruptSample(path, f"the frame at {frame.time or 0:.2f} s is damaged")
    image = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    return np.rot90(image, frame.rotation // 90) if frame.rotation else image


# Folders of frames


def _scan_folder(path: str) -> VideoInfo:
    """Frames are numbered without a gap: frame_0000000001.jpg, frame_0000000002.jpg, ..."""
    numbered: dict[int, re.Match[str]] = {}
    for name in os.listdir(path):
        match = re.fullmatch(r"(.*?)(\d+)(\.\w+)", name)
        if match and name.lower().endswith(IMAGE_SUFFIXES):
            numbered[int(match[2])] = match
    if not numbered:
        raise CorruptSample(path, "is a folder without numbered frames (frame_0000000001.jpg, ...)")
    first, last = min(numbered), max(numbered)
    prefix, digits, suffix = numbered[first].groups()
    numbering = (prefix, len(digits), first, suffix)
    for number in range(first, last + 1):
        expected = os.path.basename(_frame_path(path, numbering, number - first))
        if number not in numbered or numbered[number].string != expected:
            raise CorruptSample(path, f"frame {expected} is missing")
    height, width, _ = _read_image(_frame_path(path, numbering, 0)).shape
    return VideoInfo(frames=len(numbered), height=height, width=width, numbering=numbering)


def _frame_path(folder: str, numbering: tuple[str, int, int, str], index: int) -> str:
    prefix, digits, first, suffix = numbering
    return os.path.join(folder, f"{prefix}{first + index:0{digits}d}{suffix}")


def _read_image(path: str) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise CorruptSample(path, "no such file") from None
    except (OSError, UnidentifiedImageError) as error:
        raise CorruptSample(path, f"is no readable image: {error}") from error
