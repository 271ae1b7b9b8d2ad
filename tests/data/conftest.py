"""Real video files, made here: frame i carries the number i in its brightness, so that a reader can be held to it."""

import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

STEPS = 12  # levels of brightness, 20 apart: wide enough for any codec to keep them


def numbered_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 (t, h, w, 3), grey: the left half counts 0..11, the right half the dozens."""
    video = np.empty((count, height, width, 3), np.uint8)
    numbers = np.arange(count)[:, None, None, None]
    video[:, :, : width // 2] = 16 + 20 * (numbers % STEPS)
    video[:, :, width // 2 :] = 16 + 20 * (numbers // STEPS)
    return video


def numbers_of(video: np.ndarray) -> list[int]:
    """Which frames these are."""
    half = video.shape[2] // 2
    sides = video[:, :, : half - 2], video[:, :, half + 2 :]
    low, high = (np.rint((side.mean((1, 2, 3)) - 16) / 20).astype(int) for side in sides)
    return (low + STEPS * high).tolist()


def write_video(
    path: Path | str,
    frames: int | np.ndarray = 30,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    timestamps: Sequence[int] | None = None,
    rotation: int = 0,
    container_options: dict[str, str] | None = None,
) -> str:
    """Encodes frames (or so many numbered ones) at 25 per second; time stamps are in 1/100 s."""
    video = numbered_frames(frames) if isinstance(frames, int) else frames
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        stream.bit_rate = 4_000_000  # plenty: brightness must survive
        if timestamps is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        if rotation:
            stream.set_display_rotation(rotation)
        for index, image in enumerate(video):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index if timestamps is None else timestamps[index]
            frame.time_base = Fraction(1, 25) if timestamps is None else Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Manifests of tests stay out of the user's cache."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache


@pytest.fixture
def make_video() -> Callable[..., str]:
    """See `write_video`."""
    return write_video


@pytest.fixture
def which_frames() -> Callable[[np.ndarray], list[int]]:
    """See `numbers_of`."""
    return numbers_of


@pytest.fixture(scope="session")
def numbered() -> Callable[..., np.ndarray]:
    """See `numbered_frames`."""
    return numbered_frames


@pytest.fixture(scope="session")
def make_clip() -> Callable[[Path, int], None]:
    """A small video with so many numbered frames at a path; its folder is made."""

    def make(path: Path, frames: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".webm":
            write_video(path, frames, codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"})
        else:
            write_video(path, frames, options={"preset": "ultrafast"})

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets that a machine may have."""
    folder = os.environ.get("LIGHTNING_VL_DATA")
    if folder is None:
        pytest.skip("LIGHTNING_VL_DATA names no folder with fight-surv, fluent-anim and emoji")
    return Path(folder)
