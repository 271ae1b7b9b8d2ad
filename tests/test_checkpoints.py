"""Checkpoint files: whole or not there, damage is found, code is refused."""

import os
import pickle
import resource
from pathlib import Path

import pytest
import torch

from lightning_vl.checkpoints import PARTIAL, WholeCheckpoints, damage, last_complete, load_whole
from lightning_vl.errors import UserError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of some kilobytes."""
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"weights": torch.arange(4096.0), "step": 3}, path)
    return path


def test_a_checkpoint_comes_back(saved: Path) -> None:
    """Breaks if saving loses something, or leaves its partial file behind."""
    checkpoint = load_whole(saved)
    assert checkpoint["step"] == 3
    assert torch.equal(checkpoint["weights"], torch.arange(4096.0))
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("harm", ["truncated", "empty", "flipped", "missing"])
def test_a_damaged_checkpoint_is_named(saved: Path, harm: str) -> None:
    """Breaks if damage goes unnoticed (torch itself does not check sums) or the message does not name the file."""
    content = bytearray(saved.read_bytes())
    match harm:
        case "truncated":
            saved.write_bytes(content[:-1000])
        case "empty":
            saved.write_bytes(b"")
        case "flipped":
            content[len(content) // 2] ^= 1
            saved.write_bytes(content)
        case "missing":
            saved.unlink()
    with pytest.raises(UserError, match=r"last\.ckpt"):
        load_whole(saved)


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, container: str) -> None:
    """Breaks if a checkpoint is unpickled freely."""
    path, touched = tmp_path / "evil.ckpt", tmp_path / "touched"
    if container == "torch":
        torch.save({"state_dict": {}, "payload": Bomb(touched)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(touched)))
    with pytest.raises(UserError, match=r"evil\.ckpt"):
        load_whole(path)
    assert not touched.exists()


def test_the_newest_complete_checkpoint_is_found_and_the_others_are_named(saved: Path) -> None:
    """Breaks if a save cut off by a kill hides the earlier checkpoint, or passes silently."""
    folder = saved.parent
    (folder / f"last.ckpt{PARTIAL}").write_bytes(b"half")
    torn = folder / "best.ckpt"
    torn.write_bytes(saved.read_bytes()[:-100])
    os.utime(torn, (2**31, 2**31))
    path, passed = last_complete(folder)
    assert path == saved
    assert len(passed) == 2
    assert "best.ckpt" in " ".join(passed)
    assert f"last.ckpt{PARTIAL}" in " ".join(passed)


def test_nothing_to_go_on_from_is_no_error(tmp_path: Path) -> None:
    """Breaks if a fresh run with auto-resume fails."""
    assert last_complete(tmp_path / "nowhere") == (None, [])


def test_a_full_disk_leaves_the_earlier_checkpoint(saved: Path) -> None:
    """Breaks if a failed write destroys what was saved before: the operating system refuses to write more than 8 kB."""
    before = saved.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(UserError, match=r"cannot save .*last\.ckpt.*earlier one"):
            WholeCheckpoints().save_checkpoint({"weights": torch.arange(10000.0)}, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved.read_bytes() == before
    assert damage(saved) is None
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]
