"""Which frames of a clip the network sees: a start, a stride, and several starts when testing with views."""

from abc import ABC, abstractmethod

import numpy as np

from lightning_vl.errors import UserError


class TemporalSampling(ABC):
    """Chooses the frame indices of clips; `frames` of them, whatever the length of the video."""

    @property
    @abstractmethod
    def frames(self) -> int:
        """How many frames a clip has for the network."""

    @abstractmethod
    def training(self, length: int, rng: np.random.Generator) -> np.ndarray:
        """Indices of one clip somewhere in a video of `length` frames: int64 (t,)."""

    @abstractmethod
    def centre(self, length: int) -> np.ndarray:
        """Indices of the one clip that validation looks at: int64 (t,)."""

    @abstractmethod
    def views(self, length: int, views: int) -> np.ndarray:
        """Indices of `views` clips spread evenly over the video, for testing: int64 (v, t)."""


class StridedClip(TemporalSampling):
    """Every `stride`-th frame from a start on, as ViViT (Sec. 4.1) and its reader do.

    A video that is too short is looped: frame indices are taken modulo its length, so that every video gives a clip and
    no frame is invented. With 10 frames, `frames=8, stride=2` gives 0 2 4 6 8 0 2 4.

    Args:
        frames: frames in a clip.
        stride: frames of the video from one frame of the clip to the next.
    """

    def __init__(self, frames: int, stride: int = 1) -> None:
        if frames < 1 or stride < 1:
            raise UserError(f"a clip of {frames} frames at stride {stride}", "give at least 1 for both")
        self._frames = frames
        self.stride = stride

    @property
    def frames(self) -> int:
        return self._frames

    def training(self, length: int, rng: np.random.Generator) -> np.ndarray:
        starts = max(1, length - (self.frames - 1) * self.stride)
        return self._clips(int(rng.integers(starts)), length)

    def centre(self, length: int) -> np.ndarray:
        return self._clips(max(0, (length - self.frames * self.stride) // 2), length)

    def views(self, length: int, views: int) -> np.ndarray:
        last = max(0, length - self.frames * self.stride)
        starts = np.linspace(0, last, views).astype(np.int64)
        return self._clips(starts[:, None], length)  # (v, t)

    def _clips(self, starts: int | np.ndarray, length: int) -> np.ndarray:
        return (starts + np.arange(self.frames) * self.stride) % length


class FrozenFrame(StridedClip):
    """The baseline without motion: the clips of `StridedClip`, each with its middle frame in every place.

    What a network reaches with it, it reaches by appearance; what `StridedClip` adds, it owes to motion. Both draw the
    same starts from the same generator, so that nothing else differs.

    Args:
        frames: frames in a clip.
        stride: frames of the video from one frame of the clip to the next, in the clip whose middle is taken.
    """

    def _clips(self, starts: int | np.ndarray, length: int) -> np.ndarray:
        clips = super()._clips(starts, length)
        middle = clips[..., self.frames // 2, None]
        return np.repeat(middle, self.frames, axis=-1)
