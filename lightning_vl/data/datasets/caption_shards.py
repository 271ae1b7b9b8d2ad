"""Images with captions in tar shards, as img2dataset and WebDataset write them: streamed, however many there are."""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from lightning_vl.data.cache import built_once, cache_folder
from lightning_vl.data.captions import CaptionedImage, StreamedCaptions, stated
from lightning_vl.data.datasets.image_folder import decode_image
from lightning_vl.data.datasets.shard_names import matching
from lightning_vl.data.datasets.tar_headers import contents
from lightning_vl.data.source import Split
from lightning_vl.errors import CorruptSample, UserError
from lightning_vl.terminal import say

SCHEMA = 1  # a change of the index's meaning starts new ones
IMAGES = ("jpg", "jpeg", "png", "webp")
LEFT_OUT = {"no_text": "without text", "no_image": "without an image", "second": "that are second images of a key"}
Patterns = str | list[str]


class CaptionShards(StreamedCaptions):
    """Tar files whose members belong together by name: `<key>.jpg` with `<key>.txt` or `<key>.json`.

    The key is the name up to the first dot of its last part. An image is jpg, jpeg, png or webp; each line of `.txt` is a
    caption; `.json` is an object with a caption or a list of them. What lacks image or text is left out, and a line says
    how much. A shard that is cut off gives the samples before the cut, and a line says so. Compressed shards have no
    places to read from and are refused.

    The headers of each shard are read once and kept in the cache as an index, which is mapped into memory; nothing of a
    shard is read but the samples that are asked for. So which sample stands at a position of the training stream is a
    pure function of (seed, epoch, index): shards in random order, `shuffle_shards` of them at a time, their samples
    mixed. Any number of processes and workers, more than shards too, shares them out without repeats, and a run goes on
    from its position without reading up to it.

    Args:
        root: the folder of the shards.
        train: pattern of the training shards' names relative to the root (`*.tar`, `{00000..00331}.tar`), or a list of them.
        validation: the same of the validation shards; None for some of the training pairs.
        test: the same of the test shards; None for some of the training pairs.
        caption_key: where `.json` has the caption; by default the text of `.txt`, or else `caption` of `.json`.
        shuffle_shards: shards whose samples are mixed.
        held_out: pairs for each of validation and test that has no shards.
        split_seed: seed of that choice, which is part of the experiment.
    """

    def __init__(
        self,
        root: str,
        train: Patterns = "*.tar",
        validation: Patterns | None = None,
        test: Patterns | None = None,
        caption_key: str | None = None,
        shuffle_shards: int = 8,
        held_out: int = 1000,
        split_seed: int = 0,
    ) -> None:
        if shuffle_shards < 1 or held_out < 1:
            raise UserError(
                f"shuffle_shards is {shuffle_shards} and held_out {held_out}", "give 1 or more for each of them"
            )
        self.root = root
        self.patterns: dict[Split, Patterns | None] = {"train": train, "validation": validation, "test": test}
        self.caption_key = caption_key
        self.shuffle_shards = shuffle_shards
        self.held_out = held_out
        self.split_seed = split_seed
        self._order: tuple[tuple[int, int], np.ndarray, np.ndarray] = ((-1, -1), np.empty(0), np.empty(0))
        self._read_once: dict[Split, list[tuple[CaptionedImage, int]]] = {}

    @property
    def length(self) -> int:
        """Training pairs of an epoch."""
        return int(self._training_starts[-1])

    def images(self, split: Split) -> Sequence[CaptionedImage]:
        """The images of validation or test in the order of the shards, with their captions.

        Raises:
            UserError: no shards, one that is compressed or holds no pairs, or it is the training split.
        """
        if split == "train":
            raise UserError(
                f"the training pairs of {self.root} are streamed, and cannot be listed",
                "read them as validation or test shards where a list is needed",
            )
        return [image for image, _ in self._listed(split)]

    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of validation or test: uint8 (h, w, 3), RGB.

        Raises:
            CorruptSample: it cannot be decoded.
        """
        image, place = self._listed(split)[index]
        return decode_image(io.BytesIO(self._pairs_of(split).image(place)), image.id)

    def captions(self, split: Split) -> Iterator[tuple[str, ...]]:
        """The captions of each image in turn; those of training are read as they are asked for, and empty ones left out."""
        if split != "train":
            yield from super().captions(split)
            return
        pairs = self._shards["train"]
        for number in tqdm(range(self.length), "reading captions", disable=None, leave=False, delay=1):
            try:
                yield pairs.captioned(self._training_place(number)).captions
            except CorruptSample:
                continue  # reported and counted where it is trained on

    def read_in_order(self, seed: int, epoch: int, index: int) -> tuple[CaptionedImage, np.ndarray]:
        """See `StreamedCaptions`."""
        image, encoded = self.encoded_in_order(seed, epoch, index)
        return image, decode_image(io.BytesIO(encoded), image.id)

    def encoded_in_order(self, seed: int, epoch: int, index: int) -> tuple[CaptionedImage, bytes]:
        """`read_in_order`, the image as it is stored."""
        return self._shards["train"].pair(self._training_place(self._drawn(seed, epoch, index)))

    def _drawn(self, seed: int, epoch: int, index: int) -> int:
        """Which training pair, counted in the order of the shards, stands at a position of an epoch."""
        if self._order[0] != (seed, epoch):
            shards = np.random.default_rng([seed, epoch]).permutation(len(self._training_starts) - 1)
            self._order = (seed, epoch), shards, np.cumsum(np.diff(self._training_starts)[shards])
        _, shards, ends = self._order
        group = int(np.searchsorted(ends, index, side="right")) // self.shuffle_shards
        first = group * self.shuffle_shards
        start = int(ends[first - 1]) if first else 0
        size = int(ends[min(first + self.shuffle_shards, len(ends)) - 1]) - start
        mixed = start + int(_permutation(size, seed, epoch, group)[index - start])
        turn = int(np.searchsorted(ends, mixed, side="right"))
        return int(self._training_starts[shards[turn]]) + mixed - (int(ends[turn - 1]) if turn else 0)

    def _training_place(self, number: int) -> int:
        """The place among all pairs of the training shards: those held out for other splits are passed over."""
        held = self._held
        # the i-th of them, in order, has held[i] - i training pairs before it
        return number + int(np.searchsorted(held - np.arange(len(held)), number, side="right"))

    @cached_property
    def _training_starts(self) -> np.ndarray:
        """How many training pairs lie before each shard, and how many there are: int64 (shards + 1,)."""
        starts = np.concatenate([[0], self._shards["train"].ends])
        return starts - np.searchsorted(self._held, starts)

    @cached_property
    def _held(self) -> np.ndarray:
        """Places of the training shards' pairs that are for other splits, ascending."""
        return np.sort(np.concatenate([np.empty(0, np.int64), *self._held_for.values()]))

    @cached_property
    def _held_for(self) -> dict[Split, np.ndarray]:
        lacking: list[Split] = [split for split in ("validation", "test") if self.patterns[split] is None]
        pairs, count = len(self._shards["train"]), self.held_out * len(lacking)
        if lacking and pairs <= count:
            raise UserError(
                f"the training shards of {self.root} hold {pairs} pairs, and {count} are to be held out",
                "lower the source's held_out, or give validation and test shards",
            )
        drawn = np.random.default_rng(self.split_seed).choice(pairs, count, replace=False)
        return {split: np.sort(drawn[turn :: len(lacking)]) for turn, split in enumerate(lacking)}

    def _pairs_of(self, split: Split) -> "ShardedPairs":
        return self._shards.get(split, self._shards["train"])

    def _listed(self, split: Split) -> list[tuple[CaptionedImage, int]]:
        """The images of validation or test, and their places."""
        if split not in self._read_once:
            pairs = self._pairs_of(split)
            places = range(len(pairs)) if split in self._shards else self._held_for[split].tolist()
            found = []
            for place in places:
                try:
                    found.append((pairs.captioned(place), place))
                except CorruptSample as error:
                    say(f"{split}: left out a pair: {error}")
            self._read_once[split] = found
        return self._read_once[split]

    @cached_property
    def _shards(self) -> dict[Split, "ShardedPairs"]:
        """All shards at once, so that a mistake in the test shards is found before training."""
        if not os.path.isdir(self.root):
            raise UserError(f"there is no folder {self.root}", "give the shards' folder as the source's root")
        names = {split: self._matching(patterns) for split, patterns in self.patterns.items() if patterns is not None}
        owner: dict[str, Split] = {}
        for split, found in names.items():
            for name in found:
                if owner.setdefault(name, split) != split:
                    raise UserError(
                        f"{name} of {self.root} is both a {owner[name]} and a {split} shard",
                        "give the splits patterns that share no shard",
                    )
        indices = _index_all([os.path.join(self.root, name) for name in owner], self.caption_key is None)
        shards: dict[Split, ShardedPairs] = {}
        for split, found in names.items():
            held = [indices[os.path.join(self.root, name)] for name in found]
            shards[split] = ShardedPairs(self.root, found, held, self.caption_key or "caption")
            _report(split, found, held)
            if not len(shards[split]):
                raise UserError(
                    f"the {split} shards, {os.path.join(self.root, found[0])} the first, have no image with text of the same key",
                    "fetch them again; wanted are KEY.jpg (jpeg, png, webp) with KEY.txt or KEY.json",
                )
        return shards

    def _matching(self, patterns: Patterns) -> list[str]:
        names: set[str] = set()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found, missing = matching(self.root, pattern)
            if missing is not None:
                raise UserError(
                    f"there is no shard {os.path.join(self.root, missing)}",
                    "check the source's root and its patterns: * ? [0-9] ** and {000..123}, a list for several of them",
                )
            names.update(found)
        return sorted(names)


