"""What is known of the videos below a root, remembered between runs.

A scan of every file of a large data set takes a while, so it is done once: a cache keeps each file's `VideoInfo` or
what is wrong with it. It lies outside of the data (which may be read-only), in `$XDG_CACHE_HOME/lightning_vl` or
`~/.cache/lightning_vl`, a file of JSON lines for each root. A line counts as long as the file's size and time of change
are the same; only new and changed files are scanned.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tqdm import tqdm

from lightning_vl.data.video import VideoInfo, scan
from lightning_vl.errors import CorruptSample

log = logging.getLogger(__name__)

SCHEMA = 2  # a change of VideoInfo's meaning starts a new cache
THREADS = 16  # the decoder works outside of the interpreter's lock, and network file systems take their time
MISSING = "no such file"


class Stamp(NamedTuple):
    """A file's state: when it differs, the file is scanned again."""

    size: int
    changed_ns: int


class Known(NamedTuple):
    """What a scan of a file in this state gave: its info, or the reason why there is none."""

    stamp: Stamp
    result: VideoInfo | str


def scan_all(root: str, files: Sequence[str]) -> dict[str, VideoInfo | str]:
    """The info, or a one-line reason why there is none, of each file (or folder of frames).

    Args:
        root: the folder that the files lie in.
        files: paths relative to the root.
    """
    cache = cache_path(root)
    known = _load(cache)
    with ThreadPoolExecutor(THREADS) as pool:
        stamps = dict(zip(files, pool.map(_stamp, [os.path.join(root, file) for file in files]), strict=True))
        new = {
            file: stamp for file, stamp in stamps.items() if stamp and (file not in known or known[file].stamp != stamp)
        }
        try:
            for (file, stamp), result in zip(new.items(), _scan(root, list(new), pool), strict=True):
                known[file] = Known(stamp, result)
        finally:  # an interrupted scan goes on where it was
            if new:
                _save(cache, known)
    return {file: known[file].result if stamp else MISSING for file, stamp in stamps.items()}


def cache_path(root: str) -> str:
    """Where the cache of this root lies."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.sha256(os.path.realpath(root).encode()).hexdigest()[:16]
    return os.path.join(home, "lightning_vl", f"videos{SCHEMA}-{name}.jsonl")


def _stamp(path: str) -> Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns)


def _scan(root: str, files: list[str], pool: ThreadPoolExecutor) -> Iterable[VideoInfo | str]:
    results = pool.map(_scan_one, [os.path.join(root, file) for file in files])
    return tqdm(
        results, f"looking at the videos of {root}", len(files), unit="file", disable=None, leave=False, delay=1
    )


def _scan_one(path: str) -> VideoInfo | str:
    try:
        return scan(path)
    except CorruptSample as error:
        return error.reason


def _load(cache: str) -> dict[str, Known]:
    known: dict[str, Known] = {}
    try:
        with open(cache, encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                result = entry["error"] if "error" in entry else _info(entry["info"])
                known[entry["file"]] = Known(Stamp(*entry["stamp"]), result)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, OSError) as error:
        log.warning("the cache %s cannot be read from some line on (%s): the rest is scanned again", cache, error)
    return known


def _info(fields: Mapping[str, Any]) -> VideoInfo:
    gaps, keyframes = tuple(map(tuple, fields["gaps"])), tuple(fields["keyframes"])
    numbering = fields["numbering"] and tuple(fields["numbering"])
    return VideoInfo(**{**fields, "gaps": gaps, "keyframes": keyframes, "numbering": numbering})


def _save(cache: str, known: dict[str, Known]) -> None:
    """Whole or not at all: a reader never sees half of it, and of two writers the later one wins."""
    temporary = None
    try:
        os.makedirs(os.path.dirname(cache), exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=os.path.dirname(cache), suffix=".part", delete=False, encoding="utf-8"
        ) as file:
            temporary = file.name
            for name, (stamp, result) in known.items():
                outcome = {"error": result} if isinstance(result, str) else {"info": result._asdict()}
                file.write(json.dumps({"file": name, "stamp": stamp, **outcome}) + "\n")
        os.replace(temporary, cache)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        log.warning("the cache %s cannot be written (%s): the videos are scanned again next time", cache, error)
