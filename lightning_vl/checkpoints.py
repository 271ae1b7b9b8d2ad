"""Checkpoints that are whole or not there: written aside and moved into place, checked when read, never unpickled freely."""

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from lightning_vl.errors import UserError

PARTIAL = ".partial"
PLAN = ".metadata"  # of a sharded checkpoint: which part of which file holds what
REST = "meta.pt"  # likewise: what is neither weight nor optimiser
IN_A_PLAN = ("torch.distributed.checkpoint.", "torch.serialization._get_layout", "pathlib.")


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
            if path.is_dir():  # of the same run, when its checkpoints were sharded
                shutil.rmtree(path)
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
        """Deletes a file, or the folder of a sharded checkpoint."""
        if Path(path).is_dir():
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)


def load_whole(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of tensors and plain values.

    Raises:
        UserError: missing, incomplete or damaged file, one that carries code, or a sharded checkpoint.
    """
    if is_sharded(path):
        raise UserError(
            f"{path} is a folder of shards, which only a sharded run reads",
            "add -c experiments/overlays/fsdp.yaml, or start from its weights: python -m lightning_vl export makes one file",
        )
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
    """What is wrong with a checkpoint, or None: the archives' own checksums tell."""
    if is_sharded(path):
        return _damage_of_shards(path)
    if not path.is_file():
        return "no such file"
    if path.stat().st_size == 0:
        return "the file is empty"
    return _damage_of_archive(path)


def _damage_of_archive(file: Any) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
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


# --- sharded checkpoints: the folders that torch.distributed.checkpoint writes --------------------------------------


def is_sharded(path: Path) -> bool:
    """Whether this is the folder of a sharded checkpoint."""
    return path.is_dir() and (path / REST).is_file()


class _PlanReader(pickle.Unpickler):
    """Makes of a plan's pickle what belongs into a plan, and nothing else: a pickle may call anything."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}".startswith(IN_A_PLAN) or (module == "torch" and hasattr(torch, name)):
            found = super().find_class(module, name)
            if isinstance(found, type | torch.dtype) or name == "_get_layout":
                return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_plan(path: Path) -> Any:
    """The plan of a sharded checkpoint: `state_dict_metadata` and `storage_data`.

    Raises:
        UserError: there is none, or it carries more.
    """
    try:
        with (path / PLAN).open("rb") as file:
            plan = _PlanReader(file).load()
        return plan.state_dict_metadata and plan.storage_data and plan
    except (OSError, EOFError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path / PLAN} is missing or broken: {_first_line(error)}", "give another checkpoint"
        ) from error


def _parts(path: Path, plan: Any) -> Iterator[tuple[str, io.BytesIO]]:
    """Every part of every shard by the name of what it is of."""
    for index, place in plan.storage_data.items():
        with (path / Path(place.relative_path).name).open("rb") as file:
            file.seek(place.offset)
            yield index.fqn, io.BytesIO(file.read(place.length))


def _damage_of_shards(path: Path) -> str | None:
    reason = _damage_of_archive(path / REST)
    if reason:
        return f"{REST} is {reason}"
    try:
        for name, part in _parts(path, read_plan(path)):
            reason = _damage_of_archive(part)
            if reason:
                return f"{name} is {reason}"
            part.seek(0)
            torch.load(part, map_location="cpu", weights_only=True)  # torch itself would run what it carries
    except UserError as error:
        return error.what
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        return f"incomplete, damaged, or more than tensors and plain values ({_first_line(error)})"
    return None


def consolidate(path: Path) -> dict[str, Any]:
    """A sharded checkpoint as one: the whole weights, and what is neither weight nor optimiser.

    Raises:
        UserError: incomplete or damaged, or it carries code.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reason = damage(path)
    if reason:
        raise UserError(f"{path}: {reason}", "give another checkpoint")
    prefix = "state_dict."
    weights = {
        name: torch.empty(tuple(about.size), dtype=about.properties.dtype)
        for name, about in read_plan(path).state_dict_metadata.items()
        if name.startswith(prefix) and hasattr(about, "properties")
    }
    load(weights, storage_reader=FileSystemReader(path), no_dist=True)
    rest = torch.load(path / REST, map_location="cpu", weights_only=True)
    return {**rest, "state_dict": {name.removeprefix(prefix): tensor for name, tensor in weights.items()}}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