class Index(NamedTuple):
    """The index of a shard: a line of JSON, then a row for each pair.

    Attributes:
        file: where it lies.
        start: of its rows, bytes.
        about: `pairs`, `longest` name in bytes, whether the shard is `whole`, and how many files were left out and why.
    """

    file: Path
    start: int
    about: dict[str, Any]


class ShardedPairs:
    """The pairs of several shards, by place from 0.

    Args:
        root: the folder of the shards.
        names: their names relative to it.
        indices: their indices.
        caption_key: where JSON has the caption.
    """

    def __init__(self, root: str, names: list[str], indices: list[Index], caption_key: str) -> None:
        self.root = root
        self.names = names
        self.indices = indices
        self.caption_key = caption_key
        self.ends = np.cumsum([index.about["pairs"] for index in indices])  # (shards,)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def captioned(self, place: int) -> CaptionedImage:
        """Name and captions.

        Raises:
            CorruptSample: it has no caption.
        """
        name, row = self._row(place)
        (text,) = self._contents(name, row, "text")
        return self._captioned(name, row, text)

    def image(self, place: int) -> bytes:
        """The encoded image.

        Raises:
            CorruptSample: the shard cannot be read.
        """
        return self._contents(*self._row(place), "image")[0]

    def pair(self, place: int) -> tuple[CaptionedImage, bytes]:
        """Both.

        Raises:
            CorruptSample: it has no caption, or the shard cannot be read.
        """
        name, row = self._row(place)
        text, image = self._contents(name, row, "text", "image")
        return self._captioned(name, row, text), image

    def _row(self, place: int) -> tuple[str, np.void]:
        shard = int(np.searchsorted(self.ends, place, side="right"))
        index = self.indices[shard]
        rows = _rows(index.file, index.start, index.about["longest"])
        return self.names[shard], rows[place - int(self.ends[shard]) + len(rows)]

    def _contents(self, name: str, row: np.void, *parts: str) -> list[bytes]:
        try:
            with open(os.path.join(self.root, name), "rb", buffering=0) as file:
                return [os.pread(file.fileno(), int(row[f"{part}_size"]), int(row[part])) for part in parts]
        except OSError as error:
            raise CorruptSample(_id(name, row), f"its shard cannot be read: {error.strerror}") from error

    def _captioned(self, name: str, row: np.void, content: bytes) -> CaptionedImage:
        id = _id(name, row)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CorruptSample(id, "its text is not UTF-8") from error
        said: Any = text.split("\n")
        if row["json"]:
            try:
                said = json.loads(text)[self.caption_key]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise CorruptSample(id, f"its JSON has nothing under {self.caption_key!r}") from error
            said = said if isinstance(said, list) else [said]
        captions = stated([caption for caption in said if isinstance(caption, str)])
        if not captions:
            raise CorruptSample(id, "it has no caption")
        return CaptionedImage(id, captions)


