"""What is made once and kept between runs: where it lies, and how several processes make it once."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from lightning_vl.errors import UserError


def cache_folder() -> Path:
    """$LIGHTNING_VL_CACHE, or lightning_vl in $XDG_CACHE_HOME or ~/.cache: never beside the data, which may be read-only."""
    if folder := os.environ.get("LIGHTNING_VL_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_vl"


def built_once(path: Path, whole: Callable[[Path], bool], build: Callable[[Path], None]) -> None:
    """Sees to it that a file or folder of the cache is there, made by one of the processes that want it.

    It is made aside and moved into place: a kill or a full disk leaves nothing behind that looks like it, and what a
    process finds damaged is made again.

    Args:
        path: where it shall be.
        whole: says whether what is there is whole.
        build: makes it at the path that it is given.

    Raises:
        UserError: the folder cannot be written.
    """
    if whole(path):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if whole(path):  # another process was first
                return
            for left in [path, *path.parent.glob(f"{path.name}.*.part")]:  # damaged, or of a process that was killed
                _remove(left)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.", suffix=".part") as aside:
                build(Path(aside) / path.name)
                os.replace(Path(aside) / path.name, path)
    except (OSError, NotImplementedError) as error:  # the latter from a file system without locks
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be made: {reason}",
            "free some space there, or name a folder on a local disk with LIGHTNING_VL_CACHE",
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
