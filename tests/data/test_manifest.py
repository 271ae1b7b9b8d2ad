"""The manifest: what is known stays known, what changed is looked at again, and the data stays untouched."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_vl.data import manifest
from lightning_vl.data.manifest import MISSING, cache_path, scan_all
from lightning_vl.data.video import VideoInfo, scan

MakeVideo = Callable[..., str]


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were scanned, in order."""
    names: list[str] = []

    def counted(path: str) -> VideoInfo:
        names.append(os.path.basename(path))
        return scan(path)

    monkeypatch.setattr(manifest, "scan", counted)
    return names


@pytest.fixture
def root(tmp_path: Path, make_video: MakeVideo) -> str:
    """Two videos, and a text file that is called one."""
    make_video(tmp_path / "a.mp4", 20, options={"g": "5", "bf": "2"})
    make_video(tmp_path / "b.webm", 12, codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"})
    (tmp_path / "c.mp4").write_text("no video")
    return str(tmp_path)


FILES = ["a.mp4", "b.webm", "c.mp4", "d.mp4"]


def test_result_and_reasons(root: str) -> None:
    """Counts and reasons are what reports and the choice of usable clips rest on."""
    known = scan_all(root, FILES)
    assert list(known) == FILES
    assert known["a.mp4"] == scan(os.path.join(root, "a.mp4"))
    assert known["b.webm"].frames == 12
    assert "is no video" in known["c.mp4"]
    assert known["d.mp4"] == MISSING


def test_only_new_and_changed_files_are_scanned(root: str, scanned: list[str], make_video: MakeVideo) -> None:
    """A data set of 200,000 files cannot be scanned at every start, and a mended file must not stay corrupt."""
    first = scan_all(root, FILES)
    assert sorted(scanned) == ["a.mp4", "b.webm", "c.mp4"]
    scanned.clear()
    assert scan_all(root, FILES) == first  # from the cache: the same, to the last type
    assert scanned == []
    make_video(os.path.join(root, "c.mp4"), 7)
    make_video(os.path.join(root, "d.mp4"), 8)
    again = scan_all(root, FILES)
    assert sorted(scanned) == ["c.mp4", "d.mp4"]
    assert (again["c.mp4"].frames, again["d.mp4"].frames) == (7, 8)
    os.unlink(os.path.join(root, "a.mp4"))
    assert scan_all(root, ["a.mp4"]) == {"a.mp4": MISSING}


def test_folders_of_frames(tmp_path: Path, numbered: Callable, scanned: list[str]) -> None:
    """What is read from the cache must still find the images."""
    from PIL import Image

    (tmp_path / "v").mkdir()
    for number, image in enumerate(numbered(4), start=1):
        Image.fromarray(image).save(tmp_path / "v" / f"frame_{number:010d}.jpg")
    first = scan_all(str(tmp_path), ["v"])
    assert scan_all(str(tmp_path), ["v"]) == first
    assert first["v"].numbering == ("frame_", 10, 1, ".jpg")
    assert scanned == ["v"]


def test_the_data_is_not_written_to(root: str, private_cache: Path) -> None:
    """Users' data is often read-only, and theirs."""
    before = sorted(os.listdir(root))
    scan_all(root, FILES)
    assert sorted(os.listdir(root)) == before
    assert os.path.dirname(cache_path(root)) == str(private_cache / "lightning_vl")
    assert os.listdir(private_cache / "lightning_vl") == [os.path.basename(cache_path(root))]  # no half-written one


def test_two_lists_of_one_root_share_a_cache(root: str, scanned: list[str]) -> None:
    """Training and validation list must not throw each other's results away."""
    scan_all(root, ["a.mp4"])
    scan_all(root, ["b.webm"])
    scanned.clear()
    scan_all(root, ["a.mp4", "b.webm"])
    assert scanned == []


def test_damaged_cache(root: str, scanned: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """A cache cut off by a full disk costs a scan, not the run."""
    first = scan_all(root, FILES)
    path = Path(cache_path(root))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:20])
    scanned.clear()
    with caplog.at_level(logging.WARNING):
        assert scan_all(root, FILES) == first
    assert len(scanned) == 2
    assert "cannot be read" in caplog.text
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_cache_that_cannot_be_written(
    root: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A full or read-only home is no reason not to train."""
    occupied = tmp_path_factory.mktemp("home") / "file"
    occupied.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(occupied))
    with caplog.at_level(logging.WARNING):
        assert scan_all(root, FILES)["a.mp4"].frames == 20
    assert "cannot be written" in caplog.text


def test_interrupted_scan_keeps_what_it_has(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after ten minutes of scanning must not mean ten minutes again."""

    def interrupted(path: str) -> VideoInfo | str:
        if path.endswith("c.mp4"):
            raise KeyboardInterrupt
        return scan(path)

    monkeypatch.setattr(manifest, "_scan_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scan_all(root, FILES)
    kept = [json.loads(line)["file"] for line in Path(cache_path(root)).read_text().splitlines()]
    assert kept == ["a.mp4", "b.webm"]