def _id(name: str, row: np.void) -> str:
    return f"{name}/{row['name'].decode('utf-8', 'surrogateescape')}"


@lru_cache(maxsize=4)  # a batch may straddle two groups, or two epochs
def _permutation(length: int, seed: int, epoch: int, group: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, group, 1]).permutation(length)


@lru_cache(maxsize=1024)
def _rows(file: Path, start: int, longest: int) -> np.ndarray:
    if file.stat().st_size == start:
        return np.empty(0, _kind(longest))
    return np.memmap(file, _kind(longest), mode="r", offset=start)


def _kind(longest: int) -> np.dtype:
    return np.dtype(
        [
            ("image", "i8"),  # where its content begins in the shard, bytes
            ("image_size", "i8"),
            ("text", "i8"),
            ("text_size", "i8"),
            ("json", "?"),
            ("name", f"S{longest}"),
        ]
    )


def _report(split: Split, names: list[str], indices: list[Index]) -> None:
    for name, index in zip(names, indices, strict=True):
        if not index.about["whole"]:
            say(f"{split}: {name} is cut off or damaged; the {index.about['pairs']:,} pairs before that are used")
    line = f"{split}: {sum(index.about['pairs'] for index in indices):,} pairs in {len(names):,} shards"
    counts = {what: sum(index.about[what] for index in indices) for what in LEFT_OUT}
    left_out = [f"{count:,} {LEFT_OUT[what]}" for what, count in counts.items() if count]
    say(f"{line}; left out {', '.join(left_out)}" if left_out else line)


