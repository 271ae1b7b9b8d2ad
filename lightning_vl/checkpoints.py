"""Checkpoints that are whole or not there: written aside and moved into place, checked when read, never unpickled freely."""

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from lightning_vl.errors import UserError

PARTIAL = ".partial"


class WholeCheckpoints(CheckpointIO):
    """Reads and writes checkpoint files of one process group."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes beside the target and moves: a kill or a full disk leaves the earlier file as it was."""
        path = Path(path)
        partial = path.with_name(path.name + PARTIAL)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # torch turns a short write into a RuntimeError
            partial.unlink(missing_ok=True)
            kept = f"; {path} is the earlier one" if path.exists() else ""
            raise UserError(
                f"cannot save {path}: {_first_line(error)}{kept}",
                f"free some disk space ({shutil.disk_usage(path.parent).free / 2**30:.1f} GiB free there) and run the same "
                "command with the same --run.id: it goes on from the last checkpoint",
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint after checking that every byte is as it was written; code in it is refused."""
        return load_whole(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Deletes a file."""
        Path(path).unlink(missing_ok=True)


def load_whole(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of tensors and plain values.

    Raises:
        UserError: missing, incomplete or damaged file, or one that carries code.
    """
    reason = damage(path)
    if reason:
        raise UserError(f"{path}: {reason}", "give another checkpoint, or remove this one to start from an earlier one")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} holds more than tensors and plain values, and could run code: {_first_line(error)}",
            "only load checkpoints written by this command; for foreign weights use init_from with safetensors",
        ) from error


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None: the archive's own checksums tell."""
    if not path.is_file():
        return "no such file"
    if path.stat().st_size == 0:
        return "the file is empty"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        return f"incomplete or damaged ({_first_line(error)})"
    return f"damaged: checksum of {broken} is wrong" if broken else None


def last_complete(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint of a folder, and a line on each one that was passed over."""
    passed = [f"{path.name}: a save was cut off" for path in sorted(folder.glob(f"*{PARTIAL}"))]
    candidates = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in candidates:
        reason = damage(path)
        if reason is None:
            return path, passed
        passed.append(f"{path.name}: {reason}")
    return None, passed


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
