"""Decoding: exactly the wanted frames, whatever the file's order of frames, and one line of reason for what is no video."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lightning_vl.data.video import count_frames, read_frames, scan
from lightning_vl.errors import CorruptSample

MakeVideo = Callable[..., str]
WhichFrames = Callable[[np.ndarray], list[int]]

OPEN_GOP = {"g": "10", "x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}
QUICK_VP = {"deadline": "realtime", "cpu-used": "8"}
ENCODINGS: dict[str, dict] = {
    "one_keyframe_with_b_frames.mp4": {"options": {"bf": "3", "sc_threshold": "0"}},
    "closed_groups.mp4": {"options": {"g": "10", "bf": "3"}},
    "open_groups.mp4": {"options": OPEN_GOP},
    "open_groups.mkv": {"options": OPEN_GOP},
    "gradual_refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=10:bframes=0"}},
    "keyframes_only.mp4": {"options": {"g": "1"}},
    "variable_rate.mp4": {"options": {"g": "10"}, "timestamps": [4 * i + i * i // 3 for i in range(60)]},
    "late_start.mp4": {"options": {"g": "10"}, "timestamps": [500 + 4 * i for i in range(60)]},
    "late_start.mkv": {"options": {"g": "10"}, "timestamps": [500 + 4 * i for i in range(60)]},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "10", **QUICK_VP}},
    "vp8_with_hidden_packets.webm": {
        "codec": "libvpx",
        "options": {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "10", "deadline": "good", "cpu-used": "4"},
    },
    "hevc.mp4": {"codec": "libx265", "options": {"g": "10", "x265-params": "log-level=none:pools=none"}},
    "mpeg4_b_frames.avi": {"codec": "mpeg4", "options": {"g": "10", "bf": "2"}},
    "no_index.ts": {"options": {"g": "10"}},
    "no_index.mpg": {"codec": "mpeg2video", "options": {"g": "10", "bf": "2"}},
}


@pytest.fixture(scope="module")
def moving() -> np.ndarray:
    """60 frames of sliding noise: every pixel of a wrongly predicted frame differs."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 200, 3), dtype=np.uint8)
    return np.stack([noise[:, 2 * i : 2 * i + 64] for i in range(60)])


@pytest.mark.parametrize("name", ENCODINGS)
def test_wanted_frames_are_exactly_those(
    name: str, tmp_path: Path, make_video: MakeVideo, which_frames: WhichFrames
) -> None:
    """An index off by one, or frames in decoding order, would train on other frames than the experiment says."""
    path = make_video(tmp_path / name, 60, **ENCODINGS[name])
    info = scan(path)
    assert info.frames == count_frames(path) == 60
    assert info.timed == (not name.startswith(("vp8", "no_index")))
    patterns = [[i] for i in range(60)]
    patterns += [list(range(60)), list(range(1, 60, 7)), [0, 59], [9, 10, 11, 29, 30, 31], [58, 3, 3, 59, 0]]
    for wanted in patterns:
        assert which_frames(read_frames(path, wanted, info)) == wanted


@pytest.mark.parametrize("name", ENCODINGS)
def test_seeking_gives_the_pixels_of_a_whole_decode(
    name: str, tmp_path: Path, make_video: MakeVideo, moving: np.ndarray
) -> None:
    """A decoder started where its references are missing gives the right frame with wrong pixels."""
    path = make_video(tmp_path / name, moving, **ENCODINGS[name])
    with av.open(path) as container:
        whole = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    info = scan(path)
    for index in range(60):
        np.testing.assert_array_equal(read_frames(path, [index], info), whole[index : index + 1])