def _index_all(shards: list[str], with_txt: bool) -> dict[str, Index]:
    """The index of each shard, made where it is not in the cache. Several processes begin at different shards."""
    indices: dict[str, Index] = {}
    turns = np.random.default_rng(os.getpid()).permutation(len(shards))
    for turn in tqdm(turns, "indexing shards", disable=None, leave=False, delay=1):
        shard = shards[turn]
        try:
            stat = os.stat(shard)
        except OSError as error:
            raise UserError(f"{shard} cannot be read: {error.strerror}", "check the source's root") from error
        key = f"{SCHEMA} {os.path.abspath(shard)} {stat.st_size} {stat.st_mtime_ns} {with_txt}"
        file = cache_folder() / "shards" / hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        built_once(file, _is_whole, partial(_build, shard=shard, with_txt=with_txt))
        index = _opened(file)
        assert index is not None
        indices[shard] = index
    return indices


def _is_whole(file: Path) -> bool:
    return _opened(file) is not None


def _opened(file: Path) -> Index | None:
    """The index of a file; None where there is none, or a damaged one."""
    try:
        with file.open("rb") as opened:
            line = opened.readline()
        about = json.loads(line)
        whole = file.stat().st_size == len(line) + about["pairs"] * _kind(about["longest"]).itemsize
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Index(file, len(line), about) if whole else None


def _build(file: Path, shard: str, with_txt: bool) -> None:
    found = contents(shard)
    images: dict[str, tuple[str, int, int]] = {}
    texts: dict[str, tuple[int, int, bool]] = {}
    second = 0
    for name, member in found.files:
        folder, base = os.path.split(name)
        stem, _, suffix = base.partition(".")
        key = os.path.join(folder, stem)
        suffix = suffix.lower()
        if suffix in IMAGES:
            second += key in images
            images.setdefault(key, (name, member.offset, member.size))
        elif suffix == "txt" and with_txt:
            texts[key] = member.offset, member.size, False
        elif suffix == "json":
            texts.setdefault(key, (member.offset, member.size, True))
    pairs = [(key, images[key], texts[key]) for key in images if key in texts and texts[key][1]]
    names = [name.encode("utf-8", "surrogateescape") for _, (name, _, _), _ in pairs]
    about = {
        "pairs": len(pairs),
        "longest": max(map(len, names), default=1),
        "whole": found.whole,
        "no_text": len(images) - len(pairs),
        "no_image": sum(key not in images for key in texts),
        "second": second,
    }
    rows = np.empty(len(pairs), _kind(about["longest"]))
    for field, values in (
        ("image", [(place, size) for _, (_, place, size), _ in pairs]),
        ("text", [(place, size) for *_, (place, size, _) in pairs]),
    ):
        columns = np.array(values, np.int64).reshape(-1, 2)  # of no pairs, too
        rows[field], rows[f"{field}_size"] = columns[:, 0], columns[:, 1]
    rows["json"] = [json for *_, (_, _, json) in pairs]
    rows["name"] = names
    with file.open("wb") as opened:
        opened.write(json.dumps(about).encode() + b"\n")
        rows.tofile(opened)
