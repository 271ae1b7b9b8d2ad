"""The cache: made once by several processes, never half there."""

import multiprocessing
from pathlib import Path

import pytest

from lightning_vl.data.cache import built_once, cache_folder
from lightning_vl.errors import UserError


def is_whole(path: Path) -> bool:
    """What the tests' builders write."""
    return path.exists() and path.read_text() == "whole"


def build_slowly(path: Path, log: Path) -> None:
    """One of several processes."""

    def build(aside: Path) -> None:
        with log.open("a") as file:
            file.write("built\n")
        aside.write_text("whole")

    built_once(path, is_whole, build)
    assert is_whole(path)


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Breaks if the user's choice of folder is not followed."""
    monkeypatch.setenv("LIGHTNING_VL_CACHE", str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen"
    monkeypatch.delenv("LIGHTNING_VL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lightning_vl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lightning_vl"


def test_several_processes_build_once(tmp_path: Path) -> None:
    """Breaks if every rank tokenises the corpus, or one reads what another has not finished."""
    path, log = tmp_path / "there" / "file", tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=build_slowly, args=(path, log)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text() == "built\n"


def test_nothing_half_made_stays(tmp_path: Path) -> None:
    """Breaks if an error leaves something that the next start takes for whole, or what a killed process left stays for good."""
    path = tmp_path / "folder"
    killed = tmp_path / "folder.abc.part"
    killed.mkdir()
    (killed / "large").touch()

    def fail(aside: Path) -> None:
        aside.mkdir()
        (aside / "half").touch()
        raise UserError("line 3 is wrong", "mend it")

    with pytest.raises(UserError, match="line 3"):
        built_once(path, Path.exists, fail)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.lock"]


def test_damaged_is_built_again(tmp_path: Path) -> None:
    """Breaks if a cut-off file is used or stops the run for good."""
    path = tmp_path / "file"
    path.write_text("who")
    built_once(path, is_whole, lambda aside: aside.write_text("whole") and None)
    assert is_whole(path)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Breaks if a read-only or full cache is a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made") as error:
        built_once(tmp_path / "file" / "inside", is_whole, lambda aside: None)
    assert "LIGHTNING_VL_CACHE" in error.value.how