def test_seeking_decodes_few_frames(tmp_path: Path, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the seek, the last second of a long file would cost the decoding of all of it."""
    path = make_video(tmp_path / "long.mp4", 140, options={"g": "40", "sc_threshold": "0", "bf": "3"})
    info = scan(path)
    decoded: list[int] = []
    original = np.searchsorted
    monkeypatch.setattr(np, "searchsorted", lambda times, value: decoded.append(value) or original(times, value))
    read_frames(path, [5, 83, 125], info)
    assert len(decoded) <= 6 + 4 + 6  # keyframes are 0, 40, 80, 120
    print(f"decoded {len(decoded)} of {info.frames} frames")


def test_speed_against_a_whole_decode(tmp_path: Path, make_video: MakeVideo) -> None:
    """Prints what the seek saves (not asserted: machines differ); fails if the frames differ."""
    path = make_video(tmp_path / "long.mp4", np.zeros((140, 256, 320, 3), np.uint8), options={"g": "12"})
    info = scan(path)
    started = time.perf_counter()
    some = read_frames(path, range(96, 128, 2), info)
    seeking = time.perf_counter() - started
    started = time.perf_counter()
    with av.open(path) as container:
        whole = np.stack([frame.to_ndarray(format="rgb24", threads=1) for frame in container.decode(video=0)])
    decoding = time.perf_counter() - started
    print(f"16 of 140 frames: {seeking * 1e3:.1f} ms with a seek, {decoding * 1e3:.1f} ms for all")
    np.testing.assert_array_equal(some, whole[96:128:2])


def test_time_stamps_that_are_all_equal(tmp_path: Path, make_video: MakeVideo, which_frames: WhichFrames) -> None:
    """Some tools write time stamp 0 for every frame: counted, such files are as good as others."""
    path = tmp_path / "stopped.mp4"
    make_video(path, 30, options={"bf": "0"})
    data = bytearray(path.read_bytes())
    at = data.index(b"stts")  # one run of (30 frames, 512 ticks): make it 0 ticks
    assert int.from_bytes(data[at + 8 : at + 12]) == 1
    data[at + 16 : at + 20] = bytes(4)
    path.write_bytes(data)
    info = scan(str(path))
    assert (info.frames, info.timed) == (30, False)
    assert which_frames(read_frames(str(path), [0, 7, 29], info)) == [0, 7, 29]


def test_seconds(tmp_path: Path, make_video: MakeVideo) -> None:
    """A clip given in seconds would otherwise begin at another frame than it says."""
    info = scan(make_video(tmp_path / "a.mp4", 50, timestamps=[500 + 4 * i for i in range(50)]))
    assert info.duration == pytest.approx(2.0)
    assert info.between(0.4, 1.2) == range(10, 30)  # both on a frame: the first belongs to it
    assert info.between(0.41, 99) == range(11, 50)
    assert info.between(3, 4) == range(50, 50)


@pytest.mark.parametrize(("rotation", "white"), [(90, "left"), (-90, "right"), (180, "bottom")])
def test_rotation(rotation: int, white: str, tmp_path: Path, make_video: MakeVideo) -> None:
    """Videos of a phone held upright would lie on their side. The file's angle is counterclockwise."""
    video = np.full((3, 48, 64, 3), 60, np.uint8)
    video[:, :12] = 255  # the top
    path = make_video(tmp_path / "a.mp4", video, rotation=rotation)
    image = read_frames(path, [1])[0]
    sides = {"top": image[2], "bottom": image[-3], "left": image[:, 2], "right": image[:, -3]}
    assert [side for side, line in sides.items() if line.min() > 200] == [white]
    assert scan(path)[1:3] == image.shape[:2] == ((48, 64) if rotation == 180 else (64, 48))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_short_videos(count: int, tmp_path: Path, make_video: MakeVideo, which_frames: WhichFrames) -> None:
    """One frame has no rate and no gap: nothing may divide by it."""
    path = make_video(tmp_path / "short.mp4", count)
    info = scan(path)
    assert info.frames == count
    assert info.duration == pytest.approx((count - 1) * 0.04 * count / max(count - 1, 1))
    assert which_frames(read_frames(path, range(count), info)) == list(range(count))


def test_grey_video_has_three_channels(tmp_path: Path, make_video: MakeVideo, which_frames: WhichFrames) -> None:
    """A grey file among coloured ones would not stack into a batch."""
    path = make_video(tmp_path / "grey.mkv", 30, codec="ffv1", pix_fmt="gray")
    video = read_frames(path, [4, 20])
    assert video.shape == (2, 48, 64, 3)
    assert which_frames(video) == [4, 20]


def test_odd_sizes(tmp_path: Path, make_video: MakeVideo, numbered: Callable[..., np.ndarray]) -> None:
    """Rows are padded in the decoder's memory: with odd widths a wrong stride shears the picture."""
    video = numbered(30, 37, 53)
    path = make_video(tmp_path / "odd.mp4", video, pix_fmt="yuv444p")
    read = read_frames(path, [5, 26])
    assert read.shape == (2, 37, 53, 3)
    assert np.abs(read.astype(int) - video[[5, 26]]).mean() < 3


def test_a_frame_that_is_not_there(tmp_path: Path, make_video: MakeVideo) -> None:
    """An index past the end is the caller's mistake, not the file's."""
    path = make_video(tmp_path / "a.mp4", 5)
    for wanted in ([5], [-1], []):
        with pytest.raises(IndexError, match="0 to 4"):
            read_frames(path, wanted)


def _bad_files(folder: Path, make_video: MakeVideo, moving: np.ndarray) -> dict[str, tuple[Path, str]]:
    """Path and a part of the reason, by what is wrong."""
    good = Path(make_video(folder / "good.mp4", moving)).read_bytes()
    header_first = make_video(folder / "first.mp4", moving, container_options={"movflags": "faststart"})
    first = Path(header_first).read_bytes()
    contents = {
        "text.mp4": (b"this is no video\n" * 50, "is no video"),
        "empty.mp4": (b"", "is no video"),
        "truncated.mp4": (good[: len(good) // 2], "is no video, or cut off"),
        "truncated_header_first.mp4": (first[: len(first) // 2], "cut off or damaged at packet"),
        "truncated.webm": (b"\x1aE\xdf\xa3" + bytes(100), "is no video"),
    }
    files = {}
    for name, (content, reason) in contents.items():
        (folder / name).write_bytes(content)
        files[name] = (folder / name, reason)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    files["sound.mp4"] = (folder / "sound.mp4", "no video stream")
    files["missing.mp4"] = (folder / "missing.mp4", "no such file")
    (folder / "empty_folder").mkdir()
    files["empty_folder"] = (folder / "empty_folder", "without numbered frames")
    return files


def test_reasons(tmp_path: Path, make_video: MakeVideo, moving: np.ndarray) -> None:
    """Whatever the decoder raises must become one line about one file, or a run dies with a stack of the library's."""
    for path, reason in _bad_files(tmp_path, make_video, moving).values():
        with pytest.raises(CorruptSample, match=reason) as error:
            scan(str(path))
        assert error.value.id == str(path)
        assert "\n" not in error.value.reason


def test_damage_that_a_scan_does_not_see(tmp_path: Path, make_video: MakeVideo, moving: np.ndarray) -> None:
    """The index is whole and the pictures are not: that shows only when they are decoded."""
    path = tmp_path / "a.mp4"
    make_video(path, moving, options={"bf": "0"}, container_options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half : half + 4000] = np.random.default_rng(0).bytes(4000)
    path.write_bytes(data)
    info = scan(str(path))
    with pytest.raises(CorruptSample, match=r"damaged|cannot be decoded"):
        read_frames(str(path), range(info.frames), info)
    assert read_frames(str(path), [0], info).shape == (1, 48, 64, 3)  # the first is far from the damage


def test_a_file_that_shrank_since_its_scan(tmp_path: Path, make_video: MakeVideo, moving: np.ndarray) -> None:
    """A manifest from before the damage promises frames that are gone."""
    path = tmp_path / "a.mp4"
    make_video(path, moving, container_options={"movflags": "faststart"})
    info = scan(str(path))
    path.write_bytes(path.read_bytes()[: os.path.getsize(path) // 2])
    with pytest.raises(CorruptSample):
        read_frames(str(path), [59], info)
    path.unlink()
    with pytest.raises(CorruptSample, match="no such file"):
        read_frames(str(path), [59], info)


def _write_images(folder: Path, images: np.ndarray, pattern: str, first: int) -> None:
    folder.mkdir()
    for number, image in enumerate(images, start=first):
        Image.fromarray(image).save(folder / pattern.format(number), quality=95)


@pytest.mark.parametrize(("pattern", "first"), [("frame_{:010d}.jpg", 1), ("{}.png", 8), ("img{:02d}.jpg", 97)])
def test_folder_of_frames(
    pattern: str, first: int, tmp_path: Path, numbered: Callable[..., np.ndarray], which_frames: WhichFrames
) -> None:
    """Frames sorted as text (10.png before 8.png) or counted from the wrong number would be other frames."""
    _write_images(tmp_path / "v", numbered(15), pattern, first)
    info = scan(str(tmp_path / "v"))
    assert (info.frames, info.height, info.width) == (15, 48, 64)
    assert which_frames(read_frames(str(tmp_path / "v"), [14, 0, 3, 3], info)) == [14, 0, 3, 3]


def test_folder_with_a_gap(tmp_path: Path, numbered: Callable[..., np.ndarray]) -> None:
    """Frame n of the list would be the file n + 1."""
    _write_images(tmp_path / "v", numbered(5), "frame_{:010d}.jpg", 1)
    (tmp_path / "v" / "frame_0000000003.jpg").unlink()
    with pytest.raises(CorruptSample, match=r"frame_0000000003\.jpg is missing"):
        scan(str(tmp_path / "v"))


def test_folder_with_a_broken_image(tmp_path: Path, numbered: Callable[..., np.ndarray]) -> None:
    """A truncated image is a corrupt sample as a truncated video is."""
    _write_images(tmp_path / "v", numbered(5), "frame_{:010d}.jpg", 1)
    info = scan(str(tmp_path / "v"))
    (tmp_path / "v" / "frame_0000000003.jpg").write_bytes(b"\xff\xd8\xff no image")
    with pytest.raises(CorruptSample, match="no readable image"):
        read_frames(str(tmp_path / "v"), [2], info)
